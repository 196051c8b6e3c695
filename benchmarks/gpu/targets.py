"""What the tile search tries: for each kernel its table, the line that holds for a shape, and other tiles for it.

Shapes are real ones in bf16. Attention's line is chosen by the head dimension alone (a pack's lengths are data, and a
tile that followed them would make a run's last bits depend on them), so its times are added up over short and long
prompt groups.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.lengths import draw_groups
from rmfast.kernels import prefix_layout
from rmfast.kernels.info_nce import reference as nce_reference
from rmfast.kernels.info_nce import tiles as nce_tiles
from rmfast.kernels.info_nce import triton as nce
from rmfast.kernels.linear_log_prob import reference as log_prob_reference
from rmfast.kernels.linear_log_prob import tiles as log_prob_tiles
from rmfast.kernels.linear_log_prob import triton as log_prob
from rmfast.kernels.prefix_attention import reference as attention_reference
from rmfast.kernels.prefix_attention import tiles as attention_tiles
from rmfast.kernels.prefix_attention import triton as attention
from rmfast.kernels.sinkhorn import reference as sinkhorn_reference
from rmfast.kernels.sinkhorn import tiles as sinkhorn_tiles
from rmfast.kernels.sinkhorn import triton as sinkhorn
from rmfast.kernels.tables import Key, Table

Thunk = Callable[[], Any]
Pair = tuple[Thunk, Thunk]  # a launcher call, and plain torch's of it: the first of its outputs, or all


@dataclass(frozen=True)
class Target:
    """A line of a table and what tells tiles for it apart.

    Args:
        table: its name, the module's file relative to the repository, and the object.
        kinds, size: the line, as `Table.key` is asked for it.
        kernel: the name of the Triton kernel that reads it.
        candidates: tiles to try beside the one that holds.
        calls: makes launcher calls on a device, whose times are added up, each with the call of plain torch that it
            must agree with. Small where nothing is to be timed.
    """

    op: str
    table: tuple[str, str, Table[Any]]
    kinds: tuple[str, ...]
    size: int
    kernel: str
    candidates: tuple[Any, ...]
    calls: Callable[[torch.device, bool], list[Pair]]

    @property
    def name(self) -> str:
        return " ".join((self.op, *self.kinds))

    def key(self, capability: tuple[int, int]) -> Key:
        return self.table[2].key(capability, *self.kinds, size=self.size)


def normal(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def attention_truth(grad: Tensor | None, *inputs: Tensor, layout: Tensor, scale: float) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_(grad is not None) for x in inputs]
    q, k, v = leaves
    out = attention_reference.prefix_attention(q, k, v, layout, None, scale=scale, window=None, softcap=None)
    return (out,) if grad is None else torch.autograd.grad(out, leaves, grad)


def attention_calls(which: str, dim: int, device: torch.device, small: bool) -> list[Pair]:
    calls: list[Pair] = []
    for lengths in ("tiny",) if small else ("hh", "long"):
        layout = prefix_layout(draw_groups(lengths, 96 if small else 16384)).to(device)
        q, k, v = (normal(device, layout.shape[1], heads, dim) for heads in (32, 8, 8))
        options = (layout, None, dim**-0.5, None, None)
        forward = partial(attention.prefix_attention_fwd, q, k, v, *options)
        truth = partial(attention_truth, layout=layout, scale=dim**-0.5)
        if which == "fwd":
            calls.append((forward, partial(truth, None, q, k, v)))
            continue
        out, lse = forward()
        grad = normal(device, *q.shape)
        backward = partial(attention.prefix_attention_bwd, grad, q, k, v, out, lse, *options)
        calls.append((backward, partial(truth, grad, q, k, v)))
    return calls


def attention_targets() -> Iterator[Target]:
    table = ("TILES", "kernels/prefix_attention/tiles.py", attention_tiles.TILES)
    for dim in (64, 128):
        for which in ("fwd", "dq", "dkv"):
            # Rows of every product, of which wgmma takes 64, are keys in the pass for dk and dv, else queries.
            columns = (16, 32, 64) if which == "dkv" else (32, 64, 128)
            tiles = [
                attention_tiles.Tile(*((n, rows) if which == "dkv" else (rows, n)), warps, stages)
                for rows, n, warps, stages in product((64, 128), columns, (4, 8), (1, 2, 3))
                if (rows, warps) != (128, 4) and (which == "fwd" or stages < 3)
            ]
            yield Target(
                f"prefix_attention D={dim}", table, ("half", which), dim, f"prefix_attention_{which}_kernel",
                tuple(tiles), partial(attention_calls, which, dim),
            )  # fmt: skip


def nce_truth(backward: bool, *inputs: Any) -> tuple[Tensor, ...]:
    loss, *kept = nce_reference.info_nce_fwd(*inputs)
    return nce_reference.info_nce_bwd(torch.ones_like(loss), *inputs[:3], *kept, inputs[3]) if backward else (loss,)


def nce_calls(which: str, device: torch.device, small: bool) -> list[Pair]:
    width = 128 if which == "resident" else 1024
    rows = 64 if small else 8192
    q, k = normal(device, rows, width), normal(device, rows, width)
    positive = torch.arange(rows, device=device)
    forward = partial(nce.info_nce_fwd, q, k, positive, 0.05)
    truth = partial(nce_truth, which != "forward", q, k, positive, 0.05)
    if which == "forward":
        return [(forward, truth)]
    _, lse, query_length, key_length = forward()
    one = torch.ones((), device=device)
    return [(partial(nce.info_nce_bwd, one, q, k, positive, lse, query_length, key_length, 0.05), truth)]


def nce_targets() -> Iterator[Target]:
    table = ("TILES", "kernels/info_nce/tiles.py", nce_tiles.TILES)
    for which, kernel in (("forward", "fwd"), ("gradient", "grad"), ("resident", "bwd")):
        widths = (0,) if which == "resident" else (32, 64, 128)
        tiles = [
            nce_tiles.Tile(m, n, d, warps, stages)
            for m, n, d, warps, stages in product((64, 128), (64, 128, 256), widths, (4, 8), (2, 3, 4))
            if m * n <= 128 * 128 and (m * n <= 64 * 64 or warps == 8)
        ]
        yield Target(
            "info_nce", table, ("half", which), 128 if which == "resident" else 1024, f"info_nce_{kernel}_kernel",
            tuple(tiles), partial(nce_calls, which),
        )  # fmt: skip


def log_prob_truth(grads: tuple[Tensor, Tensor] | None, *inputs: Any) -> tuple[Tensor, ...]:
    log_p, entropy, log_z = log_prob_reference.linear_log_prob_fwd(*inputs)
    if grads is None:
        return (log_p, entropy)
    return log_prob_reference.linear_log_prob_bwd(*grads, *inputs[:3], log_z, entropy, inputs[3])


def log_prob_calls(which: str, device: torch.device, small: bool) -> list[Pair]:
    rows, width, vocabulary = (4, 16, 512) if small else (4096, 2048, 128256)
    hidden, weight = normal(device, rows, width), normal(device, vocabulary, width) / width**0.5
    target = torch.zeros(rows, dtype=torch.int64, device=device)
    forward = partial(log_prob.linear_log_prob_fwd, hidden, weight, target, 1.0)
    if which == "fwd":
        return [(forward, partial(log_prob_truth, None, hidden, weight, target, 1.0))]
    log_p, entropy, log_z = forward()
    grads = torch.ones_like(log_p), torch.ones_like(log_p)
    backward = partial(log_prob.linear_log_prob_bwd, *grads, hidden, weight, target, log_z, entropy, 1.0)
    return [(backward, partial(log_prob_truth, grads, hidden, weight, target, 1.0))]


def log_prob_targets() -> Iterator[Target]:
    table = ("TILES", "kernels/linear_log_prob/tiles.py", log_prob_tiles.TILES)
    tiles = [log_prob_tiles.Tile(block, warps) for block, warps in product((1024, 2048, 4096, 8192), (4, 8, 16))]
    for which in ("fwd", "bwd"):
        yield Target(
            "linear_log_prob", table, (which,), 128256, f"linear_log_prob_{which}_kernel", tuple(tiles),
            partial(log_prob_calls, which),
        )  # fmt: skip


def sinkhorn_calls(device: torch.device, small: bool) -> list[Pair]:
    scores = normal(device, *((64, 48) if small else (4096, 3000)), dtype=torch.float32)
    return [(partial(sinkhorn.sinkhorn, scores, 0.05, 3), lambda: (sinkhorn_reference.sinkhorn(scores, 0.05, 3),))]


def sinkhorn_targets() -> Iterator[Target]:
    file = "kernels/sinkhorn/tiles.py"
    columns = [sinkhorn_tiles.Columns(r, c, w) for r, c, w in product((16, 32, 64, 128), (32, 64, 128), (2, 4, 8))]
    rows = [sinkhorn_tiles.Rows(c, v, w) for c, v, w in product((512, 1024, 2048, 4096), (1024, 2048, 4096), (2, 4, 8))]
    for name, table, kernel, tiles in (
        ("COLUMNS", sinkhorn_tiles.COLUMNS, "columns", columns), ("ROWS", sinkhorn_tiles.ROWS, "rows", rows)
    ):  # fmt: skip
        yield Target(
            f"sinkhorn {kernel}", (name, file, table), (), 3000, f"sinkhorn_{kernel}_kernel", tuple(tiles),
            sinkhorn_calls,
        )  # fmt: skip


def targets() -> list[Target]:
    """All lines that are searched."""
    return [*attention_targets(), *nce_targets(), *log_prob_targets(), *sinkhorn_targets()]
