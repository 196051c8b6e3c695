"""The whole plan, the most telling figures first."""

from collections.abc import Callable
from typing import Any

from benchmarks.gpu.parts import Part, Settings
from benchmarks.gpu.results import STAGES
from benchmarks.gpu.stages import kernels, real, steps, suite, tiles

LINES: dict[str, Callable[[dict[str, dict[str, Any]]], list[str]]] = {
    "suite": suite.lines, "kernels": kernels.lines, "tiles": tiles.lines, "steps": steps.lines, "real": real.lines,
}  # fmt: skip
FIRST = (  # the order of parts by how their labels begin; the longest beginning counts
    "suite/test_long_prefixes", "suite/one test of", "steps/llama-1b hh", "kernels/prefix_attention hh",
    "kernels/linear_log_prob", "kernels/info_nce", "kernels/", "suite/", "real/hh seed 0", "real/hh seed 1",
    "real/hh seed 2", "real/alpaca seed 0", "tiles/", "steps/llama-1b hh, tuned", "steps/smollm2-135m hh",
    "steps/llama-1b long", "real/ensemble", "kernels/compiled", "real/", "steps/",
)  # fmt: skip


def parts(settings: Settings, stages: tuple[str, ...] = STAGES) -> list[Part]:
    """All parts of some stages, in order."""
    every = [*suite.parts(settings), *kernels.parts(settings), *tiles.parts(settings), *steps.parts(settings),
             *real.parts(settings)]  # fmt: skip

    def place(part: Part) -> int:
        return FIRST.index(max((word for word in FIRST if part.label.startswith(word)), key=len))

    return sorted((part for part in every if part.stage in stages), key=place)
