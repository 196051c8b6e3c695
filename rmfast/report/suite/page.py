"""A suite's results as one self-contained page: headline, heat map, bars, models side by side, diagnostics, worst rows.

No script, no network, dark and light, readable on a phone. Every text that comes from data is escaped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmfast.evaluation.diagnostics.report import Diagnostics
from rmfast.evaluation.diagnostics.resample import Figure
from rmfast.evaluation.diagnostics.words import counted
from rmfast.evaluation.judge.figures import summary as judge_summary
from rmfast.evaluation.suites.result import SuiteResult, WorstRow
from rmfast.report.page import document, table_of_html
from rmfast.report.run_folder import number
from rmfast.report.suite.cells import Grid, Rule, headline_rules
from rmfast.report.suite.compare import agreement_part, compared, selection_part
from rmfast.report.suite.diagnostics import calibration_part, length_part, votes_part, writers_part
from rmfast.report.suite.look import STYLE, chip, points, span, text, tone
from rmfast.report.suite.map import bars, heat_map
from rmfast.report.summary import accuracy_line, baseline

SHORT = 200  # characters of a text in a line
LONG = 160  # characters of a note above which it is folded
NAMED = 100  # unscored rows that are named


def suite_page(results: Sequence[SuiteResult], diagnostics: Diagnostics | None = None) -> str:
    """The page of one or several models' results, as HTML.

    Args:
        results: as `suite_result` makes or `read_result` reads them (null is nan); of one suite and data.
        diagnostics: of the same results in the same order, as `rmfast.evaluation.diagnostics.diagnose` makes them.
    """
    if not results:
        raise ValueError("a page needs at least one result")
    grid = Grid.of(results)
    names = [str(result.name) for result in results]
    title = f"{results[0].suite}: {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
    parts = [
        f"<h1>{text(title)}</h1>",
        f'<p class="soft">Rows from {text(results[0].data)}. {_rules_of_reading(results)}</p>',
        _headline(results, grid, diagnostics),
        _notes(results, diagnostics),
        heat_map(grid, names),
        bars(grid, names),
        compared(results, diagnostics),
        *_diagnosed(diagnostics, names),
        _unscored(results, names),
        _worst(results),
    ]
    return document(text(title), parts, STYLE)


def _diagnosed(diagnostics: Diagnostics | None, names: Sequence[str]) -> list[str]:
    if not diagnostics:
        return []
    models = diagnostics.models
    return [
        length_part(models),
        calibration_part(models),
        writers_part(models, names),
        agreement_part(diagnostics.agreement, len(names)),
        votes_part(models),
        selection_part(diagnostics.selection),
    ]


def _rules_of_reading(results: Sequence[SuiteResult]) -> str:
    judged = any(result.kind == "judge" for result in results)
    words = (
        "A row is right where every better response is strictly above every worse one: ties lose, and so does a score "
        "that is not a number. "
    )
    words += "A judge's answer without a verdict loses too. " if judged else ""
    return words + "Rows that could not be scored are in no figure; they are counted below."


def _headline(results: Sequence[SuiteResult], grid: Grid, diagnostics: Diagnostics | None) -> str:
    known: list[Mapping[str, Figure]] = [m.headline for m in diagnostics.models] if diagnostics else [{}] * len(results)
    cards = [_card(i, *row) for i, row in enumerate(zip(results, grid.rules, known, strict=True))]
    judged = any(result.kind == "judge" for result in results)
    coin = ", for a judge a coin for each comparison" if judged else ""
    words = (
        f"Chance: random rewards{coin}. Longer wins: always the longest response. In brackets: 95 % intervals. "
        "A dash: unknown."
    )
    return f'<div class="cards">{"".join(cards)}</div><p class="soft">{words}</p>'


def _card(index: int, result: SuiteResult, rule: Rule, intervals: Mapping[str, Figure]) -> str:
    """A model's headline figures, each with its interval and beside it what chance and length alone give."""
    rules = headline_rules(result, rule)
    lines, big = [], ""
    for place, (name, (cell, chance, longer)) in enumerate(rules.items()):
        value = result.headline[name]
        interval = span(cell) or span(intervals.get(name))
        if not place:
            big = f'<p class="big">{_percent(value)} <small>{text(name)} {interval}</small></p>'
        lines.append(
            f"<tr><td>{text(name)}</td><td><b>{points(value)}</b><small>{interval}</small></td>"
            f"<td>{points(chance)}</td><td>{points(longer)}</td></tr>"
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("In per cent", "Right", "Chance", "Longer wins"))
    return (
        f'<section class="card {tone(index)}"><p>{chip(index)} <b>{text(result.name)}</b> '
        f'<span class="soft">{text(result.kind)}</span></p>{big}'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        f'<p class="soft">Lengths in {text(result.length_unit)}.</p>'
        f'<p class="soft">{text(_all_pairs(result))}</p><p class="soft">{text(_counts(result))}</p>'
        + "".join(f'<p class="soft">{text(line)}</p>' for line in _own_words(result))
        + "</section>"
    )


def _own_words(result: SuiteResult) -> list[str]:
    """What an ensemble says of its members, a judge of its answers: position bias, what it failed to say."""
    lines = []
    if result.members:
        lines.append(f"Members alone, share of pairs: {', '.join(_percent(own) for own in result.members)}.")
    if "accuracy_by_order" in result.figures:
        lines += ["Of all rows that it was asked:"] if result.left_out else []
        lines += judge_summary(result.figures)
    return lines


def _percent(share: float) -> str:
    return f"{points(share)} %" if np.isfinite(share) else "unknown"


def _all_pairs(result: SuiteResult) -> str:
    rule, share = baseline(result.metrics)
    edges = int(number(result.metrics, "edges"))
    all_of_them = f"All {edges:,} pairs" if edges != 1 else "The one pair"
    words = (
        f"{all_of_them} of better and worse responses{' alike' if edges != 1 else ''}: {accuracy_line(result.metrics)}"
    )
    words += f", {_no_side(result)}"
    if number(result.metrics, "nonfinite") > 0:
        broken = int(number(result.metrics, "nonfinite"))
        words += f", {counted(broken, 'score')} that {'is' if broken == 1 else 'are'} not finite, whose pairs are lost"
    return f"{words}. {rule.strip(chr(34)).capitalize()}: {_percent(share)}."


def _no_side(result: SuiteResult) -> str:
    """Pairs that neither response wins. Of a judge those whose votes cancel out are no ties: a tie is a verdict."""
    even = int(number(result.metrics, "ties"))
    split = _split_votes(result)
    kinds = [(even - split, "tie")] if even > split or not split else []
    kinds += [(split, "split vote")] if split else []
    lose = "loses" if even == 1 else "lose"
    return f"{' and '.join(counted(n, noun) for n, noun in kinds)}, which {lose}"


def _split_votes(result: SuiteResult) -> int:
    """A judge's pairs with as many votes for the better response as against it."""
    if result.kind != "judge" or not result.votes:
        return 0
    gaps = (zip(item.gaps, own, strict=True) for item, own in zip(result.items, result.votes, strict=True))
    return sum(gap == 0 and any(v for v in votes if v == v) for both in gaps for gap, votes in both)


def _counts(result: SuiteResult) -> str:
    rows, bad = result.rows, result.rows_not_scored
    if not bad:
        words = f"All of {counted(rows, 'row')} were scored." if rows != 1 else "The one row was scored."
    else:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in result.not_scored_by_cause.items())
        words = f"{rows - bad:,} of {counted(rows, 'row')} were scored, {bad:,} {'was' if bad == 1 else 'were'} not: "
        words += f"{causes}."
    left = len(result.left_out)
    return words + (f" Left out since others did not score them: {counted(left, 'row')}." if left else "")


def _notes(results: Sequence[SuiteResult], diagnostics: Diagnostics | None) -> str:
    """What is missing or odd; a note that holds for all models is said once."""
    owners: dict[str, list[int]] = {}
    for i, result in enumerate(results):
        for note in result.notes:
            owners.setdefault(note, []).append(i)
    for note in diagnostics.notes if diagnostics else ():
        owners.setdefault(note, list(range(len(results))))
    items = [
        f"<li>{'' if len(own) == len(results) else ' '.join(map(chip, own)) + ' '}{_folded(note)}</li>"
        for note, own in owners.items()
    ]
    return f'<h2>Missing or odd in the data</h2><div class="card note"><ul>{"".join(items)}</ul></div>' if items else ""


def _folded(note: str) -> str:
    """A note; of a long one the beginning, and the whole to unfold."""
    if len(note) <= LONG:
        return text(note)
    return f"<details><summary>{text(_short(note, LONG))}</summary>{text(note)}</details>"


def _unscored(results: Sequence[SuiteResult], names: Sequence[str]) -> str:
    """The rows that no figure counts, by name; once where models share them."""
    tables: dict[str, list[int]] = {}
    for i, result in enumerate(results):
        if result.rows_not_scored:
            lines = [[row.label, row.part, row.cause, _short(row.detail)] for row in result.not_scored[:NAMED]]
            own = table_of_html(("Row", "Part", "Cause", "Detail"), (map(text, line) for line in lines))
            more = result.rows_not_scored - len(lines)
            own += f'<p class="soft">And {more:,} more.</p>' if more > 0 else ""
            tables.setdefault(own, []).append(i)
    blocks = [
        f'<details class="card"><summary>{", ".join(f"{chip(i)} {text(names[i])}" for i in models)}: '
        f'{counted(results[models[0]].rows_not_scored, "row")}</summary><div class="words">{own}</div></details>'
        for own, models in tables.items()
    ]
    if not blocks:
        return ""
    return (
        '<h2>Rows that could not be scored</h2><p class="lead">They are in none of the figures above: an accuracy is '
        f"a share of the rows that were scored.</p>{''.join(blocks)}"
    )


def _worst(results: Sequence[SuiteResult]) -> str:
    """For each model the rows that it gets most confidently wrong, with their texts."""
    blocks = []
    for i, result in enumerate(results):
        rows = "".join(map(_row, result.worst))
        if rows:
            count = len(result.worst)
            blocks.append(
                f'<details class="card"{" open" if len(results) == 1 else ""}><summary>{chip(i)} '
                f"{text(result.name)}: {counted(count, 'row')}</summary>{rows}</details>"
            )
    if not blocks:
        return "<h2>The worst rows</h2><p>No row is wrong.</p>"
    return (
        '<h2>The worst rows, to read</h2><p class="lead">Where each model prefers the worse response most: hard rows, '
        "wrong labels, or a fault of the model. The gap is the reward of the better response less that of the worse "
        "one (for judges and votes the share of votes for it less those against), so it is below 0 here, or 0 for a "
        "tie. Texts are shown as the benchmark has them, and some are offensive; long ones are cut.</p>"
        + "".join(blocks)
    )


def _row(row: WorstRow) -> str:
    gap = row.gap
    sources = [f", by {text(name)}" for name in row.writers] or ["", ""]
    sides = "".join(
        f'<div class="{kind}"><p class="what"><b>{title}</b>{source}</p>'
        f'<div class="text" dir="auto">{text(getattr(row, kind))}</div></div>'
        for kind, title, source in zip(("better", "worse"), ("Better", "Worse, preferred"), sources, strict=True)
    )
    if not gap < 0:  # a tie, or a score that is not a number
        sides = sides.replace("Worse, preferred", "Worse")
    prompt = row.prompt
    ask = f'<p class="what"><b>Prompt</b></p><div class="text" dir="auto">{text(prompt)}</div>' if prompt else ""
    first = _short(" ".join(str(prompt or row.better).split()), 90)
    words = f"gap {gap:+.3f}" if np.isfinite(gap) else "no score"
    return (
        f'<details class="row"><summary>{words} <small>{text(row.part)} · {text(" / ".join(row.path))}<br>'
        f'<bdi>{text(first)}</bdi></small></summary><p class="what">{text(row.label)}, id {text(row.uid)}</p>'
        f'<div class="ask">{ask}</div><div class="pair">{sides}</div></details>'
    )


def _short(value: Any, length: int = SHORT) -> str:
    own = str(value)
    return own if len(own) <= length else own[: length - 1] + "…"
