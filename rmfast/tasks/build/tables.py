"""From a config's data section to tables of prompt groups."""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
from rmfast.errors import Interrupted, UserError
from rmfast.outputs.failure import disk_line
from rmfast.parallel.process_group import say_error
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
        UserError, OSError: on all ranks, if on one: none may be left waiting for the others.
    """

    def build() -> list[TokenStore]:
        cache = Path(data.cache).expanduser()
        options: dict[str, Any] = {"default_split": split, "workers": data.workers, "bad_rows": data.bad_rows}
        options |= {"kind": kind, "columns": read_columns(data.columns), "verify": world.local_rank == 0}
        return [build_store(source, tokenizer, cache, **options) for source in sources]

    stores: list[TokenStore] = []
    for builds in (True, False):
        error: UserError | OSError | None = None
        if (world.local_rank == 0) is builds:
            try:
                stores = build()
            except Interrupted:
                pass  # all ranks end below
            except (UserError, OSError) as raised:
                error = raised
                if not world.main:  # rank 0 prints its line; of another machine nobody else knows
                    say_error(world.rank, disk_line(error) or str(error))
        if world.any(error is not None):
            raise error or UserError(f"another rank cannot read {', '.join(sources)}; its line says why")
        world.check_signals("its data is not tokenised yet")
    return stores


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
        say(f"{what}: {_held(table, kind)}")
        if causes:
            say(f"{what}: left out {causes} (details: {_report(stores, data, kind)})")
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
    table = _denoised(table, denoise, what, world) if denoise is not None else table
    if kind.prefers and not table.weight.any():
        raise UserError(f"{what} data: every edge weighs 0 (column weight), which trains and tells nothing")
    return table


def _report(stores: Sequence[TokenStore], data: DataConfig, kind: RowKind) -> str:
    """The command that counts the rows of these sources by the same limit."""
    sources = shlex.join(store.meta["source"] for store in stores)
    return f"rmfast data report {sources} --model MODEL --max-length {data.max_length}{_report_flag(kind)}"


def _report_flag(kind: RowKind) -> str:
    """What `rmfast data report` needs to read rows as such."""
    if kind.turns is not None:
        return f" --demonstrations {kind.turns}"
    if not kind.answered:
        return " --prompts"
    return "" if kind.distinct is None else f" --samples {kind.distinct}"


def _held(table: GroupTable, kind: RowKind) -> str:
    """What a table holds, in words."""
    if not kind.answered:
        return f"{len(table):,} prompts, {table.stored.sum():,} tokens"
    if kind.turns is not None:
        learnt = f"{table.lm.sum():,} of them in the loss (sft.turns {kind.turns})"
        return f"{len(table):,} demonstrations, {table.stored.sum():,} tokens, {learnt}"
    saved = 1 - table.stored.sum() / table.sequences.sum()
    count = table.edges.sum() if kind.prefers else table.first_response[-1]
    return (
        f"{len(table):,} prompt groups, {count:,} {'preference edges' if kind.prefers else kind.name}, "
        f"{table.stored.sum():,} tokens ({saved:.0%} saved by sharing prompts)"
    )


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
