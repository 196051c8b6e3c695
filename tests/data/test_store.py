"""Stores on disk equal those in memory, whatever the number of processes; cached by content; complete or absent."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rmfast import signals
from rmfast.data import chunk, store
from rmfast.data.example import Edge, Example
from rmfast.data.files import temporary_name
from rmfast.data.rows import parse_row
from rmfast.data.store import TokenStore, build_store, store_examples
from rmfast.errors import UserError

PAIR = {"prompt": "the capital of ", "chosen": "France is Paris", "rejected": "France is London", "margin": 0.5}
RANKED = {"prompt": "p", "responses": ["a", "bb", "ccc"], "scores": [1, 3, 2], "weight": [1, 2, 3]}
CHAT = {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello!", "rejected": "What?", "strength_mean": 2.0}
IDS = {"chosen_ids": [5, 6], "rejected_ids": [5, 6, 7], "target": 0.75, "weight": 4}
ROWS = [PAIR, RANKED, CHAT, IDS]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def assert_same(a: TokenStore, b: TokenStore) -> None:
    for name, dtype in chunk.DTYPES.items():
        assert getattr(a, name).dtype == getattr(b, name).dtype == dtype
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def no_tokenising(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(store, "encode_chunk", fail)


def test_arrays_of_examples(tokenizer: PreTrainedTokenizerFast) -> None:
    made = store_examples([parse_row(row) for row in ROWS], tokenizer)
    assert len(made) == 4 and made.row.tolist() == [1, 2, 3, 4] and made.label(2) == "examples:3"
    assert np.diff(made.response_start).tolist() == [2, 3, 2, 2]
    assert np.diff(made.edge_start).tolist() == [1, 3, 1, 1]
    assert list(zip(made.better, made.worse, strict=True)) == [(0, 1), (1, 2), (1, 0), (2, 0), (0, 1), (0, 1)]
    assert made.margin.tolist() == [0.5, 0, 0, 0, 0, 0]
    assert made.target.tolist() == [1, 1, 1, 1, 1, 0.75]
    assert made.weight.tolist() == [1, 1, 2, 3, 1, 4]
    assert made.strength_mean[4] == 2 and np.isnan(made.strength_mean[[0, 1, 2, 3, 5]]).all()
    assert tokenizer.decode(made.sequence(1, 2)) == "pccc<|im_end|>"
    assert made.sequence(3, 1).tolist() == [5, 6, 7] and made.prefix_length[3] == 2
    assert made.lengths().tolist() == [len(made.sequence(g, r)) for g, n in enumerate([2, 3, 2, 2]) for r in range(n)]
    assert made.token_start[-1] == len(made.tokens) < made.lengths().sum()
    assert made.meta["has_strings"] and made.meta["has_messages"]
    with pytest.raises(IndexError):
        made.sequence(0, 2)


def test_weights_are_shared_by_edges_that_are_not_identical(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "p", "responses": ["a", "b", "c"], "weight": 6},
        {"prompt": "p", "responses": ["a", "b", "b"]},
        {"prompt": "p", "responses": ["a", "b", "b"], "weight": [1, 2, 3]},
        {"prompt": "p", "chosen": "a", "rejected": "a"},
        {"prompt": "p", "chosen": "a", "rejected": "a<|im_end|>"},
    ]
    made = store_examples([parse_row(row) for row in rows], tokenizer)
    assert made.weight.tolist() == [2, 2, 2, 0.5, 0.5, 0, 1, 2, 0, 0, 0]
    assert made.identical.tolist() == [False] * 5 + [True] + [False] * 2 + [True] * 3


def test_groups_without_edges(tokenizer: PreTrainedTokenizerFast) -> None:
    made = store_examples([Example("p", ("a",)), Example(None, ("b", "c"))], tokenizer)
    assert made.edge_start.tolist() == [0, 0, 0] and len(made.better) == 0 and made.weight.dtype == np.float32


def test_examples_that_cannot_be_tokenised(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="examples:2: not UTF-8"):
        store_examples([Example("p", ("a",)), Example("\ud800", ("a",))], tokenizer)
    with pytest.raises(UserError, match="no rows"):
        store_examples([], tokenizer)


def test_build_equals_examples_and_reopens(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.jsonl", ROWS)
    built = build_store(source, tokenizer, tmp_path / "cache")
    assert_same(built, store_examples([parse_row(row) for row in ROWS], tokenizer))
    assert isinstance(built.tokens, np.memmap) and built.label(3) == f"{source}:4"
    no_tokenising(monkeypatch)
    again = build_store(source, tokenizer, tmp_path / "cache")
    assert_same(built, again)
    assert again.meta == built.meta
    os.rename(source, tmp_path / "moved.jsonl")
    moved = build_store(str(tmp_path / "moved.jsonl"), tokenizer, tmp_path / "cache")
    assert moved.label(3) == f"{tmp_path / 'moved.jsonl'}:4"


def test_labels_follow_a_file_whose_name_holds_the_marks_of_splits(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()  # what the name would mean without the file
    source = write(tmp_path / "a:b#c.jsonl", ROWS)
    build_store(source, tokenizer, tmp_path / "cache")
    os.rename(source, tmp_path / "moved.jsonl")
    moved = build_store(str(tmp_path / "moved.jsonl"), tokenizer, tmp_path / "cache")
    assert moved.label(3) == f"{tmp_path / 'moved.jsonl'}:4"


def test_other_content_or_tokenizer_is_another_store(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    source = write(tmp_path / "a.jsonl", [PAIR])
    first = build_store(source, make_tokenizer(), tmp_path / "cache")
    other = build_store(source, make_tokenizer(add_bos=True), tmp_path / "cache")
    assert other.tokens[0] == 0 != first.tokens[0] and other.meta["bos_id"] == 0 and first.meta["bos_id"] is None
    write(tmp_path / "a.jsonl", [PAIR | {"margin": 0.25}])
    assert build_store(source, make_tokenizer(), tmp_path / "cache").margin.tolist() == [0.25]
    assert len(list((tmp_path / "cache").iterdir())) == 3


def many_rows(count: int) -> list[dict]:
    rows = [row | {"chosen": f"{row['chosen']} {i}"} for i in range(count // 2) for row in (PAIR, CHAT)]
    rows[7] = {"prompt": "p", "chosen": "a"}
    rows[count // 2] = {"prompt": "\ud800", "chosen": "a", "rejected": "b"}
    return rows


def test_parallel_equals_serial(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_POOL_FROM", 50)
    monkeypatch.setattr(store, "_BATCH", 16)
    rows = many_rows(400)
    source = write(tmp_path / "a.jsonl", rows)
    serial = build_store(source, tokenizer, tmp_path / "serial", workers=1)
    memory = store_examples([parse_row(rows[row - 1]) for row in serial.row], tokenizer)
    assert_same(serial, dataclasses.replace(memory, row=serial.row))
    no_tokenising(monkeypatch)  # here; the workers import the module again
    parallel = build_store(source, tokenizer, tmp_path / "parallel", workers=2)
    assert_same(serial, parallel)
    assert serial.meta == parallel.meta and serial.meta["rows_kept"] == 398


def test_a_row_that_is_nested_too_deep_to_be_sent_to_a_worker_is_read_here(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_POOL_FROM", 10)
    monkeypatch.setattr(store, "_BATCH", 8)
    rows = [json.dumps(CHAT)] * 40
    deep = '{"in": ' * 900 + "1" + "}" * 900
    rows[20] = f'{{"prompt": [{{"role": "user", "content": "x", "more": {deep}}}], "chosen": "a", "rejected": "b"}}'
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(rows), encoding="utf-8")
    built = build_store(str(source), tokenizer, tmp_path / "cache", workers=2)
    assert built.row.tolist() == [*range(1, 21), *range(22, 41)] and built.meta["bad"] == {"wrong type": 1}


def test_the_last_tokens_of_all_sequences_are_known(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (newline,) = tokenizer("\n")["input_ids"]
    for rows, ends in (([PAIR], [tokenizer.eos_token_id]), ([CHAT], [newline]), ([IDS], [6, 7])):
        source = write(tmp_path / "a.jsonl", rows)
        assert build_store(source, tokenizer, tmp_path / "cache").meta["ends"] == sorted(ends)


def test_bad_rows_are_counted_and_shown(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [PAIR, *[{"chosen": "a"}] * 7, PAIR | {"target": 2}, CHAT])
    built = build_store(source, tokenizer, tmp_path / "cache")
    assert built.row.tolist() == [1, 10]
    assert (built.meta["rows_read"], built.meta["rows_kept"]) == (10, 2)
    assert built.meta["bad"] == {"missing column": 7, "bad number": 1}
    assert len(built.meta["bad_examples"]["missing column"]) == 5
    assert built.meta["bad_examples"]["bad number"][0][0] == f"{source}:9"


@pytest.mark.parametrize("cached", [False, True])
def test_bad_rows_error_names_the_first(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, cached: bool) -> None:
    source = write(tmp_path / "a.jsonl", [PAIR, PAIR | {"target": 2}, {"chosen": "a"}])
    if cached:
        build_store(source, tokenizer, tmp_path / "cache")
    with pytest.raises(UserError, match=r"a\.jsonl:2: bad number: `target` holds 2"):
        build_store(source, tokenizer, tmp_path / "cache", bad_rows="error")
    write(tmp_path / "good.jsonl", [PAIR])
    assert len(build_store(str(tmp_path / "good.jsonl"), tokenizer, tmp_path / "cache", bad_rows="error")) == 1


def test_nothing_usable_leaves_nothing_behind(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    for name, rows, message in (
        ("bad", [{}, {}], "none of its 2 rows.*bad.jsonl:1: missing"),
        ("empty", [], "no rows"),
    ):
        with pytest.raises(UserError, match=message):
            build_store(write(tmp_path / f"{name}.jsonl", rows), tokenizer, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_that_cannot_be_written(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cannot write to the data cache"):
        build_store(write(tmp_path / "a.jsonl", [PAIR]), tokenizer, tmp_path / "cache")


def test_an_interrupted_build_is_not_taken_for_a_store(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.jsonl", [PAIR])
    with monkeypatch.context() as patch:
        patch.setattr(store, "publish_first", lambda *folders: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_store(source, tokenizer, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(build_store(source, tokenizer, tmp_path / "cache")) == 1


def test_what_a_killed_build_left_is_swept(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    cache = tmp_path / "cache"
    ours = temporary_name(cache / "0123456789abcdef-0")
    dead, earlier = cache / ours.name.replace(f"-{os.getpid()}.", f"-{child.pid}."), cache / f".{'0' * 16}-{'1' * 32}"
    for folder in (ours, dead, earlier):
        folder.mkdir(parents=True)
        (folder / "tokens.npy").touch()
    for path in (earlier, earlier / "tokens.npy"):
        os.utime(path, (0, 0))
    built = build_store(write(tmp_path / "a.jsonl", [PAIR]), tokenizer, cache)
    assert {path.name for path in cache.iterdir()} == {ours.name, built.meta["key"]}


def test_tokenising_processes_end_with_their_run(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[int | None] = []
    monkeypatch.setattr(store, "end_with_parent", lambda parent: watched.append(parent))
    monkeypatch.setattr(store, "parent_process", lambda: SimpleNamespace(pid=4))
    monkeypatch.setattr(signals, "left_to_parent", lambda: None)
    monkeypatch.setattr(store, "_worker_tokenizer", None)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    store._start_worker(None)  # type: ignore[arg-type]
    assert watched == [4]


def test_a_full_disk_names_the_store(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, array: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.ArrayFile, "append", full)
    with pytest.raises(OSError) as raised:
        build_store(write(tmp_path / "a.jsonl", [PAIR]), tokenizer, tmp_path / "cache")
    assert raised.value.errno == errno.ENOSPC and Path(raised.value.filename).parent == tmp_path / "cache"
    assert list((tmp_path / "cache").iterdir()) == []


def test_builders_at_once_agree(make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", many_rows(100))
    stores: list[TokenStore] = []
    start = threading.Barrier(4)

    def build() -> None:
        own = make_tokenizer()
        start.wait()
        stores.append(build_store(source, own, tmp_path / "cache"))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4 and len(list((tmp_path / "cache").iterdir())) == 1
    for other in stores[1:]:
        assert_same(stores[0], other)


def test_labels_of_a_folder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "a.jsonl", [PAIR, {}, PAIR])
    write(folder / "b.jsonl", [{}, {}])
    write(folder / "c.jsonl", [{}, CHAT])
    for source in (str(folder), f"{folder}/"):
        built = build_store(source, tokenizer, tmp_path / "cache")
        assert [built.label(g) for g in range(3)] == [
            f"{folder}/a.jsonl:1",
            f"{folder}/a.jsonl:3",
            f"{folder}/c.jsonl:2",
        ]


def test_memory_stays_bounded(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_POOL_FROM", 32)
    monkeypatch.setattr(store, "_BATCH", 16)
    long = {"chosen_ids": list(range(300)) * 10, "rejected_ids": [1, *range(300)] * 10}
    peaks = []
    for count in (100, 400):
        source = write(tmp_path / f"{count}.jsonl", [long] * count)
        tracemalloc.start()
        build_store(source, tokenizer, tmp_path / "cache", workers=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0], f"{[f'{peak / 1e6:.1f} MB' for peak in peaks]}"


TEXT = st.text(max_size=25)


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=6)), min_size=1, max_size=6))
def test_every_sequence_comes_back(tokenizer: PreTrainedTokenizerFast, groups: list[tuple[str, list[str]]]) -> None:
    examples = [Example(p, tuple(a), tuple(Edge(0, r) for r in range(1, len(a)))) for p, a in groups]
    made = store_examples(examples, tokenizer)
    for g, (prompt, answers) in enumerate(groups):
        first = made.response_start[g]
        for r, answer in enumerate(answers):
            ids = made.sequence(g, r)
            assert ids.tolist() == [*tokenizer(prompt + answer)["input_ids"], 1]
            assert made.prefix_length[g] <= len(ids) and made.answer_start[first + r] <= len(ids)
            assert tokenizer.decode(ids) == prompt + answer + "<|im_end|>"
    same = [answers[0] == answer for _, answers in groups for answer in answers[1:]]
    assert made.identical.tolist() == same
    assert ((made.weight == 0) == made.identical).all()


def test_tokenising_processes_leave_signals_to_their_parent(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a SIGINT from the terminal would be an error of theirs, and end the run before it is whole."""
    handlers: dict[int, object] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(store, "end_with_parent", lambda parent: None)
    monkeypatch.setattr(store, "_worker_tokenizer", None)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    store._start_worker(tokenizer)
    assert handlers == dict.fromkeys(signals.ASKS, signal.SIG_IGN)
