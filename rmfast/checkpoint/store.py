"""Checkpoints: safetensors shards and a JSON manifest, written under a temporary name, fsynced, then renamed.

A folder `step-N` is complete by its name alone: a crash at any instant leaves the newest one loadable. Tensors are
saved as parts with their place in the whole (rows, and of these some columns), so that another number of ranks or
another engine can read them.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmfast.data import files
from rmfast.errors import UserError, first_line
from rmfast.parallel.engine import ReadRows, Shard, tensor_name
from rmfast.parallel.world import World

FORMAT = 1
MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path,
    step: int,
    state: dict[str, Shard],
    progress: dict[str, Any],
    world: World,
    *,
    write_extras: Callable[[Path], None],
    keep: int,
) -> Path:
    """Write `folder/step-N` from every rank's part of the state, and drop all but the newest `keep`.

    Args:
        state: this process's shards.
        progress: plain values that the run goes on from.
        write_extras: writes what makes the folder a model (config, tokenizer); called on rank 0.
    """
    final, temporary = folder / f"step-{step}", folder / f".step-{step}.partial"
    if world.main:
        for left in folder.glob(".step-*.partial"):  # of saves that were killed; none runs: all ranks left the last one
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_extras(temporary)
    world.barrier()
    written = {n: s for n, s in state.items() if s.tensor.numel() and _writes(s, world)}
    name = f"rank-{world.rank:05d}"
    save_file({n: s.tensor.detach().cpu().contiguous() for n, s in written.items()}, temporary / f"{name}.safetensors")
    places = {
        n: {"start": s.start, "shape": s.shape} | ({"column": s.column} if s.column else {}) for n, s in written.items()
    }
    _write_json(temporary / f"{name}.json", places)
    for ending in ("safetensors", "json"):  # here: rank 0 cannot flush what another node's memory still holds
        files.sync(temporary / f"{name}.{ending}")
    world.barrier()
    if world.main:
        _write_json(temporary / MANIFEST, {"format": FORMAT, "step": step, "ranks": world.size, "progress": progress})
        files.publish(temporary, final)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    world.barrier()
    return final


def _writes(shard: Shard, world: World) -> bool:
    if shard.writer is not None:
        return shard.writer
    return world.main or shard.tensor.shape[0] < shard.shape[0]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a folder, oldest first."""
    found = [p for p in folder.glob("step-*") if p.name[5:].isdigit() and (p / MANIFEST).is_file()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def remove_checkpoint(path: Path) -> None:
    """Take a checkpoint away; a crash leaves no part of it under its name."""
    temporary = path.with_name(f".{path.name}.partial")
    path.rename(temporary)
    files.sync(path.parent)
    shutil.rmtree(temporary)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        UserError: it is damaged or of another format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no readable {MANIFEST}: {error}") from None
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: checkpoint format {manifest.get('format')!r}, this version reads {FORMAT}")
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
                places = json.loads(index.read_text(encoding="utf-8"))
            except (OSError, ValueError, SafetensorError) as error:
                reason = first_line(error)
                raise UserError(f"{path}: damaged checkpoint ({reason}); delete it to go on from another") from None
            for key, place in places.items():
                part, name = handle.get_slice(key), tensor_name(key)
                pieces.setdefault(name, []).append(
                    _Piece(part, place["start"], place.get("column", 0), tuple(part.get_shape()))
                )
                shapes[name] = tuple(place["shape"])

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
