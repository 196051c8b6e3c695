"""Members by groups of ranks in one job: each group is a world of its own, and gives what a job of its size gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rmfast.errors import RunError
from rmfast.outputs.marks import LOCK
from rmfast.parallel.agree import all_or_none
from rmfast.parallel.world import World
from rmfast.train import main
from tests.runs import Case, final_weights, launch, read_lines
from tests.tasks.ensembles import MEMBERS, command, write_inputs

PAIRS: dict[str, object] = {"ensemble__spread": "ranks", "ensemble__ranks_per_member": 2}
SHORT: dict[str, object] = {"run__epochs": 1, "eval__at_start": False}
FSDP: dict[str, object] = {"parallel__data": "fsdp"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("groups"))


@pytest.fixture(scope="module")
def codes(folder: Path) -> dict[str, list[int]]:
    """Jobs of two ranks and of four, and their exit codes: three members, which two groups share unequally, or two."""
    (folder / "blocked" / "members").mkdir(parents=True)
    (folder / "blocked" / "members" / "01").write_text("a file where a folder is to be")
    (folder / "blocked" / LOCK).touch()  # of an earlier start
    (folder / "file").mkdir()
    (folder / "file" / "stop").touch()
    killed = command(folder, "killed", **SHORT, **PAIRS, **FSDP, checkpoint__every=1)
    two = SHORT | {"ensemble__members": 2}
    return launch(
        folder / "launch",
        [
            Case("ddp", command(folder, "ddp", **SHORT), ranks=2),
            Case("fsdp", command(folder, "fsdp", **SHORT, **FSDP), ranks=2),
            Case("groups", command(folder, "groups", **SHORT, **PAIRS)),
            Case("killed 0", killed, "step:2"),
            Case("killed 1", killed, "step:2@3"),
            Case("killed 2", killed),
            Case("moved 0", command(folder, "moved", **two, **PAIRS), "signal:2"),
            Case("moved 1", command(folder, "moved", **two)),
            Case("file", command(folder, "file", **two, **PAIRS)),
            Case("blocked", command(folder, "blocked", **two, **PAIRS)),
        ],
        ranks=4,
    )


def log(folder: Path, case: str, rank: int = 0) -> str:
    return (folder / "launch" / f"{case}-{rank}.log").read_text()


def assert_same(run: Path, truth: Path) -> None:
    for name in ("data.jsonl", "summary.json"):
        assert (run / name).read_bytes() == (truth / name).read_bytes(), name
    for member in range(MEMBERS):
        ours, theirs = (final_weights(path / "members" / f"{member:02d}") for path in (run, truth))
        assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    assert not list(run.rglob("requeue")) and not list(run.rglob("*.partial"))


@pytest.mark.slow
def test_a_group_gives_bit_for_bit_what_a_job_of_its_size_gives(folder: Path, codes: dict[str, list[int]]) -> None:
    said, run = log(folder, "groups"), folder / "groups"
    assert not any(codes["groups"]), said
    assert_same(run, folder / "ddp")
    assert "members in 2 groups of 2 ranks" in said and "member 0 of 3" in said and "member 2 of 3" in said
    assert "2 x cpu (ddp)" in said and "member 1 of 3" not in said
    assert (run / "members" / "01" / "console.log").read_text().count("member 1 of 3: 23 groups scored") == 1
    assert [path.parent.name for path in run.rglob("console.log")] == ["01"]
    assert not log(folder, "groups", 1) and not log(folder, "groups", 3)


@pytest.mark.slow
def test_killed_groups_go_on_bit_for_bit(folder: Path, codes: dict[str, list[int]]) -> None:
    assert codes["killed 0"] == [-9] * 4
    assert codes["killed 2"] == [0] * 4, log(folder, "killed 2")
    assert "resumed from step 1" in log(folder, "killed 1") and "2 x cpu (fsdp)" in log(folder, "killed 1")
    assert_same(folder / "killed", folder / "fsdp")


@pytest.mark.slow
def test_one_dead_rank_ends_the_job(folder: Path, codes: dict[str, list[int]]) -> None:
    assert codes["killed 1"] == [1, 1, 1, -9]
    said = "".join(log(folder, "killed 1", rank) for rank in range(4))
    assert said.count("another rank has ended without a word") == 1 and "Traceback" not in said


@pytest.mark.slow
def test_groups_stop_together_and_all_ranks_go_on_in_turn(folder: Path, codes: dict[str, list[int]]) -> None:
    """The signal reaches the second group, in member 1; the first trains member 0 to its end."""
    assert codes["moved 0"] == codes["moved 1"] == [0] * 4
    assert "another rank was asked to stop" in log(folder, "moved 0")
    said = log(folder, "moved 1")
    assert said.count("done before") == 1 and "resumed from step" in said and "4 x cpu" in said
    for mine, other in zip(*(read_lines(folder / name / "data.jsonl") for name in ("moved", "ddp")), strict=True):
        first = other["rewards"] and pytest.approx(np.array(other["rewards"][:2]), abs=1e-4)
        assert mine["rewards"] == first or np.array(mine["rewards"]) == first


@pytest.mark.slow
def test_groups_end_before_they_train_where_the_file_is_there(folder: Path, codes: dict[str, list[int]]) -> None:
    run = folder / "file"
    assert codes["file"] == [0] * 4 and f"stopped by {run / 'stop'}" in log(folder, "file")
    assert (run / "requeue").exists() and not (run / "stop").exists() and not list(run.rglob("scores.npz"))
    assert "nothing was trained yet" in log(folder, "file") and not list(run.rglob("step-*"))


@pytest.mark.slow
def test_a_group_that_cannot_go_on_says_so(folder: Path, codes: dict[str, list[int]]) -> None:
    assert codes["blocked"] == [1, 1, 2, 2]
    lines = [line for rank in range(4) for line in log(folder, "blocked", rank).splitlines() if "rmfast:" in line]
    own = [line for line in lines if "rank 2" in line or "rank 3" in line]  # both failed
    assert len(own) == 2 and all("members/01" in line for line in own)
    assert sum("another rank" in line for line in lines) == 1 and len(lines) == 3


def test_a_rank_whose_group_may_wait_for_it_leaves_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the export of the group's first rank fails: the others are in their next collective."""

    def fails() -> None:
        raise RunError("no export")

    everyone, group, met = World(), World(), []
    everyone.rank, everyone.size, group.size = 2, 4, 2
    monkeypatch.setattr(World, "sum_", lambda self, tensor: met.append(self) or tensor)
    with pytest.raises(RunError, match="no export"):
        all_or_none(everyone, fails, group)
    assert not met and capsys.readouterr().err == "rmfast: rank 2: no export\n"
    with pytest.raises(RunError, match="no export"):
        all_or_none(everyone, fails, World())  # by itself: the others are waited for
    assert met == [everyone]
    capsys.readouterr()
    everyone.rank, group.rank = 3, 1  # it may be the only one that fails
    with pytest.raises(RunError, match="no export"):
        all_or_none(everyone, fails, group)
    assert capsys.readouterr().err == "rmfast: rank 3: no export\n"


@pytest.mark.parametrize(
    ("ranks", "more", "line"),
    [
        (4, {"ensemble__ranks_per_member": 3}, "ensemble.ranks_per_member 3 does not divide the 4 ranks of this run"),
        (2, {"ensemble__ranks_per_member": 4}, "ensemble.ranks_per_member 4 does not divide the 2 ranks of this run"),
        (
            3,
            {"ensemble__ranks_per_member": None, "parallel__engine": "megatron", "parallel__tensor": 2},
            "ensemble.ranks_per_member 2 (parallel.tensor x parallel.pipeline) does not divide the 3 ranks",
        ),
        (
            8,
            {"ensemble__ranks_per_member": 6, "parallel__engine": "megatron", "parallel__pipeline": 4},
            "ensemble.ranks_per_member (6) is no multiple of parallel.tensor 1 x parallel.pipeline 4",
        ),
        (4, {"ensemble__spread": "turn"}, "ensemble.ranks_per_member belongs to ensemble.spread ranks"),
        (4, {"ensemble__mode": "heads"}, "no ensemble.spread ranks"),
        (4, {"ensemble__ranks_per_member": 0}, "ensemble.ranks_per_member"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(
    ranks: int,
    more: dict[str, object],
    line: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    keys = {name: value for name, value in (PAIRS | more).items() if value is not None}
    assert main(command(folder, "refused", **keys)) == 2
    error = capsys.readouterr().err
    assert line in error and len(error.strip().splitlines()) == 1 and not (folder / "refused").exists()
