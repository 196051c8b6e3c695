"""Arrow's columns give what JSON would have held; what Python cannot hold costs its row and no other."""

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rmfast.data.arrow import UNREADABLE, arrow_rows
from rmfast.data.example import NOT_JSON, NOT_UTF8, BadRow
from rmfast.data.jsonfile import DOUBLED_KEY
from rmfast.data.sources import read_rows
from rmfast.errors import UserError
from tests.data.test_same_rows import JSON_COLUMNS

TURN = [{"role": "assistant", "content": "naïve 日本"}]
MIXED: list[dict[str, Any]] = [
    {"prompt": "p", "chosen": "a", "rejected": TURN, "tools": [{"name": "f", "of": {"x": 1, "y": [1, {"z": None}]}}]},
    {"prompt": "q", "chosen": TURN, "rejected": "b", "tools": [{"name": "g", "of": {"q": "s"}}]},
    {"prompt": "q", "chosen": ["a", "b"], "rejected": None, "tools": []},
]
"""Columns of several shapes: `datasets` stores them as JSON text, two at the top and one in structs of a list."""

MAP = pyarrow.map_(pyarrow.string(), pyarrow.int64())


def rows_of(path: Path) -> list[Any]:
    """The rows; of bad ones cause and detail."""
    return [(row.cause, row.detail) if isinstance(row, BadRow) else row for _, row in arrow_rows(path)]


def write(folder: Path, table: pyarrow.Table, **options: Any) -> Path:
    pyarrow.parquet.write_table(table, folder / "rows.parquet", **options)
    return folder / "rows.parquet"


def values(folder: Path, column: pyarrow.Array) -> list[Any]:
    """A column's values as they are read."""
    return [row["x"] for row in rows_of(write(folder, pyarrow.table({"x": column})))]


@pytest.mark.skipif(not JSON_COLUMNS, reason="datasets before 4.7 writes no JSON columns")
def test_json_columns_of_datasets_are_decoded_however_they_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = datasets.Dataset.from_list(MIXED, **JSON_COLUMNS)
    table = data.with_format("arrow")[:]
    assert "arrow.json" in str(table.schema.field("chosen").type)
    data.to_parquet(tmp_path / "metadata.parquet")
    bare = table.replace_schema_metadata(None)
    pyarrow.parquet.write_table(bare, tmp_path / "bare.parquet")
    pyarrow.parquet.write_table(bare, tmp_path / "type_of_parquet.parquet", store_schema=False)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "two")
    data.set_format("numpy", columns=["prompt"])  # how it is shown, which a saved dataset remembers
    data.save_to_disk(tmp_path / "shown")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.DatasetDict(train=data))
    stored = ("metadata.parquet", "bare.parquet", "type_of_parquet.parquet", "one", "two", "shown")
    for source in (*(str(tmp_path / name) for name in stored), "some/name"):
        assert [row for _, _, row in read_rows(source)] == MIXED, source


def test_json_in_lists_structs_and_maps(tmp_path: Path) -> None:
    text = pyarrow.array(['{"a": 1}', None, '"v"', "[2, 2.5]"], pyarrow.json_())
    lists = pyarrow.ListArray.from_arrays([0, 2, 2, 4], text)
    assert values(tmp_path, lists) == [[{"a": 1}, None], [], ["v", [2, 2.5]]]
    structs = pyarrow.StructArray.from_arrays([pyarrow.StructArray.from_arrays([text], ["j"])], ["s"])
    assert values(tmp_path, structs)[::3] == [{"s": {"j": {"a": 1}}}, {"s": {"j": [2, 2.5]}}]
    maps = pyarrow.MapArray.from_arrays([0, 3, 4], list("abcd"), text)
    assert values(tmp_path, maps) == [{"a": {"a": 1}, "b": None, "c": "v"}, {"d": [2, 2.5]}]


def test_json_that_is_none_makes_a_bad_row(tmp_path: Path) -> None:
    stored = pyarrow.array(['{"a": 1}', "no json", '{"a": 1, "a": 2}', None], pyarrow.json_())
    assert rows_of(write(tmp_path, pyarrow.table({"x": stored}))) == [
        {"x": {"a": 1}},
        (NOT_JSON, "column 'x': Expecting value at column 1"),
        (DOUBLED_KEY, "column 'x': an object has 'a' twice"),
        {"x": None},
    ]


@pytest.mark.parametrize(
    ("column", "read"),
    [
        (pyarrow.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pyarrow.array(["a"], pyarrow.large_string()), ["a"]),
        (pyarrow.array(["é".encode(), None, b"\xff"]), ["é", None, b"\xff"]),
        (pyarrow.array([b"abcd"], pyarrow.binary(4)), ["abcd"]),
        (pyarrow.array([Decimal("1.50"), None]), [1.5, None]),
        (pyarrow.array([Decimal("12")], pyarrow.decimal128(20, 0)), [12]),
        (pyarrow.array(np.array([0.5], np.float16)), [0.5]),
        (pyarrow.array([datetime.date(2024, 2, 29)]), ["2024-02-29"]),
        (pyarrow.array([1_500_000], pyarrow.timestamp("us", "UTC")), ["1970-01-01 00:00:01.500000+00:00"]),
        (pyarrow.array([90], pyarrow.duration("s")), ["0:01:30"]),
        (
            pyarrow.array([[("a", 1), ("b", None)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            [{"a": 1, "b": None}, {}],
        ),
        (pyarrow.array([[(1, "x")]], pyarrow.map_(pyarrow.int64(), pyarrow.string())), [{"1": "x"}]),
        (pyarrow.array([[[1], [2]]], pyarrow.list_(pyarrow.list_(pyarrow.int32(), 1))), [[[1], [2]]]),
        (pyarrow.array([{"a": [1, 2], "b": ["x", None]}]), [{"a": [1, 2], "b": ["x", None]}]),
        (pyarrow.array([[{"d": Decimal("0.5"), "n": None}]]), [[{"d": 0.5, "n": None}]]),
        (pyarrow.array([None, None]), [None, None]),
        (pyarrow.array([2**63], pyarrow.uint64()), [2**63]),
        (pyarrow.array([bytes(16)], pyarrow.uuid()), ["00000000-0000-0000-0000-000000000000"]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pyarrow.Array) else "",
)
def test_values_are_plain(tmp_path: Path, column: pyarrow.Array, read: list[Any]) -> None:
    found = values(tmp_path, column)
    assert found == read
    assert list(map(type, found)) == list(map(type, read))


def test_features_of_datasets_are_plain(tmp_path: Path) -> None:
    features = datasets.Features(
        label=datasets.ClassLabel(names=["bad", "good"]),
        grid=datasets.Array2D((2, 2), "int32"),
        turns=datasets.Sequence({"role": datasets.Value("string")}),
    )
    rows = [{"label": "good", "grid": [[1, 2], [3, 4]], "turns": {"role": ["user", "assistant"]}}]
    data = datasets.Dataset.from_list(rows, features=features)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "rows.parquet")
    plain = [{"label": 1, "grid": [[1, 2], [3, 4]], "turns": {"role": ["user", "assistant"]}}]
    assert [row for _, _, row in read_rows(str(tmp_path / "saved"))] == plain
    assert rows_of(tmp_path / "rows.parquet") == plain


def test_one_value_that_cannot_be_held_costs_one_row(tmp_path: Path) -> None:
    days = [0] * 3000
    days[1500], days[2999] = 3_000_000, -2_000_000  # the years 10183 and -3506
    table = pyarrow.table(
        {
            "n": range(3000),
            "day": pyarrow.array(days, pyarrow.int32()).view(pyarrow.date32()),
            "text": pyarrow.array([b"\xffa" if n == 7 else b"a" for n in range(3000)]).view(pyarrow.string()),
        }
    )
    found = rows_of(write(tmp_path, table))
    bad = {n: row for n, row in enumerate(found) if isinstance(row, tuple)}
    assert bad == {
        7: (NOT_UTF8, "column 'text': invalid start byte at byte 0"),
        1500: (UNREADABLE, "column 'day': date value out of range"),
        2999: (UNREADABLE, "column 'day': date value out of range"),
    }
    assert [row["n"] for row in found if isinstance(row, dict)] == [n for n in range(3000) if n not in bad]


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_times_beyond_the_year_9999(tmp_path: Path, unit: str) -> None:
    late = 253_402_300_800 * {"s": 1, "ms": 10**3, "us": 10**6}[unit]
    table = pyarrow.table({"x": pyarrow.array([[late], [0]], pyarrow.list_(pyarrow.timestamp(unit)))})
    found = rows_of(write(tmp_path, table))
    assert found[0][0] == UNREADABLE and found[0][1].startswith("column 'x': ")
    assert found[1] == {"x": ["1970-01-01 00:00:00"]}


def test_a_map_with_a_key_twice_is_a_bad_row(tmp_path: Path) -> None:
    table = pyarrow.table({"x": pyarrow.array([[("a", 1), ("a", 2)], [("a", 1)]], MAP)})
    assert rows_of(write(tmp_path, table)) == [(DOUBLED_KEY, "column 'x': a map has a key twice"), {"x": {"a": 1}}]


@pytest.mark.parametrize("nested", [False, True])
def test_two_columns_of_one_name_are_an_error(tmp_path: Path, nested: bool) -> None:
    table = pyarrow.table([["x"], ["y"], ["z"]], names=["chosen", "rejected", "chosen"])
    if nested:
        table = pyarrow.table({"turns": table.to_struct_array()})
    where = "field of column 'turns' 'chosen'" if nested else "column 'chosen'"
    with pytest.raises(UserError, match=f"rows.parquet has the {where} twice: rename or drop one"):
        rows_of(write(tmp_path, table))
