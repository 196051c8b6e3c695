"""What the frozen trunk gives for every token: kept for all rows where a budget has room for them, or computed again.

Shapes: T tokens of a pack, d width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rmfast.data.pack import Pack
from rmfast.data.table import GroupTable
from rmfast.errors import RunError
from rmfast.evaluation.scoring.score import table_packs
from rmfast.kernels.prefix_attention import flash_lengths
from rmfast.models.config import DTYPES
from rmfast.models.copies import Copies
from rmfast.models.decoder import Decoder
from rmfast.models.layers import linear_weights
from rmfast.parallel.world import World
from rmfast.tasks.ensemble.features import chunks, trunk_key, trunk_tables
from rmfast.tasks.ensemble.kept_array import KeptArray
from rmfast.tasks.ensemble.members import Ensemble

STORED: dict[torch.dtype, np.dtype] = {torch.float32: np.dtype(np.float32), torch.bfloat16: np.dtype(np.int16)}
"""How an .npy file holds states of a dtype: bf16, which numpy does not have, by its bits."""
TRAIN = "train"  # the table that members learn from, beside those of `trunk_tables`


class States(Protocol):
    """Gives the trunk's states of packs."""

    def __call__(self, source: str, pack: Pack, groups: np.ndarray) -> Tensor:
        """[T, d] of a pack, on the CPU or where the trunk is.

        Args:
            source: the table that the pack is of, one of `trunk_tables` or `TRAIN`.
            groups: its rows in that table, in the pack's order.
        """
        ...


class ComputedStates:
    """The trunk itself, on the world's device."""

    def __init__(self, trunk: Decoder, world: World) -> None:
        self.trunk, self.device = trunk.to(world.device), world.device
        self.copies = Copies(linear_weights(trunk), trunk.dtype)

    @torch.no_grad()
    def __call__(self, source: str, pack: Pack, groups: np.ndarray) -> Tensor:
        """See `States`."""
        inputs = pack.to(self.device)
        if self.trunk.attention_impl == "flash":
            flash_lengths(inputs.layout, host=pack.layout)
        with self.copies:
            states: Tensor = self.trunk(inputs.tokens, inputs.positions, inputs.layout, inputs.scored)
        return states


@dataclass(frozen=True, eq=False)
class KeptStates:
    """States [tokens, d] of all rows, memory-mapped, in the order of the tables.

    `begin` and `stored`: where the states of each source's groups begin, and how many they have, int64 [G].
    """

    array: np.ndarray
    dtype: torch.dtype
    begin: Mapping[str, np.ndarray]
    stored: Mapping[str, np.ndarray]

    def __call__(self, source: str, pack: Pack, groups: np.ndarray) -> Tensor:
        """See `States`."""
        out = torch.zeros(len(pack.tokens), self.array.shape[1], dtype=self.dtype)  # 0: of a pack without work
        rows, place = _bits(out), 0
        for start, count in zip(self.begin[source][groups].tolist(), self.stored[source][groups].tolist(), strict=True):
            rows[place : place + count] = self.array[start : start + count]
            place += count
        return out


def states_gib(ensemble: Ensemble) -> float:
    """Size of the states of all rows."""
    tokens = sum(int(table.stored.sum()) for table in trunk_tables(ensemble).values())
    return tokens * ensemble.inputs.decoder.width * DTYPES[ensemble.config.model.dtype].itemsize / 2**30


def common_batches(ensemble: Ensemble) -> bool:
    """Whether all members with top layers take the same batches, for the budget has no room for all states."""
    options = ensemble.config.ensemble
    return options.mode == "top_layers" and states_gib(ensemble) > options.state_memory


def keep_states(ensemble: Ensemble, trunk: ComputedStates) -> KeptStates:
    """The states of all rows, of run.dir/states.npy; made where they are not there for this very trunk and data.

    Raises:
        RunError: states that are not finite.
    """
    config, world, tables = ensemble.config, ensemble.world, trunk_tables(ensemble)
    width, dtype = ensemble.inputs.decoder.width, trunk.trunk.dtype
    tokens = sum(int(table.stored.sum()) for table in tables.values())

    def parts() -> Iterator[np.ndarray]:
        broken = 0
        for part in chunks(tables):
            states = _states_of(part, trunk, world, config.data.tokens_per_pack)
            broken += int((~states.isfinite()).any(1).sum())
            yield _bits(states.to(dtype).cpu())
        if broken:
            raise RunError(f"{config.model.path}: the trunk gives {broken:,} tokens states that are not finite")

    kept = KeptArray(ensemble.folder / "states.npy", STORED[dtype])
    line = (
        f"one pass of the trunk: states of {tokens:,} tokens x {width} "
        f"({states_gib(ensemble):.2f} GiB of {config.ensemble.state_memory:g}, ensemble.state_memory)"
    )
    key = f"{trunk_key(ensemble, tables)}-{len(trunk.trunk.layers)}" if world.main else ""
    kept.make(world, key, (tokens, width), parts, line)
    begin, stored, behind = {}, {}, 0
    for name, table in tables.items():
        ends = np.cumsum(table.stored)
        begin[name], stored[name] = behind + ends - table.stored, table.stored
        behind += int(table.stored.sum())
    of_train = begin["data"][ensemble.place].copy()
    if "cut" in tables:
        of_train[np.flatnonzero(ensemble.inputs.table.cut)] = begin["cut"]
    begin[TRAIN], stored[TRAIN] = of_train, ensemble.inputs.table.stored
    return KeptStates(kept.open(), dtype, begin, stored)


def _states_of(table: GroupTable, trunk: ComputedStates, world: World, budget: int) -> Tensor:
    """fp32 [tokens, d], on the device: states of a table's groups in its order, of which every rank computes a part."""
    begin = np.cumsum(table.stored) - table.stored
    width = trunk.trunk.config.width
    out = torch.zeros(int(table.stored.sum()), width, device=trunk.device)
    for packs, _ in table_packs(table, world, budget=budget):
        for pack in packs:
            place = 0
            states = trunk(TRAIN, pack, pack.groups)
            for group in pack.groups.tolist():
                count = int(table.stored[group])
                out[begin[group] : begin[group] + count] = states[place : place + count]
                place += count
    return world.sum_(out)  # the others' rows are 0: no rounding


def _bits(states: Tensor) -> np.ndarray:
    """States as `STORED` says, on the same memory."""
    array: np.ndarray = (states.view(torch.int16) if states.dtype == torch.bfloat16 else states).numpy()
    return array
