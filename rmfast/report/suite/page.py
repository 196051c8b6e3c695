"""A suite's results as one page: headline, heat map, bars, models side by side, diagnostics, the worst rows."""

from collections.abc import Mapping, Sequence

import numpy as np

from rmfast.evaluation.diagnostics.report import Diagnostics
from rmfast.evaluation.diagnostics.resample import Figure
from rmfast.evaluation.diagnostics.words import counted
from rmfast.evaluation.diagnostics.writers import Writers
from rmfast.evaluation.judge.figures import summary as judge_summary
from rmfast.evaluation.suites.result import SuiteResult
from rmfast.report.run_folder import number
from rmfast.report.suite import chart, look
from rmfast.report.suite.cells import Grid, Guesses, headline_guesses
from rmfast.report.summary import accuracy_line, baseline
from rmfast.report.template import page

LOOK = ("letter", "tone", "points", "share_words", "plain", "p_value", "along", "short", "span", "step")
CHARTS = (chart.length_charts, chart.calibration_chart, chart.votes_chart, chart.selection_chart)
CardLine = tuple[str, float, str, float, float]


def suite_page(results: Sequence[SuiteResult], diagnostics: Diagnostics | None = None) -> str:
    """The page of one or several models' results, as HTML.

    Args:
        results: of one suite and data.
        diagnostics: of the same results in the same order.
    """
    if not results:
        raise ValueError("a page needs at least one result")
    grid, names = Grid.of(results), [result.name for result in results]
    models = diagnostics.models if diagnostics else []
    intervals: list[Mapping[str, Figure]] = [model.headline for model in models] or [{}] * len(results)
    unscored: dict[str, list[int]] = {}  # once where models share them
    for i, result in enumerate(results):
        if result.rows_not_scored:
            unscored.setdefault(repr((result.rows_not_scored, result.not_scored)), []).append(i)
    units: dict[str, list[int]] = {}
    for i, model in enumerate(models):
        units.setdefault(model.length_unit, []).append(i)
    return page(
        "suite/page.html",
        title=f"{results[0].suite}: {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}",
        theme=look.theme(),
        results=results,
        diagnostics=diagnostics,
        models=models,
        names=names,
        judged=any(result.kind == "judge" for result in results),
        cards=[_card(*one) for one in zip(results, grid.guesses, intervals, strict=True)],
        notes=_notes(results, diagnostics),
        grid=grid,
        scales={part: grid.scale(part) for part in grid.parts},
        figures=_figures(results),
        units=units,
        parts_of=lambda key: list(dict.fromkeys(part for model in models for part in getattr(model, key) or ())),
        unscored=list(unscored.values()),
        enumerate=enumerate,
        extent=_extent,
        **{name: getattr(look, name) for name in LOOK},
        **{function.__name__: function for function in CHARTS},
    )


def _card(result: SuiteResult, guesses: Guesses, intervals: Mapping[str, Figure]) -> tuple[list[CardLine], list[str]]:
    """A model's headline figures, each with its interval and what chance and length alone give; and lines on it."""
    told = [
        (name, result.headline[name], look.span(cell) or look.span(intervals.get(name)), chance, longer)
        for name, (cell, chance, longer) in headline_guesses(result, guesses).items()
    ]
    lines = [f"Lengths in {result.length_unit}.", _all_pairs(result), _counts(result)]
    if result.members:
        lines.append(f"Members alone, share of pairs: {', '.join(map(look.share_words, result.members))}.")
    if "accuracy_by_order" in result.figures:
        lines += ["Of all rows that it was asked:"] if result.left_out else []
        lines += judge_summary(result.figures)
    return told, lines


def _all_pairs(result: SuiteResult) -> str:
    metrics, (rule, share) = result.metrics, baseline(result.metrics)
    edges, broken = int(number(metrics, "edges")), number(metrics, "nonfinite")
    all_of_them = f"All {edges:,} pairs" if edges != 1 else "The one pair"
    words = f"{all_of_them} of better and worse responses{' alike' if edges != 1 else ''}: "
    words += f"{accuracy_line(metrics)}, {_no_side(result)}"
    if broken > 0:
        words += f", {counted(int(broken), 'score')} that {'is' if broken == 1 else 'are'} not finite"
        words += ", whose pairs are lost"
    return f"{words}. {rule.strip(chr(34)).capitalize()}: {look.share_words(share)}."


def _no_side(result: SuiteResult) -> str:
    """Pairs that neither response wins. Of a judge those whose votes cancel out are no ties: a tie is a verdict."""
    even, split = int(number(result.metrics, "ties")), _split_votes(result)
    kinds = [(even - split, "tie")] if even > split or not split else []
    kinds += [(split, "split vote")] if split else []
    return f"{' and '.join(counted(n, noun) for n, noun in kinds)}, which {'loses' if even == 1 else 'lose'}"


def _split_votes(result: SuiteResult) -> int:
    """A judge's pairs with as many votes for the better response as against it."""
    if result.kind != "judge" or not result.votes:
        return 0
    pairs = (zip(item.gaps, votes, strict=True) for item, votes in zip(result.items, result.votes, strict=True))
    return sum(gap == 0 and any(v for v in votes if v == v) for both in pairs for gap, votes in both)


def _counts(result: SuiteResult) -> str:
    rows, bad, left = result.rows, result.rows_not_scored, len(result.left_out)
    if bad:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in result.not_scored_by_cause.items())
        words = f"{rows - bad:,} of {counted(rows, 'row')} were scored, {bad:,} {'was' if bad == 1 else 'were'} not: "
        words += f"{causes}."
    else:
        words = f"All of {counted(rows, 'row')} were scored." if rows != 1 else "The one row was scored."
    return words + (f" Left out since others did not score them: {counted(left, 'row')}." if left else "")


def _notes(results: Sequence[SuiteResult], diagnostics: Diagnostics | None) -> dict[str, list[int]]:
    """What is missing or odd, and the models of which it holds."""
    owners: dict[str, list[int]] = {}
    for i, result in enumerate(results):
        for note in result.notes:
            owners.setdefault(note, []).append(i)
    for note in diagnostics.notes if diagnostics else ():
        owners.setdefault(note, list(range(len(results))))
    return owners


def _figures(results: Sequence[SuiteResult]) -> list[tuple[str, list[float], float]]:
    """Headline and parts of all models side by side: name, values, the best."""
    lines = [(name, [result.headline[name] for result in results]) for name in results[0].headline]
    whole = [{cell.part: cell.accuracy for cell in result.cells if not cell.path} for result in results]
    for part in dict.fromkeys(part for parts in whole for part in parts):
        if part not in results[0].headline:
            lines.append((f"{part}, all rows", [parts.get(part, np.nan) for parts in whole]))
    return [(name, values, max((v for v in values if np.isfinite(v)), default=np.nan)) for name, values in lines]


def _extent(found: Writers) -> tuple[float, float]:
    """Least 5 % and greatest 95 % quantile of all writers' rewards."""
    ends = [(writer.rewards.q05, writer.rewards.q95) for writer in found.writers if writer.rewards]
    return (float(np.nanmin(ends)), float(np.nanmax(ends))) if np.isfinite(ends).any() else (0.0, 1.0)
