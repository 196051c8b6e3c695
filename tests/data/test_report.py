"""The figures of the data report, against counts done by hand."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rmfast.data.example import Example
from rmfast.data.report import data_report
from rmfast.data.rows import parse_row
from rmfast.data.store import build_store, store_examples


def lines_of(report: str) -> dict[str, str]:
    """The report's lines by name; the first section's where there are several."""
    lines: dict[str, str] = {}
    for line in report.splitlines():
        if line.startswith("  "):
            lines.setdefault(line[2:24].strip(), line[24:].strip())
    return lines


def test_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [
        ([9, 9, 1], [9, 9, 8, 8, 1]),  # shorter wins, shares 2
        ([7] * 10, [7] * 9 + [1]),  # equal lengths, one without eos
        ([5, 1], [5, 1]),  # identical
        ([6, 6, 6, 6, 1], [6, 6, 1]),  # longer wins
        ([6, 6, 6, 6, 1], [6, 6, 1]),  # a duplicate
    ]
    rows = [{"chosen_ids": a, "rejected_ids": b, "margin": m} for m, (a, b) in enumerate(ids, start=-1)]
    store = store_examples([parse_row(row) for row in rows], tokenizer)
    lines = lines_of(data_report([store], max_length=9))
    assert lines["rows"] == "5 read, 5 kept"
    assert lines["bad rows"] == "none"
    assert lines["responses per prompt"] == "2: 5"
    assert lines["over 9 tokens"] == "1 (20.0%) of the groups"
    assert lines["identical pairs"].startswith("1 (20.0%)")
    assert lines["margin"] == "-1 to 3"
    assert lines["longer wins"] == "0.667 of the 3 edges of unequal length"
    assert lines["no EOS at the end"] == "1 (10.0%) of the sequences"
    assert lines["duplicates"] == "1 groups"
    assert lines["kind"] == "token ids"
    assert lines["whole sequences"].split()[0] == "2" and lines["whole sequences"].split()[-1] == "10"
    total, stored = 8 + 20 + 4 + 8 + 8, 6 + 11 + 2 + 6 + 6
    assert lines["prefix sharing saves"] == f"{1 - stored / total:.1%} of {total} tokens"
    assert lines["padding avoided"].startswith(f"{1 - total / 100:.1%} ")


def test_last_token_inside_the_prefix_is_the_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"chosen_ids": [5, 1, 6], "rejected_ids": [5, 1]}, {"chosen_ids": [4, 1], "rejected_ids": [4, 1]}]
    store = store_examples([parse_row(row) for row in rows], tokenizer)
    assert lines_of(data_report([store], 10))["no EOS at the end"] == "1 (25.0%) of the sequences"


def test_bad_rows_with_an_example_each(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = {"prompt": "<s>p", "chosen": "a", "rejected": "b", "strength_mean": 1.5}
    path.write_text("\n".join(map(json.dumps, [good, {"chosen": "a"}, {"chosen": "a"}, good | {"target": 2}])))
    report = data_report([build_store(str(path), tokenizer, tmp_path / "cache")], 512)
    assert report.splitlines()[0] == str(path)
    lines = lines_of(report)
    assert lines["rows"] == "4 read, 1 kept"
    assert lines["bad: missing column"].startswith(f"2, such as {path}:2: no `rejected`")
    assert lines["bad: bad number"].startswith(f"1, such as {path}:4")
    assert lines["strength"] == "1.5 to 1.5, on 1 edges"
    assert list(lines).index("bad: missing column") < list(lines).index("bad: bad number")


def test_double_bos_and_content_shared_between_sources(
    make_tokenizer: type[PreTrainedTokenizerFast],
) -> None:
    tokenizer = make_tokenizer(add_bos=True)
    train = store_examples([Example("<s>p", ("a", "b")), Example("q", ("a",))], tokenizer)
    test = store_examples([Example("q", ("a",)), Example("r", ("a",))], tokenizer)
    first, second = data_report([train, test], 512).split("\n\n")
    assert lines_of(first)["double BOS"].startswith("2 sequences") and "in a source above" not in first
    assert lines_of(second)["in a source above"] == "1 groups"
    assert lines_of(first)["edges"] == "none" and lines_of(first)["responses per prompt"] == "1: 1, 2: 1"


@pytest.mark.parametrize("count", [1, 8, 9])
def test_padded_batches_of_any_number_of_groups(tokenizer: PreTrainedTokenizerFast, count: int) -> None:
    rows = [{"chosen_ids": [5, 1], "rejected_ids": [6, 1]}] * count
    lines = lines_of(data_report([store_examples([parse_row(row) for row in rows], tokenizer)], 512))
    assert lines["padding avoided"].startswith("0.0% ")


def test_padding_is_to_the_longest_of_each_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    short, long = {"chosen_ids": [5, 1], "rejected_ids": [6, 1]}, {"chosen_ids": [5] * 10, "rejected_ids": [6] * 10}
    rows = [long] + [short] * 8
    lines = lines_of(data_report([store_examples([parse_row(row) for row in rows], tokenizer)], 512))
    alone, among_eight = 20 + 16 * 2, 16 * 10 + 2 * 2  # where the random order puts the long group
    assert lines["padding avoided"].split()[0] in {f"{1 - 52 / padded:.1%}" for padded in (alone, among_eight)}
