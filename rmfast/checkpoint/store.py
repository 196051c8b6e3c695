"""Checkpoints: safetensors shards and a JSON manifest, written under a temporary name, fsynced, then renamed.

A folder `step-N` is complete by its name alone: a crash at any instant leaves the newest one loadable. Tensors are
saved as parts with their place in the whole (rows, and of these some columns), so that another number of ranks or
another engine can read them. The manifest has the checksums of all files, and of itself.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rmfast.data import files
from rmfast.errors import UserError, first_line
from rmfast.models.tensor_file import write_tensors
from rmfast.outputs.checksums import Checksum, sealed, unsealed, write_json, write_summed
from rmfast.outputs.failure import naming
from rmfast.parallel.engine import ReadRows, Shard, tensor_name
from rmfast.parallel.world import World

FORMAT = 1
MANIFEST = "manifest.json"

Checksums = dict[str, Checksum]
"""Of files, by their names in a folder."""


def written_by(world: World, state: Mapping[str, Shard]) -> dict[str, Shard]:
    """The shards of a state that this process writes."""
    return {name: shard for name, shard in state.items() if shard.tensor.numel() and _writes(shard, world)}


def _writes(shard: Shard, world: World) -> bool:
    if shard.writer is not None:
        return shard.writer
    return world.main or shard.tensor.shape[0] < shard.shape[0]


def partial_folder(folder: Path, step: int) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return folder / f".step-{step}.partial"


def remove_unfinished(folder: Path) -> None:
    """Take away what saves that were killed left; none may be on its way."""
    for left in folder.glob(".step-*.partial"):
        files.remove(left)


def write_extras(folder: Path, extras: Mapping[str, bytes]) -> Checksums:
    """Write what makes a checkpoint a model; the files' checksums, by name."""
    written = {}
    for name, data in extras.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with naming(folder / name):
            written[name] = write_summed(folder / name, data)
    return written


def write_part(folder: Path, rank: int, shards: Mapping[str, Shard]) -> Checksums:
    """Write and flush a rank's part of a checkpoint; the files' checksums, by name.

    Args:
        shards: on the CPU, contiguous.
    """
    index, tensors = f"rank-{rank:05d}.json", f"rank-{rank:05d}.safetensors"
    places = {
        n: {"start": s.start, "shape": s.shape} | ({"column": s.column} if s.column else {}) for n, s in shards.items()
    }
    written = {}
    with naming(folder / tensors):
        written[tensors] = write_tensors(folder / tensors, {name: shard.tensor for name, shard in shards.items()})
    with naming(folder / index):
        written[index] = write_json(folder / index, places)
    for name in written:  # here: rank 0 cannot flush what another node's memory still holds
        files.sync(folder / name)
    return written


def publish_checkpoint(folder: Path, step: int, *, ranks: int, progress: Mapping[str, Any], written: Checksums) -> bool:
    """Write the manifest of a checkpoint whose parts are written, and give it its name.

    Args:
        progress: plain values that the run goes on from.
        written: the checksums of all its files.

    Returns:
        Whether something had its name, which is removed.
    """
    temporary, final = partial_folder(folder, step), folder / f"step-{step}"
    manifest = {"format": FORMAT, "step": step, "ranks": ranks, "progress": progress}
    sums = {name: asdict(checksum) for name, checksum in written.items()}
    with naming(temporary / MANIFEST):
        write_json(temporary / MANIFEST, sealed({**manifest, "files": sums}))
    replaced = final.exists()
    files.publish(temporary, final)
    return replaced


def all_checkpoints(folder: Path) -> list[Path]:
    """Folders that have a checkpoint's name, whole or not, oldest first."""
    found = [path for path in folder.glob("step-*") if is_checkpoint(path)]
    return sorted(found, key=step_of)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a folder, oldest first."""
    return [path for path in all_checkpoints(folder) if (path / MANIFEST).is_file()]


def is_checkpoint(path: Path) -> bool:
    """Whether a folder has a checkpoint's name."""
    return path.name.startswith("step-") and path.name[5:].isdecimal()


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(path.name[5:])


def remove_checkpoint(path: Path) -> None:
    """Take a checkpoint away; a crash leaves no part of it under its name."""
    temporary = path.with_name(f".{path.name}.removed.partial")  # the next save removes what is left of it
    path.rename(temporary)
    files.sync(path.parent)
    shutil.rmtree(temporary)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        UserError: it is damaged or of another format.
    """
    try:
        manifest = unsealed(json.loads((path / MANIFEST).read_text(encoding="utf-8")), sums="files")
    except OSError as error:
        raise UserError(f"{path}: no readable {MANIFEST}: {error.strerror}") from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: no readable {MANIFEST}: {first_line(error)}") from None
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: checkpoint format {manifest.get('format')!r}, this version reads {FORMAT}")
    if not isinstance(manifest.get("progress"), dict):
        raise UserError(f"{path}: no readable {MANIFEST}: it says nothing of the run's progress")
    return manifest


@contextlib.contextmanager
def open_checkpoint(path: Path) -> Iterator[tuple[ReadRows, dict[str, tuple[int, ...]]]]:
    """A function that reads parts of a tensor, from whichever ranks hold them, and the shapes of all tensors."""
    with contextlib.ExitStack() as stack:
        pieces: dict[str, list[_Piece]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for index in sorted(path.glob("rank-*.json")):
            try:
                handle = stack.enter_context(safe_open(index.with_suffix(".safetensors"), framework="pt"))
                for key, place in json.loads(index.read_text(encoding="utf-8")).items():
                    part, name = handle.get_slice(key), tensor_name(key)
                    piece = _Piece(part, place["start"], place.get("column", 0), tuple(part.get_shape()))
                    pieces.setdefault(name, []).append(piece)
                    shapes[name] = tuple(place["shape"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
                reason = first_line(error)
                raise UserError(f"{path}: damaged checkpoint ({reason}); delete it to go on from another") from None

        def read(name: str, begin: int, end: int, columns: tuple[int, int] | None = None) -> Tensor:
            if name not in pieces:
                raise UserError(f"{path}: holds no {name}: the checkpoint is of a run with other trained weights")
            shape = shapes[name]
            left, right = columns or (0, shape[1] if len(shape) > 1 else 1)
            parts = [(p.within(begin, end, left, right), p) for p in sorted(pieces[name], key=lambda p: p.start)]
            found = [(box, p.read(box)) for box, p in parts if box is not None]
            size = [end - begin, *([right - left] if len(shape) > 1 else []), *shape[2:]]
            rows = torch.empty(size, dtype=found[0][1].dtype if found else torch.float32)
            for (top, bottom, low, high), tensor in found:
                target = rows[top - begin : bottom - begin]
                (target[:, low - left : high - left] if len(shape) > 1 else target).copy_(tensor)
            if sum(tensor.numel() for _, tensor in found) != rows.numel():
                raise UserError(f"{path}: {name} has {shape[0]} rows, rows {begin} to {end} are asked for")
            return rows

        yield read, shapes


Box = tuple[int, int, int, int]
"""Rows (first, last exclusive) and columns (first, last exclusive) of a tensor."""


@dataclass(frozen=True)
class _Piece:
    """A saved part of a tensor, and its place in the whole; a tensor of one dimension has one column."""

    part: Any
    start: int
    column: int
    shape: tuple[int, ...]

    def within(self, begin: int, end: int, left: int, right: int) -> Box | None:
        """What it has of a part that is asked for."""
        width = self.shape[1] if len(self.shape) > 1 else 1
        top, bottom = max(begin, self.start), min(end, self.start + self.shape[0])
        low, high = max(left, self.column), min(right, self.column + width)
        return (top, bottom, low, high) if top < bottom and low < high else None

    def read(self, box: Box) -> Tensor:
        top, bottom, low, high = box
        rows = slice(top - self.start, bottom - self.start)
        if len(self.shape) == 1:
            return self.part[rows]
        return self.part[rows, low - self.column : high - self.column]


def read_weights(path: Path) -> dict[str, Tensor]:
    """All model weights of a checkpoint, whole."""
    with open_checkpoint(path) as (read, shapes):
        names = [name for name in shapes if name.startswith("model/")]
        return {name.removeprefix("model/"): read(name, 0, shapes[name][0]) for name in names}
