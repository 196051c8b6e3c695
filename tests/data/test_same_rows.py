"""The same rows give the same tokens, however they are stored: jsonl, a JSON list, parquet as pyarrow and as
`datasets` write it, and save_to_disk.

What Arrow cannot keep is left out of the rows: it has one order of keys and one kind of number a field, and `datasets`
does not tell a text that is JSON ("12", "true") from the value in a column of mixed shape.
"""

import contextlib
import inspect
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerFast

from rmfast.data.example import BadRow
from rmfast.data.rows import parse_row
from rmfast.data.sources import read_rows
from rmfast.data.tokenise import Encoded, encode

TEMPLATE = (
    "{% if tools %}{{ tools | tojson(sort_keys=true) }}{% endif %}{{ style }}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson(sort_keys=true) }}{% endif %}<|im_end|>\n{% endfor %}"
)
WORDS = ["the", "naïve", "日本", "\u2028", "it's", '"so"', "{x}", "a\nb", "[1", "\\", "\t", "é"]
Row = dict[str, Any]
OPTIONS = inspect.signature(datasets.Dataset.from_list).parameters
JSON_COLUMNS = {"on_mixed_types": "use_json"} if "on_mixed_types" in OPTIONS else {}


class Maker:
    """Odd but valid rows."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def text(self) -> str:
        return "Say " + " ".join(self.draw.choices(WORDS, k=self.draw.randint(1, 6)))

    def some(self, row: Row, chance: float = 0.5) -> Row:
        """The row without some of its columns."""
        return {name: value for name, value in row.items() if self.draw.random() < chance}

    def turn(self, role: str, **more: Any) -> Row:
        return {"role": role, "content": self.text(), **more}

    def prompt(self) -> list[Row]:
        system = [self.turn("system")] if self.draw.random() < 0.3 else []
        return [*system, self.turn("user", **self.some({"name": self.text()}, 0.2))]

    def answer(self) -> list[Row]:
        call = {"type": "function", "function": {"name": "look", "arguments": self.arguments()}}
        return [self.turn("assistant", **self.some({"tool_calls": [call]}, 0.3))]

    def arguments(self) -> Row:
        return self.some(
            {"n": self.draw.randint(-3, 3), "x": 0.25, "deep": {"list": [1, 2], "text": self.text()}, "no": []}
        )

    def tools(self) -> list[Row]:
        kind = {
            "type": "object",
            "properties": self.some({"q": {"type": "string"}, "n": {"type": "integer", "enum": [1]}}),
        }
        return [{"name": self.text(), "parameters": kind} for _ in range(self.draw.randint(0, 2))]

    def edge_columns(self, edges: int) -> Row:
        lists = self.draw.random() < 0.5
        columns = {name: [0.5] * edges if lists else 0.25 for name in ("margin", "target", "weight", "strength_mean")}
        return self.some(columns, 0.3)

    def strings(self) -> Row:
        return {"prompt": self.text(), "chosen": self.text(), "rejected": self.text()} | self.edge_columns(1)

    def implicit(self) -> Row:
        return {"chosen": self.text(), "rejected": self.text()}

    def messages(self) -> Row:
        return {"prompt": self.prompt(), "chosen": self.answer(), "rejected": self.answer(), "tools": self.tools()}

    def implicit_messages(self) -> Row:
        prompt = self.prompt()
        row = {"chosen": prompt + self.answer(), "rejected": prompt + self.answer()}
        return row | self.some({"chat_template_kwargs": {"style": self.text()}})

    def string_answers(self) -> Row:
        return {"prompt": self.prompt(), "chosen": self.text(), "rejected": self.text(), "tools": self.tools()}

    def many(self) -> Row:
        count = self.draw.randint(0, 3)
        return self.strings() | {"rejected": [self.text() for _ in range(count)]} | self.edge_columns(count)

    def ranked(self) -> Row:
        texts = [self.text() for _ in range(3)]
        order = self.draw.choice(({}, {"ranks": [2, 1, 2]}, {"scores": [0.5, 1.5, -2.5]}, {"edges": [[0, 1], [2, 0]]}))
        return {"prompt": self.text(), "responses": texts} | order

    def ids(self) -> Row:
        ids = [self.draw.choices(range(300), k=self.draw.randint(1, 4)) for _ in range(3)]
        return {"prompt_ids": ids[0], "chosen_ids": ids[1], "rejected_ids": ids[2]} | self.edge_columns(1)

    def broken(self) -> Row:
        return self.draw.choice(({"chosen": self.text()}, {"chosen": [], "rejected": []}, {"prompt": self.prompt()}))


FORMATS = [
    name
    for name in vars(Maker)
    if name
    in ("strings", "implicit", "messages", "implicit_messages", "string_answers", "many", "ranked", "ids", "broken")
]


def store(folder: Path, rows: list[Row]) -> list[str]:
    """The rows in each way that can hold them; the sources."""
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "list.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    names = list(dict.fromkeys(name for row in rows for name in row))
    full = [{name: row.get(name) for name in names} for row in rows]
    ways = ["rows.jsonl", "list.json"]
    # pyarrow has no type for a column of several shapes, nor for objects without fields; datasets has, from 4.7 on.
    with contextlib.nullcontext() if JSON_COLUMNS else contextlib.suppress(pyarrow.ArrowException):
        data = datasets.Dataset.from_list(full, **JSON_COLUMNS)
        data.to_parquet(folder / "datasets.parquet")
        data.save_to_disk(folder / "saved")
        ways += ["datasets.parquet", "saved"]
    with contextlib.suppress(pyarrow.ArrowException):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(full), folder / "pyarrow.parquet")
        ways.append("pyarrow.parquet")
    return [str(folder / way) for way in ways]


def without_nulls(value: Any) -> Any:
    """Arrow gives all objects of a column the same fields: those that an object lacks are null."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def outcomes(source: str, tokenizer: PreTrainedTokenizerFast) -> list[Any]:
    """Of each row its token ids and its edges, or the cause why it cannot be used."""
    found: list[Any] = []
    for _, _, row in read_rows(source):
        assert isinstance(row, dict)
        try:
            example = parse_row(without_nulls(row))
            result = encode(tokenizer, [example])[0]
        except BadRow as bad:
            result = bad
        if isinstance(result, Encoded):
            found.append(
                ([ids.tolist() for ids in result.ids], result.prefix, result.answer_start, repr(example.edges))
            )
        else:
            found.append(result.cause)
    return found


@pytest.mark.parametrize("seed", range(36))
def test_the_same_rows_give_the_same_tokens(
    tmp_path: Path, make_tokenizer: Callable[..., PreTrainedTokenizerFast], seed: int
) -> None:
    maker = Maker(seed)
    formats = maker.draw.sample(FORMATS, k=1 + seed % 4)
    rows = [getattr(maker, maker.draw.choice(formats))() for _ in range(12)]
    tokenizer = make_tokenizer(template=TEMPLATE)
    first, *others = store(tmp_path, rows)
    expected = outcomes(first, tokenizer)
    assert len(expected) == len(rows)
    for other in others:
        assert outcomes(other, tokenizer) == expected, other
