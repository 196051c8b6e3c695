"""benchmarks/steps at the smallest size: all modes train on the same curve, figures add up, failures are named."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import lengths
from benchmarks.origin import ROOT, write_json
from benchmarks.steps import compare, hf_packed, inputs, modes, worker
from tests.runs import write_model, write_rows

TINY = ["--model", "tiny", "--lengths", "tiny", "--device", "cpu", "--threads", "1"]


def run_forked(job: worker.Job, limit: float | None = None) -> dict[str, Any]:
    """In place of a fresh interpreter: a mode in a fork of this process, which has imported what it needs."""
    out = Path(job.scratch) / f"{job.mode}.json"
    child = os.fork()
    if not child:
        code = 1
        try:
            write_json(out, worker.run(job))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hasattr(pytest.importorskip("trl"), "RewardTrainer")  # imports it
    monkeypatch.setattr(compare, "run_mode", run_forked)


@pytest.mark.usefixtures("forks")
def test_one_curve_and_figures_that_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    sizes = ["--steps", "4", "--pairs-per-step", "8", "--micro-batch", "4", "--tokens-per-pack", "128", "--lr", "5e-4"]
    asked = ["--modes", "trl-tuned", "hf-packed", "rmfast", "--breakdown", "--json", str(out)]
    assert compare.main([*TINY, *sizes, *asked]) == 0
    result = json.loads(out.read_text())
    losses = {mode: runs[0]["loss"] for mode, runs in result["rounds"].items()}
    assert losses["hf-packed"] == pytest.approx(losses["rmfast"], abs=1e-5)
    assert losses["trl-tuned"] == pytest.approx(losses["rmfast"], abs=1e-5)
    assert max(losses["rmfast"]) - min(losses["rmfast"]) > 1e-2  # the steps are told apart
    summary, step = result["summary"], result["step"]
    assert summary["rmfast"]["prefix_share"] > 0.1 and summary["hf-packed"]["prefix_share"] == pytest.approx(0)
    assert summary["hf-packed"]["computed_tokens"] == step["sequence_tokens"]
    assert 0 < summary["trl-tuned"]["padding_share"] < 0.6
    assert result["attention"] == {"hf-packed": "scaled_dot_product_attention with a mask",
                                   "rmfast": "rmfast's kernels (plain torch on a CPU)"}  # fmt: skip
    for mode, row in summary.items():
        (run,) = result["rounds"][mode]
        assert len(run["loss"]) == len(run["wall_seconds"]) == 4  # the profiler's steps are not among them
        assert row["wall_seconds"] == np.mean(run["wall_seconds"][2:])  # which is the median of two
        assert row["tokens_per_second"] * row["wall_seconds"] == pytest.approx(step["tokens"])
        assert row["tflops"] * 1e12 * row["wall_seconds"] == pytest.approx(step["flops"])
        assert row["mfu"] is row["reserved_gib"] is None and run["threads"] == 1 and run["peak_bytes"] > 2**26
    # A forward and a backward of the tiny shape's matrices for each computed token, all but part of the last layer.
    tokens, parameters = summary["rmfast"]["computed_tokens"], 64 * 16 * 12 + 3 * 64 * 128
    assert 6 * tokens * 2 * parameters < step["flops"] < 1.5 * 6 * tokens * 3 * parameters
    profile = result["breakdown"]["rmfast"]
    assert profile["kind"] == "operator" and any(row["name"] == "aten::mm" for row in profile["top"])
    assert 0 < sum(row["ms"] for row in profile["top"]) < 1.05 * profile["span_ms"]
    printed = capsys.readouterr().out
    assert "largest difference of a loss, trl-tuned and rmfast" in printed and "CPU ratio" in printed
    assert "hf-packed's attention: scaled_dot_product" in printed
    assert str(tmp_path) not in out.read_text() and str(ROOT) not in out.read_text()


@pytest.mark.usefixtures("forks")
def test_pairs_of_a_file_keep_their_messages_and_margins(tmp_path: Path) -> None:
    model, data, out = write_model(tmp_path / "model"), tmp_path / "rows.jsonl", tmp_path / "out.json"
    write_rows(data, 24)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows = [row | {"prompt": [{"role": "user", "content": row["prompt"]}], "margin": 0.7} for row in rows]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--steps", "3", "--pairs-per-step", "4", "--micro-batch", "2", "--tokens-per-pack", "128", "--lr", "1e-3"]
    asked = ["--data", str(data), "--model", str(model), "--modes", "trl", "rmfast", "--json", str(out), *TINY[4:]]
    assert compare.main([*asked, *flags]) == 0
    result = json.loads(out.read_text())
    assert result["largest_loss_difference"]["trl"] < 1e-5
    assert result["rounds"]["rmfast"][0]["loss"][0] > 0.75  # ln 2 without the margin
    assert result["data"]["rows"] == 12 and result["settings"]["data"] == "rows.jsonl"


def job(folder: Path, mode: worker.Mode = "rmfast", **more: Any) -> worker.Job:
    """Three steps of eight tiny pairs."""
    args = compare.parse([*TINY, "--steps", "3", "--pairs-per-step", "8", "--tokens-per-pack", "128"])
    inputs.prepare(args, folder, warm_up=2, extra=0)
    given = {name: getattr(args, name) for name in compare.GIVEN} | more
    files = {"model": str(folder / "model"), "rows": str(folder / "rows.jsonl"), "scratch": str(folder)}
    return worker.Job(mode=mode, steps=3, breakdown=False, **files, **given)


def test_the_rmfast_mode_is_the_product_s_run(tmp_path: Path) -> None:
    """Its config is the defaults of `task: reward`."""
    given = job(tmp_path, lr=1e-4)
    config = worker.rmfast_config(replace(given, mode="rmfast-graphs"))
    assert config.parallel.cuda_graphs and config.model.attention == "kernel"
    assert config.optim == type(config.optim)(lr=1e-4) and not config.data.shuffle
    clock = worker.Clock(3, False)
    result = worker.run_rmfast(given, clock)
    assert result["attention"] == "rmfast's kernels (plain torch on a CPU)"
    assert len(clock.seconds()["wall_seconds"]) == len(result["loss"]) == 3


def test_liger_leaves_the_head_and_replaces_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trl, liger = pytest.importorskip("trl"), pytest.importorskip("liger_kernel.transformers")
    from transformers import AutoModelForSequenceClassification, LlamaConfig
    from transformers.integrations.liger import apply_liger_kernel
    from transformers.models.llama import modeling_llama

    for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP"):  # Liger replaces them: put them back afterwards
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))
    config = trl.RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **worker.LIGER)
    assert config.use_liger_kernel
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    model = AutoModelForSequenceClassification.from_config(LlamaConfig(**sizes, num_hidden_layers=1, num_labels=1))
    head = model.forward.__func__
    apply_liger_kernel(model, config.liger_kernel_config)
    assert model.forward.__func__ is head
    layer = model.model.layers[0]
    for module in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
        assert module.forward.__func__.__module__.startswith("liger_kernel")
    assert modeling_llama.apply_rotary_pos_emb is liger.liger_rotary_pos_emb


def attend_apart(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float) -> Tensor:
    """What torch's FlashAttention with cumulative lengths computes, in fp32."""
    sizes = starts.diff().tolist()
    assert starts.dtype == torch.int32 and max(sizes) == longest
    attend = torch.nn.functional.scaled_dot_product_attention
    parts = zip(*(x.transpose(0, 1).float().split(sizes, 1) for x in (q, k, v)), strict=True)
    outs = [attend(*part, is_causal=True, scale=scale, enable_gqa=True) for part in parts]
    return torch.cat(outs, 1).transpose(0, 1).to(q.dtype)


def test_packs_through_flash_attention_score_as_the_sequences_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    shape = LlamaConfig(**sizes, num_key_value_heads=2, num_hidden_layers=2, num_labels=1, initializer_range=0.5)
    AutoModelForSequenceClassification.from_config(shape).save_pretrained(tmp_path)
    sequences = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [1]]
    pack = hf_packed.build_pack(sequences, torch.zeros(2))
    kinds: list[torch.dtype] = []
    monkeypatch.setattr(hf_packed, "varlen", lambda q, *more: (kinds.append(q.dtype), attend_apart(q, *more))[1])
    flash = hf_packed.load_model(str(tmp_path), hf_packed.VARLEN)
    found = hf_packed.scores_of(flash, pack, hf_packed.VARLEN)
    assert len(kinds) == 2  # once a layer
    plain = hf_packed.load_model(str(tmp_path), "sdpa")
    single = [hf_packed.build_pack([sequence], torch.zeros(0)) for sequence in sequences]
    torch.testing.assert_close(found, torch.cat([hf_packed.scores_of(plain, one, "sdpa") for one in single]))
    torch.testing.assert_close(hf_packed.scores_of(plain, pack, "sdpa"), found)
    with torch.autocast("cpu", torch.bfloat16):
        hf_packed.scores_of(flash, pack, hf_packed.VARLEN)
    assert kinds[-1] == torch.bfloat16


def test_rows_are_sorted_within_their_steps_only(tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "sorted.jsonl"
    rows.write_text("a\nb\nc\nd\ne\nf\n")
    inputs.sort_within_steps(rows, out, np.array([1, 3, 2, 9, 7, 8]), 3)
    assert out.read_text() == "b\nc\na\nd\nf\ne\n"


def test_a_mode_that_trains_on_other_tokens_is_noticed() -> None:
    rows = [[[1, 2], [1, 3]], [[4], [5]]]
    one, other = (worker.digests(ids, 2) for ids in (rows, rows[::-1]))
    modes.check_same_pairs("trl", one, "rmfast", other)  # the order within a step is free
    one, other = (worker.digests(ids, 1) for ids in (rows, rows[::-1]))
    with pytest.raises(modes.ModeFailed, match="trl did not train on the same token ids as rmfast .*step 1"):
        modes.check_same_pairs("trl", one, "rmfast", other)


def test_what_a_process_wrote_becomes_one_line(tmp_path: Path) -> None:
    memory = "warning\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\nafter it"
    assert modes.why_it_failed(1, memory).startswith("does not fit: torch.OutOfMemoryError")
    absent = f"Traceback\nValueError: {tmp_path}/model has no head"
    assert modes.why_it_failed(1, absent) == "ended with code 1: ValueError: model has no head"
    assert modes.why_it_failed(-9, "") == "killed (signal 9; memory of the machine?)"
    given = worker.Job(mode="rmfast", model="absent", rows="absent", scratch=str(tmp_path), steps=2, breakdown=False,
                       pairs_per_step=1, micro_batch=1, tokens_per_pack=64, max_length=64, lr=1e-4, device="cpu",
                       threads=1)  # fmt: skip
    with pytest.raises(modes.ModeFailed, match="ended with code 1: .*absent"):
        modes.run_mode(given)


def test_a_mode_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, timeout: float, **__: object) -> None:
        raise TimeoutExpired("x", timeout)

    monkeypatch.setattr(modes.subprocess, "run", run)
    with pytest.raises(modes.ModeFailed, match="did not end within 90 s"):
        modes.run_mode(job(tmp_path), 90.0)


Started = list[str]


@pytest.fixture
def processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[..., int], Started, dict[str, BaseException]]:
    """compare.py with modes that cost nothing: a call, what it started, and what a mode raises."""
    started: Started = []
    raises: dict[str, BaseException] = {}
    seconds = [9.0, 8.0, 2.0, 70.0, 1.9]  # two steps of warm-up, and one in which a kernel compiled
    result = {"loss": [1.0, 0.5, 0.4, 0.3, 0.2], "wall_seconds": seconds, "cpu_seconds": seconds, "steps": ["a"]}
    result |= {"computed_tokens": [10] * 5, "real_tokens": [8] * 5, "peak_bytes": 2**30, "reserved_bytes": 2**31}
    result |= {"breakdown": {"fault": "RuntimeError: no kernel"}}

    def prepare(args: Any, scratch: Path, **_: int) -> tuple[str, dict[str, Any], dict[str, float]]:
        (scratch / "model").mkdir()
        (scratch / "model" / "config.json").write_text("{}")
        (scratch / "rows.jsonl").write_text("the rows")
        data = {"rows": 8, "mean_prefix": 1.0, "mean_chosen": 1.0, "mean_rejected": 1.0, "longest": 2}
        return "a model", data, {"flops": 1e9, "tokens": 16.0, "sequence_tokens": 16.0}

    def run(given: worker.Job, limit: float | None) -> dict[str, Any]:
        started.append(given.mode)
        if given.mode in raises:
            raise raises[given.mode]
        return dict(result)

    monkeypatch.setattr(compare, "prepare", prepare)
    monkeypatch.setattr(compare, "run_mode", run)
    monkeypatch.setattr(compare, "limits_here", lambda device: {"matmul": 1e12, "bandwidth": 1e11, "dtype": "x"})
    monkeypatch.setattr(compare, "unavailable", lambda mode, device: None)
    flags = [*TINY, "--steps", "5", "--pairs-per-step", "4", "--json", str(tmp_path / "out.json")]
    return lambda *more: compare.main([*flags, *more]), started, raises


def test_a_mode_that_fails_is_named_and_the_others_count(
    processes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call, started, raises = processes
    raises["trl"] = modes.ModeFailed("does not fit: x")
    assert call("--modes", "trl", "trl-liger", "hf-packed", "rmfast", "--breakdown") == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert started == ["rmfast", "hf-packed", "trl-liger", "trl"]
    assert list(result["summary"]) == list(result["rounds"]) == ["trl-liger", "hf-packed", "rmfast"]
    assert result["complete"] and len(result["limits"]) == 2 and result["failed"] == {"trl": "does not fit: x"}
    row = result["summary"]["rmfast"]  # medians over the steps after two of warm-up
    assert row["wall_seconds"] == row["cpu_seconds"] == 2.0 and row["tokens_per_second"] == 8.0
    assert (row["peak_gib"], row["reserved_gib"]) == (1.0, 2.0)
    assert result["breakdown"]["trl-liger"] == {"fault": "RuntimeError: no kernel", "unprofiled_ms": 2000}
    printed = capsys.readouterr().out
    assert "trl: does not fit" in printed.split("TFLOP/s")[1]
    assert "hf-packed, one step: no breakdown: RuntimeError: no kernel" in printed


def test_without_rmfast_there_is_no_comparison(processes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    call, _, raises = processes
    raises["rmfast"] = modes.ModeFailed("ended with code 1: KeyError: 'x'")
    assert call("--modes", "trl", "rmfast") == 1
    assert "error: rmfast: ended with code 1: KeyError" in capsys.readouterr().err
    raises["trl"] = modes.ModeFailed("too")
    assert call("--modes", "trl", "rmfast") == 1  # nothing finished


def test_a_killed_call_goes_on_where_it_was(processes: Any, tmp_path: Path) -> None:
    call, started, raises = processes
    out, asked = tmp_path / "out.json", ["--modes", "trl", "trl-tuned", "hf-packed", "rmfast"]
    raises |= {"trl-tuned": modes.ModeFailed("a node was lost"), "hf-packed": modes.ModeFailed("does not fit: x"),
               "trl": KeyboardInterrupt()}  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        call(*asked)
    killed = out.read_text()
    assert not json.loads(killed)["complete"]

    def again(text: str, *more: str) -> Started:
        out.write_text(text)
        raises.clear()
        started.clear()
        assert call(*asked, *more) == 0
        return list(started)

    assert again(killed) == ["trl-tuned", "trl"]
    result = json.loads(out.read_text())
    assert list(result["summary"]) == ["trl", "trl-tuned", "rmfast"] and list(result["failed"]) == ["hf-packed"]
    # A call that came to its end is measured again, and so is another job.
    assert len(again(out.read_text())) == 4
    assert len(again(killed, "--seed", "1")) == 4
    # rmfast's modes are measured again where its code is another; those of the others stay.
    digest = json.loads(killed)["source"]["rmfast"]
    assert again(killed.replace(f'"rmfast": "{digest}"', '"rmfast": "other"')) == ["rmfast", "trl-tuned", "trl"]


@pytest.mark.parametrize("name", ["hh", "ultrafeedback", "long"])
def test_lengths_have_the_means_and_the_spread_that_they_name(name: str) -> None:
    drawn = lengths.draw_lengths(name, 20000)
    d = lengths.DISTRIBUTIONS[name]
    assert drawn.mean(0) == pytest.approx([d.prompt, d.chosen, d.rejected], rel=0.05)
    sequences = drawn[:, :1] + drawn[:, 1:]
    assert sequences.max() <= d.longest and drawn.min() >= 1
    padded = sequences.reshape(-1, 16).max(1).sum() * 16 / sequences.sum()
    assert padded == pytest.approx({"hh": 2.47, "ultrafeedback": 2.1, "long": 2.0}[name], rel=0.05)
    groups = lengths.draw_groups(name, 16384)
    assert 0.7 * 16384 < sum(prompt + sum(responses) for prompt, responses in groups) <= 16384


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "2"], "--steps: must be at least 3, got 2"),
        (["--lr", "0"], "--lr: must be positive"),
        (["--modes", "rmfast-graphs"], "--modes rmfast-graphs: CUDA graphs need a GPU"),
        (["--modes", "trl-liger"], "--modes trl-liger: Liger's kernels need a GPU"),
        (["--pairs-per-step", "6", "--micro-batch", "4"], "--micro-batch: 4 does not divide"),
        (["--json", "absent/out.json"], "is not a folder"),
        (["--model", "absent"], "absent"),
        (["--data", "absent.jsonl"], "absent.jsonl"),
        (["--data", "pairs.jsonl", "--steps", "100"], "lower --steps"),
        (["--data", "pairs.jsonl", "--max-length", "4"], "raise --max-length"),
        (["--data", "texts.jsonl"], "no preference pair"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", 8)
    (tmp_path / "texts.jsonl").write_text('{"text": "no preference"}\n')
    assert compare.main([*TINY, "--modes", "rmfast", *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error


def test_long_pairs_are_cut_into_smaller_micro_batches() -> None:
    def pairs(*flags: str) -> int:
        return compare.parse(["--device", "cpu", *flags]).micro_batch

    assert (pairs("--lengths", "long"), pairs("--lengths", "hh"), pairs("--pairs-per-step", "4")) == (2, 8, 4)
    assert pairs("--lengths", "long", "--micro-batch", "4") == 4 and pairs("--lengths", "long", "--data", "FILE") == 8
    # At most 24,000 padded tokens of 2.07 MB each, beside 20 GB of weights, gradients and moments.
    drawn = lengths.draw_lengths("long", 4 * 128)
    longest = drawn[:, 0] + drawn[:, 1:].max(1)
    assert longest.reshape(-1, 2).max(1).max() * 2 * 2 < 24_000
