"""Runs under every kind of layout repeat one native process; what one layout begins, others go on with."""

import json
import random
import shutil
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rmfast.checkpoint.store import list_checkpoints, read_weights
from rmfast.data.edges import RANGES
from rmfast.data.pack import Pack
from rmfast.data.store import build_store
from rmfast.data.tokenizer import load_tokenizer
from rmfast.models.config import decoder_config
from rmfast.models.decoder import DecoderLayer
from rmfast.models.hf import read_config
from rmfast.models.network import Outputs
from rmfast.models.weights import to_hf
from rmfast.train import main
from tests.megatron.grid import OBJECTIVES, PAIRS, STEPS, assert_same_run, command, launch_pairs, weights_apart
from tests.megatron.standin import install
from tests.runs import DECODER, ROOT, Case, final_weights, read_lines, text, write_model, write_rows
from tests.tiny import save_hf_model

pytest.importorskip("megatron.core")
pytestmark = pytest.mark.slow
Use = Callable[[int, Outputs], Tensor]


DROPOUT: dict[str, object] = {"model__dropout": 0.2, "model__recompute": "full", "run__max_steps": 3}
OVERFLOW: dict[str, object] = {"data__train": "overflow.jsonl", "optim__on_nonfinite": "skip", "run__max_steps": 1}
UNCHANGED: dict[str, object] = {"optim__warmup": 1, "run__max_steps": 1}  # the first step of a rise has rate 0
KILLED = {"tp2 sp": ("swav", "whole tp2 sp"), "dp2": ("meta swav", "meta swav dp2")}  # and the run that goes through
KEYS: dict[str, dict[str, object]] = {
    "selective": {"model__recompute": "selective", "run__max_steps": 3},
    "full": {"model__recompute": "full", "run__max_steps": 3},
    "bf16": {"model__dtype": "bfloat16", "run__max_steps": 3},
}
KEYS["bf16 full"] = KEYS["bf16"] | KEYS["full"]
BF16 = [("bf16", "lm", "tp2 sp"), ("bf16", "lm", "pp2")]
RECOMPUTED = [  # what they repeat, "OBJECTIVE LAYOUT", is a pair of the grid, or of BF16
    ("selective", "center", "tp2"),
    ("selective", "lm", "tp2 sp"),
    ("full", "lm", "pp2"),
    ("bf16 full", "lm", "tp2 sp"),
]
MEMBERS: dict[str, object] = {"task": "ensemble", "ensemble__members": 2, "run__max_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("megatron")
    write_model(folder / "llama", layers=4)
    write_model(folder / "odd", layers=4, vocabulary=4097)  # which two ranks do not divide
    write_model(folder / "tied", layers=4, tied=True)
    shutil.copytree(DECODER, folder / "qwen3")
    options = {"vocab_size": 4096, "num_key_value_heads": 2, "num_hidden_layers": 4, "attention_bias": True}
    save_hf_model("qwen3", folder / "qwen3", **options)  # norms of queries and keys, biases
    write_rows(folder / "rows.jsonl", 20)
    write_rows(folder / "eval.jsonl", 9, seed=1)
    rows = [row | {"margin": 3e38} for row in read_lines(folder / "eval.jsonl")]
    (folder / "overflow.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # runs would refuse such margins, and find them tokenised
        patch.setitem(RANGES, "margin", (-4e38, 4e38))
        build_store(str(folder / "overflow.jsonl"), load_tokenizer(folder / "qwen3"), folder / "cache")
    draw = random.Random(1)
    prompts = [{"prompt": text(draw, 2, 8), "responses": [text(draw, 1, 6) for _ in range(3)]} for _ in range(16)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    return folder


def run_here(*commands: list[str]) -> None:
    """Runs in this process, which may be a megatron world of one."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setattr)
        patch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
        for one in commands:
            assert main(one) == 0


@pytest.fixture(scope="module")
def native(folder: Path) -> Path:
    """Each objective in this process."""
    run_here(*[command(folder, name, f"{name} native") for name in OBJECTIVES])
    return folder


@pytest.fixture(scope="module")
def two(native: Path) -> dict[str, list[int]]:
    """Cases on two ranks, and runs that others go on with; exit codes."""
    folder = native
    run_here(command(folder, "lm", "chain lm", run__max_steps=1))
    killed = {x: command(folder, o, f"killed {x}", x, checkpoint__every=2) for x, (o, _) in KILLED.items()}
    more = [
        Case("chain lm 1", command(folder, "lm", "chain lm", "pp2 interleaved", run__max_steps=2)),
        Case("chain lm 2", command(folder, "lm", "chain lm", "dp2", run__max_steps=3)),
        Case("chain swav 0", command(folder, "swav", "chain swav", "tp2 sp", run__max_steps=2)),
        Case("chain sft 0", command(folder, "sft", "chain sft", "tp2 sp", run__max_steps=3)),
        Case("chain lora 0", command(folder, "lora", "chain lora", "pp2 uneven", run__max_steps=3)),
        Case("chain center 0", command(folder, "center", "chain center", "dp2", run__max_steps=2)),
        Case("whole tp2 sp", command(folder, "swav", "whole tp2 sp", "tp2 sp")),
        Case("killed tp2 sp 0", killed["tp2 sp"], "step:4"),
        Case("killed tp2 sp 1", killed["tp2 sp"], "manifest:1"),
        Case("killed tp2 sp 2", killed["tp2 sp"]),
        Case("killed dp2 0", killed["dp2"], "step:4"),
        Case("killed dp2 1", killed["dp2"]),
        *(Case(f"{how} {x}", command(folder, o, f"{how} {x}", x, **KEYS[how])) for how, o, x in [*RECOMPUTED, *BF16]),
        Case("dropout tp2", command(folder, "simcse", "dropout tp2", "tp2", **DROPOUT)),
        Case("overflow", command(folder, "center", "overflow", "pp2", **OVERFLOW)),
        Case("trip tied", command(folder, "lm", "trip tied", "pp2 interleaved", **UNCHANGED)),
        Case("members", command(folder, "center", "members", "tp2 sp", **MEMBERS)),
    ]
    return launch_pairs(folder, 2, more)


@pytest.fixture(scope="module")
def four(native: Path, two: dict[str, list[int]]) -> dict[str, list[int]]:
    """The same on four ranks."""
    folder = native
    dying = command(folder, "lm", "dying", "tp2 pp2 sp", checkpoint__every=2)
    more = [
        Case("chain lm 3", command(folder, "lm", "chain lm", "tp2 dp2", run__max_steps=4)),
        Case("chain swav 1", command(folder, "swav", "chain swav", "tp2 pp2 sp", run__max_steps=3)),
        Case("chain center 1", command(folder, "center", "chain center", "dp4", run__max_steps=4)),
        Case("dying 0", dying, "step:4@3"),
        Case("dying 1", dying),
        Case("trip odd", command(folder, "plain", "trip odd", "tp2 pp2 sp", **UNCHANGED)),
        Case("trip qwen3", command(folder, "center", "trip qwen3", "tp2 pp2 sp", **UNCHANGED)),
    ]
    return launch_pairs(folder, 4, more)


def assert_same_bits(lines: list[dict[str, Any]], truth: list[dict[str, Any]]) -> None:
    for key in ("step", "loss", "grad_norm", "margin"):
        assert [line[key] for line in lines] == [line[key] for line in truth], key


@pytest.mark.parametrize(("layout", "objective"), PAIRS)
def test_a_layout_repeats_one_process(
    native: Path, two: dict[str, list[int]], four: dict[str, list[int]], layout: str, objective: str
) -> None:
    name = f"{objective} {layout}"
    codes = two | four
    assert not any(codes[name]), [path.read_text() for path in native.glob(f"launch-*/{name}-*.log")]
    assert_same_run(native / name, native / f"{objective} native")


def test_one_layout_goes_on_where_another_ended(native: Path, four: dict[str, list[int]]) -> None:
    run_here(
        command(native, "lm", "chain lm"),
        command(native, "swav", "chain swav", **({} if STEPS > 3 else {"run__max_steps": 4})),
        command(native, "sft", "chain sft"),
        command(native, "lora", "chain lora"),
    )
    for name in ("lm", "swav", "sft", "lora"):
        assert_same_run(native / f"chain {name}", native / f"{name} native")


@pytest.mark.parametrize("name", ["frozen tp2 sp", "frozen dp2", "swav tp2 pp2 sp"])
def test_a_checkpoint_holds_every_weight_once(
    native: Path, two: dict[str, list[int]], four: dict[str, list[int]], name: str
) -> None:
    assert not any((two | four)[name])
    saved = read_weights(list_checkpoints(native / name / "checkpoints")[-1])
    config = decoder_config(read_config(native / "llama"))
    exported = final_weights(native / name)
    assert all(torch.equal(weight, exported[key]) for key, weight in to_hf(config, saved))
    assert ("prototypes" in saved) == ("lm_head.weight" in saved) == name.startswith("swav")


@pytest.mark.parametrize("layout", list(KILLED))
def test_a_killed_run_resumes_bit_for_bit(native: Path, two: dict[str, list[int]], layout: str) -> None:
    codes = [found for name, found in two.items() if name.startswith(f"killed {layout}")]
    assert codes[0] == [-9, -9] and codes[-1] == [0, 0] and all(found[0] == -9 for found in codes[:-1])
    killed, whole = native / f"killed {layout}", native / KILLED[layout][1]
    assert_same_bits(read_lines(killed / "metrics.jsonl"), read_lines(whole / "metrics.jsonl"))
    ours, theirs = final_weights(killed), final_weights(whole)
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_a_resumed_run_has_the_optimizer_of_other_data_ranks(native: Path, four: dict[str, list[int]]) -> None:
    """Two data ranks, then four, then one."""
    assert not any(four["chain center 1"])
    run_here(command(native, "center", "chain center"))
    assert_same_run(native / "chain center", native / "center native")


@pytest.mark.parametrize(("how", "objective", "layout"), RECOMPUTED)
def test_recomputation_changes_no_bit(
    native: Path, two: dict[str, list[int]], how: str, objective: str, layout: str
) -> None:
    plain = "bf16" if how.startswith("bf16") else objective
    assert not any(two[f"{how} {layout}"] + two[f"{plain} {layout}"])
    lines, truth = (read_lines(native / f"{name} {layout}" / "metrics.jsonl")[:3] for name in (how, plain))
    assert_same_bits(lines, truth)


def test_bf16_is_one_process_s(native: Path, two: dict[str, list[int]]) -> None:
    """Stages change no bit of it. Tensor ranks round sums of their own: their runs are as near to it as bf16 allows,
    and nearer than fp32's."""
    run_here(command(native, "lm", "bf16 native", **KEYS["bf16"]))
    truth = read_lines(native / "bf16 native" / "metrics.jsonl")
    pp2, tp2 = (read_lines(native / f"bf16 {x}" / "metrics.jsonl") for x in ("pp2", "tp2 sp"))
    assert_same_bits(pp2, truth)
    assert weights_apart(native / "bf16 pp2", native / "bf16 native")["all"] == 0

    fp32 = read_lines(native / "lm native" / "metrics.jsonl")[0]["loss"]
    first = truth[0]["loss"]
    assert abs(tp2[0]["loss"] - first) < 2e-3 < 4e-3 < abs(fp32 - first)
    for ours, theirs in zip(tp2, truth, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-2)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-2)
    assert weights_apart(native / "bf16 tp2 sp", native / "bf16 native")["all"] < 1.5e-3


def test_a_rank_that_dies_ends_the_pipeline_and_the_run_goes_on(native: Path, four: dict[str, list[int]]) -> None:
    assert four["dying 0"][3] == -9 and 0 not in four["dying 0"]
    assert four["dying 1"] == [0, 0, 0, 0]
    (log,) = native.glob("launch-4-*/dying 1-0.log")
    assert "resumed from step 2" in log.read_text()
    assert_same_run(native / "dying", native / "lm native")


def test_dropout_is_one_process_s_where_tensor_ranks_hold_the_same(native: Path, two: dict[str, list[int]]) -> None:
    """Tensor ranks draw the same masks; a recomputed layer and the second pass over a pack repeat theirs."""
    features: list[list[Tensor]] = []
    from rmfast.parallel.megatron.engine import MegatronEngine

    run, layer = MegatronEngine._run, DecoderLayer.forward
    layers = 0

    def counted(self: DecoderLayer, *args: Any) -> Any:
        nonlocal layers
        layers += self.training  # not when the exported model is checked
        return layer(self, *args)

    def watched(self: MegatronEngine, packs: list[Pack], reads: Any, use: Use, **options: Any) -> None:
        features.append([])

        def kept(number: int, outputs: Outputs) -> Tensor:
            if outputs.features is not None:
                features[-1].append(outputs.features.detach())
            return use(number, outputs)

        run(self, packs, reads, kept, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MegatronEngine, "_run", watched)
        patch.setattr(DecoderLayer, "forward", counted)
        run_here(command(native, "simcse", "dropout one", "dp2", **DROPOUT))
    passes = [found for found in features if found]
    assert len(passes) == 6 and all(len(found) > 1 for found in passes)
    # Four layers; each pack is computed without gradients, with them, and again in the backward.
    assert layers == 4 * (sum(map(len, passes[::2])) + 2 * sum(map(len, passes[1::2])))
    for first, second in zip(passes[::2], passes[1::2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        half = len(first[0]) // 2
        assert not torch.allclose(first[0][:half], first[0][half:], atol=1e-2), "the views differ"
    assert not any(two["dropout tp2"])
    assert_same_run(native / "dropout tp2", native / "dropout one")


def test_buckets_are_reduced_under_the_last_backward(native: Path) -> None:
    """Also in MetaRM's first half, which leaves weights out, and after passes without a backward."""
    from rmfast.parallel.megatron.reduction import Reduction

    begun: list[tuple[int, int]] = []
    begin_all = Reduction.begin_all

    def watched(self: Reduction) -> None:
        begun.append((self._begun, len(self._buckets)))
        begin_all(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reduction, "begin_all", watched)
        run_here(command(native, "meta swav", "watched", "dp2", run__max_steps=2))
    assert len(begun) == 4  # two backward passes a step
    assert all(before == buckets > 4 for before, buckets in begun)


def test_a_step_that_is_not_finite_changes_no_stage(native: Path, two: dict[str, list[int]]) -> None:
    assert not any(two["overflow"])
    (line,) = read_lines(native / "overflow" / "metrics.jsonl")
    assert line["skipped"] and line["loss"] is None
    before = load_file(native / "qwen3" / "model.safetensors")
    assert all(torch.equal(weight, before[name]) for name, weight in final_weights(native / "overflow").items())


@pytest.mark.parametrize("model", ["odd", "tied", "qwen3"])
def test_weights_come_back_bit_for_bit(
    native: Path, two: dict[str, list[int]], four: dict[str, list[int]], model: str
) -> None:
    assert not any((two | four)[f"trip {model}"])
    before = load_file(native / model / "model.safetensors")
    after = final_weights(native / f"trip {model}")
    extra = after.keys() - before.keys()
    assert extra == (set() if model == "qwen3" else {"score.weight"})  # a folder without a head gets a random one
    assert before.keys() - after.keys() == ({"lm_head.weight"} if model == "odd" else set())
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - extra)


def test_members_of_an_ensemble_are_runs_of_this_engine(native: Path, two: dict[str, list[int]]) -> None:
    assert not any(two["members"])
    run_here(command(native, "center", "members native", **MEMBERS))
    for member in ("00", "01"):
        run, truth = (native / name / "members" / member for name in ("members", "members native"))
        assert_same_run(run, truth)
        ours, theirs = (np.load(path / "scores.npz")["data"] for path in (run, truth))
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_the_stand_in_is_for_this_version() -> None:
    """A newer megatron-core may ask torch.cuda for more, or pad, name and tag otherwise than the engine knows."""
    assert version("megatron-core") == "0.16.1"
    assert '"megatron-core==0.16.1"' in (ROOT / "setup.py").read_text(encoding="utf-8")
    schedules = Path(import_module("megatron.core.pipeline_parallel.schedules").__file__ or "")
    assert schedules.read_text(encoding="utf-8").count('device="cuda"') == 3
