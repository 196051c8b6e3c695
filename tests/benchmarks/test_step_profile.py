"""The clock of training steps and the profile of one: what is timed, by which clock, and where the time goes."""

import importlib
import pkgutil
import time
from types import SimpleNamespace

import pytest
import torch

import rmfast.kernels
from benchmarks.steps import profile
from benchmarks.steps.worker import Clock


def test_steps_on_a_gpu_are_timed_by_events_in_its_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    times, waits = iter([0.0, 200.0, 450.0, 480.0]), []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.milliseconds = next(times)

        def elapsed_time(self, other: "Event") -> float:
            return other.milliseconds - self.milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(None))
    clock = Clock(3, True)
    for _ in range(4):
        clock.mark()
    assert not waits  # nothing waits for the device between steps
    assert clock.seconds()["wall_seconds"] == pytest.approx([0.2, 0.25, 0.03])
    assert len(waits) == 1 and len(clock.seconds()["cpu_seconds"]) == 3


def test_a_profiler_that_fails_costs_the_breakdown_alone() -> None:
    def refuse() -> None:
        raise RuntimeError("no CUPTI")

    clock = profile.ProfiledClock(4, False)
    clock.profile.start = refuse
    for _ in range(5):
        clock.mark()
    assert clock.broken_down() == {"fault": "RuntimeError: no CUPTI"}
    assert len(clock.seconds()["wall_seconds"]) == 4


def test_what_the_profiler_costs_is_no_part_of_the_step() -> None:
    """Starting and stopping take 0.3 s here; the CPU's step of 10 ms must stay one, and only its operators count."""
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


def test_the_device_is_idle_only_between_its_first_kernel_and_its_last() -> None:
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
    assert result["host_gap"] == pytest.approx(1 - 5.0 / 200)  # of the step: also before the first kernel
    assert result["step_ms"] == pytest.approx(200)
    assert result["groups"] == {"copies": 2.5, "matrix products": 2.0, "attention": 1.0}
    assert profile.busy([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0), (3.0, 4.0)]) == (6.0, 2) and profile.busy([]) == (0.0, 0)


def test_every_kernel_of_the_package_has_its_group() -> None:
    pytest.importorskip("triton")
    names = {
        name
        for info in pkgutil.walk_packages(rmfast.kernels.__path__, "rmfast.kernels.")
        for name, value in vars(importlib.import_module(info.name)).items()
        if name.endswith("_kernel") and hasattr(value, "fn")
    }
    assert len(names) > 25
    for name in names:
        assert profile.group_of(name) == ("attention" if "attention" in name else "rmfast's other kernels"), name


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_NNT", "matrix products"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>(flash::Flash_fwd_params)", "attention"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<cutlass::bfloat16_t>()", "attention"),
        ("fmha_cutlassB_bf16_aligned_64x64_k64_sm80", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1", "attention"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_execute_kernel", "matrix products"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_32x32_128x2_nn_align8>()",
         "matrix products"),
        ("void at::native::multi_tensor_apply_kernel<at::native::FusedAdamMathFunctor<float>>()", "optimizer"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::exp_kernel_cuda>()", "other kernels"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
    ],
)  # fmt: skip
def test_kernels_of_libraries_have_their_group(name: str, group: str) -> None:
    assert profile.group_of(name) == group
