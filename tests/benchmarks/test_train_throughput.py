"""benchmarks/train_throughput.py at the smallest size: one curve for all, and figures that add up."""

import importlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def throughput(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("train_throughput")


def test_one_curve_and_figures_that_add_up(
    throughput: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "out.json"
    flags = ["--model", "tiny", "--lengths", "tiny", "--device", "cpu", "--threads", "1", "--lr", "5e-4"]
    sizes = ["--steps", "4", "--pairs-per-step", "8", "--micro-batch", "4", "--tokens-per-pack", "128"]
    modes = ["--modes", "trl-tuned", "hf-packed", "rmfast", "--breakdown"]
    assert throughput.main([*flags, *sizes, *modes, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    losses = {mode: runs[0]["loss"] for mode, runs in result["rounds"].items()}
    assert losses["hf-packed"] == pytest.approx(losses["rmfast"], abs=1e-5)
    assert losses["trl-tuned"] == pytest.approx(losses["rmfast"], abs=1e-5)
    summary, step = result["summary"], result["step"]
    assert summary["rmfast"]["prefix_share"] > 0.1 and summary["hf-packed"]["prefix_share"] == pytest.approx(0)
    assert summary["hf-packed"]["computed_tokens"] == step["sequence_tokens"]
    assert 0 < summary["trl-tuned"]["padding_share"] < 0.6
    engines = {"hf-packed": "scaled_dot_product_attention with a mask",
               "rmfast": "rmfast's kernels (plain torch on a CPU)"}  # fmt: skip
    assert result["attention"] == engines
    for mode, row in summary.items():
        (run,) = result["rounds"][mode]
        assert len(run["loss"]) == len(run["wall_seconds"]) == 4  # the profiler's steps are not among them
        assert row["wall_seconds"] == np.mean(run["wall_seconds"][2:])  # which is the median of two
        assert row["tokens_per_second"] * row["wall_seconds"] == pytest.approx(step["tokens"])
        assert row["reserved_gib"] is None
        assert row["tflops"] * 1e12 * row["wall_seconds"] == pytest.approx(step["flops"])
        assert row["mfu"] is None
    # A forward and a backward of the tiny shape's matrices for each computed token, all but part of the last layer.
    tokens, parameters = summary["rmfast"]["computed_tokens"], 64 * 16 * 12 + 3 * 64 * 128
    assert 6 * tokens * 2 * parameters < step["flops"] < 1.5 * 6 * tokens * 3 * parameters
    assert list(result["breakdown"]) == list(summary)
    profile = result["breakdown"]["rmfast"]
    assert profile["kind"] == "operator" and any(row["name"] == "aten::mm" for row in profile["top"])
    assert 0 < sum(row["ms"] for row in profile["top"]) < 1.05 * profile["span_ms"]
    printed = capsys.readouterr().out
    assert "largest difference of a loss, trl-tuned and rmfast" in printed and "TFLOP/s" in printed
    assert (
        "one count of the useful work for all modes" in printed
        and "hf-packed's attention: scaled_dot_product" in printed
    )
    assert str(tmp_path) not in out.read_text() and str(ROOT) not in out.read_text()


def test_the_rmfast_mode_is_the_product_s_run(
    throughput: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config is the defaults of `task: reward`, and attention is chosen once, before the first step is timed."""
    from rmfast.config import Config
    from rmfast.tasks import attention

    worker = importlib.import_module("vs_trl_worker")
    flags = ["--model", "tiny", "--lengths", "tiny", "--device", "cpu", "--lr", "1e-4", "--steps", "3"]
    args = throughput.parse([*flags, "--pairs-per-step", "8", "--tokens-per-pack", "128", "--max-length", "48"])
    throughput.prepare(args, tmp_path, 0)
    job = throughput.jobs_of(args, tmp_path)["rmfast"]
    config = worker.rmfast_config(job, graphs=True)
    assert isinstance(config, Config) and config.parallel.cuda_graphs and config.model.attention == "auto"
    assert config.optim == type(config.optim)(lr=1e-4) and not config.data.shuffle
    asked: list[int] = []
    clock = worker.Clock(3, False)

    def choose(given: Config, *_: Any) -> str:
        asked.append(len(clock.wall))
        assert given == worker.rmfast_config(job, graphs=False)
        return "reference"

    monkeypatch.setattr(attention, "choose_attention", choose)
    result = worker.run_rmfast(job, clock)
    assert asked == [0] and result["attention"] == "reference"
    assert len(result["wall_seconds"]) == len(result["loss"]) == 3


def test_liger_leaves_the_head_and_replaces_the_rest(
    throughput: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl, liger = pytest.importorskip("trl"), pytest.importorskip("liger_kernel.transformers")
    from transformers import AutoModelForSequenceClassification, LlamaConfig
    from transformers.integrations.liger import apply_liger_kernel
    from transformers.models.llama import modeling_llama

    worker = importlib.import_module("train_throughput_worker")
    for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP"):  # Liger replaces them: put them back afterwards
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))
    given = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    monkeypatch.setattr(
        worker, "run_trl", lambda job, clock, checkpointing, **more: {"config": trl.RewardConfig(**given, **more)}
    )
    config = worker.run(None, "trl-liger", None)["config"]
    assert config.use_liger_kernel
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    shape = LlamaConfig(**sizes, num_hidden_layers=1, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(shape)
    head = model.forward.__func__
    apply_liger_kernel(model, config.liger_kernel_config)
    assert model.forward.__func__ is head
    layer = model.model.layers[0]
    for module in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
        assert module.forward.__func__.__module__.startswith("liger_kernel")
    assert modeling_llama.apply_rotary_pos_emb is liger.liger_rotary_pos_emb


def test_rows_are_sorted_within_their_steps_only(throughput: ModuleType, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "sorted.jsonl"
    rows.write_text("a\nb\nc\nd\ne\nf\n")
    importlib.import_module("throughput_inputs").sort_within_steps(rows, out, np.array([1, 3, 2, 9, 7, 8]), 3)
    assert out.read_text() == "b\nc\na\nd\nf\ne\n"


def test_a_mode_that_trains_on_other_tokens_is_noticed(throughput: ModuleType) -> None:
    rows = [[[1, 2], [1, 3]], [[4], [5]]]
    one, other = (throughput.digests(ids, 2) for ids in (rows, rows[::-1]))
    throughput.same_pairs("trl", one, "rmfast", other)  # the order within a step is free
    one, other = (throughput.digests(ids, 1) for ids in (rows, rows[::-1]))
    with pytest.raises(throughput.ModeFailed, match="trl did not train on the same token ids as rmfast .*step 1"):
        throughput.same_pairs("trl", one, "rmfast", other)


Started = list[str]


@pytest.fixture
def processes(
    throughput: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[..., int], Started, dict[str, Any]]:
    """train_throughput with modes that cost nothing: a call, what it started, and what each mode does: exit with this
    end of its output, or raise."""
    started: Started = []
    does: dict[str, Any] = {}
    seconds = [9.0, 8.0, 2.0, 70.0, 1.9]  # two steps of warm-up, and one in which a kernel compiled
    lines = {"loss": [1.0, 0.5, 0.4, 0.3, 0.2], "grad_norm": [1.0] * 5, "wall_seconds": seconds, "cpu_seconds": seconds}
    lines |= {"computed_tokens": [10] * 5, "real_tokens": [8] * 5}
    profile = {"kind": "operator", "span_ms": 1.0, "step_ms": 1.0, "gap_ms": None, "gaps": 0, "host_gap": None,
               "groups": {}, "top": []}  # fmt: skip

    def prepare(args: Any, scratch: Path, extra: int) -> tuple[str, dict[str, Any], dict[str, float]]:
        (scratch / "model").mkdir()
        (scratch / "model" / "config.json").write_text("{}")
        (scratch / "rows.jsonl").write_text("the rows")
        data = {"rows": 8, "mean_prefix": 1.0, "mean_chosen": 1.0, "mean_rejected": 1.0, "longest": 2}
        return "a model", data, {"flops": 1e9, "tokens": 16.0, "sequence_tokens": 16.0}

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        mode, out = command[3], Path(command[4])
        started.append(mode)
        end = does.get(mode)
        if isinstance(end, BaseException):
            raise end
        if end is None or isinstance(end, list):
            more = {"peak_bytes": 2**30, "reserved_bytes": 2**31, "ids": end or [[[1], [2]]] * 20}
            more |= {"breakdown": profile if mode != "hf-packed" else {"fault": "RuntimeError: no kernel"}}
            out.write_text(json.dumps(lines | more))
        return SimpleNamespace(returncode=int(isinstance(end, str)), stdout="", stderr=end or "")

    monkeypatch.setattr(throughput, "prepare", prepare)
    monkeypatch.setattr(throughput, "limits_here", lambda device: {"matmul": 1e12, "bandwidth": 1e11, "dtype": "x"})
    monkeypatch.setattr(throughput, "unavailable", lambda mode, device: None)
    over = subprocess.TimeoutExpired
    monkeypatch.setattr(throughput, "subprocess", SimpleNamespace(run=run, TimeoutExpired=over))

    def call(*more: str) -> int:
        flags = ["--model", "tiny", "--lengths", "tiny", "--device", "cpu", "--steps", "5", "--pairs-per-step", "4"]
        return throughput.main([*flags, "--micro-batch", "4", "--json", str(tmp_path / "out.json"), *more])

    return call, started, does


def test_a_mode_that_fails_is_named_and_the_others_count(
    processes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call, started, does = processes
    does["trl"] = "warning\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\nafter it"
    does["trl-no-checkpointing"] = f"Traceback\nValueError: {tmp_path}/model has no head"
    does["trl-tuned"] = [[[1], [3]]] * 20
    modes = ["trl", "trl-no-checkpointing", "trl-tuned", "trl-liger", "hf-packed", "rmfast"]
    assert call("--modes", *modes, "--breakdown") == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert started == ["rmfast", "hf-packed", "trl-liger", "trl-tuned", "trl-no-checkpointing", "trl"]
    assert list(result["summary"]) == list(result["rounds"]) == ["trl-liger", "hf-packed", "rmfast"]
    assert result["breakdown"]["trl-liger"]["unprofiled_ms"] == 2000
    assert result["breakdown"]["hf-packed"]["fault"] == "RuntimeError: no kernel"
    assert list(result["largest_loss_difference"]) == ["trl-liger", "hf-packed"]
    assert result["complete"] and len(result["limits"]) == 2
    failed = result["failed"]
    assert failed["trl"].startswith("does not fit: torch.OutOfMemoryError")
    assert failed["trl-no-checkpointing"] == "ended with code 1: ValueError: model has no head"
    assert "same token ids as rmfast (first difference: step 1)" in failed["trl-tuned"]
    printed = capsys.readouterr().out
    assert "does not fit" in printed.split("TFLOP/s")[1] and "wall ratio" in printed
    assert "hf-packed, one step: no breakdown: RuntimeError: no kernel" in printed


def test_figures_are_medians_over_the_steps_after_two_of_warm_up(processes: Any, tmp_path: Path) -> None:
    call, _, _ = processes
    assert call("--modes", "hf-packed", "rmfast") == 0
    row = json.loads((tmp_path / "out.json").read_text())["summary"]["rmfast"]
    assert row["wall_seconds"] == row["cpu_seconds"] == 2.0 and row["tokens_per_second"] == 8.0
    assert (row["peak_gib"], row["reserved_gib"]) == (1.0, 2.0)
    assert call("--modes", "rmfast", "--steps", "2") == 2


def test_a_mode_that_hangs_is_ended_and_named(processes: Any, tmp_path: Path, throughput: ModuleType) -> None:
    call, started, does = processes
    does["hf-packed"] = throughput.subprocess.TimeoutExpired("x", 90.0)
    assert call("--modes", "trl", "hf-packed", "rmfast", "--limit", "90") == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["failed"] == {"hf-packed": "did not end within 90 s"} and list(result["rounds"]) == ["trl", "rmfast"]
    assert started == ["rmfast", "hf-packed", "trl"]


def test_without_rmfast_there_is_no_comparison(
    processes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call, _, does = processes
    does["rmfast"] = "KeyError: 'x'"
    assert call("--modes", "trl", "rmfast") == 1
    assert list(json.loads((tmp_path / "out.json").read_text())["rounds"]) == ["trl"]
    assert "error: rmfast: ended with code 1: KeyError" in capsys.readouterr().err
    does["trl"] = "KeyError: 'y'"
    assert call("--modes", "trl", "rmfast") == 1  # nothing finished


def test_a_killed_call_goes_on_where_it_was(processes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, started, does = processes
    modes = ["--modes", "trl", "trl-tuned", "hf-packed", "rmfast", "--breakdown"]
    does |= {"trl-tuned": "a node was lost", "hf-packed": "torch.OutOfMemoryError", "trl": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        call(*modes)
    assert not json.loads((tmp_path / "out.json").read_text())["complete"]
    killed = (tmp_path / "out.json").read_text()

    def again(text: str, *more: str) -> Started:
        (tmp_path / "out.json").write_text(text)
        does.clear()
        started.clear()
        assert call(*modes, *more) == 0
        return list(started)

    assert again(killed) == ["trl-tuned", "trl"]
    result = json.loads((tmp_path / "out.json").read_text())
    assert list(result["summary"]) == ["trl", "trl-tuned", "rmfast"] and list(result["failed"]) == ["hf-packed"]
    # A call that came to its end is measured again, and so is another job.
    assert len(again((tmp_path / "out.json").read_text())) == 4
    assert len(again(killed, "--seed", "1")) == 4
    assert len(again(killed.replace('"python": ', '"python": "other", "was": '))) == 4
    # rmfast's own modes are measured again where its code is another; those of the others stay.
    digest = json.loads(killed)["source"]["rmfast"]
    assert again(killed.replace(f'"rmfast": "{digest}"', '"rmfast": "other"')) == ["rmfast", "trl-tuned", "trl"]


@pytest.mark.parametrize("name", ["hh", "ultrafeedback", "long"])
def test_lengths_have_the_means_and_the_spread_that_they_name(throughput: ModuleType, name: str) -> None:
    lengths = importlib.import_module("lengths")
    drawn = lengths.draw_lengths(name, 20000)
    d = lengths.DISTRIBUTIONS[name]
    assert drawn.mean(0) == pytest.approx([d.prompt, d.chosen, d.rejected], rel=0.05)
    sequences = drawn[:, :1] + drawn[:, 1:]
    assert sequences.max() <= d.longest and drawn.min() >= 1
    padded = sequences.reshape(-1, 16).max(1).sum() * 16 / sequences.sum()
    assert padded == pytest.approx({"hh": 2.47, "ultrafeedback": 2.1, "long": 2.0}[name], rel=0.05)
    groups = lengths.draw_groups(name, 16384)
    total = sum(prompt + sum(responses) for prompt, responses in groups)
    assert 0.7 * 16384 < total <= 16384


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "2"], "--steps: must be at least 3, got 2"),
        (["--modes", "rmfast-graphs", "--device", "cpu"], "--modes rmfast-graphs: CUDA graphs need a GPU"),
        (["--pairs-per-step", "6", "--micro-batch", "4"], "--micro-batch: 4 does not divide"),
        (["--modes", "trl-liger", "--device", "cpu"], "--modes trl-liger: Liger's kernels need a GPU"),
        (["--json", "absent/out.json"], "is not a folder"),
        (["--model", "absent", "--device", "cpu"], "absent"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    flags: list[str], message: str, throughput: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert throughput.main(flags) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error


def test_long_pairs_come_in_smaller_micro_batches(throughput: ModuleType) -> None:
    def pairs(*flags: str) -> int:
        return throughput.parse(["--device", "cpu", *flags]).micro_batch

    assert (pairs("--lengths", "long"), pairs("--lengths", "hh")) == (2, 8)
    assert pairs("--lengths", "long", "--micro-batch", "4") == 4 and pairs("--lengths", "long", "--data", "FILE") == 8
    # At most 24,000 padded tokens of 2.07 MB each, beside 20 GB of weights, gradients and moments.
    lengths = importlib.import_module("lengths").draw_lengths("long", 4 * 128)
    longest = lengths[:, 0] + lengths[:, 1:].max(1)
    assert longest.reshape(-1, 2).max(1).max() * 2 * 2 < 24_000


def test_cuda_is_refused_where_there_is_none(
    throughput: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert throughput.main(["--device", "cuda"]) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err
