"""Every kind of source gives the same rows; every damage gives its cause or one line; nothing is read whole."""

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from rmfast.data import unpack
from rmfast.data.example import BadRow
from rmfast.data.sources import content_key, read_rows, source_root, split_note
from rmfast.errors import UserError

ROWS = [{"prompt": f"p{i}", "chosen": "naïve \u2028 日本", "rejected": "b"} for i in range(5)]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)
LIST = json.dumps(ROWS, indent=1).encode()


def parquet(rows: list[dict]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


FILES: dict[str, bytes] = {
    "a.jsonl": LINES,
    "no-newline.jsonl": LINES.rstrip(b"\n"),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n"),
    "lines.json": LINES,
    "list.json": LIST,
    "bom-list.json": b"\xef\xbb\xbf \n" + LIST,
    "a.jsonl.gz": gzip.compress(LINES),
    "two-members.jsonl.gz": gzip.compress(LINES[:30]) + gzip.compress(LINES[30:]),
    "list.json.gz": gzip.compress(LIST),
    "a.jsonl.zst": zstandard.compress(LINES),
    "two-frames.jsonl.zst": zstandard.compress(LINES[:30]) + zstandard.compress(LINES[30:]),
    "list.json.zst": zstandard.compress(LIST),
    "a.parquet": parquet(ROWS),
}


def rows_of(source: str | Path, default_split: str = "train") -> list[dict[str, Any]]:
    rows = [row for _, _, row in read_rows(str(source), default_split)]
    assert all(isinstance(row, dict) for row in rows), rows
    return rows  # type: ignore[return-value]


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    found = list(read_rows(str(path)))
    assert found == [(str(path), number, row) for number, row in enumerate(ROWS, start=1)]


def test_bad_lines_keep_their_numbers_and_causes(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    deep, digits = b"[" * 200_000, b"9" * 5000
    path.write_bytes(b"\n".join([b'{"a": 1}', b"", b"\xff\xfe", b'{"a": ', b"[1]", deep, digits, b" ", b'{"a": 2}']))
    found = [(number, row.cause if isinstance(row, BadRow) else row) for _, number, row in read_rows(str(path))]
    assert found == [
        (1, {"a": 1}),
        (3, "not UTF-8"),
        (4, "not JSON"),
        (5, "not an object"),
        (6, "not JSON"),
        (7, "not JSON"),
        (9, {"a": 2}),
    ]


def test_items_of_a_list_that_are_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": [1, "]"]}, 12, "x", [2], {}]')
    rows = [row.cause if isinstance(row, BadRow) else row for _, _, row in read_rows(str(path))]
    assert rows == [{"a": [1, "]"]}, "not an object", "not an object", "not an object", {}]
    path.write_text(" [ ] ")
    assert rows_of(path) == []


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.jsonl.zst", "list.json", "list.json.gz", "list.json.zst", "a.parquet"]
)
@pytest.mark.parametrize("lost", [3, 9, 40])
def test_truncated_files_are_named(tmp_path: Path, name: str, lost: int) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name][:-lost])
    with pytest.raises(UserError, match="truncated|cannot be read") as caught:
        list(read_rows(str(path)))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_files_that_are_not_what_their_name_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LINES)
    with pytest.raises(UserError, match=name):
        list(read_rows(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.jsonl", "no such file"),
        ("./absent", "no such file"),
        ("/absent/folder", "no such file"),
        ("a/b/c", "no such file"),
        ("absent.parquet#test", "no such file"),
    ],
)
def test_absent(source: str, message: str) -> None:
    for read in (content_key, lambda source: list(read_rows(source))):
        with pytest.raises(UserError, match=message):
            read(source)


def test_unknown_kinds_and_splits_that_files_lack(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a,b")
    with pytest.raises(UserError, match="unknown kind of file"):
        rows_of(tmp_path / "a.txt")
    with pytest.raises(UserError, match="holds no file"):
        rows_of(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(LINES)
    for asked in ("#test", ":en", ":en#test"):
        with pytest.raises(UserError, match=f"one file and has no.*leave out {asked}"):
            rows_of(f"{tmp_path / 'a.jsonl'}{asked}")
    with pytest.raises(UserError, match="no split 'test'"):
        rows_of(f"{tmp_path}#test")


def test_csv_is_refused_by_name_and_never_left_out(tmp_path: Path) -> None:
    for name in ("a.csv", "a.tsv.gz"):
        (tmp_path / name).write_text("prompt,chosen,rejected")
        with pytest.raises(UserError, match=f"{name}: CSV is not read.*convert it to .jsonl or .parquet"):
            rows_of(tmp_path / name)
    with pytest.raises(UserError, match="CSV is not read"):
        rows_of(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    assert rows_of(tmp_path) == ROWS, "a table beside plain shards is no shard"
    (tmp_path / "train-1.csv").write_text("prompt,chosen,rejected")
    (tmp_path / "train-2.jsonl").write_bytes(LINES)
    with pytest.raises(UserError, match="train-1.csv: CSV is not read"):
        rows_of(tmp_path)


def test_folder_is_sorted_and_recursive(tmp_path: Path) -> None:
    contents = {"b.jsonl.gz": "a.jsonl.gz", "sub/c.parquet": "a.parquet", "a.json": "list.json"}
    for name, content in (contents | {".hidden/d.jsonl": "a.jsonl", "readme.txt": "a.jsonl"}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(FILES[content])
    found = list(read_rows(f"{tmp_path}/"))
    assert [(label, number) for label, number, _ in found] == [
        (f"{tmp_path}/{name}", number) for name in ("a.json", "b.jsonl.gz", "sub/c.parquet") for number in range(1, 6)
    ]


def test_folder_with_splits_never_mixes_them(tmp_path: Path) -> None:
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl", "trainer.jsonl", "validation/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"from": name}))
    assert rows_of(tmp_path) == [{"from": "train-0.jsonl"}, {"from": "train-1.jsonl"}]
    assert rows_of(tmp_path, "test") == rows_of(f"{tmp_path}#test") == [{"from": "test.jsonl"}]
    assert rows_of(f"{tmp_path}#validation") == [{"from": "validation/a.jsonl"}]
    with pytest.raises(UserError, match="no split 'filtered'.*test, train, validation and files of none: name one"):
        rows_of(tmp_path, "filtered")


@pytest.mark.parametrize("name", ["a#1.jsonl", "a:b.jsonl", "a:b#c.jsonl", "a#b:c.jsonl"])
def test_marks_in_a_name_that_is_there_are_the_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / name).write_bytes(LINES)
    assert list(read_rows(str(tmp_path / name))) == [(str(tmp_path / name), n, row) for n, row in enumerate(ROWS, 1)]
    folder = tmp_path / f"{name}-folder" / "en"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_bytes(LINES)
    assert rows_of(f"{folder.parent}:en#test") == rows_of(f"{folder.parent}#test") == rows_of(f"{folder.parent}:en")
    assert source_root(f"{folder.parent}:en#test") == source_root(f"{folder.parent}/") == str(folder.parent)


def test_a_clone_without_its_data_is_called_so(tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    for name in ("a.parquet", "a.jsonl.gz"):
        (tmp_path / name).write_text(pointer)
        with pytest.raises(UserError, match=f"{name} is a Git LFS pointer, not the data: run `git lfs pull`"):
            rows_of(tmp_path / name)


@pytest.mark.parametrize("names", [("a.jsonl", "a.jsonl.gz"), ("train.json", "train.parquet")])
def test_one_file_in_two_kinds_is_not_read_twice(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(FILES["list.json"])
    with pytest.raises(UserError, match=f"holds {names[0]} and {names[1]}, the same rows by their names"):
        rows_of(tmp_path)


def test_saved_datasets(tmp_path: Path) -> None:
    train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:2])
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "two")
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two") == ROWS
    assert rows_of(f"{tmp_path / 'two'}#test") == rows_of(tmp_path / "two", "test") == ROWS[:2]
    assert [label for label, _, _ in read_rows(str(tmp_path / "one"))] == [str(tmp_path / "one")] * 5
    assert content_key(str(tmp_path / "two")) != content_key(f"{tmp_path / 'two'}#test")
    for source in (f"{tmp_path / 'two'}#dev", f"{tmp_path / 'one'}#train"):
        with pytest.raises(UserError, match="has no split"):
            rows_of(source)


def test_saved_datasets_that_are_damaged(tmp_path: Path) -> None:
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "saved")
    file = next((tmp_path / "saved" / "train").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be read as arrow"):
        rows_of(tmp_path / "saved")
    (tmp_path / "saved" / "train" / "state.json").write_text("{")
    with pytest.raises(UserError, match="damaged; save the dataset again"):
        rows_of(tmp_path / "saved")


def test_hub_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(name: str, config: str | None) -> datasets.DatasetDict:
        calls.append((name, config))
        if name == "nobody/nothing":
            raise ConnectionError("no route\nto the host")
        if name == "someone/parts" and config not in ("easy", "hard"):
            raise ValueError("Config name is missing.\nPlease pick one among the available configs")
        train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:2])
        splits = {"train": train} if config != "hard" else {"train_prefs": train, "train_sft": test, "test_prefs": test}
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["easy", "hard"])
    assert rows_of("someone/parts:hard#train_prefs") == rows_of("someone/else") == ROWS
    assert rows_of("someone/parts:hard", "test") == ROWS[:2], "the one split for testing"
    assert calls == [("someone/parts", "hard"), ("someone/else", None), ("someone/parts", "hard")]
    assert split_note("someone/parts:hard", "test") == "split test_prefs is read, as there is none called test"
    assert split_note("someone/else", "test") == "split train is read, as there is none called test"
    assert split_note("someone/else") == split_note("someone/parts:hard#train_sft") == ""
    assert [label for label, _, _ in read_rows("someone/else#train")] == ["someone/else"] * 5
    assert content_key("someone/else") == content_key("someone/else#train")
    assert content_key("someone/parts:hard#train_prefs") != content_key("someone/parts:hard#train_sft")
    for source, message in {
        "nobody/nothing": "nobody/nothing.*no route$",
        "someone/parts": "someone/parts has the configurations easy, hard: name one, as in someone/parts:easy$",
        "someone/parts:middle": "no configuration 'middle'; it has easy, hard: name one",
        "someone/parts:hard": "parts:hard has no split 'train', and 2 of them could be meant; it has test_",
        "someone/parts:hard#dev": "no split 'dev'; it has test_prefs, train_prefs, train_sft: name one with #SPLIT",
    }.items():
        with pytest.raises(UserError, match=message):
            rows_of(source)


def test_content_key_is_of_bytes_and_not_of_names(tmp_path: Path) -> None:
    def key(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return content_key(str(tmp_path / name))

    assert key("a.jsonl", LINES) == key("b.jsonl", LINES)
    same_length = LINES.replace(b"p0", b"q0")
    assert len({key("a.jsonl", LINES), key("a.jsonl", same_length), key("a.json", LINES)}) == 3
    (tmp_path / "a.json").unlink()
    before = content_key(str(tmp_path))
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    assert content_key(str(tmp_path)) != before, "in a folder the name is part of a row's label"


def test_source_root_begins_every_label(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(LINES)
    for source in (f"{tmp_path}/#train", f"{tmp_path}/", f"{tmp_path}/train.jsonl"):
        assert all(label.startswith(source_root(source)) for label, _, _ in read_rows(source))


@pytest.mark.parametrize(("pack", "suffix"), [(bytes, ""), (gzip.compress, ".gz"), (zstandard.compress, ".zst")])
@pytest.mark.parametrize("name", ["big.jsonl", "big.json"])
def test_big_files_are_streamed(tmp_path: Path, name: str, pack: Callable[[bytes], bytes], suffix: str) -> None:
    numbers = random.Random(0)
    rows = [{"text": numbers.randbytes(10_000).hex()} for _ in range(1500)]  # 30 MB
    lines = [json.dumps(row) for row in rows]
    data = (f"[{','.join(lines)}]" if name.endswith(".json") else "\n".join(lines)).encode()
    path = tmp_path / (name + suffix)
    path.write_bytes(pack(data))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(str(path))) == len(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data) > 29e6 and peak < 8e6, f"{peak / 1e6:.1f} MB for a file of {len(data) / 1e6:.1f} MB"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith((".zst", ".parquet"))])
def test_blocks_may_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int) -> None:
    monkeypatch.setattr(unpack, "CHUNK", size)
    (tmp_path / name).write_bytes(FILES[name])
    assert rows_of(tmp_path / name) == ROWS


def test_numbers_are_not_cut_by_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "CHUNK", 1)
    (tmp_path / "a.json").write_text('[123, {"a": 1}, 456]')
    rows = [row.cause if isinstance(row, BadRow) else row for _, _, row in read_rows(str(tmp_path / "a.json"))]
    assert rows == ["not an object", {"a": 1}, "not an object"]


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a":\r1, "b": 2}\n{"a":\r1}')
    assert rows_of(tmp_path / "a.jsonl") == [{"a": 1, "b": 2}, {"a": 1}]


def test_one_item_over_many_blocks(tmp_path: Path) -> None:
    row = {"text": "é" * 3_000_000, "n": [1, 2]}
    (tmp_path / "a.json").write_text(json.dumps([row, {"a": 1}, row], ensure_ascii=False), encoding="utf-8")
    assert rows_of(tmp_path / "a.json") == [row, {"a": 1}, row]


def test_a_folder_of_saved_datasets_names_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        datasets.Dataset.from_list([{"chosen": "a", "rejected": "b"}]).save_to_disk(tmp_path / name)
    with pytest.raises(UserError, match=r"holds what save_to_disk wrote \(one, two\): name one, as in .*/one$"):
        list(read_rows(str(tmp_path)))
