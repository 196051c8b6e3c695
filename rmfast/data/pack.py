"""A pack: the tensors of some prompt groups, laid end to end without padding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rmfast.data.edge_columns import EdgeColumns, join_edges, take_edges
from rmfast.data.store import TokenStore
from rmfast.data.table import GroupTable
from rmfast.kernels import prefix_layout


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenColumns:
    """L tokens that are predicted: the place in the pack of the token from whose hidden state each is predicted, its id
    (-1 where nothing is), and the response that it belongs to, within S; int64 [L]. `beside`: other columns [L], by
    name."""

    rows: Tensor
    ids: Tensor
    response: Tensor
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    def columns(self) -> list[Tensor]:
        """Every column."""
        return [self.rows, self.ids, self.response, *self.beside.values()]

    def map(self, change: Callable[[Tensor], Tensor]) -> "TokenColumns":
        """The tokens with every column changed."""
        return TokenColumns(
            rows=change(self.rows),
            ids=change(self.ids),
            response=change(self.response),
            beside={name: change(column) for name, column in self.beside.items()},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Pack:
    """T tokens, S responses, E edges, L predicted tokens of responses.

    `scored` is each response's last token, inside the shared prefix where the response ends there; prompts without
    responses have none (see `prompt_ends`). Edges number responses within S. `responses` are the numbers that the table
    gives them (host only). A pack without work holds one token, which is scored though no response ends there, and no
    edge.
    """

    tokens: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    layout: Tensor  # int32 [4, T]
    scored: Tensor  # int64 [S]
    is_response: Tensor  # bool [S]
    group: Tensor  # int64 [S], 0 for the first prompt group's, 1 for the next one's, ...
    edges: EdgeColumns[Tensor]
    targets: TokenColumns
    groups: np.ndarray  # int64 [groups], rows of the table
    responses: np.ndarray  # int64 [S]

    def tensors(self) -> list[Tensor]:
        """What a device needs of the pack."""
        edges = vars(self.edges).values()
        return [*(getattr(self, name) for name in TENSORS), *edges, *self.targets.columns()]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Pack":
        """The pack with every tensor changed."""
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in TENSORS}
        return replace(self, edges=self.edges.map(change), targets=self.targets.map(change), **changed)

    def to(self, device: torch.device) -> "Pack":
        """The pack on a device; copies from pinned memory do not wait."""
        if device.type == "cpu":
            return self
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Pack":
        """The pack in page-locked memory."""
        return self.map(Tensor.pin_memory)


Predicts = Literal["chosen", "all", "targets"]
"""Which tokens are predicted: those of the responses that an edge prefers and none rejects (an LM loss), those of every
response, or the targets of demonstrations."""

TENSORS = ("tokens", "positions", "layout", "scored", "is_response", "group")


def empty_pack() -> Pack:
    """What a rank without work runs, so that collectives inside the model meet."""
    none, zero = torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    return Pack(
        tokens=zero,
        positions=zero,
        layout=prefix_layout([(1, ())]),
        scored=zero,
        is_response=zero.bool(),
        group=zero,
        edges=EdgeColumns(better=none, worse=none, margin=none.float(), target=none.float(), weight=none.float()),
        targets=TokenColumns(rows=none, ids=none, response=none),
        groups=np.empty(0, np.int64),
        responses=np.empty(0, np.int64),
    )


def prompt_ends(table: GroupTable, groups: np.ndarray) -> Tensor:
    """Where the last token of each prompt is in `build_pack(table, groups)`, int64 [groups]: what is drawn next is
    predicted from there.

    Args:
        groups: rows of the table whose groups have no responses.
    """
    return torch.from_numpy(np.cumsum(table.stored[groups]) - 1)


def _kept(store: TokenStore, stored: np.ndarray, cut: int) -> np.ndarray:
    """A group's stored tokens, or what is beside them, less those that are cut."""
    if not cut:
        return stored
    bos = 0 if store.meta["bos_id"] is None else 1
    return np.concatenate((stored[:bos], stored[bos + cut :]))


def build_pack(table: GroupTable, groups: np.ndarray, *, predicts: Predicts | None = None) -> Pack:
    """Lay some groups of a table into a pack.

    Args:
        groups: int64, rows of the table, in the order in which they are to lie.
        predicts: also list these tokens as predicted; of responses from the first that is not the prompt's on.
    """
    if not len(groups):
        return empty_pack()
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    shape: list[tuple[int, list[int]]] = []
    scored: list[np.ndarray] = []
    responses: list[np.ndarray] = []
    edges: list[EdgeColumns[np.ndarray]] = []
    lm_rows: list[np.ndarray] = []
    lm_targets: list[np.ndarray] = []
    lm_responses: list[np.ndarray] = []
    group_of: list[np.ndarray] = []
    start = offset = 0  # first token, first response of the group
    for number, group in enumerate(groups.tolist()):
        store, g, cut = table.stores[table.store[group]], int(table.index[group]), int(table.cut[group])
        begin, end = int(store.token_start[g]), int(store.token_start[g + 1])
        first, last = int(store.response_start[g]), int(store.response_start[g + 1])
        stored = _kept(store, store.tokens[begin:end], cut)
        prefix = int(store.prefix_length[g]) - cut
        suffixes = store.suffix_length[first:last].astype(np.int64)
        ends = start + prefix + np.cumsum(suffixes)
        tokens.append(stored)
        positions.append(np.arange(prefix))
        positions.extend(prefix + np.arange(n) for n in suffixes)
        shape.append((prefix, suffixes.tolist()))
        # A response without a suffix ends where the shared prefix does.
        scored.append(np.where(suffixes > 0, ends, start + prefix) - 1)
        responses.append(np.arange(table.first_response[group], table.first_response[group + 1]))
        group_of.append(np.full(len(suffixes), number))
        of_store = table.store_edges[table.store[group]]
        low, high = int(of_store.start[g]), int(of_store.start[g + 1])
        edges.append(take_edges(of_store, slice(low, high), offset))
        if predicts == "targets":
            assert store.trained is not None
            places = np.flatnonzero(_kept(store, store.trained[begin:end], cut)[1:])
            lm_rows.append(start + places)
            lm_targets.append(stored[places + 1])
            lm_responses.append(np.full(len(places), offset))
        elif predicts is not None:
            chosen = np.setdiff1d(of_store.better[low:high], of_store.worse[low:high])
            for r in chosen.tolist() if predicts == "chosen" else range(len(suffixes)):
                # Token indices of the response's full sequence inside the pack.
                suffix = np.arange(ends[r] - suffixes[r], ends[r])
                sequence = np.concatenate((np.arange(start, start + prefix), suffix))
                answer = max(int(store.answer_start[first + r]) - cut, 1)
                lm_rows.append(sequence[answer - 1 : -1])
                lm_targets.append(stored[sequence[answer:] - start])
                lm_responses.append(np.full(len(sequence) - answer, offset + r))
        start, offset = start + len(stored), offset + len(suffixes)
    ends_of_responses = torch.from_numpy(np.concatenate(scored))
    empty = [np.empty(0, np.int64)]
    return Pack(
        tokens=torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        positions=torch.from_numpy(np.concatenate(positions).astype(np.int64)),
        layout=prefix_layout(shape),
        scored=ends_of_responses,
        is_response=torch.ones_like(ends_of_responses, dtype=torch.bool),
        group=torch.from_numpy(np.concatenate(group_of)),
        edges=join_edges(edges, np.concatenate).map(torch.from_numpy),
        targets=TokenColumns(
            rows=torch.from_numpy(np.concatenate(lm_rows or empty)),
            ids=torch.from_numpy(np.concatenate(lm_targets or empty).astype(np.int64)),
            response=torch.from_numpy(np.concatenate(lm_responses or empty)),
        ),
        groups=groups,
        responses=np.concatenate(responses),
    )
