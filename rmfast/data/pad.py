"""Packs of fixed shapes, for CUDA graphs: what is added computes nothing that counts."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rmfast.data.edge_columns import NO_EDGE, EdgeColumns
from rmfast.data.pack import Pack
from rmfast.kernels import prefix_layout

SMALLEST = 16


def round_up(count: int) -> int:
    """The next power of two, at least 16; so packs of many sizes have few shapes."""
    return max(SMALLEST, 1 << (count - 1).bit_length()) if count else 0


def end(tensor: Tensor, count: int, value: float) -> Tensor:
    """The tensor with so many values appended."""
    return F.pad(tensor, (0, count), value=value)


def pad_tokens(pack: Pack, tokens: int) -> Pack:
    """The pack with more tokens appended, each a separate group that is not scored.

    Args:
        tokens: T afterwards, at least the pack's.
    """
    start, more = len(pack.tokens), tokens - len(pack.tokens)
    if more < 0:
        raise ValueError(f"a pack of {start} tokens cannot be padded to {tokens}")
    if not more:
        return pack
    return replace(
        pack,
        tokens=end(pack.tokens, more, 0),
        positions=end(pack.positions, more, 0),
        layout=torch.cat((pack.layout, prefix_layout([(1, ())] * more) + start), 1),
    )


def pad_pack(pack: Pack, tokens: int) -> Pack:
    """The pack with more tokens, scores, edges and LM targets appended.

    An added token is a separate group, so that it costs attention nothing; added edges weigh 0, added scores are no
    responses and each a separate group, added targets are -1.

    Args:
        tokens: T afterwards, at least the pack's. S, E and L are rounded up; the latter two to 0 or at least 16.
    """
    pack = pad_tokens(pack, tokens)
    scores = round_up(len(pack.scored)) - len(pack.scored)
    edges = max(round_up(len(pack.edges.weight)), SMALLEST) - len(pack.edges.weight)
    targets = round_up(len(pack.targets.rows)) - len(pack.targets.rows)
    filled = {name: end(getattr(pack.edges, name), edges, fill) for name, fill in vars(NO_EDGE).items()}
    return replace(
        pack,
        scored=end(pack.scored, scores, 0),
        is_response=end(pack.is_response, scores, False),
        group=torch.cat((pack.group, pack.group[-1:] + 1 + torch.arange(scores))),
        edges=EdgeColumns(**filled),
        targets=replace(pack.targets.map(lambda c: end(c, targets, 0)), ids=end(pack.targets.ids, targets, -1)),
    )
