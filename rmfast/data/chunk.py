"""Batches of rows -> the arrays of a token store, and the counts that its meta data keeps."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmfast.data.columns import AS_NAMED, Columns, Uses, add_uses, uses_of
from rmfast.data.demonstrations import encode_demonstrations
from rmfast.data.example import BadRow, Example
from rmfast.data.notes import Note, Notes, add_notes
from rmfast.data.prompt import prompt_key
from rmfast.data.row_kinds import PAIRS, RowKind
from rmfast.data.rows import read_row
from rmfast.data.sources import Row
from rmfast.data.tokenise import Encoded, distinct_samples, encode
from rmfast.errors import UserError

DTYPES: dict[str, type] = {
    "tokens": np.int32,
    "token_start": np.int64,
    "prefix_length": np.int32,
    "response_start": np.int64,
    "suffix_length": np.int32,
    "answer_start": np.int32,
    "edge_start": np.int64,
    "better": np.int32,
    "worse": np.int32,
    "margin": np.float32,
    "target": np.float32,
    "weight": np.float32,
    "strength_mean": np.float32,
    "strength_std": np.float32,
    "identical": np.bool_,
    "row": np.int64,
    "prompt": np.uint64,
}
TRAINED: dict[str, type] = {"trained": np.bool_}
"""Of demonstrations alone."""
STARTS = ("token_start", "response_start", "edge_start")
_EXAMPLES_PER_CAUSE = 5


def dtypes_of(kind: RowKind) -> dict[str, type]:
    """The arrays of a store of such rows."""
    return DTYPES if kind.turns is None else DTYPES | TRAINED


@dataclass(frozen=True)
class Chunk:
    """What a batch of rows gives: the store's arrays (`*_start` still as sizes) and what the summary counts."""

    arrays: dict[str, np.ndarray]
    rows: int
    files: list[tuple[str, int]]  # (label, groups), in order
    bad: list[tuple[str, BadRow]]  # ("file:row", why), in order
    notes: list[tuple[str, Note]]  # ("file:row", what), in order
    columns: Uses
    double_bos: int
    merged: int
    guessed_prompts: int
    every_bos: bool
    max_id: int  # largest token id, -1 where there is none
    ends: set[int]  # last tokens of the sequences
    has_strings: bool
    has_messages: bool


def encode_chunk(
    rows: Sequence[Row | tuple[str, int, Example]],
    tokenizer: PreTrainedTokenizerBase,
    kind: RowKind = PAIRS,
    columns: Columns = AS_NAMED,
) -> Chunk:
    """Parse (where that is to do) and tokenise a batch of labelled rows; bad ones are kept apart, never raised.

    Args:
        kind, columns: see `build_store`.

    Raises:
        UserError: a row has a column that looks like a prompt and that `columns` says nothing of.
    """
    parsed = [_parsed(f"{label}:{number}", row, columns, kind) for label, number, row in rows]
    usable = [example for example in parsed if isinstance(example, Example)]
    encoded = iter(
        encode(tokenizer, usable) if kind.turns is None else encode_demonstrations(tokenizer, usable, kind.turns)
    )
    files = {label: 0 for label, _, _ in rows}
    bad: list[tuple[str, BadRow]] = []
    notes: list[tuple[str, Note]] = []
    groups: list[tuple[int, Example, Encoded]] = []
    for (label, number, _), example in zip(rows, parsed, strict=True):
        result = next(encoded) if isinstance(example, Example) else example
        if kind.distinct is not None and isinstance(example, Example) and isinstance(result, Encoded):
            example, result = replace(example, edges=()), distinct_samples(result, kind.distinct)
        if isinstance(example, BadRow) or isinstance(result, BadRow):
            bad.append((f"{label}:{number}", cast(BadRow, result)))
        else:
            files[label] += 1
            notes += [(f"{label}:{number}", note) for note in result.notes]
            groups.append((number, example, result))
    examples = [example for _, example, _ in groups]
    keys = [prompt_key(example) for example in examples]
    arrays = _arrays(groups) | {"prompt": np.array([key for key, _ in keys], dtype=DTYPES["prompt"])}
    if kind.turns is not None:
        masks = [encoded.trained for _, _, encoded in groups if encoded.trained is not None]
        arrays["trained"] = np.concatenate([np.empty(0, np.bool_), *masks])
    return Chunk(
        arrays=arrays,
        rows=len(rows),
        files=list(files.items()),
        bad=bad,
        notes=notes,
        columns=uses_of(example.columns for example in examples),
        double_bos=sum(encoded.double_bos for _, _, encoded in groups),
        merged=sum(encoded.merged for _, _, encoded in groups),
        guessed_prompts=sum(guessed for _, guessed in keys),
        every_bos=all(ids[0] == tokenizer.bos_token_id for _, _, encoded in groups for ids in encoded.sequences),
        max_id=int(arrays["tokens"].max(initial=-1)),
        ends={int(ids[-1]) for _, _, encoded in groups for ids in encoded.sequences},
        has_strings=any(example.is_text for example in examples),
        has_messages=any(example.is_messages for example in examples),
    )


def _parsed(where: str, row: dict[str, Any] | BadRow | Example, columns: Columns, kind: RowKind) -> Example | BadRow:
    if isinstance(row, Example):
        return row
    try:
        return read_row(where, row, columns, kind)
    except BadRow as bad:
        return bad


def _arrays(groups: Sequence[tuple[int, Example, Encoded]]) -> dict[str, np.ndarray]:
    parts: dict[str, list[Any]] = {name: [] for name in DTYPES}
    pieces: list[np.ndarray] = [np.empty(0, np.int32)]
    for number, example, encoded in groups:
        prefix = encoded.prefix
        suffixes = [ids[prefix:] for ids in encoded.ids]
        pieces += [encoded.sequences[0][:prefix], *suffixes]
        sizes = [len(suffix) for suffix in suffixes]
        parts["token_start"].append(prefix + sum(sizes))
        parts["prefix_length"].append(prefix)
        parts["response_start"].append(len(sizes))
        parts["suffix_length"] += sizes
        parts["answer_start"] += encoded.answer_start
        parts["edge_start"].append(len(example.edges))
        parts["row"].append(number)
        # Suffixes decide: two sequences are the same where what follows their common prefix is.
        same = [np.array_equal(suffixes[edge.better], suffixes[edge.worse]) for edge in example.edges]
        shares = 1 if example.per_edge_weight else max(1, len(same) - sum(same))
        for edge, identical in zip(example.edges, same, strict=True):
            for name in ("better", "worse", "margin", "target", "strength_mean", "strength_std"):
                parts[name].append(getattr(edge, name))
            parts["weight"].append(0.0 if identical else edge.weight / shares)
        parts["identical"] += same
    arrays: dict[str, np.ndarray] = {name: np.array(values, dtype=DTYPES[name]) for name, values in parts.items()}
    return arrays | {"tokens": np.concatenate(pieces)}


@dataclass
class Summary:
    """Counts over all chunks, in the rows' order."""

    rows: int = 0
    kept: int = 0
    files: list[tuple[str, int]] = field(default_factory=list)
    first_bad: str | None = None
    bad: dict[str, int] = field(default_factory=dict)
    bad_examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    notes: Notes = field(default_factory=dict)
    columns: Uses = field(default_factory=dict)
    double_bos: int = 0
    merged: int = 0
    guessed_prompts: int = 0
    every_bos: bool = True
    max_id: int = -1
    ends: set[int] = field(default_factory=set)
    has_strings: bool = False
    has_messages: bool = False

    def add(self, chunk: Chunk, bad_rows: Literal["drop", "error"]) -> None:
        """Raises UserError for the first bad row, with `bad_rows="error"`."""
        self.rows += chunk.rows
        for label, groups in chunk.files:
            if not self.files or self.files[-1][0] != label:
                self.files.append((label, self.kept))
            self.kept += groups
        for where, bad in chunk.bad:
            self.first_bad = self.first_bad or f"{where}: {bad}"
            self.bad[bad.cause] = self.bad.get(bad.cause, 0) + 1
            shown = self.bad_examples.setdefault(bad.cause, [])
            if len(shown) < _EXAMPLES_PER_CAUSE:
                shown.append((where, bad.detail))
        add_notes(self.notes, chunk.notes)
        add_uses(self.columns, chunk.columns.items())
        if self.first_bad and bad_rows == "error":
            raise UserError(self.first_bad)
        self.double_bos += chunk.double_bos
        self.merged += chunk.merged
        self.guessed_prompts += chunk.guessed_prompts
        self.every_bos &= chunk.every_bos
        self.max_id = max(self.max_id, chunk.max_id)
        self.ends |= chunk.ends
        self.has_strings |= chunk.has_strings
        self.has_messages |= chunk.has_messages

    def meta(self, source: str, tokenizer: PreTrainedTokenizerBase, key: str) -> dict[str, Any]:
        """The store's meta data. Raises UserError if nothing was kept.

        Args:
            key: `fingerprint` of the tokenizer.
        """
        if not self.kept:
            found = f"none of its {self.rows} rows can be used; the first: {self.first_bad}" if self.rows else "no rows"
            raise UserError(f"{source}: {found}")
        return {
            "source": source,
            "files": self.files,
            "rows_read": self.rows,
            "rows_kept": self.kept,
            "bad": self.bad,
            "bad_examples": self.bad_examples,
            "first_bad": self.first_bad,
            "notes": self.notes,
            "split": "",  # set where a source is opened
            "columns": self.columns,
            "double_bos": self.double_bos,
            "merged": self.merged,
            "guessed_prompts": self.guessed_prompts,
            "tokenizer": key,
            "bos_id": tokenizer.bos_token_id if self.every_bos else None,
            "eos_id": tokenizer.eos_token_id,
            "max_id": self.max_id,
            "ends": sorted(self.ends),
            "has_strings": self.has_strings,
            "has_messages": self.has_messages,
        }
