"""An ensemble as one self-contained page: strengths, its plots, members and the ways to combine them."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.evaluation.combine import RULES
from rmfast.report.ensemble.plots import HeldOut, Strengths, ensemble_plots
from rmfast.report.page import document, figure, table, write
from rmfast.report.plots import DARK, Plot, all_plots, render
from rmfast.report.run_folder import number, read_run
from rmfast.report.summary import accuracy_line, baseline, percent, verdict

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
    sections = {"Strengths": ensemble_plots(strengths, held_out), "Training": all_plots(run)}
    files, parts = [], []
    for title, plots in sections.items():
        pictures = []
        for plot in plots:
            files.append(folder / f"{plot.name}.png")
            pictures.append(_picture(plot, files[-1]))
        if pictures:
            parts.append(f'<h2>{title}</h2><div class="plots">{"".join(pictures)}</div>')
    page = folder / "report.html"
    name = escape(run_dir.resolve().name)
    tables = [_rules(set_name, own) for set_name, own in figures["eval"].items()]
    head = [f"<h1>rmfast ensemble: {name}</h1>", _headline(figures), _remarks(remarks), parts[0] if parts else ""]
    body = [*head, *tables, _members(strengths, figures), *parts[1:], _config(run.config)]
    page.write_text(document(name, body), encoding="utf-8")
    return [*files, page]


def _picture(plot: Plot, file: Path) -> str:
    """Write the plot to a file; gives it as HTML in both themes."""
    light = render(plot)
    file.write_bytes(light)
    return figure(plot.title, plot.note, light, render(plot, DARK))


def _headline(figures: Figures) -> str:
    """Held-out accuracy of the members together against the baseline, and the strengths in a line."""
    cards = []
    for name, own in figures["eval"].items():
        mean, alone = own["rules"]["mean"], np.array(own["members"])
        _, share = baseline(mean)
        tone = "good" if number(mean, "accuracy_low") > share and not number(mean, "nonfinite") > 0 else "bad"
        interval = accuracy_line(mean).partition(" (")[2].rstrip(")")
        cards.append(
            f'<div class="card {tone}"><p class="soft">Held-out accuracy on {escape(name)}, mean of '
            f'{len(alone)} members</p><p class="big">{percent(number(mean, "accuracy"))}</p><p>{escape(interval)}</p>'
            f"<p>{escape(verdict(mean))}</p><p>A single member: {percent(float(alone.mean()))} on average, "
            f"{percent(float(alone.min()))} to {percent(float(alone.max()))}</p></div>"
        )
    if not cards:
        cards.append('<div class="card bad"><p>No held-out data: nothing tells how well the members rank.</p></div>')
    facts = {
        "members": write(float(figures["members"]), "count"),
        "preferences": write(float(figures["edges"]), "count"),
        "of them with strength below 0": percent(figures["negative_share"]),
        "mean std over members": write(float(figures["mean_of_std"]), "real"),
        "agreement of two members on them": percent(figures["agreement"]),
        "": "in-sample" if figures["folds"] is None else f"out of sample, {figures['folds']} folds",
    }
    items = "".join(f"<li><b>{value}</b> {label}</li>" for label, value in facts.items())
    cards.append(f'<ul class="facts">{items}</ul>')
    return "\n".join(cards)


def _remarks(remarks: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    return f'<h2>How to read the strengths</h2><ul class="soft">{items}</ul>' if items else ""


def _rules(name: str, own: Figures) -> str:
    """Every rule that combines the members, on rewards as they are and standardised by member."""
    lines = []
    for rule in RULES:
        line: list[str] = [rule]
        for key in (rule, f"{rule}, standardised"):
            metrics = own["rules"].get(key, {})
            low, high = number(metrics, "accuracy_low"), number(metrics, "accuracy_high")
            line += [write(number(metrics, "accuracy"), "share"), f"{100 * low:.1f} to {100 * high:.1f}"]
            line[-1] = line[-1] if np.isfinite(low + high) else "–"
            line.append(write(number(metrics, "ties"), "count"))
        lines.append(line)
    mean = own["rules"]["mean"]
    label, share = baseline(mean)
    lines.append([f"to beat: {label}", write(share, "share"), "–", "–", "–", "–", "–"])
    columns = ["Accuracy", "95 % interval (%)", "Ties"]
    head = ["Rule", *columns, *(f"{column}, standardised" for column in columns)]
    intro = (
        f"<p class='soft'>On {number(mean, 'edges'):,.0f} held-out pairs. Standardised: each member brought to mean 0 "
        "and std 1 first. Votes (majority) know no scale. Ties count as wrong.</p>"
    )
    return f"<h2>Members combined, on {escape(name)}</h2>{intro}{table(head, lines)}"


def _members(strengths: Strengths, figures: Figures) -> str:
    """Each member alone: held-out accuracy, and what it says of the preferences that it judged."""
    names = list(figures["eval"])
    lines = []
    for member, gaps in enumerate(strengths.gaps):
        known = gaps[np.isfinite(gaps)]
        shares = [write(float(figures["eval"][name]["members"][member]), "share") for name in names]
        empty = float("nan")
        lines.append(
            [
                str(member),
                *shares,
                write(float(known.size), "count"),
                write(float((known > 0).mean()) if known.size else empty, "share"),
                write(float(known.mean()) if known.size else empty, "signed"),
                write(float(known.std()) if known.size else empty, "real"),
            ]
        )
    head = ["Member", *(f"Accuracy on {name}" for name in names)]
    head += ["Preferences judged", "Labels it agrees with", "Mean of r(better) - r(worse)", "Std of it"]
    return "<h2>Members alone</h2>" + table(head, lines)


def _config(text: str | None) -> str:
    if text is None:
        return ""
    return f'<h2>Config</h2><details class="card"><summary>config.yaml</summary><pre>{escape(text)}</pre></details>'
