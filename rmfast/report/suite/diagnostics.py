"""Sections of a suite's page on single models, from `diagnose`: length, calibration, writers, votes.

Each is "" where it has no data.
"""

from collections.abc import Sequence

import numpy as np

from rmfast.evaluation.diagnostics.calibration import CalibrationBin
from rmfast.evaluation.diagnostics.length import LengthBias, LengthBin
from rmfast.evaluation.diagnostics.report import ModelDiagnostics
from rmfast.evaluation.diagnostics.writers import NO_REWARDS
from rmfast.report.page import table_of_html, write
from rmfast.report.suite.chart import Line, line_chart, share_ticks, spread
from rmfast.report.suite.look import chip, points, text
from rmfast.report.suite.words import difference, plain, reach, real, section, share


def length_part(models: Sequence[ModelDiagnostics]) -> str:
    """Does the model judge length? Tables and curves for each part; the first is shown, the others fold."""
    blocks = []
    units: dict[str, list[int]] = {}
    for i, model in enumerate(models):
        units.setdefault(str(model.length_unit), []).append(i)
    counted_in = [
        text(unit) + (f" ({' '.join(map(chip, own))})" if len(units) > 1 else "") for unit, own in units.items()
    ]
    for part in _parts(models, "length"):
        own = [(i, model.length[part]) for i, model in enumerate(models) if part in model.length]
        rows = []
        for i, bias in own:
            sides = [share(bias.by_side.get(side), counted=True) for side in ("longer", "shorter", "same")]
            held = [share(figure) for figure in (bias.balanced, bias.matched, bias.at_equal_length)]
            rows.append(
                [chip(i), *sides, *held, real(bias.gap_spearman), real(bias.within_spearman)]
                + [share(bias.longer_wins)]
            )
        head = ["", "Better is longer", "Better is shorter", "Same length", "Balanced", "Matched", "At equal length"]
        head += ["Rank correlation, gap", "Rank correlation, within prompts", "Longer wins"]
        charts = "".join(
            _length_chart([(i, bias) for i, bias in own if i in those], unit, part) for unit, those in units.items()
        )  # lengths of different units share no axis
        chart = f'<div class="plots half">{charts}</div>' if charts else ""
        blocks.append(f"<h3>{text(_pairs(part))}</h3>{table_of_html(head, rows)}{chart}")
    words = (
        '<p class="lead">A model that reads length instead of content is right where the better response is longer and '
        "wrong where it is shorter. <b>Balanced</b> is the mean of those two; <b>matched</b> the same within pairs "
        "that differ by about as much; <b>at equal length</b> what a logistic fit gives for no difference. A fair "
        "reader has all of them near its accuracy. Labels like length too, which <b>longer wins</b> shows: rank "
        "correlations of 0 are asked of nobody. Gaps of rewards, "
        "and lengths in " + ", ".join(counted_in) + "; accuracies in per cent.</p>"
    )
    return section("Length", words, blocks)


def _length_chart(own: Sequence[tuple[int, LengthBias]], unit: str, part: str) -> str:
    if not own or not own[0][1].by_difference:
        return ""
    bins = own[0][1].by_difference
    place = [float(n) for n in range(1, len(bins) + 1)]
    middle = [(b.start + b.end) / 2 for b in bins]
    ticks = [(float(x), f"{m:+.0f}") for x, m in zip(place, middle, strict=True)][:: -(-len(bins) // 6)]
    lines = [Line(i, place[: len(b.by_difference)], *_curve(b.by_difference, "value")) for i, b in own]
    note = "Pairs in equal groups by how much longer the better response is. A rising curve: length decides."
    return line_chart(
        f"Accuracy by difference of length: {_pairs(part)}",
        note,
        lines,
        labels=(f"Length of better less that of worse ({unit})", "Right (%)"),
        ranges=((0.5, len(bins) + 0.5), (0.0, 1.0)),
        ticks=(ticks, share_ticks()),
        rules=[(0.5, 0.5, len(bins) + 0.5, 0.5)],
    )


def calibration_part(models: Sequence[ModelDiagnostics]) -> str:
    charts, rows = [], []
    for part in _parts(models, "calibration"):
        own = [(i, m.calibration[part]) for i, m in enumerate(models) if m.calibration and part in m.calibration]
        lines = [Line(i, [b.predicted for b in c.curve], *_curve(c.curve, "observed")) for i, c in own]
        charts.append(
            line_chart(
                part,
                "On the diagonal: as sure as it is right. Flatter: too sure. Steeper: too shy.",
                lines,
                labels=("Predicted probability that a response wins (%)", "Share that won (%)"),
                ranges=((0.0, 1.0), (0.0, 1.0)),
                ticks=(share_ticks(), share_ticks()),
                rules=[(0.0, 0.0, 1.0, 1.0)],
            )
        )
        rows += [
            [
                chip(i),
                text(part),
                f"{c.edges:,}",
                points(c.error),
                write(c.temperature, "real"),
            ]
            for i, c in own
        ]
    words = (
        '<p class="lead">The sigmoid of a gap of rewards is read as the probability that the first response is the '
        "better one; every pair is asked in both orders. The error is the mean distance from the diagonal, in points. "
        "Dividing gaps by the temperature fits best: above 1 the model is too sure of itself; a dash: the gaps tell "
        "nothing.</p>"
    )
    table = table_of_html(["", "Part", "Pairs", "Calibration error", "Temperature"], rows)
    return section("Calibration", words, [f'<div class="plots half">{"".join(charts)}</div>{table}'] if charts else [])


def writers_part(models: Sequence[ModelDiagnostics], names: Sequence[str]) -> str:
    """Rewards by who wrote the response, and who is preferred beyond the labels."""
    blocks = []
    for i, model in enumerate(models):
        own = model.writers
        if not own or not own.writers:
            continue
        ends = [(w.rewards.q05, w.rewards.q95) for w in own.writers if w.rewards]
        low, high = (float(np.nanmin(ends)), float(np.nanmax(ends))) if np.isfinite(ends).any() else (0.0, 1.0)
        rows = []
        for writer in own.writers:
            told = writer.rewards or NO_REWARDS
            five = [told.q05, told.q25, told.median, told.q75, told.q95]
            rows.append(
                [
                    text(writer.name),
                    write(told.responses, "count"),
                    spread(i, five, low, high, np.nan if own.reward_mean is None else own.reward_mean),
                    plain(told.median),
                    plain(told.above_prompt, signed=True),
                    points(writer.win_share.value),
                    points(writer.labelled_share),
                    difference(writer.favour),
                    difference(writer.beyond_errors),
                ]
            )
        head = ["Writer", "Responses", f"Reward, {low:+.2g} to {high:+.2g}", "Median", "Above prompt's mean"]
        head += ["Preferred (%)", "Better by label (%)", "Favour", "Beyond errors"]
        blocks.append(f"<h3>{chip(i)} {text(names[i])}</h3>{table_of_html(head, rows)}")
    words = (
        '<p class="lead">Who wrote the responses. <b>Favour</b> is how much more often the model prefers a writer\'s '
        "responses to another's than the labels do, in points. A model that errs at random favours weak writers so: "
        "<b>beyond errors</b> takes such errors off, and tells taste from noise. Bold: the interval lies on one side "
        "of 0. Boxes hold the middle half of the writer's rewards, lines the middle 90 %; the stroke is the median, "
        "dashed the mean of all.</p>"
    )
    return section("Writers", words, blocks, "The other models")


def votes_part(models: Sequence[ModelDiagnostics]) -> str:
    charts = []
    for part in _parts(models, "votes"):
        own = [(i, m.votes[part]) for i, m in enumerate(models) if m.votes and part in m.votes]
        most = max(len(curve) for _, curve in own)
        lines = [Line(i, [float(n) for n in range(1, len(c) + 1)], c) for i, c in own]
        low, high = reach([value for line in lines for value in line.y], 0.02)
        gap = max(1, round(most / 8))
        charts.append(
            line_chart(
                part,
                "Accuracy of the majority of so many votes; as many for as against are a tie, which loses.",
                lines,
                labels=("Votes", "Right (%)"),
                ranges=((0.5, most + 0.5), (max(low, 0.0), min(high, 1.0))),
                ticks=(
                    [(float(n), str(n)) for n in range(1, most + 1, gap)],
                    share_ticks(max(low, 0.0), min(high, 1.0)),
                ),
            )
        )
    words = (
        '<p class="lead">What more members of an ensemble, or more samples of a judge, buy: accuracy against the '
        "number of votes, averaged over which votes are drawn. Even numbers can tie.</p>"
    )
    return section("Votes", words, [f'<div class="plots half">{"".join(charts)}</div>'] if charts else [])


def _pairs(part: str) -> str:
    return "all pairs" if part == "all" else part


def _parts(models: Sequence[ModelDiagnostics], key: str) -> list[str]:
    return list(dict.fromkeys(part for model in models for part in (getattr(model, key) or {})))


def _curve(bins: Sequence[LengthBin | CalibrationBin], key: str) -> tuple[list[float], list[float], list[float]]:
    """y, low and high of a curve's bins."""
    return tuple([getattr(own, name) for own in bins] for name in (key, "low", "high"))  # type: ignore[return-value]
