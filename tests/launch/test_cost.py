"""The cost model beside what it is a model of: real networks' weights, the bytes that torch keeps, and sane plans."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rmfast.cli import main
from rmfast.data.pack import Pack
from rmfast.launch.bubble import _play, bubble
from rmfast.launch.cost import RESERVE, Layout, Workload, memory, parameters, saved_bytes, seconds
from rmfast.launch.hardware import GPUS
from rmfast.launch.layouts import layouts, plans
from rmfast.models.config import DecoderConfig, decoder_config
from rmfast.models.copies import Copies
from rmfast.models.decoder import Decoder
from rmfast.models.hf import read_config
from rmfast.models.network import Network, initialise
from rmfast.models.recompute import Recompute
from tests.launch import layout_table
from tests.runs import ROOT, environment
from tests.tiny import CONFIGS, Peak, Results, group_of, hf_config, pack_of

SHAPES = ROOT / "configs" / "shapes"
H100 = GPUS["h100"]


def network_of(config: DecoderConfig, recompute: Recompute = "none", impl: str = "reference") -> Network:
    network = Network(Decoder(config, dtype=torch.bfloat16, recompute=recompute, impl=impl))
    initialise(network, 0)
    return network.train()


def small(name: str, layers: int) -> DecoderConfig:
    """Every size another, so that no term can stand in for another."""
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2}
    return decoder_config(hf_config(name, num_hidden_layers=layers, head_dim=16, **sizes))


def pack(count: int, seed: int = 0) -> Pack:
    draw = np.random.default_rng(seed)
    return pack_of([group_of(draw, 16, [8, 8], [(0, 1)]) for _ in range(count)])


def shape(name: str) -> DecoderConfig:
    return decoder_config(read_config(SHAPES / name))


# --- weights


@pytest.mark.parametrize("name", [n for n in CONFIGS if "bias" not in n and "qwen2" not in n])
def test_parameters_are_those_of_the_network(name: str) -> None:
    config = decoder_config(hf_config(name))
    assert parameters(config) == sum(p.numel() for p in network_of(config).parameters())


@pytest.mark.parametrize("name", ["llama-biases", "qwen2", "qwen3-bias"])
def test_biases_are_left_out_and_small(name: str) -> None:
    config = decoder_config(hf_config(name))
    biases = sum(p.numel() for n, p in network_of(config).named_parameters() if n.endswith("bias"))
    assert parameters(config) + biases == sum(p.numel() for p in network_of(config).parameters()) and biases > 0


def test_known_sizes() -> None:
    """Llama 3's own counts, without the language-model head."""
    assert parameters(shape("llama3-8b")) == 8_030_261_248 - 128_256 * 4096 + 4096
    assert parameters(shape("llama3-70b")) == 70_553_706_496 - 128_256 * 8192 + 8192


# --- activations


def kept(name: str, layers: int, recompute: Recompute, impl: str) -> tuple[int, int]:
    """Bytes that a forward leaves alive for its backward, and the pack's tokens."""
    network, one = network_of(small(name, layers), recompute, impl), pack(3)
    with Results() as results:
        scores = network.score(one)
    assert scores.requires_grad
    return results.alive(besides=[*network.parameters(), *network.buffers()]), len(one.tokens)


@pytest.mark.parametrize(
    ("name", "recompute", "impl"),
    [
        ("llama", "selective", "reference"),
        ("llama", "full", "reference"),
        ("qwen3", "selective", "reference"),
        # With the kernels that a GPU runs; plain torch keeps more of norms, RoPE and SwiGLU.
        pytest.param("llama", "none", "triton", marks=pytest.mark.slow),
        pytest.param("qwen3", "none", "triton", marks=pytest.mark.slow),
    ],
)
def test_a_layer_keeps_what_the_model_says(name: str, recompute: Recompute, impl: str) -> None:
    """To the byte: the difference between four layers and three is a layer, and the weights' copies under "none"."""
    more, tokens = kept(name, 4, recompute, impl)
    less, _ = kept(name, 3, recompute, impl)
    config = small(name, 3)
    copies = 2 * config.layer_parameters if recompute == "none" else 0
    assert more - less - copies == tokens * saved_bytes(config, recompute)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_peak_of_a_step(recompute: Recompute) -> None:
    """Forward and backward of one pack on one rank, with the GPU's kernels; optimizer state and reserve lie beside."""
    config, one = small("llama", 4), pack(8)
    network = network_of(config, recompute, "triton")
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    static = [t for p in network.parameters() for t in (p, p.grad) if t is not None]
    with Peak([*static, *network.buffers()]) as results, Copies(network.cast_weights(), torch.bfloat16):
        network.score(one).sum().backward()
    load = Workload(tokens=len(one.tokens), responses=16, pack=len(one.tokens), visible=1)
    said = memory(config, Layout("ddp", 1, recompute=recompute), load)
    assert (
        said["weights"]
        == said["gradients"]
        == pytest.approx(sum(4 * p.numel() for p in network.parameters()), rel=0.02)
    )
    planned = said["copies"] + said["activations"] + said["working"]
    assert planned == pytest.approx(results.peak, rel=0.08), (planned, results.peak, said)


@pytest.mark.slow
def test_ranks_hold_what_the_plan_says(tmp_path: Path) -> None:
    """The megatron engine on two ranks, by the program that measures every layout; the first stage is the fullest."""
    cases = ["table tp2 sp selective", "matrix tp2 sp full", "table pp2 none", "matrix pp2 full", "table dp2 none"]
    words = [sys.executable, str(ROOT / "tests" / "launch" / "memory.py"), "--out", str(tmp_path / "out.json")]
    done = subprocess.run([*words, "--case", *cases], capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert list(found) == cases
    for name, one in found.items():
        assert one["step_ratio"] == pytest.approx(1, abs=0.1), (name, one)
        assert one["ratio"] == pytest.approx(1, abs=0.03), (name, one)
        for what in ("weights", "gradients", "optimizer"):
            assert one["planned"][what] == pytest.approx(one["measured"][0][what], rel=0.01), (name, what)


def test_what_several_packs_hold() -> None:
    """One copy of the weights for all packs; FSDP2 no more than with one pack."""
    config = shape("llama3-8b")
    load = Workload(tokens=131072, responses=256, pack=4096, visible=1)
    for tensor, stages, recompute in ((1, 1, "none"), (1, 2, "none"), (2, 2, "full")):
        layout = Layout("megatron", 1, tensor, stages, recompute=recompute)  # type: ignore[arg-type]
        copies = 2 * 32 * config.layer_parameters / (tensor * stages)
        assert memory(config, layout, load)["copies"] == copies
    alone, many = (memory(config, Layout("ddp", data), load) for data in (1, 8))
    assert many["gradients"] == alone["gradients"] == alone["weights"], "gradients are views of DDP's buckets"
    layers, table = 2 * config.layers * config.layer_parameters, 2 * config.vocabulary * config.width
    for recompute, every_token, copies in (("none", False, layers), ("full", True, layers + table)):
        some = replace(load, every_token=every_token)
        assert memory(config, Layout("ddp", 8, recompute=recompute), some)["copies"] == copies  # type: ignore[arg-type]
    assert memory(config, Layout("fsdp", 8), load)["gradients"] < 4 * parameters(config) / 6


def test_fp32_runs_cast_nothing_and_keep_twice_as_much() -> None:
    config = shape("llama3-8b")
    half = replace(load_of(config), tokens=131072)
    full = replace(half, activation=4)
    two, four = (memory(config, Layout("megatron", 2, 2, 2), load) for load in (half, full))
    assert two["copies"] > 0 == four["copies"] and four["weights"] == two["weights"]
    assert 1.95 < four["activations"] / two["activations"] < 2
    slow, fast = (seconds(config, Layout("megatron", 2, 2, 2), load, H100) for load in (full, half))
    assert slow["compute"] == pytest.approx(fast["compute"] * H100.matrix / H100.single)
    for name in ("tensor", "pipeline", "elementwise"):
        assert slow[name] == pytest.approx(2 * fast[name])
    assert slow["data"] >= 0.5 * fast["data"], "gradients and weights are fp32 in both"


def test_an_lm_loss_keeps_the_last_layer_too() -> None:
    config, load = shape("llama3-8b"), Workload(tokens=131072, responses=256, pack=16384, visible=1)
    one, all_ = (memory(config, Layout("fsdp", 8), replace(load, every_token=e))["activations"] for e in (False, True))
    assert all_ == pytest.approx(one * 32 / 31)


def test_memory_has_every_part_and_tensor_parallel_divides_it() -> None:
    config, load = shape("llama3-8b"), Workload(tokens=131072, responses=256, pack=16384, visible=131072 * 400)
    one, two = (memory(config, Layout("megatron", 8, tensor, sequence=True), load) for tensor in (1, 2))
    assert one.keys() == two.keys() and one["reserve"] == RESERVE
    for name in ("weights", "gradients", "activations"):
        assert two[name] == pytest.approx(one[name] / 2, rel=0.01)
    assert memory(config, Layout("megatron", 8, 2), load)["activations"] > two["activations"]
    assert memory(config, Layout("fsdp", 8), load)["optimizer"] * 8 == pytest.approx(8 * parameters(config))


# --- time and ranking


def load_of(config: DecoderConfig, groups: int = 512) -> Workload:
    return Workload(tokens=400 * groups, responses=2 * groups, pack=16384, visible=400 * 200 * groups)


def test_recomputation_costs_time_and_saves_memory() -> None:
    config = shape("llama3-8b")
    load = load_of(config)
    modes: tuple[Recompute, ...] = ("none", "selective", "full")
    took = [sum(seconds(config, Layout("fsdp", 8, recompute=m), load, H100).values()) for m in modes]
    held = [sum(memory(config, Layout("fsdp", 8, recompute=m), load).values()) for m in modes]
    assert took[0] < took[1] < took[2] and held[0] > held[1] > held[2]
    assert took[1] < 1.1 * took[0]


def test_compute_is_the_maths_over_the_peak() -> None:
    config = shape("llama3-8b")
    load = replace(load_of(config), visible=0)
    flops = 6 * config.layers * config.layer_parameters * load.tokens
    assert seconds(config, Layout("ddp", 1), load, H100)["compute"] == pytest.approx(flops / (0.6 * 990e12))


def test_a_bubble_shrinks_with_packs_and_turns() -> None:
    config = shape("llama3-8b")
    few, many = (replace(load_of(config, groups), pack=400 * 32) for groups in (512, 4096))  # 16 and 128 packs
    plain, turned = (Layout("megatron", 1, 1, 4, virtual) for virtual in (1, 4))
    assert seconds(config, Layout("megatron", 4), few, H100)["bubble"] == 0

    def share(layout: Layout, load: Workload) -> float:
        took = seconds(config, layout, load, H100)
        return took["bubble"] / took["compute"]

    assert share(plain, few) > share(plain, many) > 0 and share(turned, few) == pytest.approx(share(plain, few) / 4)


@pytest.mark.parametrize(("stages", "turns"), [(2, 2), (4, 4), (8, 2)])
def test_turns_gain_nothing_without_packs(stages: int, turns: int) -> None:
    """megatron-core's schedule, played: full rounds of packs give the formula; one pack visits all stages in turn."""
    assert bubble(stages, turns, 1) == pytest.approx(stages - 1)
    for rounds in (1, 2, 5):
        packs = rounds * stages
        assert (
            _play(stages, turns, packs) - packs == pytest.approx((stages - 1) / turns) == bubble(stages, turns, packs)
        )
        assert bubble(stages, turns, packs + 1) > bubble(stages, turns, packs)
    assert bubble(stages, turns, 9 * stages + 1) == pytest.approx(_play(stages, turns, 9 * stages + 1) - 9 * stages - 1)
    assert bubble(stages, 1, 3) == stages - 1 and bubble(1, 1, 3) == 0


def test_gradients_hide_behind_the_last_backward_and_gathered_weights_do_not() -> None:
    config, slow = shape("llama3-8b"), replace(H100, nvlink=1e9)
    load = load_of(config)
    own = 4 * (config.layers * config.layer_parameters + config.vocabulary * config.width) / 2
    for gpu in (H100, slow):
        reduced = own / (gpu.nvlink * gpu.link_share)
        for engine, gathered in (("ddp", 0.0), ("megatron", reduced)):
            reduces = 2 * reduced if engine == "ddp" else reduced  # an all-reduce is a scatter and a gather
            took = seconds(config, Layout(engine, 2), load, gpu)  # type: ignore[arg-type]
            packs = -(-load.tokens // 2 // load.pack)
            room = (took["compute"] + took["elementwise"]) / 3 / packs
            assert took["data"] == pytest.approx(max(0.0, reduces - room) + gathered), (engine, gpu)
            bare = seconds(config, Layout(engine, 2), load, gpu, overlap=False)  # type: ignore[arg-type]
            assert bare["data"] == pytest.approx(reduces + gathered)


@pytest.mark.parametrize("config", [shape("llama3-70b"), replace(shape("llama3-8b"), kv_heads=2, layers=28)])
@pytest.mark.parametrize("gpus", [1, 8, 24, 64, 1024])
def test_layouts_divide_what_they_share(config: DecoderConfig, gpus: int) -> None:
    made = list(layouts(config, gpus, H100))
    assert len(made) == len(set(made)) and all(x.world == gpus for x in made)
    for x in made:
        assert config.heads % x.tensor == config.kv_heads % x.tensor == config.ffn % x.tensor == 0
        assert x.tensor <= H100.node and config.layers % (x.pipeline * x.virtual) == 0
        assert x.engine == "megatron" or x.tensor == x.pipeline == 1


@pytest.mark.parametrize("name", ["llama3-8b", "llama3-70b"])
def test_plans_fit_are_ranked_and_profit_from_more_gpus(name: str) -> None:
    config = shape(name)
    load = load_of(config, 4096)
    best = []
    for gpus in (8, 16, 64, 256, 1024):
        fit, rest = plans(config, gpus, H100, load)
        assert len(fit) + len(rest) == len(list(layouts(config, gpus, H100)))
        assert all(p.memory <= H100.memory for p in fit) and all(p.memory > H100.memory for p in rest)
        assert [p.step for p in fit] == sorted(p.step for p in fit)
        best.append(fit[0].step if fit else float("inf"))
    assert best == sorted(best, reverse=True) and best[-1] < best[1]
    # What fits into less fits into more.
    large = plans(config, 64, GPUS["h200"], load)[0]
    assert {p.layout for p in plans(config, 64, H100, load)[0]} <= {p.layout for p in large}


def test_what_surely_does_not_fit_does_not() -> None:
    """70 B weights with fp32 masters and Adam are 1.1 TB: not on one GPU, not on eight of 80 GB."""
    config = shape("llama3-70b")
    for gpus in (1, 8):
        fit, rest = plans(config, gpus, H100, load_of(config))
        assert not fit and rest
    assert plans(config, 64, H100, load_of(config))[0]


# --- the command


def test_the_command_shows_plans_and_writes_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    words = ["plan", str(ROOT / "configs" / "smollm2_hh.yaml"), "--model.path", str(SHAPES / "llama3-8b")]
    words += ["--data.pairs_per_step", "512", "--gpus", "16", "--tokens-per-group", "400", "--show", "3"]
    assert main([*words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("engine"))
    assert lines[head + 4] == "" and "were not measured on GPUs" in printed
    saved = json.loads(out.read_text())
    assert saved["workload"]["tokens"] == 512 * 400 and len(saved["plans"]) > 20
    first = saved["plans"][0]
    assert f"{first['seconds']:.3f}" in lines[head + 1] and first["memory"] == pytest.approx(
        sum(first["bytes_by"].values())
    )


def test_lengths_come_from_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    """The quickstart's rows, with its own tokenizer."""
    assert main(["plan", str(ROOT / "configs" / "quickstart.yaml"), "--gpus", "2", "--show", "1"]) == 0
    assert "tokens in packs of" in capsys.readouterr().out


def test_what_is_not_counted_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(ROOT / "configs" / "smollm2_hh.yaml"), "--model.path", str(SHAPES / "llama3-8b")]
    words += ["--gpus", "8", "--tokens-per-group", "400"]
    assert main(words) == 0 and "Not counted" not in capsys.readouterr().out
    assert main([*words, "--objective.contrastive", "simcse", "--model.dropout", "0.1"]) == 0
    named = capsys.readouterr().out.splitlines()[-1]
    assert named.startswith("Not counted:") and "second views" in named and "dropout" in named and "meta" not in named


def test_refusals_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(ROOT / "configs" / "quickstart.yaml")]
    assert main([*words, "--gpus", "2", "--data.train", "no-such-file.jsonl"]) == 2
    printed = capsys.readouterr().err
    assert "or give --tokens-per-group" in printed and printed.count("\n") == 1
    with pytest.raises(SystemExit):
        main([*words, "--gpus", "0"])
    assert "0 is not positive" in capsys.readouterr().err


def test_no_layout_fits_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(ROOT / "configs" / "smollm2_hh.yaml"), "--model.path", str(SHAPES / "llama3-70b")]
    assert main([*words, "--gpus", "1", "--tokens-per-group", "400"]) == 0
    assert "No layout fits" in capsys.readouterr().out


def test_the_table_of_layouts_is_the_plan_s() -> None:
    table = layout_table.table() + "\n"
    assert table.count("\n") == 5 and table in (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
