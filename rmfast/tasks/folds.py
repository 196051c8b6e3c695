"""Folds of prompts, so that each preference edge can be judged by models that never saw it."""

from dataclasses import fields, replace

import numpy as np

from rmfast.data.table import GroupTable
from rmfast.errors import UserError


def fold_of_groups(table: GroupTable, folds: int, seed: int) -> np.ndarray:
    """Fold of every group, int64 [G], in 0 .. folds - 1.

    Prompts are dealt out by a seeded permutation, and groups of one prompt share their fold: a row that stands twice,
    also with its sides swapped, cannot lie on both sides. The prompt is what all the group's responses share with the
    tokenised prompt alone; without a separate prompt it is their common prefix. It depends on neither the order of
    rows nor on `max_length`.

    Raises:
        UserError: fewer different prompts than folds.
    """
    prompts: dict[bytes, int] = {}
    mine = [prompts.setdefault(prompt_of(table, group), len(prompts)) for group in range(len(table))]
    if len(prompts) < folds:
        raise UserError(f"ensemble.folds: {folds} folds need as many different prompts, the data has {len(prompts)}")
    by_text = sorted(prompts)
    order = np.random.default_rng((seed, 3)).permutation(len(by_text))
    fold = np.empty(len(by_text), dtype=np.int64)
    fold[[prompts[prompt] for prompt in by_text]] = order % folds
    return fold[np.array(mine, dtype=np.int64)]


def prompt_of(table: GroupTable, group: int) -> bytes:
    """The token ids of a group's prompt."""
    store, g = table.stores[table.store[group]], int(table.index[group])
    begin = int(store.token_start[g])
    length = int(store.answer_start[store.response_start[g] : store.response_start[g + 1]].min())
    return np.ascontiguousarray(store.tokens[begin : begin + length]).tobytes()


def select(table: GroupTable, rows: np.ndarray) -> GroupTable:
    """Some rows of a table, ascending; their responses are numbered anew."""
    responses = np.diff(table.first_response)[rows]
    columns = {
        f.name: getattr(table, f.name)[rows]
        for f in fields(table)
        if f.name not in ("stores", "store_edges", "first_response")
    }
    return replace(table, first_response=np.concatenate(([0], np.cumsum(responses))), **columns)
