"""Which checkpoints are whole: their files are compared with the checksums that were made while they were written."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from rmfast.checkpoint.store import MANIFEST, all_checkpoints, is_checkpoint, open_checkpoint, read_manifest, step_of
from rmfast.errors import UserError
from rmfast.outputs.checksums import difference
from rmfast.parallel.gather import gather_bytes
from rmfast.parallel.world import World


def damage(path: Path, rank: int = 0, ranks: int = 1) -> str:
    """What is wrong with a checkpoint, its file first; empty where nothing is.

    Of a checkpoint of an earlier version, which has no checksums, only what cannot be read is known.

    Args:
        rank, ranks: this process looks into every so many-th file.
    """
    try:
        manifest = read_manifest(path)
        if "files" not in manifest:
            with open_checkpoint(path):
                missing = manifest.get("ranks") != len(list(path.glob("rank-*.safetensors")))
                return "parts of some ranks are not there" if missing else ""
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    if is_checkpoint(path) and manifest.get("step") != step_of(path):
        return f"{MANIFEST} says step {manifest.get('step')}, and its name another: it was renamed; name it back"
    files = manifest["files"]
    if other := sorted({file.name for file in path.glob("rank-*")} - files.keys()):
        return f"{other[0]} is not of this checkpoint"
    for name in sorted(files)[rank::ranks]:
        if found := difference(path / name, files[name]):
            return f"{name} {found}"
    return ""


def check_whole(path: Path) -> None:
    """Refuse a damaged checkpoint.

    Raises:
        UserError: names the file.
    """
    if found := damage(path):
        raise UserError(f"{path}: damaged checkpoint: {found}; name another one")


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint, and what is wrong with each newer one."""

    path: Path | None
    damaged: dict[Path, str]

    def lines(self) -> Iterator[str]:
        """What is to be said of it."""
        for path, what in self.damaged.items():
            yield f"{path}: damaged: {what}; it stays where it is, and an earlier one is taken"


def newest_readable(folder: Path) -> Found:
    """The newest checkpoint of a folder that is whole; one process looks."""
    damaged: dict[Path, str] = {}
    for path in reversed(all_checkpoints(folder)):
        if not (found := damage(path)):
            return Found(path, damaged)
        damaged[path] = found
    return Found(None, damaged)


def newest_whole(folder: Path, world: World) -> Found:
    """The newest checkpoint of a folder that is whole. All ranks call it, and each looks into a part of the files.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    listed = json.loads(gather_bytes(world, json.dumps([str(path) for path in all_checkpoints(folder)]).encode())[0])
    damaged: dict[Path, str] = {}
    for path in map(Path, reversed(listed)):
        found = damage(path, world.rank, world.size)
        if not world.sum_(torch.tensor(float(bool(found)))):
            return Found(path, damaged)
        damaged[path] = found or damage(path) or "a rank cannot read it"
    if damaged:
        newest, what = next(iter(damaged.items()))
        count = "its only checkpoint is not" if len(damaged) == 1 else f"none of {len(damaged)} checkpoints is"
        raise UserError(
            f"{folder}: {count} whole ({newest.name}: {what}); bring one back, set run.resume to never (moves the "
            "run), or choose another run.dir"
        )
    return Found(None, damaged)
