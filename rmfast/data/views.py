"""Two dropout views of every response of a pack, for contrastive terms (Part II, section 3.1)."""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from rmfast.data.edge_columns import join_edges
from rmfast.data.pack import Pack
from rmfast.data.table import GroupTable, shared_prefix, tokens_in_a_pack
from rmfast.kernels import prefix_layout
from rmfast.kernels.prefix_attention.layout import parse_layout

Views = Literal["pass", "response"]
"""How the second view is made: "pass" computes prompt and responses twice, as the paper does; "response" (ours) adds
each response to its group once more, so that the prompt is computed once and its dropout is common to both views."""


def view_tokens(table: GroupTable, rows: np.ndarray, views: Views | None) -> np.ndarray:
    """Tokens that each of some groups takes in a pack, int64."""
    return tokens_in_a_pack(*_lengths(table, rows), views)


def view_visible(table: GroupTable, rows: np.ndarray, views: Views | None) -> np.ndarray:
    """Pairs of a query and a key that it sees, of each of some groups with its views, int64."""
    visible = table.visible[rows]
    if views is None:
        return visible
    prefix = shared_prefix(*_lengths(table, rows))
    return 2 * visible - (prefix * (prefix + 1) // 2 if views == "response" else 0)


def _lengths(table: GroupTable, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stored tokens, tokens of all sequences and responses of some groups."""
    return table.stored[rows], table.sequences[rows], np.diff(table.first_response)[rows]


def add_views(pack: Pack, views: Views) -> Pack:
    """The pack with a second view of every response: scores S and edges E come first for one, then for the other.

    LM targets are the first view's only. A response that ends inside its group's prefix has one view under "response".
    """
    if not len(pack.responses):
        return pack
    count = len(pack.tokens)
    if views == "pass":
        take = torch.arange(count).repeat(2)
        second = torch.arange(count, 2 * count)
        first = second - count
        layout = torch.cat((pack.layout, pack.layout + count), 1)
    else:
        take, first, second, layout = _with_copies(pack)
    edges, responses = pack.edges, len(pack.scored)
    again = replace(edges, better=edges.better + responses, worse=edges.worse + responses)
    return replace(
        pack,
        tokens=pack.tokens[take],
        positions=pack.positions[take],
        layout=layout,
        scored=torch.cat((first[pack.scored], second[pack.scored])),
        is_response=pack.is_response.repeat(2),
        group=pack.group.repeat(2),
        edges=join_edges([edges, again], torch.cat),
        targets=replace(pack.targets, rows=first[pack.targets.rows]),
    )


def _with_copies(pack: Pack) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tokens to take, where each of the pack's tokens lies then for the first and the second view, the layout."""
    take: list[np.ndarray] = []
    first, second = (np.empty(len(pack.tokens), np.int64) for _ in range(2))
    shape = []
    at = 0
    for group in parse_layout(pack.layout):
        suffixes = sum(group.responses)
        begin, inner, end = group.start, group.start + group.prefix, group.start + group.prefix + suffixes
        take += [np.arange(begin, end), np.arange(inner, end)]
        first[begin:end] = at + np.arange(end - begin)
        second[begin:end] = first[begin:end] + np.where(np.arange(begin, end) < inner, 0, suffixes)
        shape.append((group.prefix, group.responses * 2))
        at += group.prefix + 2 * suffixes
    index = torch.from_numpy(np.concatenate(take))
    return index, torch.from_numpy(first), torch.from_numpy(second), prefix_layout(shape)
