"""The mark of a policy that exploits its reward model: where it is made, where it is not, and what stands beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from rmfast.report.html import write_report
from rmfast.report.plots import LIGHT, render
from rmfast.report.policy.collapse import find_collapse, signs
from rmfast.report.policy.gold_plots import gold_plot, members_plot
from rmfast.report.policy.outcome import policy_summary
from rmfast.report.policy.plots import policy_plots
from rmfast.report.policy.samples import read_pairs
from rmfast.report.run_folder import Run, read_run
from tests.report.policy_run import sample_row, write_lines, write_policy_run
from tests.report.test_html import Page


def evaluations(reward: list[float], gold: list[float], half: float = 0.05) -> dict[str, tuple[dict[str, Any], ...]]:
    """Every twenty steps an evaluation, with intervals of the same width."""
    rows = []
    for number, values in enumerate(zip(reward, gold, strict=True)):
        row: dict[str, Any] = {"step": 20 * number, "kl": 1.0 * number}
        for name, value in zip(("reward", "gold"), values, strict=True):
            row |= {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
        rows.append(row)
    return {"eval": tuple(rows)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def run(folder: Path) -> Run:
    return read_run(folder)


@pytest.mark.parametrize(
    ("reward", "gold", "began"),
    [
        ([0.1, 0.5, 0.9, 1.2], [0.3, 0.6, 0.4, 0.1], 20),  # it rises, then falls
        ([0.1, 0.5, 0.9], [0.3, 0.2, 0.1], 0),  # it falls from the beginning
        ([0.1, 0.5, 0.9, 1.2], [0.3, 0.6, 0.1, 0.58], None),  # it fell and recovered
        ([0.1, 0.5, 0.9, 1.2], [0.3, 0.6, 0.58, 0.52], None),  # within the intervals
        ([0.1, 0.5, 0.9, 1.2], [0.3, 0.6, 0.8, 0.8], None),
        ([0.1, 0.5, 0.3, 0.15], [0.3, 0.6, 0.4, 0.1], None),  # the reward fell too: a run that broke, not an exploit
        ([0.5, 1.2, 0.9, 0.8], [0.3, 0.9, 0.4, 0.28], None),  # gold was highest where the reward was
        ([0.5, 1.2, 0.9, 0.8], [0.3, 0.9, 0.4, 0.1], 0),  # and then fell below where it began
        ([0.1, 0.5], [np.nan, 0.6], None),
        ([0.1], [0.3], None),
    ],
)
def test_gold_below_what_it_was_and_a_reward_above_its_first_is_a_collapse(
    run: Run, reward: list[float], gold: list[float], began: float | None
) -> None:
    found = find_collapse(replace(run, evals=evaluations(reward, gold)))
    assert (None if found is None else found.began) == began


def test_a_policy_that_is_sure_of_its_answers_makes_no_collapse_of_a_thousandth(run: Run) -> None:
    """Its intervals have no width: a fall has to be larger than what the first answers' spread hides."""
    rows = evaluations([0.1, 1.0, 1.0], [0.3, 0.75, 0.749], half=0.0)["eval"]
    wide = {"gold_low": 0.2, "gold_high": 0.4}
    assert find_collapse(replace(run, evals={"eval": (rows[0] | wide, *rows[1:])})) is None
    fallen = rows[2] | {"gold": 0.6, "gold_low": 0.6, "gold_high": 0.6}
    assert find_collapse(replace(run, evals={"eval": (rows[0] | wide, rows[1], fallen)})) is not None


def test_without_gold_nothing_is_marked(run: Run) -> None:
    rows = [{k: v for k, v in row.items() if "gold" not in k} for row in run.evals["eval"]]
    without = replace(run, evals={"eval": tuple(rows)})
    assert find_collapse(without) is None and gold_plot(without, None) is None


def test_the_page_marks_where_it_began_with_its_signs_and_samples(tmp_path: Path) -> None:
    folder = write_policy_run(tmp_path / "run", gold=-0.6)
    members = {"member_0/reward": -7.125, "member_1/reward": 8.25}
    write_lines(folder / "eval" / "samples-0.jsonl", (sample_row(n) | {"gold": 2.0} for n in range(1, 13)))
    write_lines(
        folder / "eval" / "samples-60.jsonl", (sample_row(n) | {"response": "x"} | members for n in range(1, 13))
    )
    collapse = find_collapse(read_run(folder))
    assert collapse is not None and collapse.began == 0
    text = write_report(folder)[-1].read_text(encoding="utf-8")
    words = " ".join(" ".join(Page(text).texts).split())
    assert "Collapse, from step 0" in words and collapse.line in words
    assert "Perplexity of its tokens falls 7.95 7.95 5" in words and "Disagreement" not in words.split("Plots")[0]
    shown = words.split("Where gold was highest: reward +0.100")[1]
    assert "gold +2.000" in shown and "member 0 -7.125 member 1 +8.250 gold +0.050" in shown  # the largest fall first
    assert "Dashed line, in all plots: the collapse begins." in words
    summary = policy_summary(read_run(folder), model=folder / "model", report=None)
    assert collapse.line in summary.splitlines()
    pairs = read_pairs(folder, (0, 60), [])
    assert [after.gold for _, after in pairs] == pytest.approx([0.05, 0.1, 0.15])
    assert read_pairs(folder, (20, 40), []) == []


def test_a_healthy_run_has_no_mark(folder: Path, run: Run) -> None:
    assert find_collapse(run) is None
    assert "Collapse" not in write_report(folder)[-1].read_text(encoding="utf-8")


def test_signs_are_read_at_the_first_step_where_it_began_and_at_the_last(run: Run) -> None:
    steps = [{"step": n, "perplexity": 10.0 - n, "disagreement": None if n < 3 else 0.5 * n} for n in range(1, 6)]
    found = {words: values for words, _, *values in signs(replace(run, train=tuple(steps)), 2)}
    assert found == {"Perplexity of its tokens": [9.0, 8.0, 5.0], "Disagreement of the members (std)": [1.5, 1.5, 2.5]}


def test_gold_is_drawn_against_kl_and_against_the_reward(run: Run) -> None:
    found = replace(run, evals=evaluations([0.1, 0.5, 0.9], [0.3, 0.6, 0.1]))
    plots = {plot.name: plot for plot in policy_plots(found)}
    assert plots["gold"].title == "Gold on eval: 0.3 first, 0.6 at its highest, 0.1 last"
    figure = Figure()
    plots["gold"].draw(figure, LIGHT)
    drawn = [[line.get_xdata() for line in axes.lines] for axes in figure.axes]
    assert [list(lines[0]) for lines in drawn] == [[0, 1, 2], [0.1, 0.5, 0.9]]
    assert [list(lines[2]) for lines in drawn] == [[1], [0.5]]  # the star, where it began
    assert [axes.get_xlabel() for axes in figure.axes] == ["KL of an answer (nats)", "Reward"]
    render(plots["gold"])


@pytest.mark.parametrize("count", [2, 5])
def test_members_are_drawn_on_one_scale(run: Run, count: int) -> None:
    def row(step: int) -> dict[str, float]:
        scores = {f"member_{m}/scores": 10.0**m * step for m in range(count)}
        return scores | {f"member_{m}/scores_std": 10.0**m * 2 for m in range(count)} | {"disagreement": 0.1}

    rows = tuple(old | row(number) for number, old in enumerate(run.train))
    plot = members_plot(replace(run, train=rows), None)
    assert plot is not None and plot.title == "Members' rewards at the end: +30 to +30 std"
    figure = Figure()
    plot.draw(figure, LIGHT)
    assert len(figure.axes[0].lines) == count and (figure.axes[0].get_legend() is None) is (count > 3)
    render(plot)
    assert members_plot(run, None) is None
