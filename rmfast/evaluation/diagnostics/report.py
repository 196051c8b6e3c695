"""All diagnostics of one or several results of one suite."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from rmfast.evaluation.diagnostics.agreement import Agreement, agreement
from rmfast.evaluation.diagnostics.calibration import Calibration, calibration
from rmfast.evaluation.diagnostics.headline import resample_suite
from rmfast.evaluation.diagnostics.length import LengthBias, length_bias
from rmfast.evaluation.diagnostics.resample import DRAWS, Figure
from rmfast.evaluation.diagnostics.selection import Candidates, Selection, select
from rmfast.evaluation.diagnostics.table import check_same, table_of
from rmfast.evaluation.diagnostics.writers import Writers, by_writer
from rmfast.evaluation.judge.votes import member_votes, vote_curves
from rmfast.evaluation.suites.base import Suite
from rmfast.evaluation.suites.result import SuiteResult
from rmfast.jsonio import spliced, to_json


@dataclass(frozen=True)
class ModelDiagnostics:
    """One model's.

    Attributes:
        length_unit: what its lengths count.
        headline: by name; the interval of a figure that is a cell is the cell's, and unknown where the suite is.
        length: by part, "all" first where there are several. calibration: by part, None without rewards.
        writers: None without names of writers. votes: by part the accuracy by 1, 2, ... votes; None with one vote.
    """

    name: str
    kind: str
    length_unit: str
    headline: dict[str, Figure]
    length: dict[str, LengthBias]
    calibration: dict[str, Calibration] | None
    writers: Annotated[Writers | None, Field(alias="sources")]
    votes: dict[str, list[float]] | None


@dataclass(frozen=True)
class Diagnostics:
    """Of models in the order of their results, each named by its place in it.

    Attributes:
        rows, edges, prompts: counts. draws: of each bootstrap (over prompts), whose middle 95 % are the intervals.
        agreement: None of one model. selection: None without candidates.
    """

    suite: str
    data: str
    rows: int
    edges: int
    prompts: int
    draws: int
    notes: list[str]
    models: list[ModelDiagnostics]
    agreement: Agreement | None
    selection: Selection | None

    def to_json(self) -> dict[str, Any]:
        """The content of a file; rewards of a writer are keys of the writer."""
        whole = to_json(self)
        for writers in (model["sources"] for model in whole["models"] if model["sources"]):
            writers["writers"] = [spliced(writer, "rewards") for writer in writers["writers"]]
        return whole


def diagnose(
    results: Sequence[SuiteResult],
    suite: Suite | None = None,
    candidates: Candidates | None = None,
    notes: Sequence[str] = (),
) -> Diagnostics:
    """Diagnostics of results on the same rows.

    Args:
        results: of one suite, on the same rows in the same order.
        suite: theirs; by default found by its name.
        candidates: that the same models, in the same order, and a gold scorer have scored.
        notes: lines that go before its notes, as `common.on_common_rows` gives them.

    Raises:
        UserError: the results are of other rows; it names the first.
    """
    names = [result.name for result in results]
    check_same(results, names)
    tables = [table_of(result) for result in results]
    resamples = [resample_suite(result, suite) for result in results]
    doubts = [f"{name}: {r.note}" for name, r in zip(names, resamples, strict=True) if r.note]
    return Diagnostics(
        suite=results[0].suite,
        data=results[0].data,
        rows=len(results[0].items),
        edges=int(tables[0].gap.size),
        prompts=tables[0].prompts,
        draws=DRAWS,
        notes=[*notes, *doubts, *_of_lengths(results, names)],
        models=[
            ModelDiagnostics(
                name=result.name,
                kind=result.kind,
                length_unit=result.length_unit,
                headline=resampled.figures(),
                length=length_bias(table),
                calibration=calibration(table),
                writers=by_writer(table),
                votes=votes_of(result),
            )
            for result, table, resampled in zip(results, tables, resamples, strict=True)
        ],
        agreement=agreement(results, resamples) if len(results) > 1 else None,
        selection=None if candidates is None else select(candidates, names, resamples),
    )


def votes_of(result: SuiteResult) -> dict[str, list[float]] | None:
    """Accuracy of each part's rows by the number of votes (see `judge.votes.vote_curve`); None with one vote.

    An ensemble's votes are the signs of its members' gaps. A judge has counted its votes, by orders and samples.
    """
    if result.kind == "judge":
        curves = result.figures.get("votes")
        return curves if curves and max(map(len, curves.values())) > 1 else None
    if result.votes is None:
        return None
    return vote_curves(result.items, map(member_votes, result.votes))


def _of_lengths(results: Sequence[SuiteResult], names: Sequence[str]) -> list[str]:
    """A line where models count lengths differently."""
    units: dict[str, list[str]] = {}
    for result, name in zip(results, names, strict=True):
        units.setdefault(result.length_unit, []).append(name)
    if len(units) > 1:
        counts = "; ".join(f"in {unit} for {', '.join(models)}" for unit, models in units.items())
        return [f"Lengths differ between models: they are counted {counts}."]
    pairs = (zip(results[0].items, result.items, strict=True) for result in results[1:])
    if any(a.lengths != b.lengths for both in pairs for a, b in both):
        return ["Lengths are counted by each model's tokenizer, and differ between models."]
    return []
