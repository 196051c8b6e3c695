"""PPO under layouts repeats one native process; what one begins, in the middle of a phase, others go on with."""

import re
from pathlib import Path

import pytest

from tests.megatron.grid import LAYOUTS
from tests.megatron.ppo_grid import apart, command, differing
from tests.ppo.tiny import drawn_of, write_inputs
from tests.runs import Case, launch

pytest.importorskip("megatron.core")
pytestmark = pytest.mark.slow
STEPS: dict[str, object] = {"run__max_steps": 2, "checkpoint__every": 1, "rollout__rows": 4}
LAYOUT = "tp2 pp2 sp"
# A run that goes through many hands: its layout, and where it ends. The last rank alone is told to stop.
CHAIN = [("pp2 interleaved", "signal draw:2"), ("tp2 sp", "step:5@1"), ("native", "")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("ppo"), layers=4, more_words=584)


@pytest.fixture(scope="module")
def codes(folder: Path) -> dict[str, list[int]]:
    ranks = LAYOUTS[LAYOUT][0]
    cases = [Case("native", command(folder, "ppo_max", "native", **STEPS))]
    cases.append(Case("whole", command(folder, "ppo_max", "whole", LAYOUT, **STEPS), ranks=ranks))
    for number, (layout, kill) in enumerate(CHAIN):
        one, ranks = (None, 1) if layout == "native" else (layout, LAYOUTS[layout][0])
        cases.append(Case(f"chain {number}", command(folder, "ppo_max", "chain", one, **STEPS), kill, ranks))
    return launch(folder / "launch", cases)


def assert_near(run: Path, truth: Path) -> None:
    assert not differing(run, truth)
    found = apart(run, truth)
    weights = [found.pop(name) for name in ("weights", "critic weights")]
    assert max(weights) <= 1e-5 and max(found.values()) <= 1e-4, (run.name, weights, found)


def test_a_layout_repeats_one_process(folder: Path, codes: dict[str, list[int]]) -> None:
    assert not any(codes["whole"])
    answers = [ids for file in drawn_of(folder / "native").values() for of in file for ids in of]
    assert len({len(ids) for ids in answers}) > 3
    assert_near(folder / "whole", folder / "native")


def test_a_run_goes_on_under_other_layouts_and_engines(folder: Path, codes: dict[str, list[int]]) -> None:
    """Told to stop while it sampled, killed while it updated, and ended by one process."""
    first, second, third = (codes[f"chain {number}"] for number in range(3))
    assert first == [0, 0] and second[1] == -9 and second[0] != 0 and third == [0]
    log = (folder / "launch" / "chain 0-0.log").read_text()
    assert (found := re.search(r"stopped by a signal to another rank: (\d) of 6 prompts", log)) and int(found[1]) < 6
    assert_near(folder / "chain", folder / "native")
