"""Rounds of samples, MetaRM and PPO: what each stage begins with, what goes on after a stop, what is refused."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import rmfast.tasks.iterate.run as task
from rmfast.cli import main as cli
from rmfast.config import load_config
from rmfast.errors import RunError, UserError
from rmfast.evaluation.judge.backend import Answer, Request
from rmfast.tasks.iterate.record import Record
from rmfast.tasks.iterate.stages import plan
from rmfast.train import main
from rmfast.trainer.meta_learner import MetaLearner
from rmfast.trainer.ppo.learner import PPOLearner
from rmfast.trainer.ppo.rollouts import Rollouts
from tests.runs import Case, arguments, launch, read_lines
from tests.tasks.iterations import command, figures, made, no_plots, write_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("iterate"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_plots(monkeypatch)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """Two rounds with control and gold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
        gold = {"ppo__gold": folder / "round_gold" / "model"}
        assert main(gold_command(folder, "round_gold")) == 0
        assert main(command(folder, "whole", iterate__rounds=2, iterate__control=True, **gold)) == 0
    return folder / "whole"


def gold_command(folder: Path, run: str) -> list[str]:
    keys = {"task": "reward", "model__path": folder / "gold", "data__train": folder / "eval.jsonl", "run__max_steps": 1}
    more = {"data__cache": folder / "cache", "data__max_length": 48, "run__dir": folder / run}
    return arguments(**keys, **more, run__tensorboard=False)


def configs(run: Path, *stages: str) -> list[dict[str, Any]]:
    """Configs of stages, keys dotted and places in the run folder without it."""
    found = []
    for stage in stages:
        values = yaml.safe_load((run / stage / "config.yaml").read_text().replace(f"{run}/", ""))
        found.append({f"{s}.{k}": v for s, keys in values.items() if isinstance(keys, dict) for k, v in keys.items()})
    return found


def changed(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {key for key in one if one[key] != other[key]}


def test_each_stage_begins_with_what_the_one_before_made(whole: Path) -> None:
    reward, meta, later, first, second = configs(
        whole, "reward", "round-1/meta", "round-2/meta", "round-1/ppo", "round-2/ppo"
    )
    assert (reward["model.path"], meta["model.path"], later["model.path"]) == ("sft/model",) * 3
    assert (meta["meta.data"], later["meta.data"]) == (["round-1/samples"], ["round-2/samples"])
    assert (first["model.path"], second["model.path"]) == ("sft/model", "round-1/ppo/model")
    assert (first["ppo.reward"], second["ppo.reward"]) == (["round-1/meta/model"], ["round-2/meta/model"])
    assert first["ppo.reference"] == second["ppo.reference"] == "sft/model"
    assert (first["optim.lr"], meta["optim.lr"]) == (1e-2, 1e-3)
    assert len({first["run.seed"], second["run.seed"], meta["run.seed"]}) == 3 and meta["run.seed"] == 0
    samples = read_lines(whole / "round-2" / "samples" / "part-0000.jsonl")
    assert len(samples) == 16 and all(len(row["responses"]) == 3 for row in samples)


def test_the_control_differs_in_the_reward_model_alone(whole: Path) -> None:
    for number, differs in ((1, set()), (2, {"model.path"})):
        ppo, control = configs(whole, f"round-{number}/ppo", f"round-{number}/control")
        assert changed(ppo, control) == {"run.dir", "ppo.reward"} | differs
        assert control["ppo.reward"] == ["reward/model"]
    assert control["model.path"] == "round-1/control/model"
    # Before anything is learnt both draw the same.
    drawn = [
        [[s["ids"] for s in row["samples"]] for row in read_lines(whole / "round-1" / name / "rollouts/step-1.jsonl")]
        for name in ("ppo", "control")
    ]
    assert drawn[0] == drawn[1]


def test_the_report_holds_every_policy_under_every_model(whole: Path) -> None:
    found = figures(whole)
    assert list(found["policies"]) == ["first", "round-1", "control-1", "round-2", "control-2"]
    for name, policy in found["policies"].items():
        assert list(policy["reward"]) == ["reward", "meta-1", "meta-2", "gold"], name
        assert policy["kl"]["low"] <= policy["kl"]["value"] <= policy["kl"]["high"]
        assert 0 < policy["self_bleu"]["mean"]["value"] <= 1 and -1 <= policy["cosine"]["value"] <= 1
    assert found["policies"]["first"]["kl"]["value"] == 0 and found["policies"]["first"]["gain"]["gold"]["value"] == 0
    # The same answers with the same noise: where nothing was learnt, nothing differs.
    assert found["policies"]["round-2"]["kl"]["value"] != found["policies"]["control-2"]["kl"]["value"]
    pairs = {(one["policy"], one["against"]) for one in found["comparisons"]}
    assert {("round-2", "first"), ("round-2", "round-1"), ("round-2", "control-2"), ("control-2", "control-1")} <= pairs
    assert all(one["wins"] + one["ties"] + one["losses"] == pytest.approx(1) for one in found["comparisons"])
    assert len({one["status"] for one in found["findings"]} - {"was not measured"}) and len(found["findings"]) == 8
    page = (whole / "report" / "report.html").read_text()
    assert page.count("<figure") == 6 and "does not show" in page.lower() and "Control 2" in page
    assert {p.stem for p in (whole / "report").glob("*.png")} == {
        "gold", "wins", "rewards", "drift", "diversity", "distance",
    }  # fmt: skip


class Killed(BaseException):
    """Not one of the errors that anything may catch."""


def stopped(patch: pytest.MonkeyPatch, owner: Any, name: str, at: int) -> None:
    """Let the call of that number, from 1 on, kill the run."""
    calls, real = [], getattr(owner, name)

    def call(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise Killed
        return real(*arguments, **more)

    patch.setattr(owner, name, call)


POINTS: Sequence[tuple[Any, str, int]] = (
    (Record, "add", 1),  # the first policy is there, and nothing says so
    (Rollouts, "keep", 1),  # its answers are drawn, and not kept
    (MetaLearner, "step", 2),
    (PPOLearner, "step", 2),
    (Record, "add", 1),
    (task, "figures_of", 1),
)


def test_an_iteration_that_is_killed_in_and_between_stages_goes_on_to_the_same_bits(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = command(folder, "killed", ppo__gold=folder / "round_gold" / "model")
    done = []
    for owner, name, at in POINTS:
        with pytest.MonkeyPatch.context() as patch:
            stopped(patch, owner, name, at)
            with pytest.raises(Killed):
                main(run)
        done.append(len(made(folder / "killed")))
    assert done == [0, 2, 4, 5, 5, 7]
    capsys.readouterr()
    assert main(run) == 0
    assert capsys.readouterr().out.count("done before") == 7
    expected = {name: of for name, of in made(whole).items() if name in made(folder / "killed")}
    assert made(folder / "killed") == expected
    before = figures(folder / "killed")
    assert main(run) == 0 and figures(folder / "killed") == before  # once more: nothing is made again
    # What is damaged is made again from its stage's checkpoint.
    weights = folder / "killed" / "round-1" / "meta" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(run) == 0
    assert "round-1/meta/model: model.safetensors has" in capsys.readouterr().out
    assert made(folder / "killed") == expected
    assert cli(["doctor", str(folder / "killed")]) == 0
    assert "round-1/ppo/model " in capsys.readouterr().out


def test_another_config_is_refused_by_the_line_of_other_tasks(
    folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"iterate__rounds": 2, "iterate__control": True, "ppo__gold": folder / "round_gold" / "model"}
    for keys, text in (
        ({"ppo__kl": 0.1}, "round-1/ppo: this run began with ppo.kl 0.05, now it is 0.1; go back, set run.resume to"),
        ({"iterate__stages__sft__optim__lr": 1}, "sft: this run began with optim.lr 0.001, now it is 1.0; go back"),
        ({"iterate__reward": "continue"}, "whole: this run began with iterate.reward restart, now it is continue"),
        ({"task": "reward"}, "whole holds an iteration; set run.resume to never"),
    ):
        assert main(command(folder, "whole", **(more | keys))) == 2
        assert text in capsys.readouterr().err


def test_switches_choose_what_a_round_begins_with(folder: Path) -> None:
    more = {"iterate__rounds": 2, "iterate__sft": False, "iterate__reward": "continue", "iterate__policy": "restart"}
    stages = {stage.name: stage for part in plan(load_config(command(folder, "x", **more))).rounds for stage in part}
    start, place = str(folder / "model"), f"{folder}/x"
    assert stages["round-2/ppo"].config.model.path == stages["round-2/ppo"].config.ppo.reference == start
    assert stages["round-1/meta"].config.model.path == f"{place}/reward/model"
    assert stages["round-2/meta"].config.model.path == f"{place}/round-1/meta/model"
    more = {"iterate__rounds": 2, "iterate__reference": "previous", "model__adapter": "lora"}
    stages = {stage.name: stage for part in plan(load_config(command(folder, "x", **more))).rounds for stage in part}
    assert stages["round-2/ppo"].config.ppo.reference == f"{place}/round-1/ppo/model"
    # Over the first policy's weights a reward model is an adapter; over another's it is whole.
    assert stages["round-1/ppo"].config.ppo.reward == (f"{place}/round-1/meta/adapter",)
    assert stages["round-2/ppo"].config.ppo.reward == (f"{place}/round-2/meta/model",)

    more = {"iterate__reward": "continue", "model__adapter": "lora"}
    stages = {stage.name: stage for part in plan(load_config(command(folder, "x", **more))).rounds for stage in part}
    assert stages["round-1/ppo"].config.ppo.reward == (f"{place}/round-1/meta/model",)


def test_a_stage_that_was_made_from_something_else_is_not_taken_for_done(folder: Path, whole: Path) -> None:
    more = {"iterate__rounds": 2, "iterate__control": True, "ppo__gold": folder / "round_gold" / "model"}
    stages = plan(load_config(command(folder, "whole", **more)))
    record, ppo = Record.read(stages, whole), next(s for s in stages.rounds[0] if s.name == "round-1/ppo")
    assert record.done(ppo) == (True, "")
    record.stages[ppo.name]["read"]["round-1/meta/model"] = "another"
    with pytest.raises(UserError, match=r"round-1/ppo: was made from another round-1/meta/model than is there now"):
        record.done(ppo)


class LongerWins:
    """A judge that likes the longer of two answers, or breaks."""

    name, identity = "longer", {"model": "longer"}

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        if self.broken:
            raise RunError("the server is gone")
        for request in requests:
            first, second = (request.prompt.split(f"<answer_{x}>")[1].split("</")[0] for x in "ab")
            yield request, Answer("[[A]]" if len(first) > len(second) else "[[B]]")


def test_a_judge_compares_and_one_that_is_gone_ends_nothing(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"iterate__rounds": 2, "iterate__control": True, "ppo__gold": folder / "round_gold" / "model"}
    judge: Callable[[bool], Any] = lambda broken: lambda config: LongerWins(broken)  # noqa: E731
    monkeypatch.setattr(task, "judge_of", judge(True))
    assert main(command(folder, "whole", **more)) == 0
    assert "the server is gone" in capsys.readouterr().out
    assert {one["by"] for one in figures(whole)["comparisons"]} == {"gold"}
    monkeypatch.setattr(task, "judge_of", judge(False))
    assert main(command(folder, "whole", **more)) == 0
    compared = {(c["policy"], c["against"]): c for c in figures(whole)["comparisons"] if c["by"] == "judge"}
    texts = {n: [r["responses"][0] for r in read_lines(whole / f"answers/{n}.jsonl")] for n in ("first", "round-2")}
    longer = [(len(b) > len(a)) - (len(b) < len(a)) for a, b in zip(texts["first"], texts["round-2"], strict=True)]
    same = [a == b for a, b in zip(texts["first"], texts["round-2"], strict=True)]
    assert compared["round-2", "first"]["wins"] == pytest.approx(sum(x > 0 for x in longer) / 8)
    assert compared["round-2", "first"]["ties"] >= sum(same) / 8


@pytest.mark.slow
def test_ranks_share_every_stage_and_a_killed_rank_loses_nothing(folder: Path, whole: Path) -> None:
    more = {"iterate__rounds": 1, "parallel__data": "fsdp"}
    run = command(folder, "ranks", **more)
    codes = launch(folder / "launch", [Case("killed", run, "any:40@1"), Case("again", run, "none:0")], ranks=2)
    assert codes["again"] == [0, 0] and codes["killed"][1] == -9
    found, expected = made(folder / "ranks"), made(whole)
    assert found.keys() == {name for name in expected if "2" not in name and "control" not in name}
    rows, other = (read_lines(run / "answers" / "first.jsonl") for run in (folder / "ranks", whole))
    alike = [a["responses"] == b["responses"] for a, b in zip(rows, other, strict=True)]
    assert sum(alike) >= len(alike) - 1  # but for a near tie
