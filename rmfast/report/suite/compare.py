"""Sections of a suite's page on models beside each other: figures, differences, agreement, best-of-n selection."""

from collections.abc import Sequence

import numpy as np

from rmfast.evaluation.diagnostics.agreement import Agreement
from rmfast.evaluation.diagnostics.report import Diagnostics
from rmfast.evaluation.diagnostics.selection import Selection
from rmfast.evaluation.diagnostics.words import counted
from rmfast.evaluation.suites.result import SuiteResult
from rmfast.report.page import table_of_html
from rmfast.report.suite.chart import Line, line_chart, number_ticks
from rmfast.report.suite.look import chip, points, step, text
from rmfast.report.suite.words import difference, fold, p_value, plain, reach, real, section, share

SHOWN = 20  # rows of a list
FIGURES = 8  # of a suite whose correlation with selection is shown unfolded


def compared(results: Sequence[SuiteResult], diagnostics: Diagnostics | None) -> str:
    """Headline and parts of all models side by side, and the paired differences where they are known."""
    if len(results) < 2:
        return ""
    lines = []
    for name in results[0].headline:
        lines.append((name, [result.headline[name] for result in results]))
    whole = [{cell.part: cell.accuracy for cell in r.cells if not cell.path} for r in results]
    for part in dict.fromkeys(part for own in whole for part in own):
        if part not in results[0].headline:
            lines.append((f"{part}, all rows", [own.get(part, float("nan")) for own in whole]))
    rows = []
    for name, values in lines:
        best = max((value for value in values if np.isfinite(value)), default=float("nan"))
        cells = [f"<b>{points(value)}</b>" if value == best else points(value) for value in values]
        rows.append([text(name), *cells])
    head = ["In per cent", *(f"{chip(i)} {text(result.name)}" for i, result in enumerate(results))]
    words = '<p class="lead">Bold: the highest of the row.</p>'
    return f"<h2>Models side by side</h2>{words}{table_of_html(head, rows)}{_differences(diagnostics)}"


def _differences(diagnostics: Diagnostics | None) -> str:
    """A pair of models a row, a figure a column; McNemar's p beside the parts."""
    if diagnostics is None or diagnostics.agreement is None:
        return ""
    pairs = diagnostics.agreement.pairs
    figures = list(pairs[0].headline)
    parts = [part for part in pairs[0].parts if part not in figures]
    rows = []
    for pair in pairs:
        cells = [difference(pair.headline.get(name)) for name in figures]
        cells += [difference(pair.parts.get(part)) for part in parts]
        rows.append([f"{chip(pair.a)} − {chip(pair.b)}", *cells])
    words = (
        "<h3>Paired differences</h3><p class='lead'>The first model's accuracy less the second's on the same rows, "
        "in points, with 95 % intervals from a bootstrap over prompts. Bold: the interval lies on one side of 0, so "
        "that the order of the two would likely hold on other rows of the kind.</p>"
    )
    table = table_of_html(["Models", *map(text, figures), *(f"{text(part)}, all rows" for part in parts)], rows)
    lines = [
        [f"{chip(pair.a)} and {chip(pair.b)}", text(part)]
        + [f"{count:,}" for count in (own.both, own.only_a, own.only_b, own.neither)]
        + [p_value(own.p)]
        for pair in pairs
        for part, own in pair.rows.items()
    ]
    head = ["Models", "Part", "Both right", "Only the first", "Only the second", "Neither", "p (McNemar)"]
    counts = fold(
        "Rows that one model gets right and the other wrong",
        '<p class="lead">McNemar\'s exact test asks whether the two counts of "only" differ by more than chance; it '
        "takes rows as independent, which rows of one prompt are not.</p>" + table_of_html(head, lines),
    )
    return words + table + counts


def agreement_part(agreement: Agreement | None, models: int) -> str:
    if not agreement:
        return ""
    tables = []
    for matrix, title, middle in (
        (agreement.edges, "Pairs on which two models prefer the same side (%)", 0.5),
        (agreement.kappa, "Cohen's kappa of rows won (100 is the same rows, 0 what chance gives)", 0.0),
        (agreement.spearman, "Rank correlation of gaps (times 100)", 0.0),
    ):
        tables.append(f'<div class="card panel"><h3>{title}</h3>{_matrix(matrix, middle)}</div>')
    lines = []
    for part, own in agreement.all_wrong.parts.items():
        lines.append(
            f"<li>{text(part)}: all models are wrong on <b>{own.all_wrong:,}</b> of {counted(own.rows, 'row')} "
            f"(if their errors were independent, {own.expected:,.0f}), and all right on "
            f"{own.all_right:,}.</li>"
        )
    hard = [
        [text(row.label), text(row.part), text(" / ".join(row.path))] + [plain(gap, signed=True) for gap in row.gaps]
        for row in agreement.all_wrong.rows[:SHOWN]
    ]
    head = ["Row", "Part", "Group", *(f"gap of {chip(i)}" for i in range(models))]
    listed = fold("Rows that every model gets wrong, the most sure first", table_of_html(head, hard)) if hard else ""
    words = (
        '<p class="lead">Models that agree far beyond chance share their training data or their faults; rows that all '
        "get wrong are hard, or labelled wrong.</p>"
    )
    body = f'<div class="plots">{"".join(tables)}</div><ul>{"".join(lines)}</ul>{listed}'
    return section("Agreement", words, [body])


def _matrix(matrix: Sequence[Sequence[float]], middle: float) -> str:
    head = "".join(f'<th scope="col">{chip(i)}</th>' for i in range(len(matrix)))
    rows = []
    for i, line in enumerate(matrix):
        cells = "".join(
            '<td class="none">·</td>'
            if i == j
            else f'<td class="{step(value, middle, 1 - middle)}">{points(value)}</td>'
            for j, value in enumerate(line)
        )
        rows.append(f'<tr><th scope="row">{chip(i)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def selection_part(selection: Selection | None) -> str:
    if not selection:
        return ""
    most = selection.most
    place = [float(n) for n in range(1, most + 1)]
    models = selection.models
    curves = [model.curve for model in models]
    gold = selection.gold_curve
    low, high = reach([value for curve in (*curves, gold, [selection.random]) for value in curve], 0.05)
    gap = max(1, round(most / 8))
    lines = [Line(i, place[: len(curve)], curve) for i, curve in enumerate(curves)]
    steps = [(place[k], gold[k], place[k + 1], gold[k + 1]) for k in range(len(gold) - 1)]
    level = selection.random
    chart = line_chart(
        "Gold score of the answer that each model picks",
        "Rising dashes: the gold scorer's own pick. Level dashes: a random pick.",
        lines,
        labels=("Candidates to choose from, n", "Gold score of the pick"),
        ranges=((0.5, most + 0.5), (low, high)),
        ticks=([(float(n), str(n)) for n in range(1, most + 1, gap)], number_ticks(low, high)),
        rules=[*steps, (0.5, level, most + 0.5, level)],
    )
    rows = [
        [f"{chip(i)} {text(model.name)}", real(model.picked), share(model.quality)] for i, model in enumerate(models)
    ]
    head = ["Model", f"Gold score of its pick of {most}", "Quality (0 random, 100 gold's own)"]
    lined = [
        [text(own.figure), *map(real, (own.pearson, own.spearman, own.kendall))] + [p_value(own.p)]
        for own in selection.correlations
    ]
    titles = ["Figure of the suite", "Pearson", "Spearman", "Kendall", "p (permutation)"]
    words = (
        '<p class="lead">Does the suite tell which model picks good answers? Each model picks one of n candidates, and '
        f"a gold scorer says how good the pick is: {counted(selection.prompts, 'prompt')}, "
        f"{counted(selection.rows, 'row')}, "
        f"{selection.rows_left_out:,} left out.</p>"
        + (f"<p>{text(selection.conclusion)}</p>" if selection.conclusion else "")
    )
    found = "<h3>Correlation over models of suite and selection</h3>" if lined else ""
    found += table_of_html(titles, lined[:FIGURES]) if lined else ""
    found += fold("The other figures", table_of_html(titles, lined[FIGURES:])) if len(lined) > FIGURES else ""
    body = f'<div class="plots half">{chart}</div>{table_of_html(head, rows)}{found}'
    return section("Best-of-n selection", words, [body])
