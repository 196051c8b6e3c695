"""Denoising of a table: its edges flipped, softened or dropped by their strength, its groups that are left."""

import numpy as np

from rmfast.data.denoise import Denoise, Denoised, denoise_edges
from rmfast.data.edge_columns import StoreEdges
from rmfast.data.table import GroupTable, edge_columns, edges_by_store, per_group, select


def denoise_table(table: GroupTable, options: Denoise) -> tuple[GroupTable, Denoised | None]:
    """The table with its edges denoised, and what became of each of them in the table's order.

    The stores stay as they are. Groups that lose all their edges, but for those between identical responses, are left
    out. Options that change nothing give the table itself and None.

    Raises:
        UserError: as `denoise_edges`.
    """
    if not options.active:
        return table, None
    takes = [take for _, _, take in edges_by_store(table)]
    columns = {
        name: np.concatenate([getattr(e, name)[take] for e, take in zip(table.store_edges, takes, strict=True)])
        for name in ("strength", "margin", "target", "weight", "identical")
    }
    denoised = denoise_edges(options, **columns)
    return apply_denoised(table, denoised), denoised


def apply_denoised(table: GroupTable, denoised: Denoised) -> GroupTable:
    """The table with its edges denoised; `denoised` is in the table's order."""
    store_edges: list[StoreEdges] = []
    columns: dict[str, list[np.ndarray]] = {"edges": [], "lm": [], "weight": []}
    useful: list[np.ndarray] = []
    begin = 0
    for number, rows, take in edges_by_store(table):
        store, old, g = table.stores[number], table.store_edges[number], table.index[rows]
        kept = ~denoised.dropped[begin : begin + len(take)]
        here = begin + np.flatnonzero(kept)
        begin += len(take)
        counts, cut = np.zeros(len(store), dtype=np.int64), np.zeros(len(store), dtype=np.int64)
        counts[g] = per_group(kept, np.concatenate(([0], np.cumsum(table.edges[rows]))))
        cut[g] = table.cut[rows]
        take, flipped = take[kept], denoised.flipped[here]
        better, worse = old.better[take], old.worse[take]
        new = StoreEdges(
            start=np.concatenate(([0], np.cumsum(counts))),
            better=np.where(flipped, worse, better),
            worse=np.where(flipped, better, worse),
            identical=old.identical[take],
            **{name: getattr(denoised, name)[here] for name in ("margin", "target", "weight", "strength")},
        )
        store_edges.append(new)
        for name, column in edge_columns(store, new, cut).items():
            columns[name].append(column[g])
        useful.append(per_group(~new.identical, new.start)[g] > 0)
    changed = {name: np.concatenate(parts) for name, parts in columns.items()}
    keep = np.concatenate(useful) | (changed["edges"] == table.edges)
    left = {name: column[keep] for name, column in changed.items()}
    return select(table, keep, store_edges=tuple(store_edges), **left)
