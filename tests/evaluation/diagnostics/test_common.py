"""Models that could not score the same rows, on the rows that all have scored: as if no other row had been there."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from rmfast.errors import UserError
from rmfast.evaluation.diagnostics import diagnose
from rmfast.evaluation.diagnostics.common import on_common_rows
from rmfast.evaluation.suites.base import Suite
from rmfast.evaluation.suites.find import find_suite
from rmfast.evaluation.suites.result import SuiteResult
from rmfast.jsonio import finite_or_null
from tests.evaluation.diagnostics.made import RNG, made

FILES = ["a.json", "b.json"]
SAME = {"headline", "cells", "items", "edges", "accuracy", "accuracy_low", "accuracy_high", "ties", "votes"}
SAME |= {"responses", "margin", "baseline", "baseline_accuracy", "mean_reward", "length_correlation", "nonfinite"}


def rmb(seed: int, skip=(), rows: int = 60, **more) -> SuiteResult:
    rng = RNG(seed)
    goals = [("Helpfulness", "Chat", "Discussion"), ("Harmlessness", "S1"), ("Harmlessness", "S2")]
    return made(
        [[rng.normal(0.5), *rng.normal(size=1 + i % 2)] for i in range(rows)],
        suite=find_suite("rmb"),
        parts=["pairwise" if i % 2 == 0 else "best-of-n" for i in range(rows)],
        paths=[goals[i // 2 % 3] for i in range(rows)],
        prompts=[i // 3 for i in range(rows)],
        votes=[rng.normal(size=(5, 1 + i % 2)) for i in range(rows)],
        skip=skip,
        name=f"model {seed}",
        **more,
    )


def ties(seed: int, skip=()) -> SuiteResult:
    """RewardBench 2, whose Ties are computed from rows."""
    rng = RNG(seed)
    subsets = ["Factuality", "Precise IF", "Math", "Safety", "Focus"]
    rewards = [list(rng.normal(size=4) + [1, 0, 0, 0]) for _ in range(30)]
    parts, paths = ["best-of-n"] * 30, [(subsets[i % 5],) for i in range(30)]
    uids, right = [str(i) for i in range(30)], [1] * 30
    for n in range(10):
        for kind, k in (("ref", 1), ("tied", 3)):
            rewards.append([*rng.normal(2, 0.5, k), *rng.normal(0, 1, 3)])
            parts.append("ties"), paths.append((kind,)), uids.append(f"{kind}:{n}"), right.append(k)
    return made(rewards, suite=find_suite("reward-bench-2"), parts=parts, paths=paths, uids=uids, right=right,
                skip=skip, name=f"model {seed}")  # fmt: skip


@pytest.mark.parametrize("of", [rmb, ties])
def test_figures_are_those_of_the_common_rows_alone(of):
    one, other = {3, 4, 41}, {0, 4, 7}
    found, notes = on_common_rows([of(0, one), of(1, other)], FILES)
    for seed, result in enumerate(found):
        alone = of(seed, one | other)
        contents = [finite_or_null(content.to_json()) for content in (result, alone)]
        assert all(contents[0][key] == contents[1][key] for key in SAME)
        assert result.rows == alone.rows and result.rows_not_scored == 3
        assert [row.label for row in result.worst] == [
            row.label for row in alone.worst if row.label in {own.label for own in result.worst}
        ]
    assert notes == [
        "2 rows left out: not scored by model 0 (2 too long)",
        "2 rows left out: not scored by model 1 (2 too long)",
    ]
    assert [(row.label, row.cause, row.detail) for row in found[0].left_out] == [
        ("folder/rows.jsonl:1", "not scored by model 1", "too long: 900 tokens"),
        ("folder/rows.jsonl:8", "not scored by model 1", "too long: 907 tokens"),
    ]
    said = diagnose(found, notes=notes)
    assert said.notes[:2] == notes and said.rows == len(found[0].items)
    assert [m.headline["overall"].value for m in said.models] == [r.headline["overall"] for r in found]


def test_the_folder_may_have_moved():
    (one, other), notes = on_common_rows([rmb(0), rmb(1, {5}, data="else/where")], FILES)
    assert len(one.items) == len(other.items) == 59
    assert notes == ["1 row left out: not scored by model 1 (1 too long)"]
    assert not other.left_out


def test_files_of_one_name_in_two_folders_are_two():
    def moved(row):
        number = int(row.label.rpartition(":")[2])
        label = f"/data/{'xy'[number > 30]}/rows.jsonl:{number - 30 * (number > 30)}"
        return replace(row, label=label, part="pairwise", path=())

    results = [
        replace(result, items=[*map(moved, result.items)], not_scored=[*map(moved, result.not_scored)])
        for result in (rmb(0), rmb(1, {5}))
    ]
    (one, _), _ = on_common_rows(results, FILES, Suite("rmb", "", None, headline=lambda c, r: results[0].headline))
    assert len(one.items) == 59


def test_equal_rows_come_back_as_they_are():
    for results in ([rmb(0)], [rmb(0, {3}), rmb(1, {3})], [rmb(0), rmb(1)]):
        before = copy.deepcopy(results)
        assert on_common_rows(results, FILES[: len(results)]) == (before, [])


def test_members_and_votes_of_the_common_rows():
    results = [rmb(0), rmb(1, {0, 1})]
    results[0] = replace(results[0], about=results[0].about | {"members": [0.0] * 5})
    votes = [np.array(own) for own in results[0].votes[2:]]
    (one, _), _ = on_common_rows(results, FILES)
    assert one.members == pytest.approx([np.mean([g > 0 for v in votes for g in v[m]]) for m in range(5)])
    judge = rmb(0)
    figures = {"orders": "both", "votes": {"pairwise": [0.0]}, "answers": 9}
    votes = [[[1.0, 1.0]] * len(item.edges) for item in judge.items]
    judge = replace(judge, kind="judge", figures=figures, votes=votes)
    (one, _), _ = on_common_rows([judge, rmb(1, {0, 1})], FILES)
    assert one.figures == {"orders": "both", "votes": {"pairwise": [1.0], "best-of-n": [1.0]}, "answers": 9}


def _lose(result):
    """Neither scored nor listed as not scored: other data."""
    return replace(result, items=[*result.items[:7], *result.items[8:]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_lose, "b.json: other rows than a.json: .*evaluate both on the same --data"),
        (lambda r: replace(r, not_scored=r.not_scored[:-1]), "b.json: names only 1 of 2 rows that were not scored"),
        (lambda r: replace(r, suite="pairwise"), "b.json: suite pairwise, but a.json is of rmb"),
    ],
)
def test_other_data_is_refused(change, message):
    results = [rmb(0), rmb(1, {3, 4})]
    results[1] = change(results[1])
    with pytest.raises(UserError, match=message):
        on_common_rows(results, FILES)


def test_no_row_is_left():
    with pytest.raises(UserError, match="no row was scored by every model"):
        on_common_rows([rmb(0, set(range(30))), rmb(1, set(range(30, 60)))], FILES)


def test_suites_that_need_what_the_file_does_not_hold():
    own = Suite("own", "", None, headline=lambda _, rows: {"x": float(len(rows[0].item.extra.get("more", "1234")))})
    results = [made([[1.0, 0.0]] * 9, suite=own, skip=skip) for skip in ((), (3,))]
    with pytest.raises(UserError, match=r"a.json: .* own is no suite .* give --suite"):
        on_common_rows(results, FILES)
    on_common_rows(results, FILES, own)
    results[0].headline["x"] = 5.0
    with pytest.raises(UserError, match="a.json: .* cannot be computed again .* other than there"):
        on_common_rows(results, FILES, own)
