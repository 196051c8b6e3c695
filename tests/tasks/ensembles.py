"""A tiny ensemble for tests: its data, its command line, and runs without their plots."""

from pathlib import Path

import pytest

from rmfast.train import main
from tests.runs import arguments, write_model, write_rows

MEMBERS = 3
RANKED = {"prompt": "the cat ran", "responses": [" home", " by the sea", " on a mat"], "id": "ranked"}
TWINS = {"prompt": "the sea", "chosen": " a mat", "rejected": " a mat"}
LONG = {"prompt": "the sea " * 20, "chosen": " a mat", "rejected": " a dog", "strength_mean": 7.5}
BAD = {"prompt": "no answer", "chosen": " a mat"}


def write_inputs(folder: Path) -> Path:
    """A model, training rows of every kind (one is no row), and held-out rows."""
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", 20, extra=[RANKED, TWINS, LONG, BAD])
    with (folder / "rows.jsonl").open("a") as file:
        file.write("{not json\n")
    write_rows(folder / "eval.jsonl", 12, seed=1)
    return folder


def command(folder: Path, run: str, **more: object) -> list[str]:
    keys: dict[str, object] = {
        "task": "ensemble",
        "model__path": folder / "model",
        "data__train": folder / "rows.jsonl",
        "data__eval": folder / "eval.jsonl",
        "data__cache": folder / "cache",
        "data__pairs_per_step": 8,
        "data__max_length": 40,
        "data__tokens_per_pack": 96,
        "run__dir": folder / run,
        "run__tensorboard": False,
        "run__epochs": 2,
        "optim__lr": 1e-2,
        "checkpoint__every": 2,
        "ensemble__members": MEMBERS,
        "parallel__timeout_minutes": 1,
    }
    return arguments(**(keys | more))


def no_plots(patch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest of a tiny run; one test makes them, and tests/report."""
    patch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
    patch.setattr("rmfast.tasks.ensemble.strength.write_ensemble_report", lambda *_: [])


def trained(folder: Path, mode: str, **more: object) -> Path:
    """The run folder of a whole ensemble."""
    with pytest.MonkeyPatch.context() as patch:
        no_plots(patch)
        assert main(command(folder, mode, ensemble__mode=mode, **more)) == 0
    return folder / mode
