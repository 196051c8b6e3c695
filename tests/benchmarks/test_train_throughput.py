"""benchmarks/train_throughput.py at the smallest size: one curve for all, and figures that add up."""

import importlib
import json
import pkgutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rmfast.kernels

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
    flags = ["--model", "tiny", "--lengths", "tiny", "--device", "cpu", "--threads", "1", "--lr", "1e-3"]
    sizes = ["--steps", "3", "--pairs-per-step", "8", "--micro-batch", "4", "--tokens-per-pack", "128"]
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
    assert result["attention"] == {"hf-packed": "scaled_dot_product_attention with a mask"}
    for row in summary.values():
        assert row["tokens_per_second"] * row["wall_seconds"] == pytest.approx(step["sequence_tokens"])
        assert row["tflops"] * 1e12 * row["wall_seconds"] == pytest.approx(step["flops"])
        assert row["mfu"] is None
    # A forward and a backward of the tiny shape's matrices for each computed token, all but part of the last layer.
    tokens, parameters = summary["rmfast"]["computed_tokens"], 64 * 16 * 12 + 3 * 64 * 128
    assert 6 * tokens * 2 * parameters < step["flops"] < 1.5 * 6 * tokens * 3 * parameters
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
    monkeypatch.setattr(worker, "run_trl", lambda job, checkpointing: {"config": trl.RewardConfig(**given)})
    config = worker.run(None, "trl-liger")["config"]
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


@pytest.fixture
def packed(throughput: ModuleType) -> ModuleType:
    return importlib.import_module("packed_baseline")


def attend_apart(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float) -> Tensor:
    """What torch's FlashAttention with cumulative lengths computes, in fp32."""
    lengths = starts.diff().tolist()
    assert starts.dtype == torch.int32 and max(lengths) == longest
    attend = torch.nn.functional.scaled_dot_product_attention
    parts = zip(*(x.transpose(0, 1).float().split(lengths, 1) for x in (q, k, v)), strict=True)
    outs = [attend(*part, is_causal=True, scale=scale, enable_gqa=True) for part in parts]
    return torch.cat(outs, 1).transpose(0, 1).to(q.dtype)


def test_packs_through_flash_attention_score_as_the_sequences_alone(
    packed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    shape = LlamaConfig(**sizes, num_key_value_heads=2, num_hidden_layers=2, num_labels=1, initializer_range=0.5)
    AutoModelForSequenceClassification.from_config(shape).save_pretrained(tmp_path)
    sequences = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [1]]
    pack = packed.build_pack(sequences, torch.zeros(2), pin=False)
    kinds: list[torch.dtype] = []
    monkeypatch.setattr(packed, "varlen", lambda q, *more: (kinds.append(q.dtype), attend_apart(q, *more))[1])
    flash = packed.load_model(str(tmp_path), packed.VARLEN)
    found = packed.scores_of(flash, pack, packed.VARLEN)
    assert len(kinds) == 2  # once a layer
    plain = packed.load_model(str(tmp_path), "sdpa")
    alone = [packed.scores_of(plain, packed.build_pack([s], torch.zeros(0), pin=False), "sdpa") for s in sequences]
    torch.testing.assert_close(found, torch.cat(alone))
    torch.testing.assert_close(packed.scores_of(plain, pack, "sdpa"), torch.cat(alone))
    with torch.autocast("cpu", torch.bfloat16):
        packed.scores_of(flash, pack, packed.VARLEN)
    assert kinds[-1] == torch.bfloat16


def test_the_engine_of_packs_is_tried_out_first(packed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert not packed.varlen_works(4, 2, 16, cpu)  # this build has no such kernel for a CPU
    monkeypatch.setattr(packed, "varlen", attend_apart)
    assert packed.varlen_works(4, 2, 16, cpu)
    monkeypatch.setattr(packed, "varlen", lambda *given: attend_apart(*given[:-1], scale=1.3 * given[-1]))
    assert not packed.varlen_works(4, 2, 16, cpu)
    config = SimpleNamespace(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    monkeypatch.setattr(packed.importlib.util, "find_spec", lambda name: None)
    for works, engine in ((True, packed.VARLEN), (False, "flex_attention")):
        asked: list[Any] = []
        monkeypatch.setattr(packed, "varlen_works", lambda *shape, works=works, to=asked: (to.append(shape), works)[1])
        assert packed.engine_for(config, torch.device("cuda")) == engine and engine in packed.ENGINES
        assert asked == [(4, 2, 16, torch.device("cuda"))]


def test_rows_are_sorted_within_their_steps_only(throughput: ModuleType, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "sorted.jsonl"
    rows.write_text("a\nb\nc\nd\ne\nf\n")
    throughput.sort_within_steps(rows, out, np.array([1, 3, 2, 9, 7, 8]), 3)
    assert out.read_text() == "b\nc\na\nd\nf\ne\n"


def test_a_mode_that_trains_on_other_tokens_is_noticed(throughput: ModuleType) -> None:
    rows = [[[1, 2], [1, 3]], [[4], [5]]]
    one, other = (throughput.digests(ids, 2) for ids in (rows, rows[::-1]))
    throughput.same_pairs("trl", one, "rmfast", other)  # the order within a step is free
    one, other = (throughput.digests(ids, 1) for ids in (rows, rows[::-1]))
    with pytest.raises(throughput.ModeFailed, match="trl did not train on the same token ids as rmfast .*step 1"):
        throughput.same_pairs("trl", one, "rmfast", other)


Started = list[tuple[str, bool]]


@pytest.fixture
def processes(
    throughput: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[..., int], Started, dict[str, Any]]:
    """train_throughput with modes that cost nothing: a call, what it started, and what each mode does: exit with this
    end of its output, or raise."""
    started: Started = []
    does: dict[str, Any] = {}
    lines = {"loss": [1.0, 0.5], "grad_norm": [1.0, 1.0], "wall_seconds": [9.0, 2.0], "cpu_seconds": [9.0, 2.0]}
    lines |= {"computed_tokens": [10, 10], "real_tokens": [8, 8]}
    profile = {"kind": "operator", "span_ms": 1.0, "step_ms": 1.0, "gap_ms": None, "gaps": 0, "groups": {}, "top": []}

    def prepare(args: Any, scratch: Path) -> tuple[str, dict[str, Any], dict[str, float]]:
        (scratch / "model").mkdir()
        (scratch / "model" / "config.json").write_text("{}")
        (scratch / "rows.jsonl").write_text("the rows")
        data = {"rows": 8, "mean_prefix": 1.0, "mean_chosen": 1.0, "mean_rejected": 1.0, "longest": 2}
        return "a model", data, {"flops": 1e9, "sequence_tokens": 16.0}

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        mode, out, profiled = command[3], Path(command[4]), command[-1] == "breakdown"
        started.append((mode, profiled))
        end = does.get(f"breakdown {mode}" if profiled else mode)
        if isinstance(end, BaseException):
            raise end
        if end is None or isinstance(end, list):
            more = {"peak_bytes": 2**30, "ids": end or [[[1], [2]]] * 8, "breakdown": profile}
            out.write_text(json.dumps(lines | more))
        return SimpleNamespace(returncode=int(isinstance(end, str)), stdout="", stderr=end or "")

    monkeypatch.setattr(throughput, "prepare", prepare)
    monkeypatch.setattr(throughput, "limits_here", lambda device: {"matmul": 1e12, "bandwidth": 1e11, "dtype": "x"})
    monkeypatch.setattr(throughput, "unavailable", lambda mode, device: None)
    monkeypatch.setattr(throughput, "subprocess", SimpleNamespace(run=run))

    def call(*more: str) -> int:
        flags = ["--model", "tiny", "--lengths", "tiny", "--device", "cpu", "--steps", "2", "--pairs-per-step", "4"]
        return throughput.main([*flags, "--micro-batch", "4", "--json", str(tmp_path / "out.json"), *more])

    return call, started, does


def test_a_mode_that_fails_is_named_and_the_others_count(
    processes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call, started, does = processes
    does["trl"] = "warning\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\nafter it"
    does["hf-packed"] = f"Traceback\nValueError: {tmp_path}/model has no head"
    does["trl-tuned"] = [[[1], [3]]] * 8
    does["breakdown rmfast"] = "RuntimeError: no profile"
    modes = ["trl", "hf-packed", "trl-tuned", "trl-liger", "rmfast"]
    assert call("--modes", *modes, "--breakdown", "rmfast", "trl", "trl-liger") == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert started[0] == ("rmfast", False) and ("trl", True) not in started
    assert list(result["summary"]) == list(result["rounds"]) == ["trl-liger", "rmfast"]
    assert result["breakdown"]["trl-liger"]["unprofiled_ms"] == 2000
    assert list(result["breakdown"]) == ["trl-liger"] and list(result["largest_loss_difference"]) == ["trl-liger"]
    assert result["complete"] and len(result["limits"]) == 2
    failed = result["failed"]
    assert failed["trl"].startswith("does not fit: torch.OutOfMemoryError")
    assert failed["hf-packed"] == "ended with code 1: ValueError: model has no head"
    assert "same token ids as rmfast (first difference: step 1)" in failed["trl-tuned"]
    assert failed["breakdown rmfast"].endswith("no profile")
    printed = capsys.readouterr().out
    assert "does not fit" in printed.split("TFLOP/s")[1] and "wall ratio" in printed


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


def test_a_killed_call_goes_on_where_it_was(processes: Any, tmp_path: Path) -> None:
    call, started, does = processes
    modes = ["--modes", "trl", "hf-packed", "trl-tuned", "rmfast", "--breakdown"]
    does |= {"trl": "torch.OutOfMemoryError", "hf-packed": "a node was lost", "trl-tuned": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        call(*modes)
    assert not json.loads((tmp_path / "out.json").read_text())["complete"]
    killed = (tmp_path / "out.json").read_text()
    does.clear()
    started.clear()
    assert call(*modes) == 0
    assert started == [("hf-packed", False), ("trl-tuned", False), ("rmfast", True)]
    result = json.loads((tmp_path / "out.json").read_text())
    assert list(result["summary"]) == ["hf-packed", "trl-tuned", "rmfast"] and list(result["failed"]) == ["trl"]
    # A call that came to its end is measured anew, and so is another job.
    started.clear()
    assert call(*modes) == 0 and len(started) == 5
    (tmp_path / "out.json").write_text(killed)
    started.clear()
    assert call(*modes, "--seed", "1") == 0 and len(started) == 5
    (tmp_path / "out.json").write_text(killed.replace('"commit": ', '"commit": "other", "was": '))
    started.clear()
    assert call(*modes) == 0 and len(started) == 5


def test_idle_time_counts_overlapping_kernels_once(throughput: ModuleType) -> None:
    profile = importlib.import_module("step_profile")
    assert profile.busy([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0), (3.0, 4.0)]) == (6.0, 2)
    assert profile.busy([]) == (0.0, 0)


def test_what_the_profiler_costs_is_no_part_of_the_step(throughput: ModuleType) -> None:
    """Starting and stopping take 0.3 s here; the CPU's step of 10 ms must stay one, and only its operators count."""
    profile = importlib.import_module("step_profile")
    clock = profile.ProfiledClock(3, False)
    for tool in (clock.warm_up, clock.profile):
        for name, real in (("start", tool.start), ("stop", tool.stop)):
            setattr(tool, name, lambda real=real: (time.sleep(0.3), real()))
    x = torch.ones(4)
    for operator in (torch.exp, torch.sin, torch.cos):
        clock.mark()
        operator(x)
        time.sleep(0.01)
    clock.mark()
    result = profile.breakdown(clock)
    assert 10 <= result["step_ms"] == result["span_ms"] < 200
    names = {row["name"] for row in result["top"]}
    assert "aten::cos" in names and not names & {"aten::exp", "aten::sin"}


def test_the_device_is_idle_only_between_its_first_kernel_and_its_last(
    throughput: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = importlib.import_module("step_profile")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock = profile.ProfiledClock(2, True)
    assert clock.profile.activities == clock.warm_up.activities == {torch.profiler.ProfilerActivity.CUDA}
    spans = {"cutlass_gemm": (90_000.0, 92_000.0), "flash": (94_000.0, 95_000.0), "copy": (94_500.0, 97_000.0)}
    device = torch.autograd.DeviceType.CUDA
    events = [
        SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start, end=end))
        for name, (start, end) in spans.items()
    ]
    clock.profile = SimpleNamespace(events=lambda: events)
    clock.wall = [0.0, 1.0, 1.2]  # 200 ms by the host's clock
    result = profile.breakdown(clock)
    assert (result["span_ms"], result["gap_ms"], result["gaps"]) == (7.0, 2.0, 1)
    assert result["step_ms"] == pytest.approx(200)
    assert result["groups"] == {"copies": 2.5, "matrix products": 2.0, "attention": 1.0}


def test_every_kernel_of_the_package_has_its_group(throughput: ModuleType) -> None:
    pytest.importorskip("triton")
    profile = importlib.import_module("step_profile")
    names = {
        name
        for info in pkgutil.walk_packages(rmfast.kernels.__path__, "rmfast.kernels.")
        for name, value in vars(importlib.import_module(info.name)).items()
        if name.endswith("_kernel") and hasattr(value, "fn")
    }
    assert len(names) > 25
    for name in names:
        own = "attention" if "attention" in name else "rmfast's other kernels"
        assert profile.group_of(name) == own, name
    for name, group in [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_NNT", "matrix products"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>(flash::Flash_fwd_params)", "attention"),
        (
            "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<64, 128, 128, 4, false, "
            "false, cutlass::bfloat16_t, pytorch_flash::Flash_kernel_traits<64, 128, 128, 4, cutlass::bfloat16_t>>, "
            "false, true>(pytorch_flash::Flash_fwd_params)",
            "attention",
        ),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<cutlass::bfloat16_t>()", "attention"),
        (
            "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>)",
            "attention",
        ),
        ("fmha_cutlassB_bf16_aligned_64x64_k64_sm80", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1", "attention"),
        ("triton_tem_fused_flex_attention_0", "attention"),
        ("triton_tem_fused_zeros_1", "attention"),
        (
            "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_kernel",
            "matrix products",
        ),
        (
            "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_32x32_128x2_nn_align8>()",
            "matrix products",
        ),
        ("void at::native::multi_tensor_apply_kernel<at::native::FusedAdamMathFunctor<float>>()", "optimizer"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::exp_kernel_cuda>()", "other kernels"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
    ]:
        assert profile.group_of(name) == group, name


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
        (["--steps", "1"], "--steps: must be at least 2, got 1"),
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
