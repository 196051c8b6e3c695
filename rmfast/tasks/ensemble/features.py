"""One pass of the frozen trunk over all data of an ensemble: features that every member's head reads."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rmfast.console import say
from rmfast.data.files import publish, sync, write_text
from rmfast.data.pack import Pack
from rmfast.data.table import GroupTable, select
from rmfast.errors import RunError, first_line
from rmfast.evaluation.scoring.score import CHUNK, score_table
from rmfast.models.network import Reads
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.world import World
from rmfast.tasks.ensemble.members import Ensemble


def trunk_tables(ensemble: Ensemble) -> tuple[dict[str, GroupTable], np.ndarray]:
    """The tables that the trunk passes over, in the order of their features, and where the features of the training
    table's responses are. Prompts that training cuts are passed over twice, cut and whole."""
    table, whole = ensemble.inputs.table, ensemble.whole
    tables = {"data": whole} | {f"eval:{name}": held_out for name, held_out in ensemble.inputs.evals.items()}
    counts = np.diff(table.first_response)
    cut = np.flatnonzero(table.cut)
    begin = whole.first_response[ensemble.place].copy()
    if len(cut):
        behind = sum(int(t.first_response[-1]) for t in tables.values())
        tables["cut"] = select(table, cut)
        begin[cut] = behind + tables["cut"].first_response[:-1]
    within = np.arange(int(counts.sum())) - np.repeat(table.first_response[:-1], counts)
    return tables, np.repeat(begin, counts) + within


def make_features(ensemble: Ensemble, engine: NativeEngine, tables: dict[str, GroupTable]) -> np.ndarray:
    """Features fp32 [F, d] of all tables' responses, memory-mapped from run.dir/features.npy; made where they are not
    there for this very trunk and data.

    Raises:
        RunError: features that are not finite.
    """
    world, folder = ensemble.world, ensemble.folder
    file, note = folder / "features.npy", folder / "features.json"
    key = _features_key(ensemble, tables) if world.main else ""
    size = sum(int(table.first_response[-1]) for table in tables.values())
    width = engine.network.config.width
    found = world.main and _made_before(file, note, key, (size, width))
    if world.sum_(torch.tensor(float(found))):
        if world.main:
            say(f"features of {file}: made before")
        return _open(file, world)
    temporary = file.with_name(".features.partial.npy")
    out = None
    if world.main:
        note.unlink(missing_ok=True)  # for good, before other features have its key
        sync(folder)
        say(f"one pass of the trunk: {size:,} responses x {width} features ({4 * size * width / 2**30:.2f} GiB)")
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(size, width))

    def features(packs: Sequence[Pack]) -> list[Tensor]:
        read = engine.read(packs, lambda pack: Reads(scores=pack.scored, features=True))
        return [outputs.features for outputs in read if outputs.features is not None]

    broken = begin = 0
    for table in tables.values():
        for rows in _chunks(len(table)):
            part = select(table, rows)
            values = score_table(features, part, world, budget=ensemble.config.data.tokens_per_pack)
            broken += int((~np.isfinite(values)).any(1).sum())
            if out is not None:
                out[begin : begin + len(values)] = values
            begin += len(values)
    if broken:
        raise RunError(
            f"{ensemble.config.model.path}: the trunk gives {broken:,} responses features that are not finite"
        )
    if out is not None:
        out.flush()
        del out
        publish(temporary, file)
        write_text(note, json.dumps({"key": key}) + "\n")
    return _open(file, world)


def _made_before(file: Path, note: Path, key: str, shape: tuple[int, int]) -> bool:
    """Whether features of that key and shape are there; what cannot be read is not."""
    if not note.is_file():
        return False
    try:
        return bool(
            json.loads(note.read_text(encoding="utf-8"))["key"] == key and np.load(file, mmap_mode="r").shape == shape
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        say(f"{file}: damaged, with {note.name} ({first_line(error)}); made again")
        return False


def _open(file: Path, world: World) -> np.ndarray:
    """Only rank 0 reads them."""
    return np.load(file, mmap_mode="r") if world.main else np.empty((0, 0), np.float32)


def _chunks(count: int) -> Iterator[np.ndarray]:
    return (np.arange(begin, min(begin + CHUNK, count)) for begin in range(0, count, CHUNK))


def _features_key(ensemble: Ensemble, tables: dict[str, GroupTable]) -> str:
    """Of the trunk's files and every sequence that it passes over."""
    model = ensemble.config.model
    seed = ensemble.config.run.seed if model.from_scratch else None
    digest = hashlib.sha256(repr((model.dtype, model.from_scratch, seed)).encode())
    path = Path(model.path)
    files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors")) if path.is_dir() else [path]
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    for name, table in tables.items():
        digest.update(repr((name, [store.meta["key"] for store in table.stores])).encode())
        for column in (table.store, table.index, table.cut):
            digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
