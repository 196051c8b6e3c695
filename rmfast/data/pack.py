"""A pack: the tensors of some prompt groups, laid end to end without padding."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmfast.data.table import GroupTable
from rmfast.kernels import prefix_layout


@dataclass(frozen=True, kw_only=True, eq=False)
class Pack:
    """T tokens, S responses, E edges, L predicted tokens of chosen responses.

    `scored` is each response's last token, inside the shared prefix where the response ends there. `better` and
    `worse` index S. `lm_rows` are the tokens from whose hidden state `lm_targets` are predicted. `responses` are the
    numbers that the table gives the responses (host only). A pack without work holds one token, which is scored though
    no response ends there, and no edge.
    """

    tokens: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    layout: Tensor  # int32 [4, T]
    scored: Tensor  # int64 [S]
    is_response: Tensor  # bool [S]
    group: Tensor  # int64 [S], 0 for the first prompt group's, 1 for the next one's, ...
    better: Tensor  # int64 [E]
    worse: Tensor  # int64 [E]
    margin: Tensor  # float32 [E]
    target: Tensor  # float32 [E]
    weight: Tensor  # float32 [E]
    lm_rows: Tensor  # int64 [L]
    lm_targets: Tensor  # int64 [L], -1 where nothing is predicted
    groups: np.ndarray  # int64 [groups], rows of the table
    responses: np.ndarray  # int64 [S]

    def tensors(self) -> dict[str, Any]:
        """What a device needs of the pack, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type is Tensor or f.type == "Tensor"}

    def to(self, device: torch.device) -> "Pack":
        """The pack on a device; copies from pinned memory do not wait."""
        if device.type == "cpu":
            return self
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in self.tensors().items()})

    def pin(self) -> "Pack":
        """The pack in page-locked memory."""
        return replace(self, **{name: t.pin_memory() for name, t in self.tensors().items()})


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
        better=none,
        worse=none,
        margin=none.float(),
        target=none.float(),
        weight=none.float(),
        lm_rows=none,
        lm_targets=none,
        groups=np.empty(0, np.int64),
        responses=np.empty(0, np.int64),
    )


def build_pack(table: GroupTable, groups: np.ndarray, *, lm: bool = False) -> Pack:
    """Lay some groups of a table into a pack.

    Args:
        groups: int64, rows of the table, in the order in which they are to lie.
        lm: also list the tokens that an LM loss on the chosen responses predicts.
    """
    if not len(groups):
        return empty_pack()
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    shape: list[tuple[int, list[int]]] = []
    scored: list[np.ndarray] = []
    responses: list[np.ndarray] = []
    edges: dict[str, list[np.ndarray]] = {name: [] for name in ("better", "worse", "margin", "target", "weight")}
    lm_rows: list[np.ndarray] = []
    lm_targets: list[np.ndarray] = []
    group_of: list[np.ndarray] = []
    start = offset = 0  # first token, first response of the group
    for number, group in enumerate(groups.tolist()):
        store, g, cut = table.stores[table.store[group]], int(table.index[group]), int(table.cut[group])
        begin, end = int(store.token_start[g]), int(store.token_start[g + 1])
        first, last = int(store.response_start[g]), int(store.response_start[g + 1])
        stored = store.tokens[begin:end]
        if cut:
            bos = 0 if store.meta["bos_id"] is None else 1
            stored = np.concatenate((stored[:bos], stored[bos + cut :]))
        prefix = int(store.prefix_length[g]) - cut
        suffixes = store.suffix_length[first:last].astype(np.int64)
        ends = start + prefix + np.cumsum(suffixes)
        tokens.append(stored)
        positions.append(np.arange(prefix))
        positions.extend(prefix + np.arange(n) for n in suffixes)
        shape.append((prefix, suffixes.tolist()))
        # A response without a suffix of its own ends where the shared prefix does.
        scored.append(np.where(suffixes > 0, ends, start + prefix) - 1)
        responses.append(np.arange(table.first_response[group], table.first_response[group + 1]))
        group_of.append(np.full(len(suffixes), number))
        of_store = table.store_edges[table.store[group]]
        low, high = int(of_store.start[g]), int(of_store.start[g + 1])
        edges["better"].append(offset + of_store.better[low:high].astype(np.int64))
        edges["worse"].append(offset + of_store.worse[low:high].astype(np.int64))
        for name in ("margin", "target", "weight"):
            edges[name].append(getattr(of_store, name)[low:high])
        if lm:
            chosen = np.setdiff1d(of_store.better[low:high], of_store.worse[low:high])
            for r in chosen.tolist():
                # Token indices of the response's full sequence inside the pack.
                suffix = np.arange(ends[r] - suffixes[r], ends[r])
                sequence = np.concatenate((np.arange(start, start + prefix), suffix))
                answer = max(int(store.answer_start[first + r]) - cut, 1)
                lm_rows.append(sequence[answer - 1 : -1])
                lm_targets.append(stored[sequence[answer:] - start])
        start, offset = int(ends[-1]), offset + len(suffixes)
    ends_of_responses = torch.from_numpy(np.concatenate(scored))
    join = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in edges.items()}
    empty = [np.empty(0, np.int64)]
    return Pack(
        tokens=torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        positions=torch.from_numpy(np.concatenate(positions).astype(np.int64)),
        layout=prefix_layout(shape),
        scored=ends_of_responses,
        is_response=torch.ones_like(ends_of_responses, dtype=torch.bool),
        group=torch.from_numpy(np.concatenate(group_of)),
        **join,
        lm_rows=torch.from_numpy(np.concatenate(lm_rows or empty)),
        lm_targets=torch.from_numpy(np.concatenate(lm_targets or empty).astype(np.int64)),
        groups=groups,
        responses=np.concatenate(responses),
    )
