"""JSON as rmfast writes and reads it."""

import datetime
import json
import math
from dataclasses import dataclass
from typing import Annotated

import pytest
from pydantic import Field

from rmfast.jsonio import Real, finite_or_null, from_json, json_line, to_json


@dataclass(frozen=True)
class Point:
    x: Real
    at: Annotated[tuple[str, ...], Field(alias="from")] = ()


@dataclass(frozen=True)
class Line:
    points: list[Point]
    levels: dict[str, Real]


def test_what_is_not_a_finite_number_is_null_at_any_depth():
    value = {"a": [math.nan, (1.0, math.inf)], "b": {"c": -math.inf, "d": "nan"}, "e": 3}
    assert finite_or_null(value) == {"a": [None, [1.0, None]], "b": {"c": None, "d": "nan"}, "e": 3}


def test_a_line_holds_any_row():
    row = {"x": math.nan, "day": datetime.date(2024, 7, 26), "text": "ü"}
    assert json_line(row) == '{"x": null, "day": "2024-07-26", "text": "ü"}'
    assert json.loads(json_line({"half": "\ud800"})) == {"half": "\ud800"} and json_line({"half": "\ud800"}).isascii()


def test_dataclasses_go_to_json_and_come_back():
    line = Line([Point(1.5, ("a", "b")), Point(math.nan)], {"low": math.nan})
    text = json.dumps(finite_or_null(to_json(line)))
    assert text == '{"points": [{"x": 1.5, "from": ["a", "b"]}, {"x": null, "from": []}], "levels": {"low": null}}'
    again = from_json(Line, json.loads(text) | {"more": 1})
    assert again.points[0] == line.points[0] and math.isnan(again.points[1].x) and math.isnan(again.levels["low"])


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="points.0.x"):
        from_json(Line, {"points": [{}], "levels": {}})
