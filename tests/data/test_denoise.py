"""Denoising by strength: exact counts and values by hand, identities through the real loss, denoised tables."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmfast.data.denoise import PRESETS, Denoise, Denoised, denoise_edges, quantile_slice, resolve
from rmfast.data.denoise_table import apply_denoised, denoise_table
from rmfast.data.loader import totals_of
from rmfast.data.pack import build_pack
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.store import TokenStore
from rmfast.data.table import GroupTable, build_table, table_edges
from rmfast.errors import UserError
from rmfast.kernels import ranking_loss
from tests.data.groups import groups
from tests.tiny import Group, store_of

NAN = float("nan")
# Twenty edges, two a tenth: six below zero, the weakest at both ends of the data; a tie at -0.5.
STRENGTH = [-0.5, 3.0, 0.2, -2.0, 1.0, 0.1, 2.0, -0.1, 5.0, 0.4, 0.3, -0.5, 1.5, 4.0, 0.0, 2.5, -1.0, 0.5, -3.0, 3.5]


def denoised(options: Denoise, strength: list[float] = STRENGTH, **columns: Any) -> Denoised:
    count = len(strength)
    default: dict[str, Any] = {"margin": [0.0] * count, "target": [1.0] * count, "weight": [1.0] * count}
    values = {name: np.array(column, np.float32) for name, column in (default | columns).items() if name in default}
    identical = np.array(columns.get("identical", [False] * count))
    return denoise_edges(options, strength=np.array(strength, np.float32), identical=identical, **values)


def places(mask: np.ndarray) -> set[int]:
    return set(np.flatnonzero(mask).tolist())


# --- presets and options


def test_presets_on_twenty_edges() -> None:
    weakest, negative = {18, 3}, {0, 3, 7, 11, 16, 18}
    flips = {"baseline": set(), "margin": set(), "flip": weakest, "flip_margin": weakest, "soft_margin": set()}
    assert flips.keys() == PRESETS.keys()
    for name, options in PRESETS.items():
        result = denoised(options)
        assert places(result.flipped) == flips[name] and not result.dropped.any()
        assert places(result.smoothed) == (negative if name == "soft_margin" else set())
        signed = np.array(STRENGTH, np.float32)
        signed[list(flips[name])] *= -1
        assert result.strength.tolist() == signed.tolist()
        assert result.margin.tolist() == (signed if "margin" in name else 0 * signed).tolist()
        wanted = np.where([name == "soft_margin" and i in negative for i in range(20)], np.float32(0.9), 1)
        assert result.target.tolist() == wanted.tolist()
        assert (result.weight == 1).all() and result.unknown == result.replaced_margins == result.replaced_targets == 0


def test_a_flip_takes_no_edge_that_the_models_agree_with() -> None:
    assert places(denoised(Denoise(flip=0.5)).flipped) == {0, 3, 7, 11, 16, 18}  # 0.0 is not negative
    assert places(denoised(Denoise(flip=1.0)).flipped) == {0, 3, 7, 11, 16, 18}


def test_ties_go_by_the_order_of_the_data() -> None:
    assert places(denoised(Denoise(flip=0.2)).flipped) == {18, 3, 16, 0}  # 0 and 11 are equal
    assert places(denoised(Denoise(flip=0.1), [-1.0, -2.0] * 500).flipped) == set(range(1, 200, 2))


@given(st.lists(st.sampled_from([NAN, -1.0, 0.0, 0.5, 0.5, 2.0]), max_size=40))
def test_slices_that_meet_hold_each_edge_once_in_order(strength: list[float]) -> None:
    values = np.array(strength, np.float32)
    known = ~np.isnan(values)
    cuts = (0.0, 0.1, 0.35, 0.5, 0.9, 1.0)
    parts = [quantile_slice(values, known, (low, high)) for low, high in zip(cuts, cuts[1:], strict=False)]
    assert (np.sum(parts, 0) == known).all()
    for before, after in zip(parts, parts[1:], strict=False):
        if before.any() and after.any():
            assert values[before].max() <= values[after].min()
    for part, low, high in zip(parts, cuts, cuts[1:], strict=False):
        assert abs(part.sum() - (high - low) * known.sum()) < 1 + 1e-9


def test_drop() -> None:
    result = denoised(Denoise(flip=0.1, drop=(0.0, 0.05), drop_below=-0.3, margin="mean"))
    # The weakest goes by its quantile and is no flip any more; 3 is flipped and so above -0.3; ties both go.
    assert places(result.dropped) == {18, 0, 11, 16} and places(result.flipped) == {3}
    assert len(result.margin[result.kept]) == 16 and result.margin[result.kept].min() == np.float32(-0.1)
    assert "1 flipped, 4 dropped, 16 margins (-0.1 / " in result.summary()


def test_margins_are_scaled_then_capped() -> None:
    result = denoised(Denoise(flip=0.1, margin="mean", margin_scale=0.5, margin_min=0.0, margin_max=1.2))
    wanted = np.clip([0.5 * (-x if i in (18, 3) else x) for i, x in enumerate(STRENGTH)], 0, 1.2)
    np.testing.assert_array_equal(result.margin, wanted.astype(np.float32))
    assert result.margin[18] == np.float32(1.2) and result.margin[3] == 1 and result.margin[0] == 0


def test_quantiles_name_edges_as_they_came_and_signs_are_those_after_the_flip() -> None:
    both = denoised(Denoise(flip=0.1, smooth=0.1, smooth_slice=(0.0, 0.1)))
    assert places(both.smoothed) == places(both.flipped) == {18, 3}
    rest = denoised(Denoise(flip=0.1, smooth=0.1, smooth_slice="negative"))
    assert places(rest.smoothed) == {0, 7, 11, 16}


def test_soft_labels_are_the_probability_that_better_is_better_after_the_flip() -> None:
    result = denoised(Denoise(flip=0.1, soft_temperature=2.0))
    signed = np.array([-x if i in (18, 3) else x for i, x in enumerate(STRENGTH)])
    np.testing.assert_allclose(result.target, 1 / (1 + np.exp(-signed / 2)), rtol=1e-6)
    assert result.target[18] > 0.8 and result.target[16] < 0.5
    assert denoised(Denoise(soft_temperature=1e-3)).target.tolist() == [1 - (x < 0) - (x == 0) / 2 for x in STRENGTH]
    part = denoised(Denoise(soft_temperature=2.0, smooth_slice="negative"))
    assert (part.target < 0.5).sum() == 6 and (part.target == 1).sum() == 14


def test_weights_by_strength_multiply_the_data_s_own() -> None:
    own = np.linspace(0.5, 2, 20)
    result = denoised(Denoise(weight_temperature=0.5), weight=own)
    np.testing.assert_allclose(result.weight, own / (1 + np.exp(-np.array(STRENGTH) / 0.5)), rtol=1e-6)
    assert result.weight.dtype == np.float32


def test_own_columns() -> None:
    """Margins and soft labels replace, smoothing mixes; what is replaced is counted."""
    own = {"margin": [0.7] * 4 + [0.0] * 16, "target": [0.8] * 2 + [1.0] * 18}
    result = denoised(Denoise(margin="mean", smooth=0.1, smooth_slice="all"), **own)
    assert result.margin.tolist() == np.array(STRENGTH, np.float32).tolist() and result.replaced_margins == 4
    np.testing.assert_allclose(result.target, [0.9 * 0.8 + 0.1 * 0.2] * 2 + [0.9] * 18, rtol=1e-6)
    assert result.replaced_targets == 0
    result = denoised(Denoise(soft_temperature=1.0), **own)
    assert result.replaced_targets == 2 and result.margin.tolist() == np.array(own["margin"], np.float32).tolist()
    assert "2 targets of the data replaced" in result.summary()
    flipped = denoised(Denoise(flip=0.2), **own)  # a flip swaps sides and changes no other column
    assert flipped.margin.tolist() == np.array(own["margin"], np.float32).tolist()
    assert flipped.target.tolist() == np.array(own["target"], np.float32).tolist()


def test_edges_without_a_strength_stay_and_are_counted() -> None:
    some = [NAN, -1.0, NAN, 2.0]
    options = Denoise(flip=1.0, margin="mean", smooth=0.1, smooth_slice="negative", weight_temperature=1.0)
    result = denoised(options, some, margin=[0.3] * 4)
    assert result.unknown == 2 and "2 without a strength" in result.summary()
    for place in (0, 2):
        assert (result.margin[place], result.target[place], result.weight[place]) == (np.float32(0.3), 1, 1)
    assert places(result.flipped) == {1} and places(result.known) == {1, 3}
    everywhere = denoised(Denoise(smooth=0.25), some)
    assert everywhere.target.tolist() == [0.75] * 4 and everywhere.unknown == 0
    for options in (*list(PRESETS.values())[1:], Denoise(drop=(0, 0.5)), Denoise(soft_temperature=1)):
        with pytest.raises(UserError, match="no edge has a strength; .*task: ensemble.*rmfast score"):
            denoised(options, [NAN] * 4)
    assert denoised(Denoise(smooth=0.25), [NAN] * 4).target.tolist() == [0.75] * 4


def test_identical_responses_are_left_alone_and_out_of_the_quantiles() -> None:
    options = Denoise(flip=0.5, drop=(0.5, 1), margin="mean", smooth=0.1)
    result = denoised(options, [-4.0, -1.0, 2.0, NAN], identical=[True, False, False, True])
    assert places(result.flipped) == {1} and places(result.dropped) == {2} and places(result.smoothed) == {1}
    assert result.margin[0] == 0 and result.target[0] == 1 and result.unknown == 0


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(UserError, match=r"denoise \(drop 0 to 1\): no edge is left; drop fewer"):
        denoised(Denoise(drop=(0, 1)))
    with pytest.raises(UserError, match="no edge is left"):
        denoised(Denoise(drop_below=9.0), [1.0, 0.0, 2.0], identical=[False, True, False])


@pytest.mark.parametrize(
    ("preset", "given", "hint"),
    [
        (None, {"flip": 1.1}, "denoise.flip must be from 0 to 1, got 1.1"),
        (None, {"smooth": 0.6}, "denoise.smooth must be from 0 to 0.5"),
        (None, {"drop": (0.5, 0.5)}, "denoise.drop must be quantiles"),
        (None, {"smooth": 0.1, "smooth_slice": (-0.1, 0.5)}, "denoise.smooth_slice must be quantiles"),
        ("margin", {"margin_scale": 0.0}, "denoise.margin_scale must be above 0"),
        ("margin", {"margin_min": 2.0, "margin_max": 1.0}, r"denoise.margin_min \(2\) is above denoise.margin_max"),
        (None, {"soft_temperature": 1.0, "smooth": 0.1}, "denoise.smooth and denoise.soft_temperature both"),
        ("flip", {"margin_max": 1.0}, "denoise.margin_max does nothing without denoise.margin mean"),
        ("flip", {"smooth_slice": "all"}, "denoise.smooth_slice does nothing"),
    ],
)
def test_options_that_clash_or_do_nothing(preset: str | None, given: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        resolve(preset, given)


def test_a_preset_with_its_own_options_changed() -> None:
    assert resolve(None, {}) == resolve("baseline", {}) == Denoise() and not Denoise().active
    assert resolve("flip_margin", {"flip": 0.2, "margin": None}) == Denoise(flip=0.2, margin="mean")
    assert resolve("flip_margin", {"margin": "none"}) == PRESETS["flip"]
    assert resolve("soft_margin", {"soft_temperature": 3.0}) == Denoise(
        margin="mean", smooth_slice="negative", soft_temperature=3.0
    )
    assert str(resolve("soft_margin", {})) == "margin mean, smooth 0.1, smooth_slice negative"
    assert all(options.active and options.needs_strength for options in list(PRESETS.values())[1:])


# --- identities through the real loss


def loss_of(result: Denoised, gap: torch.Tensor, edge: int) -> torch.Tensor:
    """Of one edge, whose sides' scores differ by `gap` in favour of what is better now."""
    scores = torch.stack((gap, torch.zeros_like(gap)))
    values = {name: torch.from_numpy(getattr(result, name)[[edge]]).double() for name in ("margin", "target")}
    return ranking_loss(scores, torch.tensor([0]), torch.tensor([1]), **values)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2, 0.3])
def test_the_smoothed_loss_is_least_at_the_log_odds(alpha: float) -> None:
    result = denoised(Denoise(smooth=alpha))
    best = torch.tensor(np.log((1 - alpha) / alpha), dtype=torch.float64, requires_grad=True)
    loss = loss_of(result, best, 0)
    (slope,) = torch.autograd.grad(loss, best)
    assert abs(slope) < 1e-7
    for step in (-0.1, 0.1):
        assert loss_of(result, best.detach() + step, 0) > loss.detach()


def test_the_margin_loss_at_its_margin_is_log_2() -> None:
    result = denoised(PRESETS["flip_margin"])
    for edge in range(20):
        gap = torch.tensor(float(result.margin[edge]), dtype=torch.float64)
        assert loss_of(result, gap, edge).item() == pytest.approx(np.log(2), abs=1e-12)
    assert (result.margin[result.flipped] > 0).all() and result.flipped.any()


def test_smoothing_and_margin_together_smooth_around_the_margin() -> None:
    """p = sigmoid(D - m), then equation 5."""
    result = denoised(PRESETS["soft_margin"])
    gap = torch.tensor(0.3, dtype=torch.float64)
    p = torch.sigmoid(gap - float(result.margin[16]))
    a = 1 - float(result.target[16])
    wanted = -((1 - a) * p.log() + a * (1 - p).log())
    assert result.smoothed[16] and loss_of(result, gap, 16).item() == pytest.approx(wanted.item(), abs=1e-12)


# --- tables


def strong(store: TokenStore, strength: list[float]) -> TokenStore:
    return replace(store, strength_mean=np.array(strength, np.float32))


PAIR = Group([[3, 4, 5], [3, 4, 6, 7]], ((0, 1),))
RANKED = Group([[8, 9], [8, 10, 11], [8, 12, 13, 14]], ((0, 1), (0, 2), (1, 2)))
TWINS = Group([[5, 6], [5, 6], [5, 7]], ((0, 1), (0, 2)))


def tables() -> GroupTable:
    """Two stores; a row that is too long lies between, so that places in table and store differ."""
    long = Group([[3] * 9, [4] * 9], ((0, 1),))
    first = strong(store_of([long, PAIR, RANKED]), [-9.0, -2.0, 1.0, -1.0, 4.0])
    second = strong(store_of([TWINS, long, PAIR]), [0.0, 0.5, 9.0, 3.0])
    return build_table([first, second], max_length=8)[0]


def rows_of(table: GroupTable) -> list[tuple[int, int, int, float, float, float]]:
    e = table_edges(table)
    columns = (e.group, e.better, e.worse, e.margin, e.target, e.weight)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_a_table_is_treated_and_its_stores_are_not() -> None:
    table = tables()
    third = float(np.float32(1 / 3))
    assert rows_of(table) == [
        (0, 0, 1, 0.0, 1.0, 1.0),
        (1, 2, 3, 0.0, 1.0, third),
        (1, 2, 4, 0.0, 1.0, third),
        (1, 3, 4, 0.0, 1.0, third),
        (2, 5, 6, 0.0, 1.0, 0.5),
        (2, 5, 7, 0.0, 1.0, 0.5),
        (3, 8, 9, 0.0, 1.0, 1.0),
    ]
    before = {f.name: getattr(table.stores[0], f.name) for f in fields(TokenStore)}
    copies = {name: value.copy() for name, value in before.items() if isinstance(value, np.ndarray)}
    after, denoised = denoise_table(table, Denoise(flip=0.4, drop=(0.5, 0.6), margin="mean"))
    assert denoised is not None and denoised.known.sum() == 6
    # Strengths in order: -2 -1 .5 1 3 4: two flips, the edge of strength 1 goes.
    assert rows_of(after) == [
        (0, 1, 0, 2.0, 1.0, 1.0),
        (1, 4, 2, 1.0, 1.0, third),
        (1, 3, 4, 4.0, 1.0, third),
        (2, 5, 6, 0.0, 1.0, 0.5),
        (2, 5, 7, 0.5, 1.0, 0.5),
        (3, 8, 9, 3.0, 1.0, 1.0),
    ]
    assert after.edges.tolist() == [1, 2, 2, 1] and after.lm.tolist() == [2, 2, 1, 1]
    assert table.lm.tolist() == [1, 1, 1, 1]  # of what is chosen: no longer the same responses
    assert after.weight.tolist() == pytest.approx([1, 2 / 3, 1, 1])
    for name, copy in copies.items():
        assert getattr(table.stores[0], name) is before[name]
        np.testing.assert_array_equal(before[name], copy)
    totals = totals_of(after, np.array([0, 1]))
    assert (totals.edges, totals.lm_tokens, totals.groups, totals.responses) == (3, 4, 2, 5)
    assert totals.weight == pytest.approx(1 + 2 / 3)
    check_packs(after)


def check_packs(table: GroupTable) -> None:
    """Packs hold the edges and chosen responses that the table counts."""
    edges = rows_of(table)
    for group in range(len(table)):
        pack = build_pack(table, np.array([group]), predicts="chosen")
        first = table.first_response[group]
        e = pack.edges
        columns = (e.better + first, e.worse + first, e.margin, e.target, e.weight)
        assert list(zip(*(c.tolist() for c in columns), strict=True)) == [
            edge[1:] for edge in edges if edge[0] == group
        ]
        assert len(pack.targets.rows) == table.lm[group]
        assert pack.edges.weight.dtype == pack.edges.margin.dtype == pack.edges.target.dtype == torch.float32
        assert float(pack.edges.weight.double().sum()) == pytest.approx(table.weight[group])
    whole = build_pack(table, np.arange(len(table)), predicts="chosen")
    assert len(whole.edges.better) == len(edges) and whole.edges.margin.tolist() == [e[3] for e in edges]


def test_the_chosen_response_of_a_flipped_pair_is_what_the_lm_loss_reads() -> None:
    table, _ = build_table([strong(store_of([PAIR]), [-1.0])])
    after, _ = denoise_table(table, Denoise(flip=1.0))
    assert build_pack(table, np.array([0]), predicts="chosen").targets.ids.tolist() == [5]
    assert build_pack(after, np.array([0]), predicts="chosen").targets.ids.tolist() == [6, 7]


def test_groups_that_lose_their_edges_are_left_out() -> None:
    table = tables()
    after, denoised = denoise_table(table, Denoise(drop_below=0.9))
    # What is left of TWINS is an edge between identical responses: no use.
    assert denoised is not None and denoised.dropped.sum() == 3
    assert after.index.tolist() == [2, 2] and after.store.tolist() == [0, 1]
    assert after.first_response.tolist() == [0, 3, 5] and after.edges.tolist() == [2, 1]
    assert [e[:3] for e in rows_of(after)] == [(0, 0, 1), (0, 1, 2), (1, 3, 4)]
    assert [after.label(g) for g in range(2)] == ["tiny:3", "tiny:3"]
    assert after.sequences_of(1) == PAIR.sequences
    check_packs(after)


def test_baseline_is_the_table_itself() -> None:
    table = tables()
    after, denoised = denoise_table(table, PRESETS["baseline"])
    assert after is table and denoised is None
    assert all(edges.better is store.better for edges, store in zip(table.store_edges, table.stores, strict=True))


@settings(max_examples=100, deadline=None)
@given(st.data(), st.lists(groups(), min_size=1, max_size=4), st.lists(groups(), max_size=3))
def test_any_flip_undone_is_the_table_as_it_was(data: st.DataObject, first: list[Group], second: list[Group]) -> None:
    table, _ = build_table([store_of(first), store_of(second)], kind=RESPONSES)
    count = int(table.edges.sum())
    flipped = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool)
    own = table_edges(table)
    fixed = {name: getattr(own, name) for name in ("margin", "target", "weight")}
    none = np.zeros(count, dtype=bool)
    denoised = Denoised(
        options=Denoise(),
        strength=np.full(count, NAN, np.float32),
        known=none,
        flipped=flipped,
        dropped=none,
        smoothed=none,
        unknown=0,
        replaced_margins=0,
        replaced_targets=0,
        **fixed,
    )
    once = apply_denoised(table, denoised)
    swapped = table_edges(once)
    assert (swapped.better == np.where(flipped, own.worse, own.better)).all()
    check_packs(once)
    twice = apply_denoised(once, denoised)
    assert rows_of(twice) == rows_of(table)
    for column in ("edges", "lm", "weight", "index", "stored", "first_response"):
        assert getattr(twice, column).tolist() == getattr(table, column).tolist(), column


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(groups(), min_size=1, max_size=5))
def test_a_treated_table_equals_the_table_of_treated_groups(data: st.DataObject, drawn: list[Group]) -> None:
    """Against groups whose edges were swapped, left out and valued by hand."""
    store = store_of(drawn)
    strength = [data.draw(st.sampled_from([NAN, -2.0, -0.5, 0.5, 1.0])) for _ in store.better]
    table, _ = build_table([strong(store, strength)])
    options = Denoise(flip=0.5, drop=(0.4, 0.7), margin="mean", margin_max=0.75, smooth=0.1, smooth_slice="negative")
    try:
        after, denoised = denoise_table(table, options)
    except UserError:
        return  # none has a strength, or all are dropped
    assert denoised is not None
    edges = table_edges(table)
    wanted = []
    for edge in np.flatnonzero(~denoised.dropped).tolist():
        ends = int(edges.better[edge]), int(edges.worse[edge])
        values = (float(getattr(denoised, name)[edge]) for name in ("margin", "target", "weight"))
        wanted.append((int(edges.group[edge]), *(ends[::-1] if denoised.flipped[edge] else ends), *values))
    # Numbers of groups and responses move where groups are left out.
    pairs = list(zip(table.store.tolist(), table.index.tolist(), strict=True))
    kept = [pairs.index(pair) for pair in zip(after.store.tolist(), after.index.tolist(), strict=True)]
    moved = {g: (n, int(after.first_response[n] - table.first_response[g])) for n, g in enumerate(kept)}
    assert rows_of(after) == [
        (moved[g][0], b + moved[g][1], w + moved[g][1], *values) for g, b, w, *values in wanted if g in moved
    ]
    check_packs(after)


def test_exact_counts_on_a_million_edges() -> None:
    count = 1_000_000
    generator = np.random.default_rng(0)
    small = store_of([PAIR])
    repeated = {
        name: np.tile(getattr(small, name), count)
        for name in ("tokens", "prefix_length", "suffix_length", "answer_start", "better", "worse", "margin", "target")
    }
    repeated |= {name: np.tile(getattr(small, name), count) for name in ("weight", "strength_std", "identical", "row")}
    starts = {
        name: np.arange(count + 1) * int(getattr(small, name)[-1])
        for name in ("token_start", "response_start", "edge_start")
    }
    strength = generator.normal(1, 1, count).astype(np.float32)
    table, _ = build_table([replace(small, **repeated, **starts, strength_mean=strength)])
    after, denoised = denoise_table(table, replace(PRESETS["flip_margin"], drop=(0.3, 0.4)))
    assert denoised is not None and denoised.flipped.sum() == 100_000 and len(after) == 900_000
    assert after.lm.sum() == 900_000 + 100_000  # a flipped pair's response has a token more
