"""benchmarks/step_against.py: checkouts take turns, and steps that warm up do not count."""

from pathlib import Path

import pytest

from benchmarks import step_against


def test_checkouts_take_turns_and_the_first_steps_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    class Process:
        def __init__(self, tree: Path, folder: Path, run: str, pairs: int) -> None:
            self.run, self.steps = run, 0

        def read(self, word: str) -> float:
            return 0.0

        def step(self) -> float:
            turns.append(self.run)
            self.steps += 1
            return float(self.steps)

        def losses(self) -> list[float]:
            return [0.5, 0.25] if self.run == "now" else [0.5, 0.375]

    monkeypatch.setattr(step_against, "Process", Process)
    trees = {"before": Path("a"), "now": Path("b")}
    seconds, apart = step_against.measure(trees, Path("folder"), 4, 8)
    assert turns == ["now", "before", "before", "now"] * 2
    assert seconds == {"before": [3.0, 4.0], "now": [3.0, 4.0]} and apart == 0.125
