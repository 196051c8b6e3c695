"""Where a training step's time goes: device kernels in groups, and how long the device is idle between them."""

import re
from collections import Counter, defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from vs_trl_worker import Clock

TOP = 25
# The first pattern that a device kernel's name matches. Attention comes first: its kernels' names hold "cutlass" too.
# Inductor's templates (triton_tem) are FlexAttention's; only max-autotune, used nowhere here, has them for products.
GROUPS = {
    "attention": r"attention|flash|fmha|sdpa|^triton_tem_",
    "matrix products": r"gemm|cutlass|nvjet|xmma|cublas|matmul",
    "rmfast's other kernels": (
        r"^(rms_norm|rope|swiglu|score_head|linear_log_prob|ranking_loss|difference_loss|gae|policy_loss|value_loss"
        r"|masked_mean|info_nce|normalize|sinkhorn|swapped)(_\w+)?_kernel"
    ),
    "optimizer": r"adam|multi_tensor|foreach|lpnorm",
    "copies": r"^mem(cpy|set)|copy",
}


class ProfiledClock(Clock):
    """Profiles the last step. The step before it is profiled too and thrown away, for the first use of the profiler is
    slow; both start outside the step's time. On a GPU only the device is watched: following the CPU's operators would
    slow the CPU down and make the device wait."""

    last: "ProfiledClock | None" = None

    def __init__(self, steps: int, cuda: bool) -> None:
        super().__init__(steps, cuda)
        kinds = [ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]
        self.warm_up, self.profile = (torch.profiler.profile(activities=kinds) for _ in range(2))
        ProfiledClock.last = self

    def mark(self) -> None:
        begins = len(self.wall) + 1  # the number of the step that begins now
        if self.cuda:
            torch.cuda.synchronize()
        if begins == self.steps - 1:
            self.warm_up.start()
        elif begins == self.steps:
            self.warm_up.stop()
            self.profile.start()
        super().mark()
        if begins == self.steps + 1:
            self.profile.stop()


def busy(spans: list[tuple[float, float]]) -> tuple[float, int]:
    """Time covered by spans, and how many stretches they form."""
    covered, stretches, end = 0.0, 0, float("-inf")
    for start, stop in sorted(spans):
        if start > end:
            stretches += 1
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered, stretches


def group_of(kernel: str) -> str:
    """The group of `GROUPS` that a device kernel's name belongs to."""
    return next((g for g, pattern in GROUPS.items() if re.search(pattern, kernel, re.IGNORECASE)), "other kernels")


def breakdown(clock: ProfiledClock) -> dict[str, Any]:
    """Milliseconds of the profiled step by device kernel, and the device's idle time; by operator on a CPU.

    `span_ms` is, on a GPU, from the start of the first device event to the end of the last, and `gap_ms` what of it no
    event covers; `step_ms` is the step by the host's clock.
    """
    step = span = 1e3 * (clock.wall[-1] - clock.wall[-2])
    spent: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    gap, gaps = None, 0
    if clock.cuda:
        device = [e for e in clock.profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        device = [e for e in device if not getattr(e, "is_user_annotation", False)]
        for event in device:
            spent[event.name] += (event.time_range.end - event.time_range.start) / 1e3
            counts[event.name] += 1
        spans = [(e.time_range.start, e.time_range.end) for e in device]
        if not spans:
            raise RuntimeError("the profiler saw no kernel on the device")
        covered, stretches = busy(spans)
        span = (max(end for _, end in spans) - min(start for start, _ in spans)) / 1e3
        gap, gaps = max(span - covered / 1e3, 0.0), stretches - 1
    else:
        for average in clock.profile.key_averages():
            spent[average.key] += average.self_cpu_time_total / 1e3
            counts[average.key] += average.count
    groups: dict[str, float] = defaultdict(float)
    for name, milliseconds in spent.items() if clock.cuda else []:
        groups[group_of(name)] += milliseconds
    top = sorted(spent, key=lambda name: -spent[name])[:TOP]
    return {
        "kind": "device kernel" if clock.cuda else "operator",
        "span_ms": span,
        "step_ms": step,
        "gap_ms": gap,
        "gaps": gaps,
        "groups": dict(sorted(groups.items(), key=lambda item: -item[1])),
        "top": [{"name": name, "ms": spent[name], "count": counts[name]} for name in top],
    }
