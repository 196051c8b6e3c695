"""What the tile search tries: for each kernel its table, the line that holds for a shape, and other tiles for it.

Shapes are real ones in bf16. Attention's line is chosen by the head dimension alone (a pack's lengths are data, and a
tile that followed them would make a run's last bits depend on them), so its times are added up over short and long
prompt groups.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.kernels.cases import OPS, At, Problem
from benchmarks.kernels.problem import Size
from benchmarks.kernels.timing import BACKWARD, FORWARD, pass_of
from rmfast.kernels.info_nce import tiles as nce
from rmfast.kernels.linear_log_prob import tiles as log_prob
from rmfast.kernels.prefix_attention import tiles as attention
from rmfast.kernels.sinkhorn import tiles as sinkhorn
from rmfast.kernels.tables import Key, Table

Pair = tuple[Callable[[], Any], Callable[[], Any]]  # a call of the kernels, and plain torch's


@dataclass(frozen=True)
class Target:
    """A line of a table and what tells tiles for it apart.

    Args:
        op: in `OPS`. table: its name and the object.
        kinds, line: as `Table.key` is asked for it.
        kernel: the name of the Triton kernel that reads it.
        candidates: tiles to try beside the one that holds.
        which: the pass that is timed.
        sizes: of the op, whose times are added up. small: changes to them where nothing is to be timed.
    """

    name: str
    op: str
    table: tuple[str, Table[Any]]
    kinds: tuple[str, ...]
    line: int
    kernel: str
    candidates: tuple[Any, ...]
    which: str
    sizes: tuple[Size, ...]
    small: Size

    @property
    def file(self) -> str:
        """The table's module, relative to the repository."""
        return f"kernels/{self.op}/tiles.py"

    def key(self, capability: tuple[int, int]) -> Key:
        return self.table[1].key(capability, *self.kinds, size=self.line)

    def held(self, arch: int) -> Any:
        """The tile that holds."""
        return self.table[1].find((arch // 10, arch % 10), *self.kinds, size=self.line)

    def problems(self, device: torch.device, small: bool) -> list[Problem]:
        sizes = [size | self.small for size in self.sizes[:1]] if small else self.sizes
        return [OPS[self.op].make(At(device, torch.bfloat16), **size) for size in sizes]

    def calls(self, device: torch.device, small: bool) -> list[Pair]:
        """Calls on a device, each with the one of plain torch that it must agree with."""
        ways = ("triton", "reference")
        return [
            tuple(pass_of(self.which, partial(one.call, impl=impl), one.inputs) for impl in ways)  # type: ignore[misc]
            for one in self.problems(device, small)
        ]


def attention_targets() -> Iterator[Target]:
    for dim, which in product((64, 128), ("fwd", "dq", "dkv")):
        # Rows of every product, of which wgmma takes 64, are keys in the pass for dk and dv, else queries.
        columns = (16, 32, 64) if which == "dkv" else (32, 64, 128)
        tiles = [
            attention.Tile(*((n, rows) if which == "dkv" else (rows, n)), warps, stages)
            for rows, n, warps, stages in product((64, 128), columns, (4, 8), (1, 2, 3))
            if (rows, warps) != (128, 4) and (which == "fwd" or stages < 3)
        ]
        sizes = tuple(OPS["prefix_attention"].sizes[f"{lengths} D={dim}"] for lengths in ("hh", "long"))
        yield Target(
            f"prefix_attention D={dim} half {which}", "prefix_attention", ("TILES", attention.TILES), ("half", which),
            dim, f"prefix_attention_{which}_kernel", tuple(tiles), FORWARD if which == "fwd" else BACKWARD, sizes,
            {"lengths": "tiny", "tokens": 96},
        )  # fmt: skip


def nce_targets() -> Iterator[Target]:
    for which, kernel in (("forward", "fwd"), ("gradient", "grad"), ("resident", "bwd")):
        width, chunks = (128, (0,)) if which == "resident" else (1024, (32, 64, 128))
        tiles = [
            nce.Tile(m, n, d, warps, stages)
            for m, n, d, warps, stages in product((64, 128), (64, 128, 256), chunks, (4, 8), (2, 3, 4))
            if m * n <= 128 * 128 and (m * n <= 64 * 64 or warps == 8)
        ]
        yield Target(
            f"info_nce half {which}", "info_nce", ("TILES", nce.TILES), ("half", which), width,
            f"info_nce_{kernel}_kernel", tuple(tiles), FORWARD if which == "forward" else BACKWARD,
            ({"rows": 8192, "keys": 8192, "width": width},),
            {"rows": 64, "keys": 64},
        )  # fmt: skip


def other_targets() -> Iterator[Target]:
    tiles: Any = [log_prob.Tile(block, warps) for block, warps in product((1024, 2048, 4096, 8192), (4, 8, 16))]
    one = Target(
        "linear_log_prob fwd", "linear_log_prob", ("TILES", log_prob.TILES), ("fwd",), 128256,
        "linear_log_prob_fwd_kernel", tuple(tiles), FORWARD, ({"rows": 4096, "width": 2048, "vocabulary": 128256},),
        {"rows": 4, "width": 16, "vocabulary": 512},
    )  # fmt: skip
    yield one
    yield replace(one, name="linear_log_prob bwd", kinds=("bwd",), kernel="linear_log_prob_bwd_kernel", which=BACKWARD)
    tiles = [sinkhorn.Columns(r, c, w) for r, c, w in product((16, 32, 64, 128), (32, 64, 128), (2, 4, 8))]
    one = Target(
        "sinkhorn columns", "sinkhorn", ("COLUMNS", sinkhorn.COLUMNS), (), 3000, "sinkhorn_columns_kernel",
        tuple(tiles), FORWARD, ({"rows": 4096, "prototypes": 3000},), {"rows": 64, "prototypes": 48},
    )  # fmt: skip
    yield one
    tiles = [sinkhorn.Rows(c, v, w) for c, v, w in product((512, 1024, 2048, 4096), (1024, 2048, 4096), (2, 4, 8))]
    yield replace(one, name="sinkhorn rows", table=("ROWS", sinkhorn.ROWS), kernel="sinkhorn_rows_kernel",
                  candidates=tuple(tiles))  # fmt: skip


def targets() -> list[Target]:
    """All lines that are searched."""
    return [*attention_targets(), *nce_targets(), *other_targets()]
