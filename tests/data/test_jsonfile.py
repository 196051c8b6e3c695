"""JSON that cannot be read whole is an error that says where; a key that is there twice makes its row a bad one."""

import json
from pathlib import Path

import pytest

from rmfast.data import unpack
from rmfast.data.example import NOT_JSON, NOT_OBJECT, BadRow
from rmfast.data.jsonfile import DOUBLED_KEY, json_rows, parse_json
from rmfast.errors import UserError

A, B = '{"a": 1}', '{"a": [2, "]"]}'


def read(folder: Path, text: str, name: str = "rows.json") -> list[dict | str]:
    """The rows; of bad ones the cause."""
    (folder / name).write_text(text)
    rows = json_rows(folder / name, may_be_list=name.endswith(".json"))
    return [row.cause if isinstance(row, BadRow) else row for _, row in rows]


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"[{A}] [{B}]", r"goes on after the end of its list .* after row 1: '\[\{\"a\": \[2"),
        (f"[{A}]\n{B}", "goes on after the end of its list"),
        (f"[{A}],", "goes on after the end of its list"),
        (f"[{A}]]", "goes on after the end of its list"),
        ("[] []", "goes on after the end of its list .* after row 0"),
        (f"[{A} {B}]", r"misses a comma after row 1: '\{"),
        (f"[{A}, {B}\n{A}]", "misses a comma after row 2"),
        (f"[{A},, {B}]", r"has a comma too many after row 1: ', \{"),
        (f"[{A}, {B},]", r"has a comma too many after row 2: '\]'"),
        (f"[,{A}]", "no JSON list: item 1"),
        (f"[{A}, {B}", "is truncated after row 2: ''"),
        (f"[{A}, ", "is truncated or no JSON list: item 2"),
        (f"[{A}, {B[:-3]}", "is truncated or no JSON list: item 2"),
        (f"[{A}: {B}]", "misses a comma after row 1: ': "),
        ("[", "is truncated"),
    ],
)
def test_what_is_no_list_is_an_error_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str, size: int
) -> None:
    monkeypatch.setattr(unpack, "CHUNK", size)
    with pytest.raises(UserError, match=f"rows.json.*{message}"):
        read(tmp_path, text)


@pytest.mark.parametrize("text", [f" \n[ {A}\t,\r\n {B} ] \n", f"[{A},{B}]", f"\ufeff[{A}, {B}]\n\n"])
def test_space_between_items_means_nothing(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == [{"a": 1}, {"a": [2, "]"]}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"chosen": "a", "rejected": "b"}, indent=1),
        json.dumps({"data": [{"chosen": "a"}]}, indent=2),
        "\n\n".join(json.dumps({"chosen": "a", "n": [1]}, indent=1) for _ in range(3)),
        '{"data": [\n{"chosen": "a", "rejected": "b"},\n{"chosen": "a", "rejected": "b"}\n]}',
        '{"chosen":\n"a"}',
    ],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_an_object_over_several_lines_is_called_so(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is JSON over several lines.*each row on one line .*one list"):
        read(tmp_path, text, name)


def test_one_line_that_is_cut_is_a_bad_row(tmp_path: Path) -> None:
    assert read(tmp_path, '{"chosen": ["a",', "rows.jsonl") == [NOT_JSON]
    assert read(tmp_path, f'{A}\n{{"chosen":\n{B}', "rows.jsonl") == [{"a": 1}, NOT_JSON, {"a": [2, "]"]}]


def test_a_list_over_several_lines_in_jsonl_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is JSON over several lines"):
        read(tmp_path, f"[\n{A},\n{B}\n]", "rows.jsonl")


@pytest.mark.parametrize("key", ["data", "train"])
def test_an_object_that_holds_the_rows_is_called_so(tmp_path: Path, key: str) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2
    with pytest.raises(UserError, match=f"is one object, whose '{key}' holds the rows: write that list alone"):
        read(tmp_path, json.dumps({"version": "1", key: rows}))
    lists = {"chosen": [{"role": "user", "content": "p"}], "rejected": [], "tools": [{"chose": 1}]}
    assert read(tmp_path, json.dumps(lists)) == [lists], "a row may hold lists of objects"


@pytest.mark.parametrize(
    "row",
    [
        '{"a": 1, "a": 1}',
        '{"chosen": "x", "b": 1, "chosen": "y"}',
        '{"b": [{"c": {"d": 1, "e": 2, "d": 3}}]}',
        '{"a" : 1, "b": "\\":", "\\u0061": 2}',
    ],
)
def test_a_key_that_is_there_twice_at_any_depth_makes_a_bad_row(tmp_path: Path, row: str) -> None:
    assert read(tmp_path, f"{A}\n{row}\n{A}", "a.jsonl") == [{"a": 1}, DOUBLED_KEY, {"a": 1}]
    assert read(tmp_path, f"[{A}, {row}, {A}]") == [{"a": 1}, DOUBLED_KEY, {"a": 1}]


def test_the_doubled_key_is_named() -> None:
    with pytest.raises(BadRow, match="doubled key: an object has 'x' twice"):
        parse_json('{"y": 1, "x": 1, "x": 2}')


@pytest.mark.parametrize("size", [1, 7])
def test_a_doubled_key_in_an_item_over_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(unpack, "CHUNK", size)
    text = '[{"b": {"a": 1, "a": 2}, "long": "' + "x" * 50 + '"}, {"a": 3}]'
    assert read(tmp_path, text) == [DOUBLED_KEY, {"a": 3}]


@pytest.mark.parametrize("line", [A + A, f"{A} {B}", f"{A},", f"{A}]", f"{A} x"])
def test_a_line_holds_one_object(tmp_path: Path, line: str) -> None:
    assert read(tmp_path, f"{A}\n{line}\n{B}", "a.jsonl") == [{"a": 1}, NOT_JSON, {"a": [2, "]"]}]


def test_numbers_that_json_does_not_know_are_read_as_ever(tmp_path: Path) -> None:
    for name, text in {"a.jsonl": '{"a": Infinity}', "a.json": '[{"a": Infinity}]'}.items():
        assert read(tmp_path, text, name) == [{"a": float("inf")}]


def test_a_value_alone_is_no_row(tmp_path: Path) -> None:
    assert read(tmp_path, "12") == read(tmp_path, '"text"') == [NOT_OBJECT]


DEEP = "[" * 9000 + "{}" + "]" * 9000
MIXED = '{"a": [' * 5000 + '"]\\"}", -1.5e3, null, true' + "]}" * 5000
ODD = {"digits": "1" * 5000, "deep": DEEP, "mixed": MIXED, "doubled": '[{"a": 1, "a": 2}, ' + "7" * 5000 + "]"}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("size", [100, 1 << 20])
def test_a_value_that_python_cannot_hold_costs_its_row_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, odd: str, name: str
) -> None:
    monkeypatch.setattr(unpack, "CHUNK", size)
    row = f'{{"chosen": "x", "more": {ODD[odd]}}}'
    text = f"{A}\n{row}\n{B}" if name.endswith("l") else f"[{A}, {row}, {B}]"
    cause = DOUBLED_KEY if odd == "doubled" else NOT_JSON
    assert read(tmp_path, text, name) == [{"a": 1}, cause, {"a": [2, "]"]}]


@pytest.mark.parametrize("end", ["", "]", '"]}]'])
def test_a_deep_value_without_its_end_is_an_error(tmp_path: Path, end: str) -> None:
    with pytest.raises(UserError, match="rows.json is truncated or no JSON list: item 2"):
        read(tmp_path, f'[{A}, {{"a": {DEEP[:-1]}{end}')
