from dataclasses import replace

import pytest

from rmfast.errors import UserError
from rmfast.evaluation.diagnostics.table import check_same, table_of
from tests.evaluation.diagnostics.made import changed, made

ROWS = [[1.0, 0.0], [0.0, 1.0], [2.0, 0.0, 1.0]]


def test_arrays():
    table = table_of(made(ROWS, [[5, 3], [2, 2], [1, 4, 6]], prompts=[0, 0, 1]))
    assert table.gap.tolist() == [1, -1, 2, 1] and table.length_gap.tolist() == [2, 0, -3, -5]
    assert table.prompt.tolist() == [0, 0, 1, 1] and table.prompts == 2
    assert table.won.tolist() == [True, False, True, True]
    assert table.reward.size == 7 and table.first.all()


def test_the_same_rows_in_another_folder():
    check_same([made(ROWS), made(ROWS, data="elsewhere")], ["a.json", "b.json"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, suite="rmb"), "b.json: suite rmb, but a.json is of pairwise"),
        (
            lambda r: replace(r, items=r.items[::-1]),
            r"b.json: .*first is folder/rows.jsonl:3 where a.json has folder/rows.jsonl:1",
        ),
        (lambda r: changed(r, 1, uid="other"), r"first is folder/rows.jsonl:2 .*\(other id\)"),
        (lambda r: changed(r, 2, edges=r.items[2].edges[::-1]), r"first is folder/rows.jsonl:3 .*\(other edges\)"),
        (lambda r: changed(r, 1, part="x"), r"\(other part\)"),
        (
            lambda r: replace(r, items=r.items[:-1]),
            "b.json: 2 rows, but a.json has 3: the first without a like is folder/rows.jsonl:3",
        ),
    ],
)
def test_other_rows_are_refused(change, message):
    first = made(ROWS)
    second = change(first)
    with pytest.raises(UserError, match=message):
        check_same([first, second], ["a.json", "b.json"])
