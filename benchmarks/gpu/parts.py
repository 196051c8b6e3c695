"""What the harness is made of: parts of work that are done once, and what a part is given to do it with."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rmfast", "benchmarks", "tests")
GUARD = Path(__file__).with_name("guard.py")
TAIL = 4000  # characters of a part's output that its error and the log keep


class Cut(Exception):
    """The part's time was over before it was done."""


class Failed(Exception):
    """A command of the part ended with an error; the message holds the end of what it wrote."""


@cache
def lifeline() -> tuple[int, int]:
    """A pipe that ends with this process: commands are given its reading end, and end with it."""
    return os.pipe()


@dataclass(frozen=True)
class Settings:
    """What all parts have in common.

    Args:
        out: folder of results, which is carried from call to call.
        scratch: folder for everything else; may be lost between calls.
        tiny: sizes for a CPU, that check the harness and measure nothing.
        device: "cuda" or "cpu".
        arch: of the device, 80 or 90; of the code that the tile search compiles.
        model: SmolLM2-135M-Instruct, a Hugging Face folder or a GGUF file.
        data: folder of the preference data (README.md).
        lacking: names in `check.NEEDS` that are not there.
    """

    out: Path
    scratch: Path
    tiny: bool
    device: str
    arch: int
    model: Path | None
    data: Path | None
    lacking: frozenset[str] = frozenset()


@dataclass(eq=False)
class Call:
    """One run of a part: commands that end when its time does, and what they wrote.

    `reached` is what the part has so far; it is kept where the part does not come to its end.
    """

    settings: Settings
    deadline: float  # of time.monotonic
    reached: dict[str, Any] | None = None
    written: list[str] = field(default_factory=list)
    stopped: bool = False
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, *command: object, **environment: str) -> str:
        """Run a command in the repository's root; what it wrote.

        Raises:
            Cut: the time was over, or the call was stopped.
            Failed: it ended with an error.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Cut
        pipe = lifeline()[0]
        guard = [sys.executable, "-I", "-S", str(GUARD), str(pipe)]
        with self._lock:
            if self.stopped:
                raise Cut
            process = subprocess.Popen(
                [*guard, *map(str, command)],
                cwd=ROOT, env=self.environment() | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=True, pass_fds=[pipe],
            )  # fmt: skip
            self._running.add(process)
        try:
            output, _ = process.communicate(timeout=left)
        except subprocess.TimeoutExpired as over:
            raise Cut from over
        finally:
            self._end(process)
        text = output.decode(errors="replace")
        if self.stopped:
            raise Cut
        self.written.append(f"$ {' '.join(map(str, command))}\n{text}")
        if process.returncode:
            raise Failed(f"{command[1] if len(command) > 1 else command[0]} ended with code {process.returncode}:\n"
                         f"{text[-TAIL:]}")  # fmt: skip
        return text

    def environment(self) -> dict[str, str]:
        """Of all commands. Their path holds this tree's packages by links, for the root holds `kernels` too, the name
        of a package that transformers may import; their temporary files are in scratch."""
        links = self.folder("path")
        for name in PACKAGES:
            with contextlib.suppress(FileExistsError):
                (links / name).symlink_to(ROOT / name, target_is_directory=True)
        given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        own = {
            "PYTHONPATH": os.pathsep.join([str(links), *(path for path in given if Path(path).resolve() != ROOT)]),
            "TMPDIR": str(self.folder("tmp")), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.settings.device == "cpu" else {}
        inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        return inherited | own | hidden

    def python(self, program: str, *arguments: object, **environment: str) -> str:
        """Run a program of this repository: a file's path, or a module's name."""
        start = [program] if program.endswith(".py") else ["-P", "-m", program]
        return self.run(sys.executable, *start, *arguments, **environment)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End a command, if it still runs, with all that it started."""
        with self._lock:
            self._running.discard(process)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """End all commands that still run, and start no other."""
        with self._lock:
            self.stopped = True
        for process in list(self._running):
            self._end(process)

    def folder(self, name: str) -> Path:
        """A folder of that name in scratch."""
        path = self.settings.scratch / name
        path.mkdir(parents=True, exist_ok=True)
        return path


@dataclass(frozen=True)
class Part:
    """A piece of work that is done once and whose result is kept.

    Args:
        stage: names the file that keeps the result.
        name: unique in its stage.
        seconds: that it takes on one H100, as guessed.
        run: does it; what it returns is kept as JSON.
        shared: runs beside other parts of its stage; for parts that time nothing.
        needs: names in `check.NEEDS` without which it cannot run.
        keeps: goes on where it was cut off.
        first: seconds until it has something to keep, as guessed; None: all of `seconds`. It starts where these are
            left of a call.
    """

    stage: str
    name: str
    seconds: float
    run: Callable[[Call], dict[str, Any]]
    shared: bool = False
    needs: tuple[str, ...] = ()
    keeps: bool = False
    first: float | None = None

    @property
    def label(self) -> str:
        return f"{self.stage}/{self.name}"
