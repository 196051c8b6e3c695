"""The plots of an ensemble, and the figures behind them by hand."""

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from rmfast.data.edge_columns import Edges
from rmfast.report.ensemble.plots import (
    HeldOut,
    Strengths,
    agreement_plot,
    decile_plot,
    ensemble_plots,
    mean_plot,
    std_plot,
)
from rmfast.report.plots import LIGHT, Plot


def gaps_of(members: int = 5, edges: int = 400, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    true = draw.normal(0.7, 1.0, edges)
    return true + draw.normal(0, 0.3 + 0.2 * np.abs(true), (members, edges))


def strengths_of(gaps: np.ndarray) -> Strengths:
    return Strengths.of(gaps, np.ones(gaps.shape, dtype=bool))


def drawn(plot: Plot | None) -> Any:
    assert plot is not None
    figure = Figure()
    plot.draw(figure, LIGHT)
    return figure.axes[0]


def held_out_of(gaps: np.ndarray) -> HeldOut:
    edges = gaps.shape[1]
    one, place = np.ones(edges), np.arange(edges)
    rewards = np.stack((gaps, np.zeros_like(gaps)), 2).reshape(len(gaps), -1)
    own = Edges(
        better=2 * place,
        worse=2 * place + 1,
        group=place,
        margin=0 * one,
        target=one,
        weight=one,
        length=np.ones(2 * edges),
    )
    return HeldOut(rewards=rewards, edges=own)


def test_strengths_of_those_who_judged() -> None:
    gaps = np.array([[1.0, 2.0, np.nan, -4.0], [3.0, 7.0, np.nan, -2.0], [8.0, np.nan, 1.0, -9.0]])
    judged = np.array([[1, 1, 0, 1], [1, 1, 1, 1], [1, 0, 1, 1]], dtype=bool)
    own = Strengths.of(gaps, judged)
    assert own.mean == pytest.approx([4.0, 4.5, -5.0]) and own.broken == 1  # the third was judged, but is nan
    assert own.std == pytest.approx([np.std([1, 3, 8]), 2.5, np.std([4, 2, 9])])
    assert own.negative_share == pytest.approx(1 / 3) and own.gaps.shape == (3, 3)


def test_the_histogram_counts_every_strength_and_splits_at_zero() -> None:
    mean = np.concatenate([np.linspace(-3, 5, 399), [900.0]])  # one far out must not flatten the others
    axes = drawn(mean_plot(Strengths(mean=mean, std=mean * 0, gaps=mean[None], broken=0)))
    bars = [bar for bar in axes.patches if bar.get_height()]
    assert sum(bar.get_height() for bar in bars) == 400 and axes.get_xlim()[1] < 10
    negative = [bar for bar in bars if bar.get_x() + bar.get_width() <= 1e-9]
    assert sum(bar.get_height() for bar in negative) == (mean < 0).sum()
    assert f"label disagrees: {(mean < 0).sum()}" in axes.get_legend_handles_labels()[1]


def test_std_in_twenty_groups_by_mean() -> None:
    draw = np.random.default_rng(1)
    mean = draw.permutation(np.linspace(-2, 6, 200))
    std = np.abs(mean - 1)
    plot = std_plot(Strengths(mean=mean, std=std, gaps=mean[None], broken=0))
    heights = [bar.get_height() for bar in drawn(plot).patches]
    order = np.argsort(mean)
    assert heights == pytest.approx([std[order[10 * i : 10 * i + 10]].mean() for i in range(20)])
    assert plot is not None and "group 8 of 20" in plot.title


def test_agreement_is_a_square_of_shares() -> None:
    gaps = gaps_of(4, 50)
    axes = drawn(agreement_plot(gaps, "pairs", ""))
    shown = axes.images[0].get_array()
    assert shown.mask.diagonal().all()
    assert shown[1, 3] == pytest.approx(((gaps[1] > 0) == (gaps[3] > 0)).mean())
    written = {text.get_text() for text in axes.texts}
    assert f"{100 * shown[1, 3]:.0f}" in written and len(axes.texts) == 12
    assert agreement_plot(np.array([[1.0, np.nan], [np.nan, 1.0]]), "pairs", "") is None


def test_deciles_by_absolute_strength() -> None:
    gaps = gaps_of()
    axes = drawn(decile_plot(gaps))
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    mean = gaps.mean(0)
    tenth = np.argsort(np.abs(mean))[:40]
    assert lines["mean of 5, 95 % intervals"][0] == pytest.approx((mean[tenth] > 0).mean())
    assert lines["a single member"][0] == pytest.approx((gaps[:, tenth] > 0).mean())
    assert lines["mean of 5, 95 % intervals"][-1] == pytest.approx((mean[np.argsort(np.abs(mean))[-40:]] > 0).mean())


@pytest.mark.parametrize("sets", [0, 1, 2])
def test_every_plot_that_there_is_data_for(sets: int) -> None:
    gaps = gaps_of(3, 60)
    held_out = {name: held_out_of(gaps_of(3, 30, seed)) for seed, name in enumerate(["a", "b"][:sets])}
    plots = ensemble_plots(strengths_of(gaps), held_out)
    own = [["agreement"], ["agreement", "deciles"], ["a-agreement", "a-deciles", "b-agreement", "b-deciles"]][sets]
    assert [plot.name for plot in plots] == ["strength", "strength-std", *own]


def test_few_and_broken_edges_draw_what_is_there() -> None:
    broken = np.full((3, 4), np.nan)
    assert ensemble_plots(strengths_of(broken), {"eval": held_out_of(broken)}) == []
    one = np.array([[1.0], [1.0], [1.0]])
    plots = ensemble_plots(strengths_of(one), {"eval": held_out_of(one)})
    assert len(plots) == 4
    for plot in plots:
        assert drawn(plot)
