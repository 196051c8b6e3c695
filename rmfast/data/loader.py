"""The steps of a run as packs, built one step ahead in a separate thread."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

import numpy as np

from rmfast.data.pack import Pack, Predicts, build_pack
from rmfast.data.pad import pad_pack
from rmfast.data.plan import StepPlan, plan_packs
from rmfast.data.table import GroupTable
from rmfast.data.views import Views, add_views, view_tokens, view_visible

T = TypeVar("T")
NAMED_ROWS = 16  # that an error names at most

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

    `epoch` is how many are done after it; `padding` counts tokens on all ranks that belong to no group.
    """

    number: int
    epoch: float
    packs: list[Pack]
    totals: Totals
    rows: np.ndarray
    padding: int


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
    predicts: Predicts | None = None,
    fixed: bool = False,
    views: Views | None = None,
) -> tuple[list[Pack], int]:
    """This rank's share of some rows, in packs, and the number of tokens on all ranks that belong to no group.

    With `fixed` every pack is padded to the budget (see `pad_pack`), with `views` it holds two of each response.
    """
    tokens = view_tokens(table, rows, views)
    plan = plan_packs(tokens, ranks=ranks, budget=budget)
    packs = [build_pack(table, rows[pack], predicts=predicts) for pack in plan[rank]]
    if views is not None:
        packs = [add_views(pack, views) for pack in packs]
    if fixed:
        whole = sum(len(packs) for packs in plan) * budget
        return [pad_pack(pack, budget) for pack in packs], whole - int(tokens.sum())
    return packs, sum(not len(pack) for packs in plan for pack in packs)


class BuiltAhead(Generic[T]):
    """Gives what `build` makes of a number, and begins with the next one, in a thread, while that is used.

    Args:
        end: the first number that is not asked for.
    """

    def __init__(self, build: Callable[[int], T], end: int) -> None:
        self._build, self._end = build, end
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="packs")
        self._begun: dict[int, Future[T]] = {}

    def __call__(self, number: int) -> T:
        made = self._begun.pop(number, None) or self._pool.submit(self._build, number)
        self._begun = {n: self._pool.submit(self._build, n) for n in (number + 1,) if n < self._end}
        return made.result()


def pinned(packs: Sequence[Pack]) -> list[Pack]:
    """Packs in page-locked memory."""
    with PINNING:
        return [pack.pin() for pack in packs]


class StepLoader:
    """This rank's share of the steps 0 to `total` (exclusive) of a plan; the next one is built while a step runs."""

    def __init__(
        self,
        table: GroupTable,
        plan: StepPlan,
        *,
        total: int,
        ranks: int,
        rank: int,
        budget: int,
        predicts: Predicts | None = None,
        pin: bool = False,
        fixed: bool = False,
        views: Views | None = None,
    ) -> None:
        self.table, self.plan, self.total = table, plan, total
        self.ranks, self.rank, self.budget, self.predicts = ranks, rank, budget, predicts
        self.pin, self.fixed, self.views = pin, fixed, views
        self.step = BuiltAhead(self.build, total)

    def build(self, number: int) -> Step:
        """One step, whatever came before it."""
        _, rows = self.plan.step(number)
        packs, padding = rank_packs(
            self.table,
            rows,
            ranks=self.ranks,
            rank=self.rank,
            budget=self.budget,
            predicts=self.predicts,
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
        )

    def labels(self, step: Step) -> str:
        """The first rows of a step by file and line, and how many more there are."""
        return named_rows(self.table, step.rows)


def named_rows(table: GroupTable, rows: np.ndarray) -> str:
    """The first of some rows of a table by file and line, and how many more there are."""
    named = [table.label(int(group)) for group in rows[:NAMED_ROWS]]
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return f"{', '.join(named)}{more}"
