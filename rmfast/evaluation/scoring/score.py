"""Scores of all responses of a table, through whatever scores a pack."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rmfast.data.loader import BuiltAhead, pinned, rank_packs
from rmfast.data.pack import Pack, Predicts
from rmfast.data.table import GroupTable, table_edges, twins
from rmfast.evaluation.metrics import pairwise_metrics
from rmfast.parallel.world import World

ScorePacks = Callable[[Sequence[Pack]], list[Tensor]]

CHUNK = 256  # groups of each rank that are planned at a time

Progress = Callable[[int, int], None]
"""Told how many groups are done, of how many."""


def table_packs(
    table: GroupTable, world: World | None = None, *, budget: int, predicts: Predicts | None = None
) -> Iterator[tuple[list[Pack], int]]:
    """This rank's share of a table in packs, some at a time, each with how many groups are done after it. Every rank is
    given as many. A signal ends it on all ranks.

    Args:
        world: ranks that share the work; None for this process alone.
        budget: tokens of a pack; a larger group is a pack alone.
        predicts: see `build_pack`.
    """
    ranks, rank = (world.size, world.rank) if world is not None else (1, 0)
    pin = torch.cuda.is_available()

    def build(number: int) -> tuple[list[Pack], int]:
        begin = number * CHUNK * ranks
        rows = np.arange(begin, min(begin + CHUNK * ranks, len(table)))
        limit = max(budget, int(table.stored[rows].max()))
        packs, _ = rank_packs(table, rows, ranks=ranks, rank=rank, budget=limit, predicts=predicts)
        return pinned(packs) if pin else packs, begin + len(rows)

    steps = -(-len(table) // (CHUNK * ranks))
    for packs in map(BuiltAhead(build, steps), range(steps)):
        if world is not None:
            world.check_signals("an evaluation was cut off, all before it is saved")
        yield packs


def score_table(
    score: ScorePacks,
    table: GroupTable,
    world: World | None = None,
    *,
    budget: int,
    progress: Progress | None = None,
) -> np.ndarray:
    """Scores of every response, float64 [R, M], on every rank.

    Args:
        score: gives the scores [S, M] of each pack.
        world, budget: see `table_packs`.
    """
    chunks: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    heads = 1
    for packs, done in table_packs(table, world, budget=budget):
        for pack, scores in zip(packs, score(packs), strict=True):
            heads = scores.shape[1]
            if len(pack.responses):
                chunks.append(scores.double().cpu().numpy())
                numbers.append(pack.responses)
        if progress is not None:
            progress(done, len(table))
    out = np.zeros((int(table.first_response[-1]), heads))
    if chunks:
        out[np.concatenate(numbers)] = np.concatenate(chunks)
    if world is not None:
        out = world.sum_(torch.from_numpy(out)).numpy()
    for copy, original in twins(table):  # a tie, whatever rounding made of the copies
        out[copy] = out[original]
    return out


def evaluate_table(
    score: ScorePacks, table: GroupTable, world: World | None = None, *, budget: int, center: float = 0.0
) -> tuple[dict[str, float | int | str], dict[str, np.ndarray]]:
    """Pairwise metrics of a held-out table, and the arrays that plots are made of."""
    scores = score_table(score, table, world, budget=budget).mean(1)
    edges = table_edges(table)
    metrics = pairwise_metrics(
        scores,
        edges.better,
        edges.worse,
        weight=edges.weight,
        margin=edges.margin,
        target=edges.target,
        lengths=edges.length,
        center=center,
        groups=edges.group,
    )
    responses = np.diff(table.first_response)
    labels = np.repeat([table.label(g) for g in range(len(table))], responses)
    arrays = {
        "scores": scores,
        "better": edges.better,
        "worse": edges.worse,
        "lengths": edges.length,
        "labels": labels,
    }
    return metrics, arrays
