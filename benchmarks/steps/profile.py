"""Where a training step's time goes: device kernels in groups, and how long the device is idle between them."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from benchmarks.steps.worker import Clock

TOP = 25
# The first pattern that a device kernel's name matches. Attention comes first: its kernels' names hold "cutlass" too.
GROUPS = {
    "attention": r"attention|flash|fmha|sdpa",
    "matrix products": r"gemm|cutlass|nvjet|xmma|cublas|matmul",
    "rmfast's other kernels": (
        r"^(rms_norm|rope|swiglu|score_head|linear_log_prob|ranking_loss|difference_loss|gae|policy_loss|value_loss"
        r"|masked_mean|info_nce|normalize|sinkhorn|swapped|decode)(_\w+)?_kernel"
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

    def _try(self, action: Callable[[], Any]) -> Any:
        if self.fault is None:
            try:
                return action()
            except Exception as error:  # of a library; the steps were timed before
                self.fault = f"{type(error).__name__}: {error}"
        return None

    def broken_down(self) -> dict[str, Any]:
        """`breakdown`, or {"fault": why there is none}."""
        return self._try(lambda: breakdown(self)) or {"fault": self.fault}


def busy(spans: list[tuple[float, float]]) -> tuple[float, int]:
    """Time covered by spans, and how many stretches they form."""
    covered, stretches, end = 0.0, 0, float("-inf")
    for start, stop in sorted(spans):
        stretches += start > end
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
    step = 1e3 * (clock.wall[-1] - clock.wall[-2])
    spent: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    groups: Counter[str] = Counter()
    found = {"span_ms": step, "gap_ms": None, "gaps": 0, "host_gap": None}
    if clock.cuda:
        device = [e for e in clock.profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        device = [e for e in device if not getattr(e, "is_user_annotation", False)]
        if not device:
            raise RuntimeError("the profiler saw no kernel on the device")
        for event in device:
            milliseconds = (event.time_range.end - event.time_range.start) / 1e3
            spent[event.name] += milliseconds
            groups[group_of(event.name)] += milliseconds
            counts[event.name] += 1
        spans = [(e.time_range.start, e.time_range.end) for e in device]
        covered, stretches = busy(spans)
        span = (max(end for _, end in spans) - min(start for start, _ in spans)) / 1e3
        found = {"span_ms": span, "gap_ms": max(span - covered / 1e3, 0.0), "gaps": stretches - 1}
        found["host_gap"] = 1 - covered / 1e3 / step
    else:
        for average in clock.profile.key_averages():
            spent[average.key] += average.self_cpu_time_total / 1e3
            counts[average.key] += average.count
    return {"kind": "device kernel" if clock.cuda else "operator", "step_ms": step} | found | {
        "groups": dict(groups.most_common()),
        "top": [{"name": name, "ms": ms, "count": counts[name]} for name, ms in spent.most_common(TOP)],
    }  # fmt: skip
