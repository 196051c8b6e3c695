"""What `rmfast data report` prints: how much of the data is used, what is odd about it, what packing will save."""

import hashlib
from collections.abc import Sequence

import numpy as np

from rmfast.data.columns import uses_line
from rmfast.data.notes import note_lines
from rmfast.data.store import TokenStore
from rmfast.data.tokenise import SAME_BY_TEMPLATE, SAME_BY_TOKENIZER

_BATCH = 8  # groups in the padded batch that packing is compared with
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


def data_report(stores: Sequence[TokenStore], max_length: int) -> str:
    """A plain-text report on each store, in tokens of its tokenizer.

    Args:
        stores: in the order of the report; content that an earlier one holds too is counted (training against test).
        max_length: longest sequence, in tokens, that training is to take.
    """
    seen: set[bytes] = set()
    return "\n\n".join(_section(store, max_length, seen) for store in stores) + "\n"


def _section(store: TokenStore, max_length: int, seen: set[bytes]) -> str:
    lines: list[tuple[str, str]] = [
        ("rows", f"{store.meta['rows_read']:,} read, {store.meta['rows_kept']:,} kept"),
        *([("split", store.meta["split"])] if store.meta["split"] else []),
        *([("columns", uses_line(store.meta["columns"]))] if store.meta["columns"] else []),
        *_bad_rows(store),
        *_notes(store),
        *_lengths(store, max_length),
        *_edges(store),
        *_text(store),
        *_duplicates(store, seen),
        *_packing(store),
    ]
    return "\n".join([str(store.meta["source"]), *(f"  {name:<22}{value}" for name, value in lines)])


def _bad_rows(store: TokenStore) -> list[tuple[str, str]]:
    lines = []
    for cause, count in sorted(store.meta["bad"].items(), key=lambda item: -item[1]):
        where, detail = store.meta["bad_examples"][cause][0]
        lines.append((f"bad: {cause}", f"{count:,}, such as {where}: {detail}"))
    return lines or [("bad rows", "none")]


def _notes(store: TokenStore) -> list[tuple[str, str]]:
    return [("note", line) for line in note_lines(store.meta["notes"])]


def _lengths(store: TokenStore, max_length: int) -> list[tuple[str, str]]:
    header = ("quantiles", " ".join(f"{f'{100 * q:g} %':>7}" for q in _QUANTILES))
    over = (f"over {max_length:,} tokens", f"{_share(store.longest() > max_length)} of the groups")
    if _are_prompts(store):
        return [header, ("  prompt tokens", _quantiles(store.prefix_length)), over]
    if store.trained is not None:
        targets = np.add.reduceat(store.trained, store.token_start[:-1], dtype=np.int64)
        of_all = f"{targets.sum():,} of {len(store.tokens):,} tokens ({targets.sum() / len(store.tokens):.1%})"
        return [
            ("trained on", of_all),
            header,
            ("  trained tokens", _quantiles(targets)),
            ("  whole sequences", _quantiles(store.lengths())),
            over,
        ]
    lengths = store.lengths()
    sizes, counts = np.unique(np.diff(store.response_start), return_counts=True)
    return [
        ("responses per prompt", ", ".join(f"{n}: {count:,}" for n, count in zip(sizes, counts, strict=True))),
        header,
        ("  prompt tokens", _quantiles(store.answer_start[store.response_start[:-1]])),
        ("  response tokens", _quantiles(lengths - store.answer_start)),
        ("  whole sequences", _quantiles(lengths)),
        over,
    ]


def _are_prompts(store: TokenStore) -> bool:
    return not len(store.suffix_length)


def _edges(store: TokenStore) -> list[tuple[str, str]]:
    if not len(store.better):
        return [] if _are_prompts(store) or store.trained is not None else [("edges", "none")]
    lengths = store.lengths().astype(np.int64)
    first = np.repeat(store.response_start[:-1], np.diff(store.edge_start))
    longer = lengths[first + store.better] - lengths[first + store.worse]
    decided = longer[longer != 0]
    lines = [
        ("edges", f"{len(longer):,}"),
        ("identical pairs", f"{_share(store.identical)} of the edges; they weigh nothing{_made_identical(store)}"),
        ("margin", f"{store.margin.min():g} to {store.margin.max():g}"),
    ]
    if len(decided):
        lines.append(("longer wins", f"{(decided > 0).mean():.3f} of the {len(decided):,} edges of unequal length"))
    if not np.isnan(store.strength_mean).all():
        known = store.strength_mean[~np.isnan(store.strength_mean)]
        lines.append(("strength", f"{known.min():g} to {known.max():g}, on {len(known):,} edges"))
    return lines


def _made_identical(store: TokenStore) -> str:
    notes = store.meta["notes"]
    rows = sum(notes[kind][0] for kind in (SAME_BY_TEMPLATE, SAME_BY_TOKENIZER) if kind in notes)
    return f"; in {rows:,} row{'' if rows == 1 else 's'} the texts differ" if rows else ""


def _text(store: TokenStore) -> list[tuple[str, str]]:
    kinds = [kind for kind in ("strings", "messages") if store.meta[f"has_{kind}"]] or ["token ids"]
    lines = [
        ("kind", " and ".join(kinds)),
        ("double BOS", f"{store.meta['double_bos']:,} sequences, one of the two taken out"),
    ]
    if not _are_prompts(store):
        missing_eos = store.tokens[_last_tokens(store)] != store.meta["eos_id"]
        lines.append(("no EOS at the end", f"{_share(missing_eos)} of the sequences"))
    return lines


def _last_tokens(store: TokenStore) -> np.ndarray:
    """Where the last token of each response is in `tokens`, int64 [R]; it may be inside the shared prefix."""
    groups = np.diff(store.response_start)
    prefix_end = np.repeat(store.token_start[:-1] + store.prefix_length, groups)
    before = np.concatenate([[0], np.cumsum(store.suffix_length, dtype=np.int64)])
    suffix_end = prefix_end + before[1:] - np.repeat(before[store.response_start[:-1]], groups)
    return np.where(store.suffix_length > 0, suffix_end, prefix_end) - 1


def _duplicates(store: TokenStore, seen: set[bytes]) -> list[tuple[str, str]]:
    """Groups whose responses are an earlier group's, token for token and in the same order."""
    known: set[bytes] = set()
    elsewhere = 0
    for g in range(len(store)):
        shape = store.suffix_length[store.response_start[g] : store.response_start[g + 1]]
        digest = hashlib.blake2b(shape.tobytes(), digest_size=16)
        digest.update(store.tokens[store.token_start[g] : store.token_start[g + 1]].tobytes())
        known.add(digest.digest())
        elsewhere += digest.digest() in seen
    lines = [("duplicates", f"{len(store) - len(known):,} groups")]
    if seen:
        lines.append(("in a source above", f"{elsewhere:,} groups"))
    seen |= known
    return lines


def _packing(store: TokenStore) -> list[tuple[str, str]]:
    prompts, rows = _are_prompts(store), np.maximum(np.diff(store.response_start), 1)
    total = int((store.prefix_length if prompts else store.lengths()).sum(dtype=np.int64))
    order = np.random.default_rng(0).permutation(len(store))
    first = np.arange(0, len(order), _BATCH)
    longest = np.maximum.reduceat(store.longest().astype(np.int64)[order], first)
    padded = int((longest * np.add.reduceat(rows[order], first)).sum())
    saved = ("prefix sharing saves", f"{1 - len(store.tokens) / total:.1%} of {total:,} tokens")
    padding = ("padding avoided", f"{1 - total / padded:.1%} of a padded batch of {_BATCH} in random order")
    return [padding] if prompts or store.trained is not None else [saved, padding]


def _quantiles(values: np.ndarray) -> str:
    return " ".join(f"{value:>7,.0f}" for value in np.quantile(values, _QUANTILES))


def _share(flags: np.ndarray) -> str:
    return f"{int(flags.sum()):,} ({flags.mean():.1%})"
