"""Suite results as tables on the console: one result by its groups, several models side by side."""

import re
from collections.abc import Container, Mapping, Sequence

from rmfast.evaluation.diagnostics.agreement import Agreement, ModelPair
from rmfast.evaluation.diagnostics.calibration import Calibration
from rmfast.evaluation.diagnostics.report import Diagnostics, ModelDiagnostics
from rmfast.evaluation.diagnostics.resample import Figure, Share
from rmfast.evaluation.diagnostics.selection import Selection
from rmfast.evaluation.diagnostics.words import counted
from rmfast.evaluation.diagnostics.writers import Writers
from rmfast.evaluation.suites.base import Cell
from rmfast.evaluation.suites.result import SuiteResult
from rmfast.report.suite.look import letter

DEPTH = 2  # groups deeper than that are in the JSON and on the page
WRITERS = 6  # of each end that are shown
ROWS = 5  # suspicious rows that are named
NAME = 24  # characters of a model's name above which tables shorten it
ENOUGH = 4  # models from which on correlations over them are shown


def suite_table(result: SuiteResult, depth: int = DEPTH) -> str:
    """Headline figures, then the accuracy of each group and part with its number of rows; "" for one cell alone."""
    cells = {(cell.part, cell.path): cell for cell in result.cells}
    parts = list(dict.fromkeys(part for part, _ in cells))
    paths = sorted({path for _, path in cells if len(path) <= depth}, key=natural)
    if len(cells) < 2:
        return ""
    lines = [[name, _percent(value)] for name, value in result.headline.items()]
    width = max(len(name) for name, _ in lines)
    head = [f"{name:<{width}}  {value:>7}" for name, value in lines]
    rows = []
    for path in paths:
        name = "  " * max(0, len(path) - 1) + path[-1] if path else "all rows"
        rows.append([name, *(_cell(cells.get((part, path))) for part in parts)])
    return "\n".join([*head, "", _table("", parts, rows)])


def natural(path: Sequence[str]) -> list[list[tuple[int, str]]]:
    """A sort key that puts S2 before S10."""
    return [[(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", name)] for name in path]


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{100 * cell.accuracy:5.1f} % of {cell.rows:>6,}"


def compare_tables(results: Sequence[SuiteResult], found: Diagnostics) -> str:
    """What `rmfast compare` prints of `diagnose(results)`."""
    models = found.models
    names = _short([str(model.name) for model in models])
    head = (
        f"{found.suite}: {counted(found.rows, 'row')}, {counted(found.edges, 'pair')}, "
        f"{counted(found.prompts, 'prompt')}; 95 % intervals from {found.draws:,} resamples of prompts"
    )
    whole = [f"{short}: {model.name}" for short, model in zip(names, models, strict=True) if short != model.name]
    blocks = [head, *(["\n".join(whole)] if whole else [])]
    blocks += [_table("Headline", names, _headline(models)), _table("Accuracy", names, _groups(results))]
    blocks += [_differences(names, found.agreement)] if found.agreement else []
    blocks += [_table("Length", names, _length(models))]
    calibrated = [row for row in _calibration(models) if any(cell != "-" for cell in row[1:])]
    blocks += [_table("Calibration", names, calibrated)] if calibrated else []
    named = list(zip(names, models, strict=True))
    blocks += [_table(f"Writers, {name}", *_writers(model.writers)) for name, model in named if model.writers]
    blocks += [_votes(name, model.votes) for name, model in named if model.votes]
    if found.agreement:
        blocks += _agreement(names, found.agreement)
    if found.selection:
        parts = {*models[0].headline, *(cell.part for cell in results[0].cells)}
        blocks += _selection(names, found.selection, parts)
    return "\n\n".join([*blocks, *(f"Note: {note}" for note in found.notes)])


def _short(names: Sequence[str]) -> list[str]:
    """Long names by a letter and their beginning."""
    cut = [f"{letter(i)} {name[: NAME - 5].rstrip()}..." for i, name in enumerate(names)]
    return [name if len(name) <= NAME else short for name, short in zip(names, cut, strict=True)]


def _headline(models: Sequence[ModelDiagnostics]) -> list[list[str]]:
    return [[name, *(_share(model.headline.get(name)) for model in models)] for name in models[0].headline]


def _groups(results: Sequence[SuiteResult]) -> list[list[str]]:
    """Parts as a whole and their widest groups."""
    rows = []
    for cell in results[0].cells:
        if len(cell.path) > 1:
            continue
        key = (cell.part, cell.path)
        same = [next((c for c in r.cells if (c.part, c.path) == key), None) for r in results]
        rows.append([" ".join([cell.part, *cell.path]), *(_share(c) for c in same)])
    return rows


def _length(models: Sequence[ModelDiagnostics]) -> list[list[str]]:
    """Of all pairs, or of the one part; what else is known is in the JSON and on the page."""
    part = next(iter(models[0].length))
    biases = [model.length[part] for model in models]
    pairs = "" if part == "all" else f"{part}: "
    return [
        ["lengths counted in", *(model.length_unit for model in models)],
        [
            f"{pairs}balanced (better answer longer, shorter)",
            *(_share(f.balanced) for f in biases),
        ],
        [f"{pairs}right at equal length (model)", *(_share(f.at_equal_length) for f in biases)],
        [f"{pairs}effect of length", *(_number(f.length_effect) for f in biases)],
        [f"{pairs}gap and length gap (Spearman)", *(_number(f.gap_spearman) for f in biases)],
    ]


def _calibration(models: Sequence[ModelDiagnostics]) -> list[list[str]]:
    parts: Mapping[str, Calibration] = next((model.calibration for model in models if model.calibration), {})
    rows = []
    for part in parts:
        found = [(model.calibration or {}).get(part) for model in models]
        rows.append([f"{part}: error (ECE)", *(f"{f.error:.3f}" if f else "-" for f in found)])
        rows.append([f"{part}: temperature", *(f"{f.temperature:.2f}" if f else "-" for f in found)])
    return rows


def _writers(found: Writers) -> tuple[list[str], list[list[str]]]:
    """Those whom a model favours most, and least, against what blind errors would give."""
    columns = ["pairs", "preferred", "labelled", "beyond labels", "beyond errors", "mean reward"]
    every = found.writers
    kept = every if len(every) <= 2 * WRITERS else [*every[:WRITERS], None, *every[-WRITERS:]]
    rows = []
    for writer in kept:
        if writer is None:
            rows.append([f"... {len(every) - 2 * WRITERS} more", *[""] * len(columns)])
            continue
        labelled, mean = writer.labelled_share, writer.rewards.mean if writer.rewards else None
        rows.append(
            [
                writer.name,
                f"{writer.edges:,}",
                _percent(writer.win_share.value),
                _percent(labelled),
                _points(writer.favour),
                _points(writer.beyond_errors),
                "-" if mean is None or mean != mean else f"{mean:.2f}",
            ]
        )
    return columns, rows


def _votes(name: str, votes: Mapping[str, Sequence[float]]) -> str:
    most = max(len(curve) for curve in votes.values())
    shown = sorted({n for n in (1, 3, 5, 7, 9, 15, 31, most) if n <= most})
    rows = [[part, *(_percent(curve[n - 1]) if n <= len(curve) else "-" for n in shown)]
            for part, curve in votes.items()]  # fmt: skip
    return _table(f"Accuracy by votes, {name}", [str(n) for n in shown], rows)


def _agreement(names: Sequence[str], found: Agreement) -> list[str]:
    blocks = []
    for matrix, title in (
        (found.edges, "Same side preferred, share of pairs"),
        (found.kappa, "Cohen's kappa of rows won"),
        (found.spearman, "Spearman of gaps"),
    ):
        rows = [[name, *(f"{v:.3f}" for v in values)] for name, values in zip(names, matrix, strict=True)]
        blocks.append(_table(title, names, rows))
    wrong = found.all_wrong
    lines = [
        f"{part}: {counts.all_wrong:,} of {counted(counts.rows, 'row')} won by no model "
        f"({counts.expected:,.0f} if errors were independent), {counts.all_right:,} by all"
        for part, counts in wrong.parts.items()
    ]
    if wrong.rows:
        first = ", ".join(row.label for row in wrong.rows[:ROWS])
        lines.append(f"Lost by most, to read for wrong labels: {first}")
    return [*blocks, "\n".join(lines)]


def _differences(names: Sequence[str], found: Agreement) -> str:
    rows = []
    for pair in found.pairs:
        title = f"{names[pair.a]} - {names[pair.b]}"
        parts = {part: found for part, found in pair.parts.items() if part not in pair.headline}
        every = pair.headline | parts
        rows += [[f"{title}: {name}", _points(found), _better(names, pair, found)] for name, found in every.items()]
    return _table("Differences on the same rows, in points", ["", ""], rows)


def _better(names: Sequence[str], pair: ModelPair, difference: Figure) -> str:
    if difference.low != difference.low:
        return "no interval"
    if difference.side:
        return f"{names[pair.a if difference.side > 0 else pair.b]} is better"
    return "cannot be told apart"


def _selection(names: Sequence[str], found: Selection, whole: Container[str]) -> list[str]:
    """Correlations of the figures in `whole`; all are in the JSON."""
    models = list(zip(names, found.models, strict=True))
    rows = [[name, _number(model.picked), _share(model.quality)] for name, model in models]
    rows += [
        ["random pick", f"{found.random:.3f}", _percent(0.0)],
        ["gold's pick", f"{found.best:.3f}", _percent(1.0)],
    ]
    left = f", {found.rows_left_out:,} left out" if found.rows_left_out else ""
    title = f"Best of up to {found.most} on {counted(found.rows, 'row')}{left}"
    shown = [n for n in (1, 2, 4, 8, 16, 32, 64, found.most) if n <= found.most]
    shown = sorted(set(shown))
    curves = [*((name, model.curve) for name, model in models), ("gold's pick", found.gold_curve)]
    steps = [[name, *(f"{curve[n - 1]:.3f}" for n in shown)] for name, curve in curves]
    blocks = [_table(title, ["mean gold", "quality"], rows), _table("Mean gold by n", [str(n) for n in shown], steps)]
    columns = ["Pearson", "Spearman", "Kendall", "p"]
    related = [
        [row.figure, *map(_number, (row.pearson, row.spearman, row.kendall)), f"{row.p:.3f}"]
        for row in found.correlations
        if row.figure in whole
    ]
    if len(found.models) >= ENOUGH:
        blocks.append(_table("Suite score and quality of picks, over models", columns, related))
    return [*blocks, found.conclusion]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[title, *columns], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(f"{c:<{w}}" if not i else f"{c:>{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def _percent(value: float | None) -> str:
    return "unknown" if value is None or value != value else f"{100 * value:.1f} %"


def _share(figure: Figure | Share | Cell | None) -> str:
    """A share with its interval."""
    if figure is None:
        return "-"
    low, high = figure.low, figure.high
    known = low == low
    value = figure.accuracy if isinstance(figure, Cell) else figure.value
    return _percent(value) + (f" [{100 * low:.1f}, {100 * high:.1f}]" if known else "")


def _number(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{figure.value:.2f}" + (f" [{figure.low:.2f}, {figure.high:.2f}]" if figure.low == figure.low else "")


def _points(figure: Figure) -> str:
    """A difference of shares with its interval, in percentage points."""
    known = figure.low == figure.low
    return f"{100 * figure.value:+.1f}" + (f" [{100 * figure.low:+.1f}, {100 * figure.high:+.1f}]" if known else "")
