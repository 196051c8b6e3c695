"""Members of an ensemble by groups of megatron ranks: each group gives what a job of its size gives."""

from pathlib import Path

import pytest
import torch

from tests.megatron.grid import command
from tests.runs import Case, final_weights, launch, write_model, write_rows

pytest.importorskip("megatron.core")
pytestmark = pytest.mark.slow

MEMBERS = 3
KEYS: dict[str, object] = {
    "task": "ensemble",
    "model__path": "llama",
    "ensemble__members": MEMBERS,
    "checkpoint__every": 1,
    "run__max_steps": 2,
}
SPREAD: dict[str, object] = {"ensemble__spread": "ranks"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("members")
    write_model(folder / "llama")
    write_rows(folder / "rows.jsonl", 16)
    return folder


@pytest.fixture(scope="module")
def codes(folder: Path) -> dict[str, list[int]]:
    """Jobs of two ranks, and of four in two groups."""
    killed = command(folder, "swav", "killed", "tp2", **KEYS, **SPREAD)
    return launch(
        folder / "launch",
        [
            Case("tp2", command(folder, "swav", "tp2", "tp2", **KEYS), ranks=2),
            Case("pp2", command(folder, "lm", "pp2", "pp2", **KEYS), ranks=2),
            Case("killed 0", killed, "step:2@2"),
            Case("killed 1", killed),
            Case("groups", command(folder, "lm", "groups", "pp2", **KEYS, **SPREAD)),
        ],
        ranks=4,
    )


def assert_same(run: Path, truth: Path) -> None:
    assert (run / "data.jsonl").read_bytes() == (truth / "data.jsonl").read_bytes()
    for member in range(MEMBERS):
        ours, theirs = (final_weights(path / "members" / f"{member:02d}") for path in (run, truth))
        assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_pipelines_beside_each_other_give_what_one_gives(folder: Path, codes: dict[str, list[int]]) -> None:
    said = (folder / "launch" / "groups-0.log").read_text()
    assert codes["pp2"] == [0, 0] and codes["groups"] == [0] * 4, said
    assert "members in 2 groups of 2 ranks" in said and "member 1 of 3" not in said
    assert_same(folder / "groups", folder / "pp2")


def test_tensor_groups_that_are_killed_go_on_bit_for_bit(folder: Path, codes: dict[str, list[int]]) -> None:
    said = (folder / "launch" / "killed 1-0.log").read_text()
    assert codes["tp2"] == [0, 0] and codes["killed 0"] == [1, 1, -9, 1]
    assert codes["killed 1"] == [0] * 4, said
    console = (folder / "killed" / "members" / "01" / "console.log").read_text()
    assert "resumed from step 1" in console and said.count("done before") == 2
    assert_same(folder / "killed", folder / "tp2")
