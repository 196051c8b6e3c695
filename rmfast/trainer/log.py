"""Where a run's figures go: metrics.jsonl, eval.jsonl, the console, TensorBoard, wandb."""

import contextlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from rmfast.console import clock, say
from rmfast.data.files import write_bytes
from rmfast.jsonio import finite_or_null
from rmfast.outputs.failure import naming
from rmfast.outputs.kinds import json_object

COLUMNS = (  # metric, label, format
    ("loss", "loss", "{:.4f}"),
    ("accuracy", "acc", "{:.3f}"),
    ("margin", "margin", "{:+.3f}"),
    ("difference_loss", "J", "{:.4f}"),
    ("objective/scores", "reward", "{:+.3f}"),
    ("objective/kl", "KL", "{:.3f}"),
    ("policy/entropy_avg", "entropy", "{:.3f}"),
    ("mean_length", "length", "{:.1f}"),
    ("cut_share", "cut", "{:.0%}"),
    ("entropy", "entropy", "{:.3f}"),
    ("grad_norm", "grad", "{:.2f}"),
    ("learning_rate", "lr", "{:.1e}"),
    ("lr", "lr", "{:.1e}"),
    ("tokens_per_second", "tok/s", "{:,.0f}"),
    ("pairs_per_second", "pairs/s", "{:.2f}"),
    ("rows_per_second", "rows/s", "{:.2f}"),
    ("mfu", "mfu", "{:.1%}"),
    ("memory_gib", "GiB", "{:.1f}"),
)


def console_line(values: dict[str, Any], total: int, seconds_left: float) -> str:
    """One aligned line of a step."""
    width = len(str(total))
    parts = [f"step {values['step']:>{width}}/{total}"]
    for name, label, form in COLUMNS:
        if values.get(name) is not None:
            parts.append(f"{label} {form.format(values[name])}")
    return "  ".join([*parts, f"left {clock(seconds_left)}"])


def evaluation_line(step: int, name: str, metrics: dict[str, Any]) -> str:
    """One line of an evaluation: accuracy with its interval, beside the better length rule."""
    m = {key.removeprefix("eval_"): value for key, value in metrics.items()}
    return (
        f"{name} after step {step}: accuracy {m['accuracy']:.3f} [{m['accuracy_low']:.3f}, {m['accuracy_high']:.3f}], "
        f"loss {m['loss']:.4f}, calibration error {m['calibration_error']:.3f}, mean reward {m['mean_reward']:+.3f}; "
        f"{m['baseline']} {m['baseline_accuracy']:.3f}"
    )


class RunLog:
    """Writes a run's lines; on ranks other than 0 make none.

    Args:
        folder: of the run.
        last_step: lines of later steps, left by an interrupted run, are cut off.
        total: steps of the run. every: steps between console lines.
        config: resolved config, for wandb.
    """

    def __init__(
        self,
        folder: Path,
        *,
        last_step: int,
        total: int,
        every: int,
        tensorboard: bool,
        wandb: bool,
        config: dict[str, Any],
    ) -> None:
        self.total, self.every = total, every
        self._metrics = _open_jsonl(folder / "metrics.jsonl", lambda step: step <= last_step)
        # The evaluations before the first step and after the last one are made again.
        again = last_step if last_step in (0, total) else None
        self._evals = _open_jsonl(folder / "eval.jsonl", lambda step: step <= last_step and step != again)
        self._board: Any = None
        self._wandb: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = _without_boards
            with naming(folder / "tensorboard"):
                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=last_step + 1)
        if wandb:
            import wandb as package

            self._wandb = package.init(mode="offline", dir=str(folder), name=folder.name, config=config)

    def step(self, values: dict[str, Any], seconds_left: float) -> None:
        """A finished step."""
        _write(self._metrics, values)
        self._scalars(values, "train")
        if values["step"] % self.every == 0 or values["step"] in (1, self.total):
            say(console_line(values, self.total, seconds_left))

    def evaluation(self, step: int, name: str, metrics: dict[str, Any], line: str | None = None) -> None:
        """A finished evaluation of one held-out source; metrics already carry their eval_ prefix.

        Args:
            line: for the console, in place of the usual one.
        """
        _write(self._evals, {"step": step, "name": name} | metrics)
        self._scalars({"step": step} | metrics, "eval" if name == "eval" else name)
        say(line or evaluation_line(step, name, metrics))

    def _scalars(self, values: dict[str, Any], prefix: str) -> None:
        numbers = {k: v for k, v in finite_or_null(values).items() if isinstance(v, int | float) and k != "step"}
        for key, value in numbers.items():
            if self._board is not None:
                with naming(Path(self._board.log_dir)):
                    self._board.add_scalar(f"{prefix}/{key}", value, values["step"])
        if self._wandb is not None:
            self._wandb.log({f"{prefix}/{k}": v for k, v in numbers.items()}, step=values["step"])

    def sync(self) -> None:
        """Force the lines so far onto the disk; any thread may call it."""
        for file in (self._metrics, self._evals):
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close everything."""
        for file in (self._metrics, self._evals):
            with contextlib.suppress(OSError):  # of a line that could not be written, which has said so
                file.close()
        if self._board is not None:
            with naming(Path(self._board.log_dir)):
                self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _open_jsonl(path: Path, keeps: Callable[[int], bool]) -> TextIO:
    """A file to append to, without lines of steps that `keeps` says no to, and without damaged ones."""
    if path.is_file():
        lines = [(line, json_object(line).get("step")) for line in path.read_bytes().splitlines()]
        kept = [line for line, step in lines if isinstance(step, int) and keeps(step)]
        write_bytes(path, b"".join(line + b"\n" for line in kept))  # a crash must not take the earlier lines with it
    return path.open("a", encoding="utf-8")


def _without_boards(failure: threading.ExceptHookArgs) -> None:
    """Print no traceback of TensorBoard's thread: what it could not write, the next line that is added raises."""
    if type(failure.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failure)


def _write(file: TextIO, values: dict[str, Any]) -> None:
    with naming(Path(file.name)):
        file.write(json.dumps(finite_or_null(values)) + "\n")
        file.flush()
