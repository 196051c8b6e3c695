"""All diagnostics of one or several results of one suite, as one dict."""

from collections.abc import Sequence
from typing import Any

from rmfast.evaluation.diagnostics.agreement import agreement
from rmfast.evaluation.diagnostics.calibration import calibration
from rmfast.evaluation.diagnostics.headline import resample_suite
from rmfast.evaluation.diagnostics.length import length_bias
from rmfast.evaluation.diagnostics.resample import DRAWS
from rmfast.evaluation.diagnostics.selection import Candidates, select
from rmfast.evaluation.diagnostics.sources import by_source
from rmfast.evaluation.diagnostics.table import check_same, table_of
from rmfast.evaluation.judge.votes import member_votes, vote_curve
from rmfast.evaluation.suites.base import Suite

Data = dict[str, Any]


def diagnose(
    results: Sequence[Data],
    suite: Suite | None = None,
    candidates: Candidates | None = None,
    notes: Sequence[str] = (),
) -> Data:
    """Diagnostics of results that stand on the same rows, ready for JSON.

    A *figure* is {"value", "low", "high"}: an estimate and its 95 % interval, a bootstrap over prompts. nan (null in
    JSON) stands for what nothing defines. Models stand in the order of `results`, and a model is named by its place.

    Args:
        results: as `read_result` gives them; of one suite, on the same rows in the same order.
        suite: theirs; by default found by its name.
        candidates: that the same models, in the same order, and a gold scorer have scored.
        notes: lines that go before its own, as `common.on_common_rows` gives them.

    Raises:
        UserError: the results stand on other rows; it names the first.

    Returns:
        suite, data; rows, edges, prompts: counts. draws: of each bootstrap. notes: [str].
        models: [{
            name, kind, length_unit (what its lengths count),
            headline: {name: figure}; the interval of a figure that is a cell is the cell's; otherwise low and high are
                nan where the suite is unknown (a note says so),
            length: {part: see `length.length_bias`}, "all" first where there are several parts: {
                edges,
                by_side: {"longer" | "shorter" | "same": {count, value, low, high}} accuracy on edges whose better
                    answer is the longer one, the shorter one, as long as the worse one,
                by_difference: [{from, to, count, value, low, high}] accuracy by quantiles of length(better) -
                    length(worse), least first,
                balanced: figure, mean of accuracy on "longer" and on "shorter",
                matched: figure, the same within strata of |difference|; matched_share: edges in strata that count,
                at_equal_length: figure, accuracy that a logistic model gives at no difference,
                length_effect: figure, its coefficient of tanh(difference / scale); scale,
                gap_pearson, gap_spearman: figures, correlation of the reward's gap with the difference,
                within_pearson, within_spearman: figures, of reward with length within prompts (None: no rewards),
                longer_wins, shorter_wins: figures, accuracy of choosing by length alone},
            calibration: None without rewards, else {part: {edges, error (ECE), temperature (sigmoid(gap / temperature)
                fits best; above 1: too sure; infinite, null in JSON: the gaps tell nothing),
                curve: [{predicted, observed, low, high, count}]}},
            sources: None without names of writers, else {reward_mean, reward_std (None: no rewards), writers: [{
                name, responses,
                mean, std, min, q05, q25, median, q75, q95, max: of its rewards (None: no rewards),
                above_prompt: mean reward less the mean of the prompt's responses,
                mean_rank: within the prompt, 0 the last to 1 the first,
                edges: with another writer, win_share: figure, labelled_share,
                favour: figure, win_share - labelled_share: above 0, preferred beyond the labels,
                beyond_errors: figure, win_share less what errors blind to the writer would give}]}, the writer that
                gains most by it first,
            votes: None with one vote, else {part: [accuracy by 1, 2, ... votes]}}]
        agreement: None of one model, else {
            edges: [[share]] on which two prefer the same side, kappa: [[Cohen's kappa of rows won]],
            spearman: [[of gaps]],
            pairs: [{a, b (places, a < b), headline: {name: figure}, parts: {part: figure}: accuracy of a less that of
                b on the same rows; rows: {part: {both, only_a, only_b, neither, p}}, p of McNemar's exact test, which
                takes rows as independent}],
            all_wrong: {parts: {part: {rows, all_wrong, expected, all_right}}, expected: if the models' errors were
                independent, rows: [{label, uid, part, path, gaps: [least gap of each model]}], the first are lost by
                most}}
        selection: None without candidates, else {
            rows, rows_left_out, prompts: counts; most: candidates of a row; random, best: mean gold of a random pick
                and of gold's own,
            gold_curve: [by n], models: [{name, picked: figure, quality: figure, curve: [by n], quality_curve: [by n]}],
            quality 0 is a random pick's and 1 gold's own; n from 1 to `most`,
            correlations: [{figure (a headline's name, or part and path), pearson, spearman, kendall: figures over
                models, p: of Kendall's under permutation}], the headline first; conclusion: in plain words}
    """
    check_same(results, [str(result["name"]) for result in results])
    tables = [table_of(result) for result in results]
    resamples = [resample_suite(result, suite) for result in results]
    names = [str(result["name"]) for result in results]
    doubts = [f"{name}: {r.note}" for name, r in zip(names, resamples, strict=True) if r.note]
    first = results[0]
    return {
        "suite": first["suite"],
        "data": first["data"],
        "rows": len(first["items"]),
        "edges": int(tables[0].gap.size),
        "prompts": tables[0].prompts,
        "draws": DRAWS,
        "notes": [*notes, *doubts, *_of_lengths(results, names)],
        "models": [
            {
                "name": result["name"],
                "kind": result["kind"],
                "length_unit": result["length_unit"],
                "headline": resampled.figures(),
                "length": length_bias(table),
                "calibration": calibration(table),
                "sources": by_source(table),
                "votes": votes_of(result),
            }
            for result, table, resampled in zip(results, tables, resamples, strict=True)
        ],
        "agreement": agreement(results, resamples) if len(results) > 1 else None,
        "selection": None if candidates is None else select(candidates, names, resamples),
    }


def votes_of(result: Data) -> dict[str, list[float]] | None:
    """Accuracy of each part's rows by the number of votes (see `judge.votes.vote_curve`); None with one vote.

    An ensemble's votes are the signs of its members' gaps. A judge has counted its own: orders and samples are its.
    """
    if result["kind"] == "judge":
        curves = result["figures"].get("votes")
        return curves if curves and max(map(len, curves.values())) > 1 else None
    if result["votes"] is None:
        return None
    parts: dict[str, list[Any]] = {}
    for item, own in zip(result["items"], result["votes"], strict=True):
        parts.setdefault(item["part"], []).append(member_votes(own))
    return {part: vote_curve(own).tolist() for part, own in parts.items()}


def _of_lengths(results: Sequence[Data], names: Sequence[str]) -> list[str]:
    """A line where models count lengths differently."""
    units: dict[str, list[str]] = {}
    for result, name in zip(results, names, strict=True):
        units.setdefault(result["length_unit"], []).append(name)
    if len(units) > 1:
        counts = "; ".join(f"in {unit} for {', '.join(own)}" for unit, own in units.items())
        return [f"Lengths differ between models: they are counted {counts}."]
    pairs = (zip(results[0]["items"], result["items"], strict=True) for result in results[1:])
    if any(a["lengths"] != b["lengths"] for both in pairs for a, b in both):
        return ["Lengths are counted by each model's own tokenizer, and differ between models."]
    return []
