"""The whole plan, the most telling figures first."""

from collections.abc import Callable

from benchmarks.gpu.parts import Part, Settings
from benchmarks.gpu.results import Records
from benchmarks.gpu.stages import kernels, steps, suite, tiles

LINES: dict[str, Callable[[Records], list[str]]] = {
    "suite": suite.lines, "kernels": kernels.lines, "tiles": tiles.lines, "steps": steps.lines,
}  # fmt: skip
FIRST = (  # the order of parts by how their labels begin; the longest beginning counts
    "suite/test_long_prefixes", "suite/one test of", "steps/llama-1b hh", "kernels/prefix_attention hh",
    "kernels/linear_log_prob", "kernels/info_nce", "kernels/", "suite/", "tiles/", "steps/llama-1b hh, tuned",
    "steps/smollm2-135m hh", "steps/llama-1b long", "kernels/compiled", "steps/",
)  # fmt: skip


def parts(settings: Settings) -> list[Part]:
    """All parts, in order."""
    every = [part for stage in (suite, kernels, tiles, steps) for part in stage.parts(settings)]

    def place(part: Part) -> int:
        return FIRST.index(max((word for word in FIRST if part.label.startswith(word)), key=len))

    return sorted(every, key=place)
