"""Members of an ensemble as jobs of their own, and ensembles that are asked to stop."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rmfast.parallel.native import NativeEngine
from rmfast.tasks.ensemble.head_learner import HeadLearner
from rmfast.tasks.ensemble.top_learner import TopLearner
from rmfast.train import main
from tests.runs import Case, launch
from tests.tasks.ensembles import MEMBERS, command, trained, write_inputs

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def full(folder: Path) -> Path:
    return trained(folder, "full")


def assert_same(run: Path, whole: Path) -> None:
    for name in ("data.jsonl", "summary.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert not list(run.rglob("requeue")) and not list(run.rglob("*.partial"))


def test_members_one_by_one_in_any_order_and_a_vote_make_the_whole(
    folder: Path, full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in (2, 0):
        assert main(command(folder, "parts", ensemble__part=part)) == 0
    assert sorted(p.name for p in (folder / "parts" / "members").iterdir()) == ["00", "02"]
    assert main(command(folder, "parts", ensemble__part="vote")) == 2
    assert "members 1 have not scored this data" in capsys.readouterr().err
    assert not (folder / "parts" / "data.jsonl").exists()
    assert main(command(folder, "parts", ensemble__part=1)) == 0
    assert main(command(folder, "parts", ensemble__part=1)) == 0
    assert f"member 1 of {MEMBERS}: done before" in capsys.readouterr().out
    assert main(command(folder, "parts", ensemble__part="vote")) == 0
    assert_same(folder / "parts", full)
    config = (folder / "parts" / "config.yaml").read_text()
    assert "part: null" in config and (full / "config.yaml").read_text() == config.replace("/parts\n", "/full\n")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"ensemble__part": MEMBERS}, f"ensemble.part ({MEMBERS}) is no member: they are 0 to {MEMBERS - 1}"),
        ({"ensemble__part": -1}, "ensemble.part"),
        ({"ensemble__part": "votes"}, "ensemble.part"),
        ({"ensemble__part": 1, "ensemble__mode": "heads"}, "ensemble.part needs ensemble.mode full"),
        ({"ensemble__part": 1, "ensemble__spread": "ranks"}, "ensemble.part needs ensemble.mode full"),
        ({"ensemble__part": 1, "run__resume": "never"}, "run.resume never would move away"),
    ],
)
def test_parts_that_cannot_be_are_one_line(
    folder: Path, more: dict[str, object], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, "none", **more)) == 2
    printed = capsys.readouterr().err
    assert line in printed and printed.count("\n") == 1 and not (folder / "none").exists()


def test_asked_to_stop_an_ensemble_goes_on_with_that_member(
    folder: Path, full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step, left = NativeEngine.optimizer_step, 8  # of 6 a member

    def stepped(self: NativeEngine, lr: float) -> object:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, lr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeEngine, "optimizer_step", stepped)
        assert main(command(folder, "stopped")) == 0
    run = folder / "stopped"
    assert (run / "requeue").read_text().startswith("stopped by SIGUSR1: step 2 of 6 is saved")
    assert not (run / "members" / "02").exists()
    capsys.readouterr()
    assert main(command(folder, "stopped")) == 0
    said = capsys.readouterr().out
    assert "member 0 of 3: done before" in said and "resumed from step 2" in said
    assert_same(run, full)


def test_a_part_has_marks_of_its_own(folder: Path, full: Path) -> None:
    """The file for member 1 stops no other."""
    own = folder / "marked" / "members" / "01"
    own.mkdir(parents=True)
    (own / "stop").touch()
    assert main(command(folder, "marked", ensemble__part=0)) == 0
    assert (own / "stop").exists()
    assert main(command(folder, "marked", ensemble__part=1)) == 0
    assert not (own / "stop").exists() and (own / "requeue").exists() and not (own / "scores.npz").exists()
    for part in (1, 2, "vote"):
        assert main(command(folder, "marked", ensemble__part=part)) == 0
    assert_same(folder / "marked", full)


@pytest.mark.parametrize(
    ("learner", "keys"),
    [
        (HeadLearner, {"ensemble__mode": "heads"}),
        (TopLearner, {"ensemble__mode": "top_layers", "model__top_layers": 1}),
    ],
)
def test_members_trained_at_once_that_are_asked_to_stop_go_on_bit_for_bit(
    learner: Any,
    keys: dict[str, Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, more = f"few-{keys['ensemble__mode']}", keys.copy()
    whole = trained(folder, more.pop("ensemble__mode"), **more)
    step = learner.step

    def stepped(self: Any, number: int) -> object:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "step", stepped)
        assert main(command(folder, name, **keys, checkpoint__every=100)) == 0
    run = folder / name
    assert "step 3 of 6 is saved" in (run / "requeue").read_text() and not (run / "model").exists()
    capsys.readouterr()
    assert main(command(folder, name, **keys, checkpoint__every=100)) == 0
    assert "resumed from step 3" in capsys.readouterr().out
    assert_same(run, whole)


@pytest.mark.slow
def test_ranks_with_members_of_their_own_stop_together(folder: Path, full: Path) -> None:
    """The signal reaches rank 1, in member 1; rank 0 trains member 0 to its end, and both leave."""
    run = command(folder, "spread", ensemble__spread="ranks")
    codes = launch(folder / "launch", [Case("stopped", run, "signal:2"), Case("resumed", run)], ranks=2)
    assert codes == {"stopped": [0, 0], "resumed": [0, 0]}
    said = (folder / "launch" / "stopped-0.log").read_text()
    assert "another rank was asked to stop" in said, said
    assert_same(folder / "spread", full)
