"""A result file: its form on disk, and what is said of a damaged one."""

import json
import math

import pytest

from rmfast.errors import UserError
from rmfast.evaluation.suites.result import SuiteResult, read_result, result_json

FILE = """{
 "format": 1,
 "suite": "pairwise",
 "data": "pairs.jsonl",
 "name": "two",
 "kind": "ensemble",
 "models": ["a", "b"],
 "combine": "mean",
 "members": [1.0, 0.5],
 "headline": {"pairwise": 1.0, "other": null},
 "cells": [
  {"part": "pairwise", "path": [], "rows": 1, "correct": 1, "accuracy": 1.0, "low": 0.2, "high": null, "not_scored": 1}
 ],
 "responses": 2,
 "nonfinite": 0,
 "edges": 1,
 "ties": 0,
 "loss": null,
 "baseline": "longer wins",
 "length_unit": "tokens",
 "rows": 2,
 "rows_not_scored": 1,
 "not_scored_by_cause": {"too long": 1},
 "not_scored": [{"label": "pairs.jsonl:2", "part": "pairwise", "path": [], "cause": "too long", "detail": "9 tokens"}],
 "template_date": null,
 "notes": ["a note"],
 "figures": {"any": [1]},
 "worst": [
  {"uid": "1", "label": "f:1", "part": "p", "path": ["g"], "gap": null, "prompt": "?", "better": "a", "worse": "b", "sources": ["x", "y"]}
 ],
 "items": [
  {"uid": "1", "label": "f:1", "part": "pairwise", "path": ["g", "h"], "won": true, "gaps": [null], "rewards": [0.5, null], "lengths": [3.0, 2.0], "edges": [[0, 1]], "sources": ["x", "y"], "prompt": 0}
 ],
 "votes": [
  [[1.0], [null]]
 ]
}
"""  # noqa: E501


def test_a_file_is_read_and_written_again_byte_for_byte():
    result = SuiteResult.from_json(json.loads(FILE))
    assert result_json(result.to_json()) == FILE
    (item,) = result.items
    assert item.writers == ["x", "y"] and item.path == ("g", "h") and math.isnan(item.gaps[0])
    assert result.members == [1.0, 0.5] and result.metrics["edges"] == 1 and math.isnan(result.metrics["loss"])
    assert result.about == {"models": ["a", "b"], "combine": "mean", "members": [1.0, 0.5]}


def test_an_item_is_a_result_again():
    (item,) = SuiteResult.from_json(json.loads(FILE)).items
    result = item.result()
    assert result.item.writers == ("x", "y") and result.item.extra == {"right": 1}
    assert result.rewards is not None and result.rewards[0] == 0.5 and not result.won


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["items"][0].pop("gaps"), r"a damaged result of rmfast eval \(items.0.gaps: Field required\)"),
        (lambda c: c.update(format=2), "no result of rmfast eval"),
        (lambda c: c.update(edges="1"), r"a damaged result of rmfast eval \(edges: it is '1'\)"),
        (lambda c: c.update(nonfinite=None), r"a damaged result of rmfast eval \(nonfinite: it is None\)"),
        (lambda c: c.update(baseline=1), r"a damaged result of rmfast eval \(baseline: it is 1\)"),
        (lambda c: c.pop("ties"), r"a damaged result of rmfast eval \(ties: it is missing\)"),
        (
            lambda c: c["items"][0].update(edges=[[0, 2]]),
            r"a damaged .*\(items.0: .*its edges, gaps.* do not",
        ),
        (
            lambda c: c["items"][0].update(gaps=[1, 2]),
            r"a damaged .*\(items.0: .*its edges, gaps.* do not",
        ),
        (lambda c: c.update(votes=[]), r"a damaged .*\(votes: 0 for 1 items\)"),
        (lambda c: c.update(votes=[[[1], [1, 2]]]), r"a damaged .*\(votes: those of 1 are not \[members, 1\]\)"),
    ],
)
def test_a_damaged_file_is_refused_by_key(tmp_path, change, message):
    content = json.loads(FILE)
    change(content)
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"x.json: {message}.*evaluate again with --out"):
        read_result(tmp_path / "x.json")
