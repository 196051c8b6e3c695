"""What the harness is made of: parts, which are commands that write a JSON file, and how a command is run."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rmfast", "benchmarks", "tests")
GUARD = Path(__file__).with_name("guard.py")


@dataclass(frozen=True)
class Settings:
    """What all parts have in common.

    Args:
        out: folder of results, which is carried from call to call.
        scratch: folder for everything else; may be lost between calls.
        tiny: sizes for a CPU, that check the harness and measure nothing.
        device: "cuda" or "cpu".
        arch: of the device, 80 or 90; of the code that the tile search compiles.
        lacking: what of `check.NEEDS` is not there, and why.
    """

    out: Path
    scratch: Path
    tiny: bool
    device: str
    arch: int
    lacking: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A piece of work that is done once and whose result is kept.

    Args:
        stage: names the file that keeps the result.
        name: unique in its stage.
        seconds: that it takes on one H100, as guessed.
        command: a module of this repository and its words; it is also given `--json FILE` and writes its result there.
        shared: runs beside other parts of its stage; for parts that time nothing.
        needs: names in `check.NEEDS` without which it cannot run.
        keeps: goes on where it was cut off.
        first: seconds until it has something to keep, as guessed; None: all of `seconds`. It starts where these are
            left of a call.
        adds: to its result.
    """

    stage: str
    name: str
    seconds: float
    command: tuple[object, ...]
    shared: bool = False
    needs: tuple[str, ...] = ()
    keeps: bool = False
    first: float | None = None
    adds: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.stage}/{self.name}"

    @property
    def needed(self) -> float:
        """Seconds that must be left for it to start."""
        return self.seconds if self.first is None else self.first


def environment(settings: Settings) -> dict[str, str]:
    """Of all commands. Their path holds this tree's packages by links, for the root holds `kernels` too, the name of a
    package that transformers may import; their temporary files are in scratch."""
    links, temporary = settings.scratch / "path", settings.scratch / "tmp"
    for folder in (links, temporary):
        folder.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        with contextlib.suppress(FileExistsError):
            (links / name).symlink_to(ROOT / name, target_is_directory=True)
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    paths = [str(links), *(path for path in given if Path(path).resolve() != ROOT)]
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if settings.device == "cpu" else {}
    return inherited | hidden | {
        "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def run(words: Sequence[object], settings: Settings, *, seconds: float, pipe: int) -> tuple[int | None, str]:
    """Run a command in the repository's root: its code, None where it was ended because its time was over or the other
    end of the pipe was closed; and what it wrote."""
    guard = [sys.executable, "-I", "-S", str(GUARD), str(pipe), str(max(seconds, 0.0))]
    done = subprocess.run(
        [*guard, *map(str, words)], cwd=ROOT, env=environment(settings), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True, pass_fds=[pipe],
    )  # fmt: skip
    return (None if done.returncode == -signal.SIGKILL else done.returncode), done.stdout.decode(errors="replace")
