"""From a config's data section to tables of prompt groups."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rmfast.config import DataConfig
from rmfast.console import say
from rmfast.data.columns import read_columns, uses_line
from rmfast.data.denoise import Denoise
from rmfast.data.denoise_table import denoise_table
from rmfast.data.notes import note_lines
from rmfast.data.row_kinds import PAIRS, RowKind
from rmfast.data.store import TokenStore, build_store
from rmfast.data.table import GroupTable, build_table
from rmfast.data.views import Views, view_tokens
from rmfast.errors import UserError
from rmfast.parallel.world import World


def open_stores(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    world: World,
    *,
    split: str,
    kind: RowKind = PAIRS,
) -> list[TokenStore]:
    """Tokenise the sources on one rank of each machine; the others open what it left.

    Args:
        kind: what is asked of the rows.

    Raises:
        UserError: on all ranks, if on one: none may be left waiting for the others.
    """

    def build() -> list[TokenStore]:
        cache = Path(data.cache).expanduser()
        options: dict[str, Any] = {"default_split": split, "workers": data.workers, "bad_rows": data.bad_rows}
        options |= {"kind": kind, "columns": read_columns(data.columns)}
        return [build_store(source, tokenizer, cache, **options) for source in sources]

    stores: list[TokenStore] = []
    error = None
    if world.local_rank == 0:
        try:
            stores = build()
        except UserError as raised:
            error = raised
            if not world.main:  # rank 0 prints its line; of another machine nobody else knows
                print(f"rmfast: rank {world.rank}: {error}", file=sys.stderr, flush=True)
    failed = world.sum_(torch.tensor(float(error is not None)))
    if error or failed:
        raise error or UserError(f"another machine cannot read {', '.join(sources)}; its log says why")
    return stores if world.local_rank == 0 else build()


def make_table(
    stores: Sequence[TokenStore],
    data: DataConfig,
    vocabulary: int,
    what: str,
    world: World,
    denoise: Denoise | None = None,
    kind: RowKind = PAIRS,
    views: Views | None = None,
) -> GroupTable:
    """The usable groups, after saying on rank 0 what was left out and why.

    Args:
        denoise: how to treat the edges by their strength; for training data only.
        kind: what is asked of the groups.
        views: how packs hold two views of each response; None for one.

    Raises:
        UserError: nothing usable is left, ids that the model's embedding does not have, or strengths that are missing.
    """
    for store in stores:
        highest = store.meta["max_id"]
        if highest >= vocabulary:
            raise UserError(
                f"{store.meta['source']}: holds token id {highest}, but the model's vocabulary has {vocabulary}: "
                "model.path's tokenizer and weights do not belong together"
            )
    table, dropped = build_table(
        stores,
        max_length=data.max_length,
        tokens_per_pack=data.tokens_per_pack,
        views=views,
        over_long=data.over_long,
        kind=kind,
    )
    cut = dropped["over-long"] or dropped["longer than a pack"]
    too_big = _beside_views(stores, data, table, views) if cut and views is not None else ""
    bad: dict[str, int] = {}
    for store in stores:
        for cause, count in store.meta["bad"].items():
            bad[cause] = bad.get(cause, 0) + count
    left_out = bad | {cause: count for cause, count in dropped.items() if count and cause != "truncated"}
    causes = ", ".join(f"{count:,} {cause}" for cause, count in left_out.items())
    if data.bad_rows == "error" and dropped["identical"]:
        raise UserError(
            f"{what} data: {dropped['identical']} rows prefer one of two identical responses (data.bad_rows)"
        )
    if not len(table):
        why = "; ".join(filter(None, (causes, too_big)))
        raise UserError(f"{what} data: no usable row in {', '.join(s.meta['source'] for s in stores)}: {why}")
    if world.main:
        saved = 1 - table.stored.sum() / table.sequences.sum()
        count = table.edges.sum() if kind.prefers else table.first_response[-1]
        parts = "preference edges" if kind.prefers else kind.name
        say(
            f"{what}: {len(table):,} prompt groups, {count:,} {parts}, "
            f"{table.stored.sum():,} tokens ({saved:.0%} saved by sharing prompts)"
        )
        if causes:
            report = "report" if kind.distinct is None else f"report --samples {kind.distinct}"
            say(f"{what}: left out {causes} (details: rmfast data {report})")
        if too_big:
            say(f"{what}: {too_big}")
        for store in stores:
            if store.meta["split"]:
                say(f"{what}: {store.meta['source']}: {store.meta['split']}")
            if store.meta["columns"]:
                say(f"{what}: columns of {store.meta['source']}: {uses_line(store.meta['columns'])}")
            for line in note_lines(store.meta["notes"]):
                say(f"{what}: {line}")
        merged = sum(store.meta.get("merged", 0) for store in stores)
        if merged:
            say(f"{what}: merged {merged:,} samples that were the same as another of their prompt")
        if dropped["truncated"]:
            say(f"{what}: cut the prompts of {dropped['truncated']:,} groups from the left")
    return _denoised(table, denoise, what, world) if denoise is not None else table


def _beside_views(stores: Sequence[TokenStore], data: DataConfig, table: GroupTable, views: Views) -> str:
    """How many groups were left out because a pack holds two views of them, and what they need; empty for none."""
    # Half a pack is where the default of data.max_length gave way (see `Config`), so that it says the same thing.
    gave_way = views == "pass" and data.max_length == data.tokens_per_pack // 2
    longest = DataConfig.model_fields["max_length"].default if gave_way else 0
    limit = max(data.max_length, longest)
    whole, _ = build_table(stores, max_length=limit, over_long="truncate" if data.over_long == "truncate" else "drop")
    if len(whole) == len(table):
        return ""
    needed = int(view_tokens(whole, np.arange(len(whole)), views).max())
    return (
        f"{len(whole) - len(table):,} of those left out do not fit into a pack in the two views of "
        f"objective.contrastive (objective.views {views}): data.tokens_per_pack {needed} holds all, it is "
        f"{data.tokens_per_pack}"
    )


def _denoised(table: GroupTable, denoise: Denoise, what: str, world: World) -> GroupTable:
    after, denoised = denoise_table(table, denoise)
    if world.main and denoised is not None:
        say(f"{what}: denoise ({denoise}): {denoised.summary()}")
        if len(after) < len(table):
            say(f"{what}: left out {len(table) - len(after):,} groups whose edges were all dropped")
    return after


def group_counts(table: GroupTable) -> list[int]:
    """Groups of each source, in the table's order."""
    return np.bincount(table.store, minlength=len(table.stores)).tolist()


def data_key(table: GroupTable, data: DataConfig, seed: int) -> str:
    """Tells runs apart whose steps hold other rows: a checkpoint of one must not go on as another."""
    digest = hashlib.sha256(repr((data.pairs_per_step, data.shuffle, data.train_weights, seed)).encode())
    for store in table.stores:
        digest.update(store.meta["key"].encode())
    for column in (table.index, table.stored, table.sequences, table.weight):
        digest.update(np.ascontiguousarray(column).tobytes())
    for store, edges in zip(table.stores, table.store_edges, strict=True):
        if edges.better is not store.better:  # denoised: what the store's key does not tell
            for column in (edges.start, edges.better, edges.worse, edges.margin, edges.target, edges.weight):
                digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
