"""Folds of prompts, so that each preference edge can be scored by models that never saw it."""

import numpy as np

from rmfast.data.table import GroupTable
from rmfast.errors import UserError


def fold_of_groups(table: GroupTable, folds: int, seed: int) -> np.ndarray:
    """Fold of every group, int64 [G], in 0 .. folds - 1.

    Prompts are dealt out by a seeded permutation, and groups of one prompt (`rmfast.data.prompt`) share their fold: a
    row that occurs twice, also with its sides swapped, cannot be on both sides. It depends on neither the order of
    rows nor on `max_length`.

    Raises:
        UserError: fewer different prompts than folds.
    """
    keys = np.empty(len(table), dtype=np.uint64)
    for number, store in enumerate(table.stores):
        of_store = table.store == number
        keys[of_store] = store.prompt[table.index[of_store]]
    prompts, of_group = np.unique(keys, return_inverse=True)
    if len(prompts) < folds:
        raise UserError(f"ensemble.folds: {folds} folds need as many different prompts, the data has {len(prompts)}")
    fold = np.random.default_rng((seed, 3)).permutation(len(prompts)) % folds
    return np.asarray(fold[of_group], dtype=np.int64)
