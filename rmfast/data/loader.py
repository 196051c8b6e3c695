"""The steps of a run as packs, built one step ahead in a thread of their own."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import numpy as np

from rmfast.data.pack import Pack, build_pack
from rmfast.data.pad import pad_pack
from rmfast.data.plan import StepPlan, plan_packs
from rmfast.data.table import GroupTable
from rmfast.data.views import Views, add_views, view_tokens, view_visible

T = TypeVar("T")

PINNING = Lock()
"""Held while packs are copied to page-locked memory, and while a CUDA graph is recorded: what CUDA does to lock pages
can void the recording."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Counts of a step's global batch, the same on every rank; every mean divides by one of them.

    `sequence_tokens` counts prompts once for each response, as TRL's num_tokens; `stored_tokens` is what is computed;
    `visible` counts pairs of a query and a key that it sees.
    """

    groups: int
    edges: int
    responses: int
    weight: float
    lm_tokens: int
    sequence_tokens: int
    stored_tokens: int
    visible: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step: this rank's packs and the global batch's totals and rows.

    `epoch` is how many are done after it; `padding` counts tokens on all ranks that belong to no group. `meta` is the
    share of MetaRM's prompts, where there are some.
    """

    number: int
    epoch: float
    packs: list[Pack]
    totals: Totals
    rows: np.ndarray
    padding: int
    meta: "Step | None" = None

    @property
    def parts(self) -> "list[Step]":
        """All that the step computes: itself, and MetaRM's share."""
        return [self] if self.meta is None else [self, self.meta]


def totals_of(table: GroupTable, rows: np.ndarray, views: Views | None = None) -> Totals:
    """Counts over some rows of a table; with views every response and edge counts twice, LM tokens once."""
    times = 1 if views is None else 2
    return Totals(
        groups=len(rows),
        edges=times * int(table.edges[rows].sum()),
        responses=times * int((table.first_response[rows + 1] - table.first_response[rows]).sum()),
        weight=times * float(table.weight[rows].sum()),
        lm_tokens=int(table.lm[rows].sum()),
        sequence_tokens=times * int(table.sequences[rows].sum()),
        stored_tokens=int(view_tokens(table, rows, views).sum()),
        visible=int(view_visible(table, rows, views).sum()),
    )


def rank_packs(
    table: GroupTable,
    rows: np.ndarray,
    *,
    ranks: int,
    rank: int,
    budget: int,
    lm: bool = False,
    fixed: bool = False,
    views: Views | None = None,
) -> tuple[list[Pack], int]:
    """This rank's share of some rows, in packs, and the number of tokens on all ranks that belong to no group.

    With `fixed` every pack is padded to the budget (see `pad_pack`), with `views` it holds two of each response.
    """
    tokens = view_tokens(table, rows, views)
    plan = plan_packs(tokens, ranks=ranks, budget=budget)
    packs = [build_pack(table, rows[pack], lm=lm) for pack in plan[rank]]
    if views is not None:
        packs = [add_views(pack, views) for pack in packs]
    if fixed:
        whole = sum(len(packs) for packs in plan) * budget
        return [pad_pack(pack, budget) for pack in packs], whole - int(tokens.sum())
    return packs, sum(not len(pack) for packs in plan for pack in packs)


def built_ahead(build: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """What `build` makes of each number, made in a thread while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="packs") as pool:
        ahead: Future[T] | None = None
        for number in numbers:
            made, ahead = ahead, pool.submit(build, number)
            if made is not None:
                yield made.result()
        if ahead is not None:
            yield ahead.result()


def pinned(packs: Sequence[Pack]) -> list[Pack]:
    """Packs in page-locked memory."""
    with PINNING:
        return [pack.pin() for pack in packs]


class StepLoader:
    """Iterates over the steps `first` to `last` (exclusive), building each while the one before it runs.

    `meta` builds the steps' share of MetaRM's prompts.
    """

    def __init__(
        self,
        table: GroupTable,
        plan: StepPlan,
        *,
        first: int,
        last: int,
        ranks: int,
        rank: int,
        budget: int,
        lm: bool = False,
        pin: bool = False,
        fixed: bool = False,
        views: Views | None = None,
        meta: "StepLoader | None" = None,
    ) -> None:
        self.table, self.plan = table, plan
        self.first, self.last = first, last
        self.ranks, self.rank, self.budget, self.lm = ranks, rank, budget, lm
        self.pin, self.fixed, self.views, self.meta = pin, fixed, views, meta

    def build(self, number: int) -> Step:
        """One step, whatever came before it."""
        _, rows = self.plan.step(number)
        packs, padding = rank_packs(
            self.table,
            rows,
            ranks=self.ranks,
            rank=self.rank,
            budget=self.budget,
            lm=self.lm,
            fixed=self.fixed,
            views=self.views,
        )
        return Step(
            number=number,
            epoch=self.plan.progress(number),
            packs=pinned(packs) if self.pin else packs,
            totals=totals_of(self.table, rows, self.views),
            rows=rows,
            padding=padding,
            meta=None if self.meta is None else self.meta.build(number),
        )

    def __iter__(self) -> Iterator[Step]:
        return built_ahead(self.build, range(self.first, self.last))
