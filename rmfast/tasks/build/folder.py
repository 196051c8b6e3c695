"""A run's folder: what it must not touch, and one job's hold on it."""

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType

import torch

from rmfast.config import Config
from rmfast.console import say
from rmfast.data.sources import source_root
from rmfast.errors import UserError, first_line
from rmfast.outputs.lock import FolderLock
from rmfast.outputs.marks import (
    CONFIG,
    ENSEMBLE_FILES,
    LINKED,
    LOCK,
    RUN_FILES,
    is_own_config,
    is_run,
    kept_model,
    mark_earlier_model,
    stranger,
)
from rmfast.outputs.overlap import Input, Output, around, check_overlap, identity
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
    return [Input("the config", Path(file)) for file in files] + list(_inputs(config))


def _inputs(config: Config) -> Iterator[Input]:
    data = config.data
    for key, sources in {"data.train": data.train, "data.eval": data.eval, "meta.data": config.meta.data}.items():
        yield from (Input(key, Path(source_root(source))) for source in sources)
    for suite in config.eval.suites:
        name, _, source = suite.partition("=")
        if name.endswith(".py"):
            yield Input("eval.suites", Path(name.rpartition(":")[2]))
        yield Input("eval.suites", Path(source_root(source)))
    yield Input("model.path", Path(config.model.path))
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
    names = (*RUN_FILES, *(ENSEMBLE_FILES if config.task == "ensemble" else ()))
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
    if config.task != "ensemble" and (folder / "ensemble.json").exists():
        raise UserError(f"run.dir: {folder} holds an ensemble; set run.resume to never (moves it), or {ANOTHER}")
    if (file := kept_model(folder / "model")) is not None:
        raise UserError(
            f"run.dir: rmfast did not write {file}, and the run would remove it with the model before; move it, or "
            f"{ANOTHER}"
        )


class RunFolder:
    """A run's folder, which its job alone writes to: others are refused until the block ends. All ranks enter it."""

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world = path, world
        self._lock: FolderLock | None = None

    def __enter__(self) -> "RunFolder":
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()

    def move_earlier(self) -> None:
        """Rename the folder of an earlier run to the first free NAME.1, NAME.2, ..., and begin with an empty one."""
        lock, self._lock = self._lock, None
        if lock is not None and any(name != LOCK for name in os.listdir(self.path)):
            numbers = (n for n in range(1, 1 << 30) if not self.path.with_name(f"{self.path.name}.{n}").exists())
            target = self.path.with_name(f"{self.path.name}.{next(numbers)}")
            os.replace(self.path, target)
            say(f"run.resume is never: the earlier run was moved to {target}")
        if lock is not None:
            lock.release()
        self._take()

    def _take(self) -> None:
        error = None
        if self.world.main:
            try:
                mark_earlier_model(self.path)
                self._lock = FolderLock(self.path)
                if self._lock.missing:
                    _say_unlocked(self._lock.missing)
            except UserError as raised:
                error = raised
            except OSError as raised:
                error = UserError(f"run.dir: cannot write to the folder {self.path}: {raised.strerror}")
        # Refused on one, refused on all: none may be left waiting.
        if self.world.sum_(torch.tensor(float(error is not None))):
            raise error or UserError(f"run.dir: {self.path} was refused to the first rank, whose line says why")


@cache
def _say_unlocked(why: str) -> None:
    say(f"run.dir: its file system gives no locks ({why}): nothing keeps a second run from writing there too")
