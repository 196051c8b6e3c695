"""An ensemble as one self-contained page: strengths, its plots, members and the ways to combine them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.data.files import write_text
from rmfast.evaluation.combine import RULES
from rmfast.report.ensemble.plots import HeldOut, Strengths, ensemble_plots
from rmfast.report.run_folder import number, read_run
from rmfast.report.run_plots import all_plots
from rmfast.report.summary import baseline
from rmfast.report.template import page, write, write_picture

Figures = Mapping[str, Any]


def write_ensemble_report(
    run_dir: Path, strengths: Strengths, held_out: dict[str, HeldOut], figures: Figures, remarks: Sequence[str]
) -> list[Path]:
    """Write `report/*.png` and `report/report.html` of an ensemble's run folder.

    Where the members were trained in the folder itself (`ensemble.mode heads`), the plots of that training follow.

    Args:
        figures: of summary.json. remarks: sentences on how to read them.

    Returns:
        The files written, the page last.
    """
    run = read_run(run_dir)
    folder = run_dir / "report"
    folder.mkdir(exist_ok=True)
    sections = {"strengths": ensemble_plots(strengths, held_out), "training": all_plots(run)}
    pictures = {
        name: {(file := folder / f"{plot.name}.png"): write_picture(plot, file) for plot in plots}
        for name, plots in sections.items()
    }
    text = page(
        "ensemble.html",
        title=run_dir.resolve().name,
        figures=figures,
        remarks=remarks,
        rules={name: _rules(of_set["rules"]) for name, of_set in figures["eval"].items()},
        columns=["Member", *(f"Accuracy on {name}" for name in figures["eval"]), *COLUMNS],
        members=_members(strengths, figures),
        config=run.config,
        **{name: list(plots.values()) for name, plots in pictures.items()},
    )
    write_text(folder / "report.html", text)
    return [*pictures["strengths"], *pictures["training"], folder / "report.html"]


def _rules(rules: Figures) -> list[list[str]]:
    """Every rule that combines the members, on rewards as they are and standardised by member; last what to beat."""
    lines = []
    for rule in RULES:
        line: list[str] = [rule]
        for key in (rule, f"{rule}, standardised"):
            metrics = rules.get(key, {})
            low, high = number(metrics, "accuracy_low"), number(metrics, "accuracy_high")
            interval = f"{100 * low:.1f} to {100 * high:.1f}" if np.isfinite(low + high) else "–"
            line += [write(number(metrics, "accuracy"), "share"), interval, write(number(metrics, "ties"), "count")]
        lines.append(line)
    label, share = baseline(rules["mean"])
    return [*lines, [f"to beat: {label}", write(share, "share"), *"–––––"]]


COLUMNS = ("Preferences scored", "Labels it agrees with", "Mean of r(better) - r(worse)", "Std of it")


def _members(strengths: Strengths, figures: Figures) -> list[list[str]]:
    """Each member alone: held-out accuracy, and what it says of the preferences that it scored."""
    lines = []
    for member, gaps in enumerate(strengths.gaps):
        known = gaps[np.isfinite(gaps)]
        shares = [write(float(of_set["members"][member]), "share") for of_set in figures["eval"].values()]
        moments = [(known > 0).mean(), known.mean(), known.std()] if known.size else [np.nan] * 3
        told = [write(float(value), kind) for value, kind in zip(moments, ("share", "signed", "real"), strict=True)]
        lines.append([str(member), *shares, write(float(known.size), "count"), *told])
    return lines
