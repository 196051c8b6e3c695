"""benchmarks/figures.py: tables are what their files say, those of a GPU too."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import figures, figures_plots
from benchmarks.gpu.stages import kernels

ROOT = Path(__file__).resolve().parents[2]


def test_pages_are_what_their_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert figures.main(["--check"]) == 0
    texts = {page.name if page.parent == ROOT else "benchmarks": page.read_text() for page in figures.PAGES}
    assert [len(figures.BLOCK.findall(text)) for text in texts.values()] == [2, 4]
    page = tmp_path / "README.md"
    page.write_text(texts["README.md"].replace("| 78.4 | 4.8 x |", "| 78.4 | 7.0 x |"))
    monkeypatch.setattr(figures, "PAGES", (page,))
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    assert figures.main(["--check"]) == 1
    assert figures.NOTHING in figures.filled("<!-- table: gpu-steps gpu/x.json -->\n<!-- end of table -->", tmp_path)


def test_a_gpu_s_results_fill_every_table(tmp_path: Path) -> None:
    """Made up: what only a GPU gives, rivals of a kernel, a winner, idle time."""
    origin = {"status": "done", "tries": 1, "seconds": 1.0, "device": "card", "versions": {"torch": "2"}, "commit": "c",
              "when": "2026-01-02T03:04:05"}  # fmt: skip

    def stage(name: str, result: dict[str, Any]) -> dict[str, Any]:
        return {"stage": name, "parts": {"one": origin | {"result": result}}}

    row = {"op": "swiglu", "size": "s", "pass": "forward", "bytes": 1000, "flops": 1}
    ceilings = {"bandwidth": 1e6 / 0.41, "matmul": 1e12, "dtype": "bfloat16"}
    rows = [row | {"contender": name, "milliseconds": ms} for name, ms in (("rmfast", 0.5), ("torch", 2.0), ("x", 0.6))]
    kernels = figures.gpu_kernels(stage("kernels", {"results": rows, "skipped": [], "limits": ceilings}))
    assert "| `swiglu` | s | forward | 0.5000 | 82 % (memory) | x | 1.20 x |" in kernels
    line = {"name": "n", "tried": [{"faults": []}, {"faults": ["spills"]}], "held": {"m": 64}, "held_milliseconds": 2.0,
            "winner": {"m": 128}, "winner_milliseconds": 1.0}  # fmt: skip
    assert "| n | 2 (1 refused) | (64,) | (128,) | 2.00 x |" in figures.gpu_tiles(stage("tiles", {"lines": [line]}))
    own = {"wall_seconds": 1.0, "tokens_per_second": 9e4, "mfu": 0.5, "peak_gib": 20.0, "share_of_product": 0.6,
           "padding_share": 0.0, "prefix_share": 0.3}  # fmt: skip
    profile = {"span_ms": 200.0, "gap_ms": 10.0, "groups": {"matrix products": 150.0}}
    steps = stage("steps", {"summary": {"trl": own | {"wall_seconds": 7.5}, "rmfast": own},
                            "largest_loss_difference": {"trl": 2e-3}, "breakdown": {"rmfast": profile}})  # fmt: skip
    assert "| one | 90,000 | 50 % | 20.0 | 7.5 x | - | - | - | card, torch 2, c, 2026-01-02 |" in figures.gpu_steps(
        steps
    )
    assert "| one | rmfast | 200 | 5 % | matrix products 75 % |" in figures.gpu_breakdown(steps)
    assert "| TRL, its defaults | 7.500 | 7.50 |" in figures.gpu_modes(steps) and "2e-3" in figures.gpu_modes(steps)


def test_every_part_of_the_kernels_is_divided_by_its_own_ceilings() -> None:
    row = {"op": "x", "size": "s", "pass": "forward", "contender": "rmfast", "bytes": 1000, "flops": 1,
           "milliseconds": 1.0, "share_of_limit": 0.5, "limit_by": "memory"}  # fmt: skip
    slow, fast = ({"bandwidth": rate, "matmul": 1e12, "dtype": "bfloat16"} for rate in (2e6, 4e6))
    parts = {name: {"status": "done", "result": {"results": [row | {"op": name}], "skipped": [], "limits": limits}}
             for name, limits in (("slow", slow), ("fast", fast))}  # fmt: skip
    whole = kernels.joined(parts)
    assert whole is not None
    assert [each["share_of_limit"] for each in whole["results"]] == [0.5, 0.25]
    drawn = figures_plots.under_one_roof(whole)["results"]
    assert [each["milliseconds"] for each in drawn] == [1.0, 2.0]
    assert "copy 0 to 0 GB/s" in kernels.lines(parts)[0] and "50.0%" in kernels.lines(parts)[1]
