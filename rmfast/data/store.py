"""Tokenised prompt groups as flat arrays: built once per content and tokenizer, then opened from disk.

A store is a folder `cache_dir/<key>` of .npy files, which are memory-mapped, and meta.json. Its key hashes the
source's bytes, the tokenizer and the format, so a change of any makes a new one. Built elsewhere, then renamed:
what stands under its name is complete, and of several builders at once the first to finish wins.
"""

import contextlib
import gc
import hashlib
import itertools
import json
import os
import shutil
import uuid
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmfast import signals
from rmfast.console import say
from rmfast.data.array_file import ArrayFile, map_array
from rmfast.data.chunk import DTYPES, STARTS, Chunk, Summary, dtypes_of, encode_chunk
from rmfast.data.columns import AS_NAMED, Columns
from rmfast.data.example import Example
from rmfast.data.files import publish_first, sweep, temporary_name
from rmfast.data.row_kinds import PAIRS, RowKind
from rmfast.data.sources import Row, content_key, read_rows, source_root, split_note
from rmfast.data.tokenizer import fingerprint
from rmfast.environment import end_with_parent
from rmfast.errors import UserError, first_line
from rmfast.outputs.checksums import Checksum, sealed, unsealed
from rmfast.outputs.failure import naming

FORMAT = 10
"""Raise it whenever the arrays or the tokenisation change: old stores are then built again."""

META = "meta.json"
CHECKSUMS = "checksums"  # in it; of the arrays
_BATCH = 256  # rows per call of the tokenizer and per task of a worker
_COLLECT_AFTER = 100_000  # objects, between looks for cycles
_POOL_FROM = 5_000  # rows below which starting processes costs more than it saves


@dataclass(frozen=True, eq=False)
class TokenStore:
    """G groups, R responses and E edges, of which group g owns the slices given by its `*_start` entries.

    Group g's stored tokens are its common prefix, then each response's suffix, in order. A response's full sequence is
    prefix + suffix; `answer_start` counts in that. A group without responses is a prompt, all of it prefix. `better`
    and `worse` count inside the group. An edge weighs its row's weight over the group's edges that are not `identical`
    (both sides the same ids), and 0 if it is one. `row` is the 1-based row in its file. `prompt` is equal for groups of
    one prompt (see `rmfast.data.prompt`).

    meta: key (of the folder), source, files ([label, first group]), rows_read, rows_kept, bad ({cause: count}),
    bad_examples ({cause: [["file:row", detail], ...]}, five each), first_bad ("file:row: cause: detail" or None),
    notes (see `rmfast.data.notes`), columns ({column: what it is used as}), double_bos, merged (identical samples),
    guessed_prompts (groups without a separate prompt), tokenizer (fingerprint), bos_id (if every sequence begins
    with it, else None), eos_id, max_id (the largest token id), ends (the last tokens of all sequences), has_strings,
    has_messages.
    """

    tokens: np.ndarray  # int32 [sum of stored tokens]
    token_start: np.ndarray  # int64 [G + 1]
    prefix_length: np.ndarray  # int32 [G]
    response_start: np.ndarray  # int64 [G + 1]
    suffix_length: np.ndarray  # int32 [R]
    answer_start: np.ndarray  # int32 [R]
    edge_start: np.ndarray  # int64 [G + 1]
    better: np.ndarray  # int32 [E]
    worse: np.ndarray  # int32 [E]
    margin: np.ndarray  # float32 [E]
    target: np.ndarray  # float32 [E]
    weight: np.ndarray  # float32 [E]
    strength_mean: np.ndarray  # float32 [E], nan where absent
    strength_std: np.ndarray  # float32 [E], nan where absent
    identical: np.ndarray  # bool [E]
    row: np.ndarray  # int64 [G]
    prompt: np.ndarray  # uint64 [G]
    meta: dict[str, Any] = field(repr=False)
    trained: np.ndarray | None = None  # bool, as `tokens`: which are targets; None where it holds no demonstrations

    def __len__(self) -> int:
        return len(self.prefix_length)

    def sequence(self, g: int, r: int) -> np.ndarray:
        """The full token ids, int32 [length], of response r of group g."""
        first, last = self.response_start[g], self.response_start[g + 1]
        if not 0 <= r < last - first:
            raise IndexError(f"group {g} has {last - first} responses, no number {r}")
        start, prefix = int(self.token_start[g]), int(self.prefix_length[g])
        suffix = start + prefix + int(self.suffix_length[first : first + r].sum())
        end = suffix + int(self.suffix_length[first + r])
        return np.concatenate([self.tokens[start : start + prefix], self.tokens[suffix:end]])

    def lengths(self) -> np.ndarray:
        """Length of every response's full sequence, int32 [R]."""
        return np.repeat(self.prefix_length, np.diff(self.response_start)) + self.suffix_length

    def targets(self) -> np.ndarray:
        """How many targets come before each token, int64 [tokens + 1]; for stores of demonstrations."""
        assert self.trained is not None
        return np.concatenate(([0], np.cumsum(self.trained, dtype=np.int64)))

    def longest(self) -> np.ndarray:
        """Length of every group's longest sequence, int32 [G]; of a group without responses the prompt's."""
        return self.prefix_length + self.by_group(np.maximum, self.suffix_length, np.zeros_like(self.prefix_length))

    def by_group(self, reduce: np.ufunc, values: np.ndarray, without: np.ndarray) -> np.ndarray:
        """[G]: `reduce` over the values [R] of every group's responses; for a group that has none, `without` [G]."""
        some = np.diff(self.response_start) > 0
        found = without.astype(values.dtype)
        if some.any():
            found[some] = reduce.reduceat(values, self.response_start[:-1][some])
        return found

    def label(self, g: int) -> str:
        """Where group g comes from: "file:row"."""
        files = self.meta["files"]
        name = files[bisect_right(files, g, key=lambda entry: entry[1]) - 1][0]
        return f"{name}:{self.row[g]}"


def store_examples(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> TokenStore:
    """The same arrays in memory, for examples that are there already; row i + 1 is `examples[i]`.

    Raises:
        UserError: an example cannot be tokenised; or there is none.
    """
    rows = [("examples", number, example) for number, example in enumerate(examples, start=1)]
    chunks = [encode_chunk(rows[i : i + _BATCH], tokenizer) for i in range(0, len(rows), _BATCH)]
    summary = Summary()
    for chunk in chunks:
        summary.add(chunk, bad_rows="error")
    meta = summary.meta("examples", tokenizer, fingerprint(tokenizer))  # refuses an empty list
    arrays = {}
    for name, dtype in DTYPES.items():
        whole = np.concatenate([chunk.arrays[name] for chunk in chunks])
        arrays[name] = np.concatenate([[0], np.cumsum(whole)]).astype(dtype) if name in STARTS else whole
    return TokenStore(**arrays, meta=meta)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Within it Python seldom looks for cycles: rows have none, and a look goes over all objects that there are."""
    before = gc.get_threshold()
    gc.set_threshold(_COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_few_collections()
def build_store(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: str | Path,
    *,
    default_split: str = "train",
    workers: int | None = None,
    bad_rows: Literal["drop", "error"] = "drop",
    kind: RowKind = PAIRS,
    columns: Columns = AS_NAMED,
    verify: bool = True,
) -> TokenStore:
    """Tokenise a source into `cache_dir`, or open what an earlier call left there; what is damaged is built again.

    Args:
        source: see `rmfast.data.sources`.
        tokenizer: its ids, special tokens and chat template are part of the store's key.
        cache_dir: made if absent; may be shared by processes and machines.
        default_split: the split to take where the source has several and names none.
        workers: processes that tokenise (default: one per core); short sources are done in this one.
        bad_rows: drop and count rows that cannot be used, or stop at the first.
        kind: what is asked of the rows.
        columns: what the rows' columns are.
        verify: compare what was there with its checksums, for which all of it is read; one process of a machine does.

    Raises:
        UserError: nothing readable there, no usable row, a column that looks like a prompt and that `columns` says
            nothing of, or a bad row with `bad_rows="error"`.
    """
    tokenizer_key = fingerprint(tokenizer)
    content = f"{content_key(source, default_split)} {tokenizer_key} {FORMAT}"
    content += kind.key + (f" {columns.words}" if columns.words else "")
    key = hashlib.sha256(content.encode()).hexdigest()
    folder = Path(cache_dir) / key
    store = _stored(folder, source, kind, verify) if folder.is_dir() else None
    if store is None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            sweep(folder.parent, also=r"\.[0-9a-f]{16}-[0-9a-f]{32}")  # half-built; so called by earlier versions
            temporary = temporary_name(folder.with_name(f"{key[:16]}-{uuid.uuid4().hex}"))
            temporary.mkdir()
        except OSError as error:
            raise UserError(f"cannot write to the data cache {cache_dir}: {error.strerror}") from None
        try:
            with naming(folder, temporary):
                _build(source, tokenizer, tokenizer_key, temporary, default_split, workers, bad_rows, kind, columns)
                publish_first(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        store = _open(folder, source, kind, verify=False)
    store.meta["split"] = split_note(source, default_split)
    if bad_rows == "error" and store.meta["first_bad"]:
        raise UserError(store.meta["first_bad"])
    return store


def _build(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_key: str,
    folder: Path,
    default_split: str,
    workers: int | None,
    bad_rows: Literal["drop", "error"],
    kind: RowKind,
    columns: Columns,
) -> None:
    """Stream the source into `folder`, in the rows' order whatever the number of processes."""
    rows = read_rows(source, default_split)
    head = list(itertools.islice(rows, _POOL_FROM + 1))
    count = workers or _cores()
    chunks = _serial if len(head) <= _POOL_FROM or count == 1 else _parallel
    files = {name: ArrayFile(folder / f"{name}.npy", dtype) for name, dtype in dtypes_of(kind).items()}
    offset = dict.fromkeys(STARTS, 0)
    for name in STARTS:
        files[name].append(np.zeros(1, np.int64))
    summary = Summary()
    for chunk in chunks(itertools.chain(head, rows), tokenizer, count, kind, columns):
        signals.check(f"{source} is not tokenised yet")
        summary.add(chunk, bad_rows)
        for name, array in chunk.arrays.items():
            if name in STARTS and len(array):
                array = offset[name] + np.cumsum(array)
                offset[name] = int(array[-1])
            files[name].append(array)
    meta = summary.meta(source, tokenizer, tokenizer_key) | {"root": source_root(source)}
    meta[CHECKSUMS] = {name: asdict(array_file.close()) for name, array_file in files.items()}
    (folder / META).write_text(json.dumps(sealed(meta)), encoding="utf-8")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serial(
    rows: Iterator[Row], tokenizer: PreTrainedTokenizerBase, workers: int, kind: RowKind, columns: Columns
) -> Iterator[Chunk]:
    while batch := list(itertools.islice(rows, _BATCH)):
        yield encode_chunk(batch, tokenizer, kind, columns)


def _parallel(
    rows: Iterator[Row], tokenizer: PreTrainedTokenizerBase, workers: int, kind: RowKind, columns: Columns
) -> Iterator[Chunk]:
    """The same chunks from `workers` processes, a few batches ahead of the reader."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(tokenizer,))
    pending: deque[tuple[list[Row], Future[Chunk]]] = deque()
    try:
        while True:
            while len(pending) < 3 * workers and (batch := list(itertools.islice(rows, _BATCH))):
                pending.append((batch, pool.submit(_work, batch, kind, columns)))
            if not pending:
                return
            batch, future = pending.popleft()
            try:
                yield future.result()
            except RecursionError:  # a row that is nested too deep to be sent
                yield encode_chunk(batch, tokenizer, kind, columns)
    except BrokenProcessPool:
        signals.check("the data is not tokenised yet")
        raise UserError("a tokenising process died (out of memory?): ask for fewer workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


_worker_tokenizer: PreTrainedTokenizerBase | None = None


def _start_worker(tokenizer: PreTrainedTokenizerBase) -> None:
    global _worker_tokenizer
    signals.left_to_parent()
    run = parent_process()  # which may have been killed while this one imported what it needs
    end_with_parent(parent=None if run is None else run.pid)
    gc.set_threshold(_COLLECT_AFTER)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_tokenizer = tokenizer


def _work(rows: list[Row], kind: RowKind, columns: Columns) -> Chunk:
    assert _worker_tokenizer is not None
    return encode_chunk(rows, _worker_tokenizer, kind, columns)


def _stored(folder: Path, source: str, kind: RowKind, verify: bool) -> TokenStore | None:
    """A store that is there; one that is damaged is said, removed and None."""
    try:
        return _open(folder, source, kind, verify)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError) as error:
        say(f"{folder}: damaged data cache ({first_line(error)}): it is built again")
        left = folder.with_name(f".{folder.name[:16]}-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # another process was first
            folder.rename(left)
            shutil.rmtree(left, ignore_errors=True)
        return None


def _open(folder: Path, source: str, kind: RowKind, verify: bool) -> TokenStore:
    """Map a finished store. Its labels get the root under which the content was found this time.

    Args:
        verify: compare it with its checksums, which one of an earlier version has not.
    """
    meta = unsealed(json.loads((folder / META).read_text(encoding="utf-8")), CHECKSUMS)
    noted = meta.pop(CHECKSUMS, {})
    sums = {name: Checksum(**checksum) for name, checksum in noted.items()} if verify else {}
    arrays = {name: map_array(folder / f"{name}.npy", dtype, sums.get(name)) for name, dtype in dtypes_of(kind).items()}
    old, new = meta.pop("root"), source_root(source)

    def moved(label: str) -> str:
        return new + label.removeprefix(old)

    meta["source"] = source
    meta["key"] = folder.name
    meta["files"] = [[moved(label), first] for label, first in meta["files"]]
    meta["first_bad"] = meta["first_bad"] and moved(meta["first_bad"])
    meta["bad_examples"] = {
        cause: [[moved(where), detail] for where, detail in shown] for cause, shown in meta["bad_examples"].items()
    }
    meta["notes"] = {kind: [n, moved(where), detail] for kind, (n, where, detail) in meta["notes"].items()}
    return TokenStore(**arrays, meta=meta)
