"""Views of a pack: every response twice, each seeing what it sees alone, in as many tokens as planned."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmfast.data.loader import rank_packs, totals_of
from rmfast.data.pack import Pack, empty_pack
from rmfast.data.views import Views, add_views, view_tokens, view_visible
from tests.tiny import Group, group_of, pack_of, table_of


def seen(pack: Pack, token: int) -> list[tuple[int, int]]:
    """(position, id) of the tokens that a token sees."""
    start, prefix_end, segment, _ = pack.layout[:, token].tolist()
    keys = [k for k in range(start, token + 1) if k < prefix_end or k >= segment]
    return [(int(pack.positions[k]), int(pack.tokens[k])) for k in keys]


@pytest.mark.parametrize("views", ["pass", "response"])
@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(0, 4), min_size=2, max_size=3)), min_size=1),
    seed=st.integers(0, 99),
)
def test_both_views_of_a_response_see_its_sequence(
    views: Views, shapes: list[tuple[int, list[int]]], seed: int
) -> None:
    g = np.random.default_rng(seed)
    groups = [group_of(g, prefix, suffixes, [(0, 1)]) for prefix, suffixes in shapes]
    table = table_of(groups)
    rows = np.arange(len(table))
    plain, pack = pack_of(groups, lm=True), add_views(pack_of(groups, lm=True), views)
    count = len(plain.scored)
    assert len(pack.scored) == len(pack.is_response) == 2 * count and pack.is_response.all()
    for view in (0, 1):
        for r in range(count):
            assert seen(pack, int(pack.scored[view * count + r])) == seen(plain, int(plain.scored[r]))
    edges = len(plain.edges.better)
    for name in ("better", "worse"):
        assert torch.equal(getattr(pack.edges, name)[:edges], getattr(plain.edges, name))
        assert torch.equal(getattr(pack.edges, name)[edges:], getattr(plain.edges, name) + count)
    assert torch.equal(pack.edges.weight, plain.edges.weight.repeat(2))
    assert torch.equal(pack.tokens[pack.targets.rows], plain.tokens[plain.targets.rows])
    for now, then in zip(pack.targets.rows.tolist(), plain.targets.rows.tolist(), strict=True):
        assert seen(pack, now) == seen(plain, then)
    # What is planned is what is computed.
    assert view_tokens(table, rows, views).sum() == len(pack.tokens)
    assert view_visible(table, rows, views).sum() == sum(len(seen(pack, k)) for k in range(len(pack.tokens)))


def test_prompts_are_computed_once_for_views_by_response() -> None:
    g = np.random.default_rng(0)
    groups = [group_of(g, 10, [3, 2], [(0, 1)])]
    assert len(add_views(pack_of(groups), "pass").tokens) == 30
    assert len(add_views(pack_of(groups), "response").tokens) == 20


def test_packs_and_totals_count_views() -> None:
    g = np.random.default_rng(0)
    table = table_of([group_of(g, 6, [3, 2], [(0, 1)]) for _ in range(4)])
    rows = np.arange(4)
    plain, twice = totals_of(table, rows), totals_of(table, rows, "response")
    assert (twice.edges, twice.responses, twice.weight) == (2 * plain.edges, 2 * plain.responses, 2 * plain.weight)
    assert twice.lm_tokens == plain.lm_tokens and twice.stored_tokens == plain.stored_tokens + 4 * 5
    packs, _ = rank_packs(table, rows, ranks=1, rank=0, budget=32, views="response")
    assert [len(pack.tokens) for pack in packs] == [32, 32]
    assert add_views(empty_pack(), "pass").tokens.shape == (1,)


def test_a_response_inside_the_prefix_has_one_place() -> None:
    inside = Group([[1, 7, 8], [1, 7, 8, 9]], ((1, 0),))
    pack = add_views(pack_of([inside]), "response")
    assert pack.scored.tolist() == [2, 3, 2, 4] and pack.tokens.tolist() == [1, 7, 8, 9, 9]
