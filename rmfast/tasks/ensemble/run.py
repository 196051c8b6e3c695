"""task: ensemble. Trains M reward models and writes each preference's strength back to the data (Part II, 2.1)."""

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rmfast.config import Config
from rmfast.console import say
from rmfast.data.table import select
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reader import first_too_long
from rmfast.evaluation.scoring.score import score_table
from rmfast.models.config import context_window
from rmfast.parallel.agree import all_or_none
from rmfast.parallel.world import World
from rmfast.tasks.build.folder import RunFolder, run_folder
from rmfast.tasks.build.inputs import open_inputs, open_world
from rmfast.tasks.build.model import stored_heads
from rmfast.tasks.ensemble.heads import train_heads
from rmfast.tasks.ensemble.members import (
    Ensemble,
    check_folder,
    check_ranks,
    member_config,
    open_folder,
    read_scores,
    write_scores,
)
from rmfast.tasks.ensemble.strength import finish
from rmfast.tasks.ensemble.top import train_top
from rmfast.tasks.reward import open_reward
from rmfast.trainer.stop import StopRequest, listening

WEEK = 7 * 24 * 60.0
"""Minutes that ranks wait where each has other work; one that dies is seen at once all the same."""


def run(config: Config) -> None:
    """Train the members and write strengths, as the config says. All ranks call it.

    Raises:
        UserError: before anything is written to the run folder.
        RunError: a run that cannot go on.
        Interrupted: a run that was asked to stop.
    """
    together = config.ensemble.spread == "turn" and config.ensemble.mode == "full"
    world = open_world(config, None if together else WEEK)
    if config.ensemble.spread == "ranks":
        check_ranks(config, world.size, "torchrun's --nproc_per_node x --nnodes")
    part = config.ensemble.part
    # A job of one member holds that member's folder alone: others train theirs beside it.
    minutes = config.parallel.lock_minutes
    held = contextlib.nullcontext() if isinstance(part, int) else RunFolder(run_folder(config.run.dir), world, minutes)
    with world, held as folder:
        inputs = open_inputs(config, world)
        count = 0 if config.model.from_scratch else stored_heads(config.model.path)
        if count > 1:
            raise UserError(
                f"model.path: {config.model.path} has {count} reward heads, and a member of an ensemble has one; "
                "give a model with one or none"
            )
        for store in inputs.table.stores:  # whose rows are scored at full length, also those that training cuts
            if beyond := first_too_long(store, context_window(inputs.hf)):
                raise UserError(
                    f"{store.label(beyond[0])}: {beyond[1]}; an ensemble scores all rows: take this one out"
                )
        ensemble = Ensemble(config=config, world=world, inputs=inputs, folder=run_folder(config.run.dir))
        for member in range(config.ensemble.folds or 0):
            ensemble.trains_on(member)  # refuses folds that leave a member nothing
        if folder is not None and config.run.resume == "never":
            folder.move_earlier()
        check_folder(ensemble)
        if config.ensemble.folds and world.main:
            _say_guessed(ensemble)
        with listening(ensemble.path(part) if isinstance(part, int) else ensemble.folder, world) as stop:
            if part != "vote":
                _train(ensemble, stop)
            if not isinstance(part, int):
                all_or_none(world, lambda: finish(ensemble) if world.main else None)


def _train(ensemble: Ensemble, stop: StopRequest) -> None:
    """All members, or the one that is asked for."""
    config, world = ensemble.config.ensemble, ensemble.world
    if config.mode == "heads":
        train_heads(ensemble, stop)
    elif config.mode == "top_layers":
        train_top(ensemble, stop)
    elif config.spread == "turn":
        for member in range(config.members) if config.part is None else (int(config.part),):
            _train_member(ensemble, member, world, stop)
    else:
        size = ensemble.config.ranks_per_member
        if world.main and 1 < size < world.size:
            say(f"members in {world.size // size} groups of {size} ranks")
        with _part(ensemble, size) as part:
            of_part = stop.within(part)

            def train() -> None:
                for member in range(world.rank // size, config.members, world.size // size):
                    _train_member(ensemble, member, part, of_part)

            all_or_none(world, train, part)


@contextlib.contextmanager
def _part(ensemble: Ensemble, size: int) -> Iterator[World]:
    """This rank's group, as a world."""
    world, parallel = ensemble.world, ensemble.config.parallel
    if size == 1 and parallel.engine == "native":  # which then needs no process group, of which there would be many
        yield World.alone(world)
        return
    with world.part(size, parallel.timeout_minutes) as part:
        yield part


def _say_guessed(ensemble: Ensemble) -> None:
    """Print how many rows have prompts that were guessed for the folds."""
    count = sum(store.meta["guessed_prompts"] for store in ensemble.whole.stores)
    if count:
        say(
            f"folds: {count:,} of {len(ensemble.whole):,} rows have no separate prompt: what their responses share, up "
            "to the last turn marker (such as Assistant:) where there is one, counts as it; a wrong guess may put rows "
            "of one prompt into several folds"
        )


def _train_member(ensemble: Ensemble, member: int, world: World, stop: StopRequest) -> None:
    """A member's whole reward run, then its rewards; nothing where they are there already."""
    members = ensemble.config.ensemble.members
    done = read_scores(ensemble, member, world) is not None
    world.barrier()  # all ranks must have looked before rank 0 writes
    if done:
        if world.main:
            say(f"member {member} of {members}: done before")
        return
    with RunFolder(ensemble.path(member), world, ensemble.config.parallel.lock_minutes) as folder:
        _run_member(ensemble, member, world, stop, folder)
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()


def _run_member(ensemble: Ensemble, member: int, world: World, stop: StopRequest, folder: RunFolder) -> None:
    """The run and the rewards, in the member's folder."""
    config, members = ensemble.config, ensemble.config.ensemble.members
    of_member = member_config(config, member, ensemble.path(member))
    table = ensemble.inputs.table
    if ensemble.fold is not None:
        table = select(table, ensemble.trains_on(member))
    training = open_reward(of_member, world, replace(ensemble.inputs, table=table))
    if ensemble.world.main:
        open_folder(ensemble)
    with _console(ensemble, member, world):
        if world.main:
            fold = "" if config.ensemble.folds is None else f", without fold {member % config.ensemble.folds}"
            say(f"\nmember {member} of {members}: seed {of_member.run.seed}, {len(table):,} groups{fold}")
        folder.saver = training.run.saver
        training.train(stop)
        scored = select(ensemble.whole, np.flatnonzero(ensemble.scores_groups(member)))
        engine, budget = training.engine, config.data.tokens_per_pack
        scores = score_table(engine.score, scored, engine.data, budget=budget)[:, 0]
        if world.main:
            rewards = np.full(int(ensemble.whole.first_response[-1]), np.nan)
            rewards[np.repeat(ensemble.scores_groups(member), np.diff(ensemble.whole.first_response))] = scores
            evals = {name: _final_scores(ensemble.path(member), name) for name in ensemble.inputs.evals}
            write_scores(ensemble, member, rewards, evals)
            say(f"member {member} of {members}: {len(scored):,} groups scored")
    world.barrier()


def _final_scores(folder: Path, name: str) -> np.ndarray:
    with np.load(folder / "eval" / f"{name}-final.npz", allow_pickle=False) as arrays:
        return np.asarray(arrays["scores"])


@contextlib.contextmanager
def _console(ensemble: Ensemble, member: int, world: World) -> Iterator[None]:
    """Lines of a member that ranks without rank 0 train go to the member's file."""
    if ensemble.world.rank < world.size:
        yield
        return
    path = ensemble.path(member) / "console.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"run.dir: cannot write {path}: {error.strerror}") from None
    with file, contextlib.redirect_stdout(file):
        yield
