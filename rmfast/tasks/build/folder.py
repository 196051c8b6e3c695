"""A run's folder: what it must not touch, and one job's hold on it."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType

import torch

from rmfast.checkpoint.saver import Saver
from rmfast.checkpoint.store import all_checkpoints, remove_unfinished
from rmfast.config import Config
from rmfast.config.stages import checked_stages
from rmfast.console import say
from rmfast.data.files import mend, partial_name, remove, sweep
from rmfast.data.sources import source_root
from rmfast.errors import RunError, UserError, first_line
from rmfast.models.peft import chain
from rmfast.outputs.failure import disk_line
from rmfast.outputs.lock import FolderLock
from rmfast.outputs.marks import (
    CONFIG,
    ENSEMBLE_FILES,
    ITERATE_FILE,
    ITERATE_FILES,
    LINKED,
    LOCK,
    MODELS,
    RUN_FILES,
    is_own_config,
    is_run,
    kept_model,
    mark_earlier_model,
    stranger,
)
from rmfast.outputs.overlap import Input, Output, around, check_overlap, identity
from rmfast.parallel.gather import gather_launchers
from rmfast.parallel.world import World

ANOTHER = "choose another run.dir"


def run_folder(name: str) -> Path:
    """The folder that run.dir means.

    Raises:
        UserError: it cannot be one.
    """
    try:
        folder = Path(name).expanduser()
        (folder / CONFIG).exists()
    except (OSError, RuntimeError) as error:  # a name too long, a home that is not there
        raise UserError(f"run.dir: {name[:80]} cannot be a folder: {first_line(error)}") from None
    return folder


def config_inputs(config: Config, files: Sequence[str]) -> list[Input]:
    """Everything that a config's run would read. `files`: those of the config itself."""
    stages = checked_stages(config).values() if config.task == "iterate" else ()
    found = [Input("the config", Path(file)) for file in files]
    return found + [one for part in (config, *stages) for one in _inputs(part)]


def _inputs(config: Config) -> Iterator[Input]:
    data, ppo = config.data, config.ppo
    sources = {"data.train": data.train, "data.eval": data.eval, "meta.data": config.meta.data}
    for key, names in (
        sources | {f"ppo.{key}": getattr(ppo, key) for key in ("prompts", "eval_prompts", "ptx_data")}
    ).items():
        yield from (Input(key, Path(source_root(name))) for name in names)
    yield from (Input(f"ppo.{key}", Path(model)) for key, model in ppo.models())
    for suite in config.eval.suites:
        name, _, source = suite.partition("=")
        if name.endswith(".py"):
            yield Input("eval.suites", Path(name.rpartition(":")[2]))
        yield Input("eval.suites", Path(source_root(source)))
    adapters, base = chain(Path(config.model.path))
    yield from (Input("model.path", path) for path in (base, *(adapter.path for adapter in adapters)))
    if data.chat_template and "{" not in data.chat_template:  # else it is the template's text
        yield Input("data.chat_template", Path(data.chat_template))


def check_run(config: Config, files: Sequence[str]) -> None:
    """Refuse a run that would overwrite or move what is not a run's, before it writes anything.

    Every process of a job looks before it joins the others, so that none has begun to write.

    Args:
        files: of the config, as they were given.

    Raises:
        UserError: an input is where the run would write; run.dir holds files and no run, or another kind of run;
            its model has files that rmfast did not write.
    """
    folder, cache_folder = run_folder(config.run.dir), Path(config.data.cache).expanduser()
    if os.path.lexists(folder / CONFIG) and not (is_run(folder) and is_own_config(folder / CONFIG)):
        raise UserError(f"run.dir: {folder / CONFIG} is no file of rmfast's, and the run would overwrite it; {ANOTHER}")
    inputs = [one for one in config_inputs(config, files) if identity(one.path) != identity(folder / CONFIG)]
    names = (*RUN_FILES, *{"ensemble": ENSEMBLE_FILES, "iterate": ITERATE_FILES}.get(config.task, ()))
    for name in sorted(set(names) - LINKED - {CONFIG}):  # the config is written by a rename, which follows no link
        if (folder / name).is_symlink():
            raise UserError(
                f"run.dir: {folder / name} is a link, and what it leads to would be written over; {ANOTHER}"
            )
    outputs = [Output("run.dir", folder / name, ANOTHER) for name in names]
    outputs.append(Output("run.dir", folder, ANOTHER, replaced=False))
    outputs.append(Output("data.cache", cache_folder, "choose another data.cache", replaced=False))
    check_overlap(outputs, inputs)
    if config.run.resume == "never":
        _check_move(folder, inputs)
    _check_contents(config, folder, [cache_folder, *(one.path for one in inputs)])


def _check_move(folder: Path, inputs: Sequence[Input]) -> None:
    if identity(folder) in {identity(Path.cwd()), *around(Path.cwd())}:
        raise UserError(f"run.dir: run.resume never cannot move {folder}, where the command was started; {ANOTHER}")
    for one in inputs:
        if identity(one.path) and identity(folder) in around(one.path):
            raise UserError(f"{one.name}: {one.path} is in run.dir, which run.resume never moves; {ANOTHER}")


def _check_contents(config: Config, folder: Path, known: Sequence[Path]) -> None:
    if not is_run(folder):
        if (file := stranger(folder, known)) is not None:
            raise UserError(f"run.dir: {folder} holds {file.relative_to(folder)} and no run of rmfast; {ANOTHER}")
        return
    if config.run.resume == "never":  # the folder goes as a whole
        return
    for task, mark, what in (("ensemble", "ensemble.json", "an ensemble"), ("iterate", ITERATE_FILE, "an iteration")):
        if config.task != task and (folder / mark).exists():
            raise UserError(f"run.dir: {folder} holds {what}; set run.resume to never (moves it), or {ANOTHER}")
    for name in MODELS:
        if (file := kept_model(folder / name)) is not None:
            raise UserError(
                f"run.dir: rmfast did not write {file}, and the run would remove it with the {name} before; move it, "
                f"or {ANOTHER}"
            )


class RunFolder:
    """A run's folder, which its job alone writes to: others are refused until the block ends. All ranks enter it.

    Attributes:
        saver: of the run, once there is one: it knows which step is safe.
    """

    def __init__(self, path: Path, world: World, lock_minutes: float) -> None:
        self.path, self.world, self.lock_minutes = path, world, lock_minutes
        self._lock: FolderLock | None = None
        self.saver: Saver | None = None

    def __enter__(self) -> "RunFolder":
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        line = None if error is None else disk_line(error, self.path)
        if self._lock is not None:
            if line is not None and self._lock.lost() is None:  # else it is another's
                _remove_unfinished(self.path)
            self._lock.release()
        if line is not None:
            raise RunError(f"{line}; {self._safe()}") from None

    def move_earlier(self) -> None:
        """Rename the folder of an earlier run to the first free NAME.1, NAME.2, ..., and begin with an empty one."""
        self._take(self._move)

    def _move(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None and any(name != LOCK for name in os.listdir(self.path)):
            numbers = (n for n in range(1, 1 << 30) if not self.path.with_name(f"{self.path.name}.{n}").exists())
            target = self.path.with_name(f"{self.path.name}.{next(numbers)}")
            try:
                lock.move(target)
            except OSError as error:
                why = f"cannot move {self.path} to {target}: {error.strerror}"
                raise UserError(f"run.dir: run.resume never {why}; {ANOTHER}") from None
            say(f"run.resume is never: the earlier run was moved to {target}")
        elif lock is not None:
            lock.release()

    def _safe(self) -> str:
        """What a run that ends early goes on from. Names of checkpoints do not say: the newest may be damaged."""
        if self.saver is not None and self.saver.safe is not None:
            return f"step {self.saver.safe} is saved, and the same command goes on from it"
        if all_checkpoints(self.path / "checkpoints"):
            return "the same command goes on from the newest checkpoint that is whole"
        return "no step is saved yet, and the same command begins again"

    def _take(self, before: Callable[[], None] = lambda: None) -> None:
        error, launchers = None, gather_launchers(self.world)
        if self.world.main:
            try:
                before()
                mark_earlier_model(self.path)
                self._lock = FolderLock(self.path, self.lock_minutes, launchers)
                for line in self._lock.notes():
                    _say_once(line)
                _sweep(self.path)
            except UserError as raised:
                error = raised
            except OSError as raised:
                error = UserError(f"run.dir: cannot write to the folder {self.path}: {raised.strerror}")
            if error is not None and self._lock is not None:
                self._lock.release()
        # Refused on one, refused on all: none may be left waiting.
        if self.world.sum_(torch.tensor(float(error is not None))):
            raise error or UserError(f"run.dir: {self.path} was refused to the first rank, whose line says why")


@cache
def _say_once(line: str) -> None:
    say(line)


def _sweep(folder: Path) -> None:
    """Finish and remove what earlier runs, that have ended, left half done in a folder that this one holds."""
    mend(folder, *MODELS)
    mend(folder / "checkpoints", "step-*")
    for inside in (folder, *(folder / name for name in ("eval", "report", "rollouts"))):
        sweep(inside)
    remove_unfinished(folder / "checkpoints")


def _remove_unfinished(folder: Path) -> None:
    """Give back the space of what a run that holds a folder could not finish."""
    remove_unfinished(folder / "checkpoints")
    for name in MODELS:
        remove(partial_name(folder / name))
