"""Plots: each is a picture in both themes, says what it shows and bears missing data."""

import io
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from rmfast.evaluation.metrics import calibration_error
from rmfast.report.plots import BINS, DARK, DPI, INCHES, LIGHT, render
from rmfast.report.run_folder import read_run
from rmfast.report.run_plots import all_plots, smooth

NAMES = ["accuracy", "loss", "rewards", "margins", "calibration", "length", "speed"]


def pixels(png):
    return imread(io.BytesIO(png), format="png")


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_plot_is_a_picture_on_its_paper(run_dir, theme):
    plots = all_plots(read_run(run_dir))
    assert [plot.name for plot in plots] == NAMES
    paper = matplotlib.colors.to_rgb(theme.paper)
    for plot in plots:
        image = pixels(render(plot, theme))[..., :3]
        assert image.shape[:2] == (round(INCHES[1] * DPI), round(INCHES[0] * DPI))
        np.testing.assert_allclose(image[0, 0], paper, atol=0.01)
        assert (np.abs(image - paper).max(axis=-1) > 0.2).mean() > 0.01, f"{plot.name} is blank"


def test_rendering_leaves_matplotlib_as_it_was(run_dir):
    before = dict(matplotlib.rcParams)
    render(all_plots(read_run(run_dir))[0], DARK)
    assert dict(matplotlib.rcParams) == before


def test_titles_tell_the_numbers(run_dir, scored):
    titles = {plot.name: plot.title for plot in all_plots(read_run(run_dir))}
    gap = scored["scores"][scored["better"]] - scored["scores"][scored["worse"]]
    error = calibration_error(scored["scores"], scored["better"], scored["worse"])
    assert f"{100 * (gap > 0).mean():.1f} % of margins" in titles["margins"]
    assert f"{gap.mean():.2f} above" in titles["rewards"]
    assert f"{100 * error:.1f} points" in titles["calibration"]
    assert "0.695 first" in titles["loss"]


def test_several_held_out_sets_have_their_own_files(run_dir, scored):
    np.savez(run_dir / "eval" / "oasst-final.npz", **scored)
    names = [plot.name for plot in all_plots(read_run(run_dir))]
    assert len(set(names)) == len(names) and {"hh-margins", "oasst-margins"} <= set(names)


def test_smooth():
    np.testing.assert_allclose(smooth(np.full(9, 3.0), 4), 3.0)
    np.testing.assert_array_equal(smooth(np.array([1.0, 5.0]), 1), [1.0, 5.0])
    values = smooth(np.array([np.nan, 2.0, np.nan, 2.0]), 3)
    np.testing.assert_array_equal(np.isnan(values), [True, False, True, False])
    assert values[3] == pytest.approx(2.0)
    noise = np.random.default_rng(0).normal(size=500)
    assert smooth(noise, 50)[100:].std() < 0.3 * noise.std()


@pytest.mark.parametrize("case", ["one edge", "all tied", "broken scores", "one step", "nothing known", "huge"])
def test_thin_data_still_draws(run_dir, scored, case):
    run = read_run(run_dir)
    scores = run.finals["hh"]
    if case == "one edge":
        scores = replace(scores, better=scores.better[:1], worse=scores.worse[:1])
    elif case == "all tied":
        scores = replace(scores, scores=np.zeros_like(scores.scores))
    elif case == "broken scores":
        scores.scores[:50] = np.nan
        scores.scores[50:60] = np.inf
    elif case == "huge":
        scores = replace(scores, scores=1e12 * scores.scores)
    elif case == "one step":
        run = replace(run, train=run.train[:1], evals={"hh": run.evals["hh"][:1]})
    else:
        unknown = ({"step": 1}, {"step": 2, "loss": None, "accuracy": float("nan")})
        run = replace(run, train=unknown, evals={"hh": unknown})
        scores = replace(scores, scores=np.full_like(scores.scores, np.nan))
    plots = all_plots(replace(run, finals={"hh": scores}))
    assert [plot.name for plot in plots] == ([] if case == "nothing known" else NAMES)
    for plot in plots:
        assert "nan" not in plot.title, plot.title
        render(plot)


def test_margin_bins_keep_ties_with_the_wrong(run_dir):
    from matplotlib.figure import Figure

    run = read_run(run_dir)
    scores = run.finals["hh"]
    scores.scores[scores.better[:30]] = scores.scores[scores.worse[:30]]
    margin = scores.scores[scores.better] - scores.scores[scores.worse]
    figure = Figure()
    next(plot for plot in all_plots(run) if plot.name == "margins").draw(figure, LIGHT)
    bars = [(patch.get_x() + patch.get_width() / 2, patch.get_height()) for patch in figure.axes[0].patches]
    assert sum(height for middle, height in bars if middle < 0) == (margin <= 0).sum()
    assert sum(height for middle, height in bars if middle > 0) == (margin > 0).sum()
    assert len(bars) <= 2 * (BINS + 4)


def test_a_contrastive_term_has_a_plot_of_its_own(run_dir):
    run = read_run(run_dir)
    assert "contrast" not in [plot.name for plot in all_plots(run)]
    own = {"contrastive_loss": 2.0, "feature_overlap": 0.25, "views_cosine": 0.9}
    plot = next(
        plot for plot in all_plots(replace(run, train=tuple(row | own for row in run.train))) if plot.name == "contrast"
    )
    assert "cosine 0.25 at the end" in plot.title
    image = pixels(render(plot))[..., :3]
    assert (np.abs(image - 1).max(axis=-1) > 0.2).mean() > 0.01


@pytest.mark.parametrize("measured", [True, False])
def test_metarm_has_a_plot_of_its_own(run_dir, measured):
    run = read_run(run_dir)
    assert "meta" not in [plot.name for plot in all_plots(run)]
    rows = [
        row
        | {"difference_loss": 0.5 + row["step"] / 1000, "reward_difference_variance": 1.0 + row["step"]}
        | ({"difference_loss_after": 0.502 + row["step"] / 1000} if measured and row["step"] % 10 == 1 else {})
        for row in run.train
    ]
    for train in (rows, rows[:1]):
        plot = next(plot for plot in all_plots(replace(run, train=tuple(train))) if plot.name == "meta")
        assert f"J {train[-1]['difference_loss']:.3f} at the end" in plot.title
        assert ("an ascent adds 2.0e-03" in plot.title) == measured
        image = pixels(render(plot))[..., :3]
        assert (np.abs(image - 1).max(axis=-1) > 0.2).mean() > 0.01


@pytest.mark.parametrize(("step", "when"), [(0, "before training"), (30, "after step 30")])
def test_the_first_perplexity_is_said_of_its_step(run_dir, step, when):
    rows = ({"step": step, "perplexity": 717.36}, {"step": 92, "perplexity": 418.7})
    titles = {plot.name: plot.title for plot in all_plots(replace(read_run(run_dir), evals={"eval": rows}))}
    assert titles["perplexity"] == f"eval: perplexity 717.36 {when}, 418.70 at the end"
