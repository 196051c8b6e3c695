"""The page of an ensemble whose members have folders of their own."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.evaluation.combine import RULES
from rmfast.report.ensemble.page import write_ensemble_report
from rmfast.tasks.ensemble.strength import held_out_figures
from tests.report.ensemble.test_plots import gaps_of, held_out_of, strengths_of

SET = "a <set>"


def figures_of(sets: dict[str, Any], strengths: Any) -> dict[str, Any]:
    return {
        "members": 3,
        "folds": 3,
        "edges": strengths.mean.size,
        "nonfinite": 0,
        "negative_share": strengths.negative_share,
        "mean_of_std": float(strengths.std.mean()),
        "agreement": 0.815,
        "eval": {name: held_out_figures(own.rewards, own.edges, 0.0) for name, own in sets.items()},
    }


def rows_of(page: str) -> dict[str, list[str]]:
    """First cell of every line of every table -> its other cells."""
    lines = (re.findall("<td>(.*?)</td>", line) for line in re.findall("<tr>(.*?)</tr>", page))
    return {cells[0]: cells[1:] for cells in lines if cells}


def test_figures_are_in_the_page(tmp_path: Path) -> None:
    gaps = gaps_of(3, 60)
    gaps[1, 7:] = np.nan
    strengths = strengths_of(gaps)
    strengths = type(strengths)(mean=gaps[0], std=abs(gaps[0]), gaps=gaps, broken=0)
    held_out = {SET: held_out_of(gaps_of(3, 40, 1))}
    figures = figures_of(held_out, strengths)
    files = write_ensemble_report(tmp_path, strengths, held_out, figures, ["one <remark>"])
    assert [file.name for file in files] == [
        *("strength.png", "strength-std.png", "agreement.png", "deciles.png", "report.html")
    ]
    assert all(file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for file in files[:-1])
    page = files[-1].read_text()
    assert page.count("<figure") == 4 and "<h2>Training" not in page and "81.5 %" in page
    assert "out of sample, 3 folds" in page and "one &lt;remark&gt;" in page and "<set>" not in page
    rows = rows_of(page)
    rules = figures["eval"][SET]["rules"]
    for rule in RULES:
        own = rules[rule]
        low, high = (f"{100 * own[key]:.1f}" for key in ("accuracy_low", "accuracy_high"))
        assert rows[rule][:3] == [f"{100 * own['accuracy']:.1f} %", f"{low} to {high}", f"{own['ties']}"]
        scaled = rules.get(f"{rule}, standardised")
        assert rows[rule][3] == ("–" if scaled is None else f"{100 * scaled['accuracy']:.1f} %")
    for member, accuracy in enumerate(figures["eval"][SET]["members"]):
        known = gaps[member][np.isfinite(gaps[member])]
        cells = [
            f"{100 * accuracy:.1f} %",
            f"{known.size}",
            f"{100 * (known > 0).mean():.1f} %",
            f"{known.mean():+.3f}",
        ]
        assert rows[str(member)][:4] == cells


def test_without_held_out_data_it_says_so(tmp_path: Path) -> None:
    strengths = strengths_of(gaps_of(2, 5))
    files = write_ensemble_report(tmp_path, strengths, {}, figures_of({}, strengths) | {"folds": None}, [])
    page = files[-1].read_text()
    assert "No held-out data" in page and "in-sample" in page and "Members combined" not in page
    assert "How to read" not in page and "Members alone" in page
