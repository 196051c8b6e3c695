"""Which groups form a step depends on seed and data only; packs keep the budget; every rank gets as many."""

import operator
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmfast.data.loader import BuiltAhead, Step, StepLoader, rank_packs, totals_of
from rmfast.data.plan import StepPlan, _first_fit, plan_packs
from rmfast.data.store import TokenStore
from rmfast.data.table import build_table, table_edges
from tests.tiny import group_of, odd_groups, table_of

SIZES = st.lists(st.integers(1, 60), max_size=40)


def rows_of(plan: StepPlan, epoch: int) -> list[int]:
    steps = range(plan.first_step(epoch), plan.first_step(epoch + 1))
    return [row for step in steps for row in plan.step(step)[1].tolist()]


# Global batches


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_every_group_once(shuffle: bool) -> None:
    plan = StepPlan([23], [1.0], groups_per_step=5, seed=7, shuffle=shuffle)
    assert [plan.first_step(e) for e in range(4)] == [0, 5, 10, 15]
    for epoch in range(3):
        assert sorted(rows_of(plan, epoch)) == list(range(23))
    sizes = [len(plan.step(s)[1]) for s in range(10)]
    assert sizes == [5, 5, 5, 5, 3] * 2
    assert (rows_of(plan, 0) == list(range(23))) == (not shuffle)
    assert (rows_of(plan, 0) == rows_of(plan, 1)) == (not shuffle)


def test_steps_depend_on_seed_and_step_alone() -> None:
    def plan(seed: int) -> StepPlan:
        return StepPlan([40, 9], [1.0, 2.5], groups_per_step=8, seed=seed)

    straight = [plan(3).step(s) for s in range(60)]
    one = plan(3)
    order = np.random.default_rng(0).permutation(60).tolist()
    for step in order:  # jumping about changes nothing
        epoch, rows = one.step(step)
        assert epoch == straight[step][0] and np.array_equal(rows, straight[step][1])
    assert [plan(4).step(s)[1].tolist() for s in range(8)] != [r.tolist() for _, r in straight[:8]]


def test_sources_are_mixed() -> None:
    plan = StepPlan([500, 500], [1.0, 1.0], groups_per_step=100, seed=0)
    for step in range(10):
        assert 25 < (plan.step(step)[1] < 500).sum() < 75
    # And not in the same places every epoch.
    assert [row < 500 for row in rows_of(plan, 0)] != [row < 500 for row in rows_of(plan, 1)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_weights_are_passes_in_an_epoch(shuffle: bool) -> None:
    plan = StepPlan([10, 7, 4], [2.0, 0.5, 1.0], groups_per_step=6, seed=1, shuffle=shuffle)
    for epoch in range(6):
        counts = Counter(rows_of(plan, epoch))
        assert [counts[r] for r in range(10)] == [2] * 10
        assert [counts[r] for r in range(17, 21)] == [1] * 4
        assert sum(counts[r] for r in range(10, 17)) == (3 if epoch % 2 == 0 else 4)
        assert max(counts[r] for r in range(10, 17)) == 1
    for epoch in (0, 2, 4):  # two halves are the whole
        both = Counter(rows_of(plan, epoch) + rows_of(plan, epoch + 1))
        assert [both[r] for r in range(10, 17)] == [1] * 7


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.1, 1 / 3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.3])), min_size=1),
    st.integers(1, 7),
    st.booleans(),
    st.integers(1, 8),
)
def test_any_mixture_covers_its_sources_evenly(
    sources: list[tuple[int, float]], batch: int, shuffle: bool, epochs: int
) -> None:
    sizes, weights = [s for s, _ in sources], [w for _, w in sources]
    plan = StepPlan(sizes, weights, groups_per_step=batch, seed=0, shuffle=shuffle)
    counts = Counter(row for epoch in range(epochs) for row in rows_of(plan, epoch))
    first = 0
    for size, weight in sources:
        seen = [counts[r] for r in range(first, first + size)]
        first += size
        assert sum(seen) == int(epochs * weight * size + 1e-6)
        assert not seen or max(seen) - min(seen) <= 1
    assert not [row for row in counts if not 0 <= row < first]


def test_progress_counts_epochs() -> None:
    plan = StepPlan([10], [1.0], groups_per_step=4, seed=0)
    assert [plan.progress(s) for s in range(6)] == pytest.approx([0.4, 0.8, 1.0, 1.4, 1.8, 2.0])


def test_as_many_weights_as_sources() -> None:
    with pytest.raises(ValueError, match="2 sources but 1 weights"):
        StepPlan([1, 2], [1.0], groups_per_step=1, seed=0)


# Packs


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(1, 5), st.integers(60, 200))
def test_packs(sizes: list[int], ranks: int, budget: int) -> None:
    tokens = np.array(sizes, dtype=np.int64)
    plan = plan_packs(tokens, ranks=ranks, budget=budget)
    assert len(plan) == ranks and len({len(packs) for packs in plan}) == 1
    packs = [pack for rank in plan for pack in rank]
    assert sorted(i for pack in packs for i in pack.tolist()) == list(range(len(sizes)))
    assert all(tokens[pack].sum() <= budget for pack in packs)
    assert all(pack.dtype == np.int64 and (np.diff(pack) > 0).all() for pack in packs)
    # First fit leaves at most one pack half empty.
    assert len(plan[0]) <= max(1, -(-(2 * sum(sizes) // budget + 1) // ranks))
    again = plan_packs(tokens, ranks=ranks, budget=budget)
    assert [[p.tolist() for p in r] for r in again] == [[p.tolist() for p in r] for r in plan]


def plain_first_fit(order: list[int], size: list[int], budget: int) -> list[list[int]]:
    packs: list[list[int]] = []
    for i in order:
        for pack in packs:
            if sum(size[j] for j in pack) + size[i] <= budget:
                pack.append(i)
                break
        else:
            packs.append([i])
    return packs


def plain_even(order: list[int], size: list[int], count: int, budget: int) -> list[list[int]] | None:
    packs: list[list[int]] = [[] for _ in range(count)]
    for i in order:
        load: list[int] = [sum(size[j] for j in pack) for pack in packs]
        emptiest = load.index(min(load))
        if load[emptiest] + size[i] > budget:
            return None
        packs[emptiest].append(i)
    return packs


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=70), st.integers(1, 5), st.sampled_from([60, 61, 75, 120, 200]))
def test_plans_are_those_of_the_plain_rules(sizes: list[int], ranks: int, budget: int) -> None:
    tokens = np.array(sizes, dtype=np.int64)
    found = plan_packs(tokens, ranks=ranks, budget=budget)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmfast.data.plan._first_fit", plain_first_fit)
        patch.setattr("rmfast.data.plan._even", plain_even)
        plain = plan_packs(tokens, ranks=ranks, budget=budget)
    assert [[p.tolist() for p in rank] for rank in found] == [[p.tolist() for p in rank] for rank in plain]


class Compared(int):
    """A number of tokens that counts how often it is compared."""

    times = 0

    def _count(self, how: Callable[[int, int], bool], other: int) -> bool:
        Compared.times += 1
        return how(int(self), int(other))

    def __lt__(self, other: int) -> bool:
        return self._count(operator.lt, other)

    def __le__(self, other: int) -> bool:
        return self._count(operator.le, other)

    def __gt__(self, other: int) -> bool:
        return self._count(operator.gt, other)

    def __ge__(self, other: int) -> bool:
        return self._count(operator.ge, other)


def test_a_group_is_not_compared_with_every_pack() -> None:
    """4,096 groups for 1,000 packs: as many comparisons a group as the packs' number has binary digits."""
    tokens = sorted(np.random.default_rng(0).integers(50, 400, 4096).tolist(), reverse=True)
    Compared.times = 0
    packs = _first_fit(list(range(4096)), [Compared(n) for n in tokens], 1000)
    assert len(packs) > 900 and Compared.times <= 13 * 4096


def test_packs_are_few_and_even() -> None:
    assert len(plan_packs(np.full(12, 10), ranks=1, budget=40)[0]) == 3
    loads = [sum(10 * len(p) for p in rank) for rank in plan_packs(np.full(12, 10), ranks=4, budget=40)]
    assert loads == [30] * 4
    generator = np.random.default_rng(0)
    tokens = generator.integers(50, 400, 256)
    plan = plan_packs(tokens, ranks=8, budget=8192)
    assert len(plan[0]) == -(-int(tokens.sum()) // (8 * 8192)) == 1
    loads = [int(tokens[rank[0]].sum()) for rank in plan]
    assert max(loads) - min(loads) < 50
    # Where several rounds are needed, the fullest pack goes with the emptiest.
    tokens = np.array([10, 7, 4, 1])
    loads = [[int(tokens[p].sum()) for p in rank] for rank in plan_packs(tokens, ranks=2, budget=10)]
    assert loads == [[10, 1], [7, 4]]
    # Filling evenly would need a third pack here (3 + 2 + 2, 3 + 2): as few as can be comes first.
    tokens = np.array([3, 3, 2, 2, 2])
    assert [int(tokens[p].sum()) for p in plan_packs(tokens, ranks=1, budget=6)[0]] == [6, 6]


def test_fewer_groups_than_ranks() -> None:
    plan = plan_packs(np.array([7, 9]), ranks=4, budget=20)
    assert sorted(len(rank[0]) for rank in plan) == [0, 0, 1, 1] and all(len(rank) == 1 for rank in plan)
    assert [len(rank) for rank in plan_packs(np.empty(0, np.int64), ranks=3, budget=5)] == [1, 1, 1]


def test_a_group_that_fits_no_pack() -> None:
    with pytest.raises(ValueError, match="a group of 9 tokens exceeds the budget of 8"):
        plan_packs(np.array([3, 9]), ranks=1, budget=8)


# Steps


def loader(ranks: int, rank: int, lm: bool = False) -> StepLoader:
    table = table_of(odd_groups())
    plan = StepPlan([len(table)], [1.0], groups_per_step=5, seed=2)
    return StepLoader(table, plan, total=7, ranks=ranks, rank=rank, budget=100, predicts="chosen" if lm else None)


def steps_of(steps: StepLoader, first: int = 0) -> list[Step]:
    return [steps.step(number) for number in range(first, steps.total)]


def same(a: Step, b: Step) -> bool:
    tensors = all(
        np.array_equal(x, y)
        for p, q in zip(a.packs, b.packs, strict=True)
        for x, y in zip((*p.tensors(), p.groups, p.responses), (*q.tensors(), q.groups, q.responses), strict=True)
    )
    return tensors and (a.number, a.epoch, a.totals) == (b.number, b.epoch, b.totals)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_steps_are_those_of_one_rank(ranks: int) -> None:
    alone = steps_of(loader(1, 0, lm=True))
    assert [step.number for step in alone] == list(range(7))
    for steps in zip(alone, *(steps_of(loader(ranks, rank, lm=True)) for rank in range(ranks)), strict=True):
        whole, shares = steps[0], steps[1:]
        groups = [g for share in shares for pack in share.packs for g in pack.groups.tolist()]
        assert sorted(groups) == sorted(whole.rows.tolist())
        assert len({len(share.packs) for share in shares}) == 1
        idle = sum(not len(pack.groups) for share in shares for pack in share.packs)
        for share in shares:
            assert share.totals == whole.totals and share.epoch == whole.epoch and share.padding == idle
            assert np.array_equal(share.rows, whole.rows)
            assert all(len(pack.tokens) <= 100 for pack in share.packs)
        packs = [pack for share in shares for pack in share.packs]
        totals = whole.totals
        assert totals.groups == len(groups)
        assert totals.edges == sum(len(p.edges.better) for p in packs)
        assert totals.responses == sum(len(p.responses) for p in packs)
        assert totals.weight == pytest.approx(sum(p.edges.weight.sum().item() for p in packs))
        assert totals.lm_tokens == sum(len(p.targets.ids) for p in packs)
        assert totals.stored_tokens == sum(len(p.tokens) for p in packs) - idle
        assert totals.sequence_tokens == sum(p.positions[p.scored].sum().item() + len(p.responses) for p in packs)
        assert totals.visible == sum(p.positions.sum().item() + len(p.tokens) for p in packs) - idle


def test_a_run_goes_on_where_it_stopped() -> None:
    whole = steps_of(loader(2, 1))
    for step, later in zip(whole[4:], steps_of(loader(2, 1), first=4), strict=True):
        assert same(step, later)
    assert same(loader(2, 1).build(3), whole[3])


def test_the_next_step_is_built_meanwhile_and_any_other_when_it_is_asked_for() -> None:
    built: list[int] = []
    ahead = BuiltAhead(lambda number: built.append(number) or 10 * number, 5)
    assert ahead(2) == 20 and ahead(3) == 30 and ahead(0) == 0 and ahead(1) == 10
    assert ahead(4) == 40
    assert built == [2, 3, 4, 0, 1, 2, 4]  # 4 and 2 were begun for another order of numbers


def test_an_error_in_a_step_reaches_the_reader() -> None:
    table = table_of([group_of(np.random.default_rng(0), 30, [5, 5], [(0, 1)])])
    plan = StepPlan([1], [1.0], groups_per_step=1, seed=0)
    steps = StepLoader(table, plan, total=2, ranks=1, rank=0, budget=10)
    with pytest.raises(ValueError, match="exceeds the budget"):
        steps.step(0)


def test_rank_packs_counts_packs_without_work() -> None:
    table = table_of(odd_groups()[:2])
    shares = [rank_packs(table, np.arange(2), ranks=5, rank=rank, budget=1000) for rank in range(5)]
    assert [idle for _, idle in shares] == [3] * 5
    assert sorted(g for packs, _ in shares for pack in packs for g in pack.groups.tolist()) == [0, 1]


def test_a_million_rows() -> None:
    """In seconds, and without reading a token."""
    groups = 1_000_000
    generator = np.random.default_rng(0)
    prefix = generator.integers(20, 200, groups).astype(np.int32)
    suffix = generator.integers(1, 150, 2 * groups).astype(np.int32)
    stored = prefix + suffix[::2] + suffix[1::2]
    edge = np.arange(groups, dtype=np.int64)

    def constant(value: float, dtype: type = np.float32) -> np.ndarray:
        return np.full(groups, value, dtype)

    store = TokenStore(
        tokens=np.empty(0, np.int32),
        token_start=np.concatenate(([0], np.cumsum(stored))),
        prefix_length=prefix,
        response_start=np.arange(0, 2 * groups + 1, 2),
        suffix_length=suffix,
        answer_start=np.repeat(prefix, 2),
        edge_start=np.append(edge, groups),
        better=constant(0, np.int32),
        worse=constant(1, np.int32),
        margin=constant(0),
        target=constant(1),
        weight=constant(1),
        strength_mean=constant(np.nan),
        strength_std=constant(np.nan),
        identical=constant(False, np.bool_),
        row=edge + 1,
        prompt=edge.astype(np.uint64),
        meta={"source": "made", "files": [["made", 0]], "bos_id": None, "bad": {}},
    )
    start = time.process_time()
    table, dropped = build_table([store], max_length=250, tokens_per_pack=4096, over_long="truncate")
    plan = StepPlan([len(table)], [1.0], groups_per_step=128, seed=0)
    for step in (0, 1, 2, 7000, plan.first_step(1)):
        _, rows = plan.step(step)
        plan_packs(table.stored[rows], ranks=8, budget=4096)
        assert totals_of(table, rows).groups == 128
    edges = table_edges(table)
    assert time.process_time() - start < 20
    assert len(table) == groups and dropped["truncated"] > 0 and len(edges.better) == groups
    assert sum(len(plan.step(s)[1]) for s in range(plan.first_step(1))) == groups
