"""The page, plots and words of a run that trained a policy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from rmfast.report.html import write_report
from rmfast.report.plots import LIGHT, render
from rmfast.report.policy.outcome import outcome, policy_summary, reward_line, trains_policy, verdicts
from rmfast.report.policy.plots import policy_plots
from rmfast.report.policy.samples import read_samples
from rmfast.report.run_folder import Run, read_run
from tests.report.policy_run import rollout_row, sample_row, step_row, write_lines, write_policy_run
from tests.report.test_html import Page

NAMES = ["reward", "gold", "spread", "kl", "coefficient", "entropy", "perplexity", "lengths", "losses", "clipping"]
NAMES += ["explained", "speed"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_policy_run(tmp_path / "run")


@pytest.fixture
def run(folder: Path) -> Run:
    return read_run(folder)


def changed(run: Run, **columns: float | None) -> Run:
    """The run with other values in each of its steps; None takes a metric away."""
    rows = [row | columns for row in run.train]
    return replace(run, train=tuple({k: v for k, v in row.items() if v is not None} for row in rows))


def test_the_page_tells_the_outcome_and_shows_every_plot(folder: Path) -> None:
    files = write_report(folder)
    assert [file.stem for file in files] == [*NAMES, "report"]
    text = files[-1].read_text(encoding="utf-8")
    parsed = Page(text)  # every tag is closed
    assert parsed.tags.count("img") == len(NAMES) and parsed.tags.count("details") == 10 and "script" not in parsed.tags
    words = " ".join(" ".join(parsed.texts).split())
    assert (
        "Reward on held-out prompts (eval), steps 0 to 60 +0.920 From 0.12 to 0.92 (95 % interval 0.87 to 0.97)"
        in words
    )
    assert "The reward rose by 0.8." in words and "(gold) rose by 0.4." in words
    assert "6 nats of KL an answer, from 0" in words and "85 tokens an answer, from 61" in words
    assert "15.0 % of answers cut, from 5.2 %" in words
    assert "KL of a token (nats) –" in words and "Entropy of a token (nats) – 1.2" in words
    assert "Pairs" not in words and "nan" not in words and "epochs" not in words


def test_the_page_of_a_reward_run_is_as_it_was(run_dir: Path) -> None:
    assert not trains_policy(read_run(run_dir))
    assert "Held-out accuracy on hh" in write_report(run_dir)[-1].read_text(encoding="utf-8")


def test_all_text_is_escaped(folder: Path) -> None:
    attack = '<script>alert("1")</script>&amp;'
    write_lines(folder / "eval" / "samples-60.jsonl", [sample_row(1) | {"prompt": attack, "response": attack}])
    text = write_report(folder)[-1].read_text(encoding="utf-8")
    assert "<script" not in text and text.count("&lt;script&gt;alert") == 2


# --- samples


def test_the_best_the_worst_and_typical_answers_are_those_of_the_last_evaluation(folder: Path) -> None:
    found = read_samples(folder, [])
    assert found is not None and (found.source, found.count) == ("eval/samples-60.jsonl", 12)
    answers = [[one.answer for one in kind] for kind in (found.best, found.typical, found.worst)]
    best, typical, worst = ([f"Answer {n}." for n in numbers] for numbers in ((12, 11, 10), (5, 6, 7), (1, 2, 3)))
    assert answers == [best, typical, worst]
    one = found.best[0]
    assert (one.prompt, one.reward, one.gold, one.kl, one.length) == ("Question 12?", 0.1 * 12, 0.05 * 12, 16.0, 22.0)


def test_without_an_evaluation_they_are_those_of_the_newest_rollout(tmp_path: Path) -> None:
    found = read_samples(write_policy_run(tmp_path / "run", evaluated=False), [])
    assert found is not None and (found.source, found.count) == ("rollouts/step-60.jsonl", 16)
    one = found.best[0]
    assert (one.prompt, one.answer, one.stop_reason) == ("Rollout 7?", "Sample 7.1", "length")
    assert (one.reward, one.kl, one.length) == (7.1, 1.5, 4.0) and np.isnan(one.gold)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_of_few_samples_none_is_shown_twice(tmp_path: Path, count: int) -> None:
    write_lines(tmp_path / "eval" / "samples-1.jsonl", (sample_row(number) for number in range(count)))
    found = read_samples(tmp_path, [])
    assert found is not None
    shown = [one.prompt for one in (*found.best, *found.typical, *found.worst)]
    assert len(shown) == len(set(shown)) == min(count, 3 * max(count // 3, 1))
    assert found.best[0].prompt == f"Question {count - 1}?"


def test_messages_are_turns_and_what_is_unreadable_is_counted(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Yes?"}]
    write_lines(tmp_path / "eval" / "samples-1.jsonl", [sample_row(1) | {"prompt": messages}, {"reward": 1.0}])
    with (tmp_path / "eval" / "samples-1.jsonl").open("a") as file:
        file.write(json.dumps(sample_row(2) | {"reward": None}) + '\n{"prompt": "cut o')
    notes: list[str] = []
    found = read_samples(tmp_path, notes)
    assert found is not None and found.count == 1
    assert found.best[0].prompt == "user: Hello!\n\nassistant: Yes?"
    assert notes == ["samples-1.jsonl: 2 unreadable lines left out."]


def test_a_broken_evaluation_file_gives_way_to_the_rollout(tmp_path: Path) -> None:
    write_lines(tmp_path / "eval" / "samples-1.jsonl", [{"prompt": "a", "reward": None}])
    write_lines(
        tmp_path / "rollouts" / "step-1.jsonl",
        [rollout_row(1), {"prompt": "b", "samples": None}, {"prompt": "c", "samples": ["?"]}],
    )
    found = read_samples(tmp_path, [])
    assert found is not None and found.source == "rollouts/step-1.jsonl"
    assert read_samples(tmp_path / "absent", []) is None


# --- words


def test_the_outcome_is_that_of_held_out_prompts_where_they_were_sampled_twice(run: Run) -> None:
    found = outcome(run)
    assert found is not None and found.good and (found.first_step, found.last_step) == (0, 60)
    assert reward_line(found) == "0.12 to 0.92 (95 % interval 0.87 to 0.97)"
    once = outcome(replace(run, evals={"eval": run.evals["eval"][-1:]}))
    assert once is not None and once.where == "the prompts that it trained on" and once.first_step == 1
    assert once.first["reward"] == step_row(1)["objective/scores"]
    assert outcome(replace(run, train=(), evals={})) is None


def test_gold_that_falls_while_the_reward_rises_is_the_headline(tmp_path: Path) -> None:
    folder = write_policy_run(tmp_path / "run", gold=-0.5)
    found = outcome(read_run(folder))
    assert found is not None and found.exploits and not found.good
    assert verdicts(found)[1] == (
        "The reward model that never trained (gold) fell by 0.5 while the reward rose: the policy exploits its reward "
        "model."
    )
    assert '<div class="card bad">' in write_report(folder)[-1].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("first", "last", "says"),
    [
        ({"reward": 1.0}, {"reward": 0.5}, "The reward did not rise"),
        ({"reward": 1.0, "reward_high": 1.2}, {"reward": 1.1, "reward_low": 1.0}, "the intervals before and after"),
        ({"reward": 1.0}, {"reward": 2.0, "cut_share": 0.4}, "40.0 % of the answers are cut at ppo.max_new_tokens"),
        (
            {"reward": 1.0, "cut_value": 0.1},
            {"reward": 2.0, "cut_share": 0.4, "cut_value": 0.3},
            "What ppo.truncated bootstrap adds to a cut answer's score rose to 0.3: it pays to be cut",
        ),
        ({"reward": 1.0, "entropy": 2.0}, {"reward": 2.0, "entropy": 0.1}, "Entropy fell from 2 to 0.1 nats a token"),
        ({"reward": 1.0}, {"reward": 2.0, "kl": 12.5}, "An answer is 12.5 nats (KL) from the reference"),
    ],
)
def test_each_figure_is_put_into_words(run: Run, first: dict[str, float], last: dict[str, float], says: str) -> None:
    found = outcome(run)
    assert found is not None
    assert says in " ".join(verdicts(replace(found, first=first, last=last)))


def test_the_summary_says_how_to_sample(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/somewhere/{name}")
    model, report = Path("runs/my run/model"), Path("runs/my run/report")
    lines = policy_summary(run, model=model, report=report, checkpoints=Path("c"), data="eval.jsonl").splitlines()
    assert lines[0] == "Reward on held-out prompts (eval): 0.12 to 0.92 (95 % interval 0.87 to 0.97)"
    assert lines[-4:] == [
        "Model    runs/my run/model",
        "States   c (the same command goes on from the newest)",
        "Report   runs/my run/report/report.html (plots beside it)",
        "Next     rmfast sample 'runs/my run' --data eval.jsonl --limit 8 --n 4 --out 'runs/my run/samples.jsonl'",
    ]
    text = policy_summary(replace(run, train=(), evals={}), model=model, report=None)
    assert text.startswith("No figure of a step is known") and "--data PROMPTS.jsonl" in text


# --- plots


def test_titles_tell_the_numbers(run: Run) -> None:
    titles = {plot.name: plot.title for plot in policy_plots(run)}
    first, last = (row["objective/scores"] for row in (run.train[0], run.train[-1]))
    assert titles["reward"] == f"Reward of an answer: {first:.3g} first, {last:.3g} last"
    assert titles["clipping"] == "The first ratio is exactly 1 in every step"
    assert titles["coefficient"] == "KL coefficient: 0.0508 first, 0.1 last"
    fixed = {plot.name: plot.title for plot in policy_plots(changed(run, kl_coefficient=0.05))}
    assert fixed["coefficient"] == "KL coefficient: 0.05"
    gap = {plot.name: plot.title for plot in policy_plots(changed(run, first_ratio_gap=2e-7))}
    assert gap["clipping"] == "The first ratio is up to 2.0e-07 from 1"


def test_without_a_critic_its_panels_are_left_out(run: Run) -> None:
    assert "Grey, in all plots: the critic alone learns." in policy_plots(run)[0].note
    critic = ("loss/value_avg", "val/clipfrac_avg", "explained_variance", "critic_warmup")
    plots = {plot.name: plot for plot in policy_plots(changed(run, **dict.fromkeys(critic)))}
    assert list(plots) == [name for name in NAMES if name != "explained"]
    assert "value" not in plots["losses"].title and "Grey" not in plots["reward"].note
    figure = Figure()
    plots["losses"].draw(figure, LIGHT)
    assert [axes.get_ylabel() for axes in figure.axes] == ["Policy loss"]


@pytest.mark.parametrize("case", ["one step", "nothing but the KL", "not finite", "no evaluation", "one evaluation"])
def test_thin_data_still_draws(run: Run, case: str) -> None:
    if case == "one step":
        run = replace(run, train=run.train[:1], evals={"eval": run.evals["eval"][:1]})
    elif case == "nothing but the KL":
        run = replace(run, train=({"step": 1, "objective/kl": 0.0}, {"step": 2, "objective/kl": 0.0}), evals={})
    elif case == "not finite":
        run = changed(run, **dict.fromkeys(run.train[0], float("nan")) | {"step": 3})
    else:
        run = replace(run, evals={} if case == "no evaluation" else {"eval": run.evals["eval"][-1:]})
    plots = policy_plots(run)
    assert [plot.name for plot in plots] == {
        "nothing but the KL": ["kl"],
        "not finite": ["reward", "gold", "kl", "lengths"],
    }.get(case, [name for name in NAMES if name != "gold"])
    for plot in plots:
        assert "nan" not in plot.title, plot.title
        assert len(render(plot)) > 5000
