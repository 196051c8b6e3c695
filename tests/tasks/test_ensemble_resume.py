"""An ensemble that is stopped goes on bit for bit, in both modes; several ranks give what one gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rmfast.tasks.ensemble.heads as heads_task
import rmfast.tasks.ensemble.run as task
from rmfast.outputs.marks import LOCK
from rmfast.tasks.ensemble.head_learner import HeadLearner
from rmfast.train import main
from tests.runs import Case, launch, read_lines
from tests.tasks.ensembles import MEMBERS, command, trained, write_inputs

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def full(folder: Path) -> Path:
    return trained(folder, "full")


@pytest.fixture(scope="module")
def heads(folder: Path) -> Path:
    return trained(folder, "heads")


# --- resume


@pytest.mark.slow
def test_a_killed_ensemble_goes_on_bit_for_bit(folder: Path, full: Path) -> None:
    run = command(folder, "killed")
    kills = ["step:4", "step:9", "rename:3", "manifest:1", ""]
    codes = launch(folder / "launch-1", [Case(f"killed {i}", run, kill) for i, kill in enumerate(kills)])
    assert codes == {f"killed {i}": [-9] for i in range(4)} | {"killed 4": [0]}
    # In member 0 after its first checkpoint, in member 1 after its second, and in member 2 twice before one is whole.
    logs = [(folder / "launch-1" / f"killed {i}-0.log").read_text() for i in range(5)]
    steps = [[line.split()[3] for line in log.splitlines() if line.startswith("resumed")] for log in logs]
    assert steps == [[], ["2"], ["4"], [], []]
    assert [log.count("done before") for log in logs] == [0, 0, 1, 2, 2]
    assert (folder / "killed" / "data.jsonl").read_bytes() == (full / "data.jsonl").read_bytes()
    assert (folder / "killed" / "summary.json").read_bytes() == (full / "summary.json").read_bytes()


class Interrupted(BaseException):
    """Not one of the errors that anything may catch."""


def test_scores_that_were_not_kept_are_made_again(folder: Path, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The member is trained, its checkpoint says so, and only its rewards are missing."""
    write, calls = task.write_scores, []

    def once(ensemble: Any, member: int, *rest: Any) -> None:
        calls.append(member)
        if calls == [0, 1]:
            raise Interrupted
        write(ensemble, member, *rest)

    monkeypatch.setattr(task, "write_scores", once)
    with pytest.raises(Interrupted):
        main(command(folder, "unscored"))
    assert main(command(folder, "unscored")) == 0
    assert calls == [0, 1, 1, 2]
    assert (folder / "unscored" / "data.jsonl").read_bytes() == (full / "data.jsonl").read_bytes()


@pytest.mark.parametrize("after", [1, 3, 6])
def test_interrupted_heads_go_on_bit_for_bit(
    after: int, folder: Path, heads: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the trunk's pass; between two checkpoints; trained, but not exported."""
    run = command(folder, f"stopped-{after}", ensemble__mode="heads")
    step = HeadLearner.step

    def stops(self: HeadLearner, number: int) -> Any:
        if number == after:
            raise Interrupted
        return step(self, number)

    monkeypatch.setattr(HeadLearner, "step", stops)
    if after == 6:
        monkeypatch.setattr(heads_task, "_export", lambda *_: (_ for _ in ()).throw(Interrupted))
    with pytest.raises(Interrupted):
        main(run)
    monkeypatch.undo()
    capsys.readouterr()
    assert main(run) == 0
    printed = capsys.readouterr().out
    assert "made before" in printed and ("resumed from step" in printed) == (after > 2)
    assert (folder / f"stopped-{after}" / "data.jsonl").read_bytes() == (heads / "data.jsonl").read_bytes()
    assert [line["step"] for line in read_lines(folder / f"stopped-{after}" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_finished_ensemble_is_not_trained_again_and_takes_more_members(
    folder: Path, full: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_lines(full / "data.jsonl")
    trained: list[int] = []
    monkeypatch.setattr(task, "open_reward", lambda *a: trained.append(1))
    assert main(command(folder, "full")) == 0 and not trained
    assert read_lines(full / "data.jsonl") == before
    assert capsys.readouterr().out.count("done before") == MEMBERS
    monkeypatch.undo()
    shutil.copytree(full, folder / "more")
    assert main(command(folder, "more", ensemble__members=4)) == 0
    rows = read_lines(folder / "more" / "data.jsonl")
    assert [row["rewards"][:3] for row in rows[:-1]] == [row["rewards"] for row in before[:-1]]
    assert len(rows[0]["rewards"]) == 4 and len({tuple(own) for own in rows[0]["rewards"]}) == 4
    # Other held-out data: the members are there, their rewards are made again.
    assert main([*command(folder, "more"), "--data.eval", str(folder / "rows.jsonl")]) == 0
    assert json.loads((folder / "more" / "summary.json").read_text())["eval"]["eval"]["rules"]["mean"]["edges"] == 23


@pytest.mark.parametrize(
    "more, line",
    [
        ({"optim__lr": 2e-2}, "began with optim.lr 0.01, now it is 0.02"),
        ({"ensemble__folds": 2}, "began with ensemble.folds None, now it is 2"),
        ({"ensemble__mode": "heads"}, "began with ensemble.mode full, now it is heads"),
        ({"run__epochs": 3}, "began with run.epochs 2.0, now it is 3.0"),
        ({"data__pairs_per_step": 4}, "other data, order or seed"),
    ],
)
def test_a_finished_ensemble_refuses_other_settings(
    more: dict[str, Any], line: str, folder: Path, full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (full / "ensemble.json").read_bytes()
    assert main(command(folder, "full", **more)) == 2
    error = capsys.readouterr().err
    assert line in error and "run.resume" in error and (full / "ensemble.json").read_bytes() == before


def test_the_folder_of_a_reward_run_is_refused_and_never_moves_it_aside(
    folder: Path, full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder / "other"
    (other / "checkpoints").mkdir(parents=True)
    assert main(command(folder, "other", ensemble__mode="heads")) == 2
    assert "holds another run, no ensemble" in capsys.readouterr().err
    assert main(command(folder, "other", ensemble__mode="heads", run__resume="never")) == 0
    assert list((folder / "other.1" / "checkpoints").iterdir()) == [] != list((other / "checkpoints").iterdir())
    assert read_lines(other / "data.jsonl")


# --- ranks


@pytest.mark.slow
def test_two_ranks_against_one(folder: Path, full: Path, heads: Path) -> None:
    (folder / "blocked" / "members").mkdir(parents=True)
    (folder / "blocked" / "members" / "01").write_text("a file where a folder is to be")
    (folder / "blocked" / LOCK).touch()  # of an earlier start
    cases = [
        Case("turn", command(folder, "turn")),
        Case("ranks", command(folder, "ranks", ensemble__spread="ranks")),
        Case("heads", command(folder, "heads-2", ensemble__mode="heads")),
        Case("heads fsdp", command(folder, "heads-fsdp", ensemble__mode="heads", parallel__data="fsdp")),
        Case("blocked", command(folder, "blocked", ensemble__spread="ranks")),
    ]
    codes = launch(folder / "launch-2", cases, ranks=2)
    logs = folder / "launch-2"
    for case in cases[:-1]:
        assert codes[case.name] == [0, 0], (logs / f"{case.name}-0.log").read_text()
    # A member by itself on a rank is the member by itself.
    assert (folder / "ranks" / "data.jsonl").read_bytes() == (full / "data.jsonl").read_bytes()
    assert "member 1 of 3" in (folder / "ranks" / "members" / "01" / "console.log").read_text()
    for name, truth in (("turn", full), ("heads-2", heads), ("heads-fsdp", heads)):
        for mine, other in zip(read_lines(folder / name / "data.jsonl"), read_lines(truth / "data.jsonl"), strict=True):
            for key in ("rewards", "strength_mean", "strength_std") if mine["rewards"] else ():
                assert np.array(mine[key]) == pytest.approx(np.array(other[key]), abs=1e-4)
    # One rank cannot go on: neither waits for the other.
    assert codes["blocked"] == [1, 2]
    assert "members/01" in (logs / "blocked-1.log").read_text()
    assert "rmfast: another rank could not go on" in (logs / "blocked-0.log").read_text()
