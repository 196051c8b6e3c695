"""Scores of whole token sequences, whoever asks for them: what they begin with in common is computed once.

Shapes: S sequences, D different ones, M heads, T tokens of a pack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rmfast.data.plan import plan_packs
from rmfast.data.tokenise import Ids, common_prefix
from rmfast.kernels import prefix_layout

SHORT = 8
"""Tokens of a common beginning that are not worth a group, as the bos of everybody."""
LOOK_BACK = 512
"""Sequences that a group may hold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SequencePack:
    """Groups of sequences, each laid as what all of a group begin with, then the rest of each: tokens and positions
    int64 [T], layout int32 [4, T], scored int64 [S], the last token of each sequence."""

    tokens: Tensor
    positions: Tensor
    layout: Tensor
    scored: Tensor

    def to(self, device: torch.device) -> "SequencePack":
        """The pack on a device."""
        return self if device.type == "cpu" else replace(self, **{k: v.to(device) for k, v in vars(self).items()})


def score_distinct(
    sequences: Sequence[Ids], score: Callable[[SequencePack], Tensor], *, budget: int, alone: bool = False
) -> np.ndarray:
    """Scores float64 [S, M] of sequences of at least one token; equal ones are computed once, and tie exactly.

    Args:
        score: gives the scores [S, M] of a pack.
        budget: tokens of a pack; a larger group is a pack by itself.
        alone: each sequence is a pack by itself, so that nothing but its tokens decides the bits of its score.
    """
    number: dict[bytes, int] = {}
    of_each = [number.setdefault(ids.tobytes(), len(number)) for ids in sequences]
    different = [np.frombuffer(key, dtype=np.int32) for key in number]
    groups = [[i] for i in range(len(different))] if alone else by_beginning(different)
    shared = [_shared([different[i] for i in group]) for group in groups]
    tokens = np.array(
        [prefix + sum(len(different[i]) - prefix for i in group) for group, prefix in zip(groups, shared, strict=True)]
    )
    if alone:
        packs: list[list[int]] = [[g] for g in range(len(groups))]
    else:
        plan = plan_packs(tokens, ranks=1, budget=max(budget, int(tokens.max())))[0]
        packs = [pack.tolist() for pack in plan if len(pack)]
    rows: list[np.ndarray] = []
    places: list[int] = []
    for pack in packs:
        laid = _lay([[different[i] for i in groups[g]] for g in pack], [shared[g] for g in pack])
        rows.append(score(laid).double().cpu().numpy())
        places += [i for g in pack for i in groups[g]]
    out = np.empty((len(different), rows[0].shape[1]))
    out[places] = np.concatenate(rows)
    return out[of_each]


def by_beginning(sequences: Sequence[Ids]) -> list[list[int]]:
    """Different sequences in groups that save the most tokens where each group's common beginning is stored once.

    Sequences that begin alike are neighbours in lexicographic order, and the best cuts of that order are found by
    dynamic programming: a group of n whose beginning has p tokens saves p (n - 1).
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].tobytes())
    common = [common_prefix(sequences[a], sequences[b]) for a, b in zip(order[:-1], order[1:], strict=True)]
    alike = np.array([0, *(n if n >= SHORT else 0 for n in common)])  # of each with the one before
    saved = np.zeros(len(order) + 1, dtype=np.int64)  # by the first so many
    begins = np.arange(len(order))  # where the group that ends here begins
    for last in range(len(order)):
        saved[last + 1] = saved[last]
        first = max(0, last + 1 - LOOK_BACK)
        if last and alike[last]:
            beginning = np.minimum.accumulate(alike[first + 1 : last + 1][::-1])  # of groups from last - 1, last - 2 on
            total = saved[first:last][::-1] + beginning * np.arange(1, len(beginning) + 1)
            best = int(total.argmax())
            if total[best] > saved[last]:
                saved[last + 1], begins[last] = total[best], last - 1 - best
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(order[begins[end - 1] : end])
        end = int(begins[end - 1])
    return groups[::-1]


def without_end(ids: Ids, token: int | None) -> Ids:
    """The ids up to the last one that is not `token`; the first one where all are. None takes nothing away."""
    if token is None:
        return ids
    places = np.flatnonzero(ids != token)
    return ids[: int(places[-1]) + 1 if len(places) else 1]


def _shared(group: Sequence[Ids]) -> int:
    """Tokens that all of a group begin with; of one sequence all."""
    return min(common_prefix(group[0], ids) for ids in group)


def _lay(groups: Sequence[Sequence[Ids]], shared: Sequence[int]) -> SequencePack:
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    shape: list[tuple[int, list[int]]] = []
    scored: list[int] = []
    start = 0
    for group, prefix in zip(groups, shared, strict=True):
        rests = [ids[prefix:] for ids in group]
        tokens += [group[0][:prefix], *rests]
        positions += [np.arange(prefix), *(np.arange(prefix, prefix + len(rest)) for rest in rests)]
        shape.append((prefix, [len(rest) for rest in rests]))
        end = start + prefix
        for rest in rests:
            end += len(rest)
            scored.append(end - 1)  # in front, as the first of its group in order, is one that is all beginning
        start = end
    return SequencePack(
        tokens=torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        positions=torch.from_numpy(np.concatenate(positions)),
        layout=prefix_layout(shape),
        scored=torch.tensor(scored),
    )
