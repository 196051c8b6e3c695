"""One pass of the frozen trunk over all data of an ensemble: features that every member's head reads."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from rmfast.data.pack import Pack
from rmfast.data.table import GroupTable, select
from rmfast.errors import RunError
from rmfast.evaluation.scoring.score import CHUNK, score_table
from rmfast.models.network import Reads
from rmfast.parallel.native import NativeEngine
from rmfast.tasks.ensemble.kept_array import KeptArray
from rmfast.tasks.ensemble.members import Ensemble

DTYPE = np.dtype(np.float32)


def trunk_tables(ensemble: Ensemble) -> dict[str, GroupTable]:
    """The tables that the trunk passes over, in the order of what is kept of them. Prompts that training cuts are
    passed over twice, cut ("cut") and whole."""
    table = ensemble.inputs.table
    tables = {"data": ensemble.whole} | {f"eval:{name}": held_out for name, held_out in ensemble.inputs.evals.items()}
    cut = np.flatnonzero(table.cut)
    return tables | ({"cut": select(table, cut)} if len(cut) else {})


def response_places(ensemble: Ensemble, tables: dict[str, GroupTable]) -> np.ndarray:
    """Where the features of the training table's responses are among those of all tables, int64 [R]."""
    table, whole = ensemble.inputs.table, ensemble.whole
    counts = np.diff(table.first_response)
    begin = whole.first_response[ensemble.place].copy()
    if "cut" in tables:
        behind = sum(int(t.first_response[-1]) for name, t in tables.items() if name != "cut")
        begin[np.flatnonzero(table.cut)] = behind + tables["cut"].first_response[:-1]
    within = np.arange(int(counts.sum())) - np.repeat(table.first_response[:-1], counts)
    return np.repeat(begin, counts) + within


def make_features(ensemble: Ensemble, engine: NativeEngine, tables: dict[str, GroupTable]) -> np.ndarray:
    """Features fp32 [F, d] of all tables' responses, memory-mapped from run.dir/features.npy; made where they are not
    there for this very trunk and data.

    Raises:
        RunError: features that are not finite.
    """
    world, model = ensemble.world, ensemble.config.model.path
    size = sum(int(table.first_response[-1]) for table in tables.values())
    width = engine.network.config.width

    def features(packs: Sequence[Pack]) -> list[Tensor]:
        read = engine.read(packs, lambda pack: Reads(scores=pack.scored, features=True))
        return [outputs.features for outputs in read if outputs.features is not None]

    def parts() -> Iterator[np.ndarray]:
        broken = 0
        for part in chunks(tables):
            values = score_table(features, part, world, budget=ensemble.config.data.tokens_per_pack)
            broken += int((~np.isfinite(values)).any(1).sum())
            yield values
        if broken:
            raise RunError(f"{model}: the trunk gives {broken:,} responses features that are not finite")

    kept = KeptArray(ensemble.folder / "features.npy", DTYPE)
    line = f"one pass of the trunk: {size:,} responses x {width} features ({4 * size * width / 2**30:.2f} GiB)"
    kept.make(world, trunk_key(ensemble, tables) if world.main else "", (size, width), parts, line)
    return kept.open() if world.main else np.empty((0, 0), np.float32)  # the others read none


def chunks(tables: dict[str, GroupTable]) -> Iterator[GroupTable]:
    """The tables' groups in order, some at a time."""
    for table in tables.values():
        for begin in range(0, len(table), CHUNK):
            yield select(table, np.arange(begin, min(begin + CHUNK, len(table))))


def trunk_key(ensemble: Ensemble, tables: dict[str, GroupTable]) -> str:
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
