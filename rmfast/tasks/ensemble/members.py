"""The members of an ensemble: what they share, what each sees and scores, and what the run folder keeps of them."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.config import Config
from rmfast.console import say
from rmfast.data.files import write_text, written_whole
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.table import GroupTable, build_table
from rmfast.errors import UserError
from rmfast.outputs.arrays import read_arrays
from rmfast.outputs.kinds import json_object
from rmfast.outputs.marks import CONFIG, LOCK, config_text
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import Inputs
from rmfast.tasks.build.tables import data_key
from rmfast.tasks.ensemble.folds import fold_of_groups


@dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """What the members share. `inputs.table` is what is trained on; `whole` holds every group of the training sources,
    at full length and with all its edges: it is what members score."""

    config: Config
    world: World
    inputs: Inputs
    folder: Path

    @cached_property
    def whole(self) -> GroupTable:
        return build_table(self.inputs.table.stores, kind=RESPONSES)[0]

    @cached_property
    def place(self) -> np.ndarray:
        """Row of `whole` of each group of `table`, int64."""
        offsets = np.concatenate(([0], np.cumsum([len(store) for store in self.inputs.table.stores])))
        return offsets[self.inputs.table.store] + self.inputs.table.index

    @cached_property
    def fold(self) -> np.ndarray | None:
        """Fold of each group of `whole`; None in-sample."""
        folds = self.config.ensemble.folds
        return None if folds is None else fold_of_groups(self.whole, folds, self.config.run.seed)

    def trains_on(self, member: int) -> np.ndarray:
        """Rows of `table` that a member sees.

        Raises:
            UserError: no rows are left.
        """
        if self.fold is None:
            return np.arange(len(self.inputs.table))
        rows = np.flatnonzero(self.fold[self.place] != member % (self.config.ensemble.folds or 1))
        if not len(rows):
            raise UserError(
                "ensemble.folds: all usable rows are of one prompt, so that a member has none to learn from"
            )
        return rows

    def scores_groups(self, member: int) -> np.ndarray:
        """bool [groups of `whole`]: what a member scores."""
        if self.fold is None:
            return np.ones(len(self.whole), dtype=bool)
        return self.fold == member % (self.config.ensemble.folds or 1)

    def path(self, member: int) -> Path:
        return self.folder / "members" / f"{member:02d}"

    @cached_property
    def scores_key(self) -> str:
        """Of what members have scored: other data, held-out ones too, are scored again."""
        tables = {"data": self.whole} | {f"eval:{name}": table for name, table in self.inputs.evals.items()}
        parts = [
            (name, [s.meta["key"] for s in table.stores], table.index.tobytes(), table.cut.tobytes())
            for name, table in tables.items()
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def member_seed(seed: int, member: int) -> int:
    """`run.seed` of a member: of its data order and head. Ensembles of other seeds share none of their members'."""
    return int(np.random.SeedSequence((seed, member)).generate_state(1)[0]) >> 1


def member_config(config: Config, member: int, folder: Path) -> Config:
    """The config of a member's reward run."""
    run = config.run.model_copy(
        update={"dir": str(folder), "seed": member_seed(config.run.seed, member), "resume": "auto"}
    )
    return config.model_copy(update={"task": "reward", "run": run})


def whole_config(config: Config) -> Config:
    """The config of all members' ensemble, whichever of them a job trains."""
    return config.model_copy(update={"ensemble": config.ensemble.model_copy(update={"part": None})})


def check_ranks(config: Config, ranks: int, set_by: str) -> None:
    """Whether a number of ranks makes whole groups under `ensemble.spread: ranks`.

    Args:
        set_by: options that say how many ranks there are.

    Raises:
        UserError: it does not.
    """
    size = config.ranks_per_member
    if ranks % size:
        origin = " (parallel.tensor x parallel.pipeline)" if config.ensemble.ranks_per_member is None else ""
        raise UserError(
            f"ensemble.ranks_per_member {size}{origin} does not divide the {ranks} ranks of this run ({set_by})"
        )


def _settings(ensemble: Ensemble) -> dict[str, Any]:
    """What a resumed ensemble must not change: finished members are not trained again."""
    config = ensemble.config.dump()
    kept = {"ensemble": ("folds", "mode"), "run": ("seed", "epochs", "max_steps"), "objective": ()}
    lora = tuple(key for key in config["model"] if key.startswith("lora_"))
    whole = ("path", "dtype", "from_scratch", "heads", "top_layers", "adapter", *lora, "dropout")
    kept |= {"model": whole, "optim": ()}
    values = {f"{s}.{key}": config[s][key] for s, keys in kept.items() for key in keys or config[s]}
    for key in ("optim.on_nonfinite", "optim.max_skipped", "optim.backend"):
        values.pop(key)
    return values | {"data": data_key(ensemble.inputs.table, ensemble.config.data, ensemble.config.run.seed)}


def check_folder(ensemble: Ensemble) -> None:
    """Refuse a run folder that holds another run, or an ensemble of other settings."""
    folder = ensemble.folder
    file = folder / "ensemble.json"
    advice = "set run.resume to never (moves it), or choose another run.dir"
    before = json_object(file.read_bytes()).get("settings") if file.is_file() else None
    if file.is_file() and not isinstance(before, dict):
        raise UserError(f"{file}: damaged; {advice}")
    other_run = before is None and (folder / "checkpoints").is_dir()
    ensemble.world.barrier()  # all ranks must have looked before rank 0 writes
    if other_run:
        raise UserError(f"run.dir: {folder} holds another run, no ensemble; {advice}")
    if before is None:
        return
    for key, value in _settings(ensemble).items():
        if before.get(key) == value:
            continue
        if key == "data":
            raise UserError(f"{folder}: holds an ensemble on other data, order or seed; {advice}")
        raise UserError(
            f"{folder}: this ensemble began with {key} {before.get(key)}, now it is {value}; go back, {advice}"
        )


def open_folder(ensemble: Ensemble) -> None:
    """Make the run folder, once nothing is left that could be refused; on rank 0."""
    folder = ensemble.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / LOCK).exists():  # whose holder alone dates it
            (folder / LOCK).touch()  # first of all: jobs of other members see by it whose folder this is
    except OSError as error:
        raise UserError(f"run.dir: cannot make the folder {folder}: {error.strerror}") from None
    write_text(folder / CONFIG, config_text(whole_config(ensemble.config).dump()))
    write_text(folder / "ensemble.json", json.dumps({"settings": _settings(ensemble)}, indent=1) + "\n")


def read_scores(ensemble: Ensemble, member: int, world: World | None = None) -> dict[str, np.ndarray] | None:
    """What `write_scores` wrote of a member; None where it has not, of other data, or where it cannot be read.

    Args:
        world: the ranks that read it together, if not all.
    """
    file = ensemble.path(member) / "scores.npz"
    if not file.is_file():
        return None
    try:
        arrays = read_arrays(file)
        if str(arrays.pop("key")) != ensemble.scores_key:
            return None
        if {"data", *(f"eval:{name}" for name in ensemble.inputs.evals)} - arrays.keys():
            raise ValueError("some are not there")
        return arrays
    except (OSError, ValueError, KeyError):
        if (world or ensemble.world).main:
            say(f"{file}: damaged; made again")
        return None


def write_scores(ensemble: Ensemble, member: int, data: np.ndarray, evals: dict[str, np.ndarray]) -> None:
    """Keep a member's rewards: with that it is done, and is not run again.

    Args:
        data: of every response of `ensemble.whole` [R]; nan where the member does not score.
        evals: of the held-out tables' responses, by name.
    """
    file = ensemble.path(member) / "scores.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"key": np.array(ensemble.scores_key), "data": data}
    with written_whole(file) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays, **{f"eval:{n}": s for n, s in evals.items()})
