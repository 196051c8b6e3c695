"""The table of prompt groups that a run uses: their lengths, and where their tokens lie. No token is read for it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from rmfast.data.edge_columns import Edges, StoreEdges, join_edges, take_edges
from rmfast.data.row_kinds import PAIRS, RowKind
from rmfast.data.store import TokenStore
from rmfast.errors import UserError

OverLong = Literal["drop", "truncate", "error"]


def _edges_of(store: TokenStore) -> StoreEdges:
    same = {f.name: getattr(store, f.name) for f in fields(StoreEdges) if f.name not in ("start", "strength")}
    return StoreEdges(start=store.edge_start, strength=store.strength_mean, **same)


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupTable:
    """G groups of one or several stores; all arrays int64 [G] unless said otherwise.

    `store_edges` holds the edges of each store; all that reads edges reads these, never the store's.

    `cut` tokens are left out at the left of the prompt (after a BOS that every sequence begins with). `stored` counts
    the tokens that a pack holds, `sequences` those of all the group's sequences, prompt repeated; of a group without
    responses both count its prompt. `lm` counts the predicted tokens: a demonstration's targets, or else the tokens of
    the chosen responses; `visible` the pairs of a query and a key that it sees (attention's work). `weight` (float64)
    is the sum over the group's edges. Responses are numbered through the table; `first_response` (int64 [G + 1]) is
    where a group's begin.
    """

    stores: tuple[TokenStore, ...]
    store_edges: tuple[StoreEdges, ...]
    store: np.ndarray
    index: np.ndarray
    cut: np.ndarray
    stored: np.ndarray
    sequences: np.ndarray
    edges: np.ndarray
    lm: np.ndarray
    visible: np.ndarray
    weight: np.ndarray
    first_response: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    @property
    def ends(self) -> set[int]:
        """Last tokens of the stores' sequences."""
        return {token for store in self.stores for token in store.meta["ends"]}

    def label(self, group: int) -> str:
        """The row of a file that a group came from, for messages."""
        return self.stores[self.store[group]].label(int(self.index[group]))

    def sequences_of(self, group: int) -> list[list[int]]:
        """Token ids of each of a group's sequences, as packs hold them; of a group without responses its prompt's."""
        store, g, cut = self.stores[self.store[group]], int(self.index[group]), int(self.cut[group])
        bos = 0 if store.meta["bos_id"] is None else 1
        count = int(store.response_start[g + 1] - store.response_start[g])
        alone = store.tokens[store.token_start[g] : store.token_start[g + 1]]
        whole = [store.sequence(g, r).tolist() for r in range(count)] or [alone.tolist()]
        return [ids[:bos] + ids[bos + cut :] for ids in whole] if cut else whole


def twins(table: GroupTable) -> Iterator[tuple[int, int]]:
    """(response, first response of its group with the same sequence), for all that are not the first themselves."""
    for group in range(len(table)):
        store, g = table.stores[table.store[group]], int(table.index[group])
        lengths = store.suffix_length[store.response_start[g] : store.response_start[g + 1]].tolist()
        if len(set(lengths)) == len(lengths):
            continue
        end = int(store.token_start[g]) + int(store.prefix_length[g])
        first: dict[bytes, int] = {}
        for number, length in enumerate(lengths, start=int(table.first_response[group])):
            suffix = store.tokens[end : end + length].tobytes()
            end += length
            if first.setdefault(suffix, number) != number:
                yield number, first[suffix]


def per_group(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sum of each group's slice of `values` (slices may be empty)."""
    total = np.concatenate(([0], np.cumsum(values)))
    return total[starts[1:]] - total[starts[:-1]]


def _chosen_responses(store: TokenStore, edges: StoreEdges) -> np.ndarray:
    """bool [R]: better in some edge and worse in none. The LM loss reads these."""
    offset = np.repeat(store.response_start[:-1], np.diff(edges.start))
    chosen = np.zeros(len(store.suffix_length), dtype=bool)
    chosen[offset + edges.better] = True
    chosen[offset + edges.worse] = False
    return chosen


def _lengths(store: TokenStore, cut: np.ndarray) -> np.ndarray:
    """Tokens of each sequence, int64 [R], after `cut` [G]."""
    return np.repeat(store.prefix_length - cut, np.diff(store.response_start)) + store.suffix_length


def edge_columns(store: TokenStore, edges: StoreEdges, cut: np.ndarray) -> dict[str, np.ndarray]:
    """The table's columns that depend on the edges, for all groups of a store."""
    answer = store.answer_start - np.repeat(cut, np.diff(store.response_start))
    predicted = np.maximum(_lengths(store, cut) - np.maximum(answer, 1), 0)
    return {
        "edges": np.diff(edges.start),
        "lm": per_group(np.where(_chosen_responses(store, edges), predicted, 0), store.response_start),
        "weight": per_group(edges.weight.astype(np.float64), edges.start),
    }


def _visible(store: TokenStore, prefix: np.ndarray) -> np.ndarray:
    suffix = store.suffix_length.astype(np.int64)
    before = np.repeat(prefix, np.diff(store.response_start))
    return prefix * (prefix + 1) // 2 + per_group(suffix * (suffix + 1) // 2 + suffix * before, store.response_start)


def _columns(
    store: TokenStore, number: int, max_length: int | None, truncate: bool
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The table's columns for one store, and which groups are too long for it."""
    prefix, responses = store.prefix_length.astype(np.int64), np.diff(store.response_start)
    suffixes = per_group(store.suffix_length, store.response_start)
    too_long = np.zeros(len(store), dtype=bool)
    cut = np.zeros(len(store), dtype=np.int64)
    if max_length is not None:
        excess = np.maximum(store.longest().astype(np.int64) - max_length, 0)
        bos = 0 if store.meta["bos_id"] is None else 1
        # Only the prompt is cut, and of no sequence all of it: a response may end inside the prefix.
        shortest = prefix + store.by_group(np.minimum, store.suffix_length, np.zeros_like(prefix))
        prompt = store.by_group(np.minimum, store.answer_start, prefix).astype(np.int64) - bos
        room = np.minimum(prompt, shortest - 1)
        if store.trained is not None:  # of a conversation earlier answers are cut too, but not the last target
            room = _last_targets(store) - 1
        room = np.maximum(room, 0)
        too_long = excess > room if truncate else excess > 0
        cut = np.where(too_long, 0, excess) if truncate else cut
    columns = {
        "store": np.full(len(store), number),
        "index": np.arange(len(store)),
        "cut": cut,
        "stored": prefix - cut + suffixes,
        "sequences": (prefix - cut) * np.maximum(responses, 1) + suffixes,
        "visible": _visible(store, prefix - cut),
        "responses": responses,
    }
    columns |= edge_columns(store, _edges_of(store), cut)
    return columns if store.trained is None else columns | {"lm": _targets(store, cut)}, too_long


def _last_targets(store: TokenStore) -> np.ndarray:
    """Where in its sequence each demonstration has its last target, int64 [G]."""
    assert store.trained is not None
    places = np.flatnonzero(store.trained)
    return places[store.targets()[store.token_start[1:]] - 1] - store.token_start[:-1]


def _targets(store: TokenStore, cut: np.ndarray) -> np.ndarray:
    """Targets of each demonstration, int64 [G], without those that are cut or that come first then."""
    before = store.targets()
    return before[store.token_start[1:]] - before[store.token_start[:-1] + cut + 1]


def shared_prefix(stored: np.ndarray, sequences: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Tokens of groups' shared prefixes, int64 [G]; 0 where a group has one response, which is all suffix or prefix, or
    none."""
    return (sequences - stored) // np.maximum(responses - 1, 1)


def tokens_in_a_pack(
    stored: np.ndarray, sequences: np.ndarray, responses: np.ndarray, views: Literal["pass", "response"] | None
) -> np.ndarray:
    """Tokens that groups take in a pack, int64 [G]; with `views` (see `rmfast.data.views`) both of each response.

    Args:
        stored, sequences: columns of the table. responses: of each group.
    """
    if views is None:
        return stored
    return 2 * stored - (shared_prefix(stored, sequences, responses) if views == "response" else 0)


def _columns_of_a_table() -> list[str]:
    """Those with one number for each group."""
    return [f.name for f in fields(GroupTable) if f.name not in ("stores", "store_edges", "first_response")]


def select(table: GroupTable, rows: np.ndarray, **changed: Any) -> GroupTable:
    """Some rows of a table, ascending; their responses are numbered again.

    Args:
        changed: fields that are others than the table's; of columns the selected rows.
    """
    responses = np.diff(table.first_response)[rows]
    columns = {name: getattr(table, name)[rows] for name in _columns_of_a_table()} | changed
    return replace(table, first_response=np.concatenate(([0], np.cumsum(responses))), **columns)


def build_table(
    stores: Sequence[TokenStore],
    *,
    max_length: int | None = None,
    tokens_per_pack: int | None = None,
    views: Literal["pass", "response"] | None = None,
    over_long: OverLong = "drop",
    kind: RowKind = PAIRS,
) -> tuple[GroupTable, dict[str, int]]:
    """The usable groups of some stores, and how many were left out for which cause.

    Args:
        max_length: tokens of prompt and response that a sequence may have; None for any number.
        tokens_per_pack: a group that takes more of a pack is over-long too; None for any number.
        views: how a pack holds two dropout views of each response (see `rmfast.data.views`); None for one.
        over_long: "drop" the group, "truncate" its prompt from the left where that is enough, or "error".
        kind: where it prefers, groups without an edge between responses that differ are left out.

    Raises:
        UserError: an over-long group under "error".
    """
    parts, dropped = [], {"over-long": 0, "longer than a pack": 0, "identical": 0, "no edge": 0}
    truncated = 0
    for number, store in enumerate(stores):
        if not len(store):
            continue
        columns, too_long = _columns(store, number, max_length, over_long == "truncate")
        tokens = tokens_in_a_pack(columns["stored"], columns["sequences"], columns["responses"], views)
        too_big = ~too_long & (tokens > tokens_per_pack if tokens_per_pack is not None else False)
        if over_long == "error" and (too_long | too_big).any():
            row = int(np.flatnonzero(too_long | too_big)[0])
            limit = f"data.max_length {max_length}" if too_long[row] else f"data.tokens_per_pack {tokens_per_pack}"
            if views is not None and not too_long[row]:
                limit += f" (with the two views of objective.contrastive it takes {tokens[row]} tokens)"
            raise UserError(f"{store.label(row)}: over-long for {limit}; raise it or set data.over_long to drop")
        no_edge = columns["edges"] == 0 if kind.prefers else np.zeros(len(store), dtype=bool)
        same = ~no_edge & (per_group(~store.identical, store.edge_start) == 0) if kind.prefers else no_edge
        for cause, mask in (("no edge", no_edge), ("identical", same)):
            dropped[cause] += int(mask.sum())
        usable = ~no_edge & ~same
        dropped["over-long"] += int((too_long & usable).sum())
        dropped["longer than a pack"] += int((too_big & usable).sum())
        keep = usable & ~too_long & ~too_big
        truncated += int((columns["cut"][keep] > 0).sum())
        parts.append({name: column[keep] for name, column in columns.items()})
    names = [*_columns_of_a_table(), "responses"]
    joined = {name: np.concatenate([p[name] for p in parts]) if parts else np.empty(0, np.int64) for name in names}
    first = np.concatenate(([0], np.cumsum(joined.pop("responses")))).astype(np.int64)
    edges = tuple(_edges_of(store) for store in stores)
    table = GroupTable(stores=tuple(stores), store_edges=edges, first_response=first, **joined)
    return table, dropped | {"truncated": truncated}


def _spans(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[i], starts[i] + 1, ... for counts[i] entries each, joined."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


def edges_by_store(table: GroupTable) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(store, its rows of the table, the places of their edges in `store_edges`); a store's rows lie together."""
    for number, edges in enumerate(table.store_edges):
        rows = np.flatnonzero(table.store == number)
        yield number, rows, _spans(edges.start[table.index[rows]], table.edges[rows])


def table_edges(table: GroupTable) -> Edges:
    """The edges of all groups of a table, in its order."""
    parts, groups, lengths = [], [], []
    for number, rows, take in edges_by_store(table):
        store = table.stores[number]
        g, counts = table.index[rows], table.edges[rows]
        parts.append(take_edges(table.store_edges[number], take, np.repeat(table.first_response[rows], counts)))
        groups.append(np.repeat(rows, counts))
        responses = np.diff(store.response_start)[g]
        spans = _spans(store.response_start[g], responses)
        prefix = np.repeat(store.prefix_length[g].astype(np.int64), responses)
        lengths.append(prefix + store.suffix_length[spans] - store.answer_start[spans])
    columns = vars(join_edges(parts, np.concatenate))
    return Edges(**columns, group=np.concatenate(groups), length=np.concatenate(lengths))
