"""Where a training step's time goes: device kernels in groups, and how long the device is idle between them."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
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
    """A clock that profiles the last step, which with the one before it is no part of what is timed.

    The step before is profiled too and thrown away, for the first use of the profiler is slow; both start outside the
    step's time. On a GPU only the device is watched: following the CPU's operators would slow the CPU down and make the
    device wait. A profiler that fails costs the breakdown alone.
    """

    def __init__(self, steps: int, cuda: bool) -> None:
        super().__init__(steps, cuda)
        kinds = [ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]
        self.warm_up, self.profile = (torch.profiler.profile(activities=kinds) for _ in range(2))
        self.fault: str | None = None

    def mark(self) -> None:
        """See `Clock.mark`."""
        begins = len(self.wall) + 1  # the number of the step that begins now
        if begins < self.steps:
            super().mark()
        if begins < self.steps - 1:
            return
        if self.cuda:
            torch.cuda.synchronize()
        if begins == self.steps - 1:
            self._try(self.warm_up.start)
        elif begins == self.steps:
            self._try(self.warm_up.stop)
            self._try(self.profile.start)
            super().mark()
        else:
            super().mark()
            self._try(self.profile.stop)

    def _try(self, action: Callable[[], None]) -> None:
        if self.fault is None:
            try:
                action()
            except Exception as error:  # of a library; the steps were timed before
                self.fault = f"{type(error).__name__}: {error}"

    def broken_down(self) -> dict[str, Any]:
        """`breakdown`, or {"fault": why there is none}."""
        try:
            return breakdown(self) if self.fault is None else {"fault": self.fault}
        except Exception as error:
            return {"fault": f"{type(error).__name__}: {error}"}


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

    `step_ms` is the step by the host's clock. On a GPU `span_ms` is from the start of the first device event to the end
    of the last, `gap_ms` what of it no event covers, and `host_gap` the share of the step in which the device did
    nothing: 1 - busy / step.
    """
    step = span = 1e3 * (clock.wall[-1] - clock.wall[-2])
    spent: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    gap, gaps, host_gap = None, 0, None
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
        host_gap = 1 - covered / 1e3 / step
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
        "host_gap": host_gap,
        "groups": dict(sorted(groups.items(), key=lambda item: -item[1])),
        "top": [{"name": name, "ms": spent[name], "count": counts[name]} for name in top],
    }
