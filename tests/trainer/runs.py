"""Runs in a folder of a test."""

from pathlib import Path
from typing import Any

from rmfast.parallel.world import World
from rmfast.trainer.run import Run, RunOptions


def run_in(folder: Path, world: World | None = None, **more: Any) -> Run:
    """A run that neither evaluates nor saves on the way, but for what is said."""
    options: dict[str, Any] = {
        "evaluate_every": (None,),
        "evaluate_first": False,
        "checkpoint_every": None,
        "keep": 9,
        "max_skipped": 0,
        "log_every": 1,
        "tensorboard": False,
        "wandb": False,
    }
    folder.mkdir(exist_ok=True)
    return Run(folder, world or World(), RunOptions(**(options | more)), config={}, settings={}, data_key="")
