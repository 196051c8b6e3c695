"""The cases of aot.py: for each op, calls that start every kernel in every configuration its launchers can choose.

They run on CPU tensors while starts are recorded and results are garbage, so rows are few; widths, head dimensions and
dtypes are real, because tiles depend on them. To add an op, write a function and list it in CASES.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from triton.runtime import JITFunction

import rmfast.kernels
from rmfast.kernels import prefix_layout
from rmfast.kernels.clipped_losses import triton as clipped
from rmfast.kernels.difference_loss import triton as difference
from rmfast.kernels.gae import triton as advantages
from rmfast.kernels.info_nce import triton as nce
from rmfast.kernels.linear_log_prob import triton as log_prob
from rmfast.kernels.prefix_attention import triton as attention
from rmfast.kernels.ranking_loss import triton as ranking
from rmfast.kernels.rms_norm import triton as norm
from rmfast.kernels.rope import triton as rotary
from rmfast.kernels.score_head import triton as score
from rmfast.kernels.sinkhorn import triton as assignment
from rmfast.kernels.swapped_prediction_loss import triton as swap
from rmfast.kernels.swiglu import triton as glu

BF16, FP32 = torch.bfloat16, torch.float32
ROWS = 64


def zeros(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def whole(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def rms_norm() -> None:
    # Tiles of 8, 2 and 1 rows, in 4 and 8 warps; 64 is a head's norm.
    for dtype, width, added in (
        (BF16, 64, True), (BF16, 64, False), (BF16, 2048, True), (BF16, 4095, True), (BF16, 8192, True),
        (FP32, 8192, True),
    ):  # fmt: skip
        x, weight = zeros(ROWS, width, dtype=dtype), zeros(width)
        other = x if added else None
        norm.rms_norm_fwd(x, other, weight, 1e-5)
        norm.rms_norm_bwd(x, other, x, weight, zeros(ROWS))
    heads, weight = zeros(ROWS, 48, 128, dtype=BF16)[:, :32], zeros(128)  # queries within rows of q, k and v
    norm.rms_norm_fwd(heads, None, weight, 1e-5)
    norm.rms_norm_bwd(heads.contiguous(), None, heads, weight, zeros(32 * ROWS))


def swiglu() -> None:
    for dtype, width in ((BF16, 100), (BF16, 1536), (FP32, 1536)):
        glu.swiglu_fwd(zeros(ROWS, 2 * width, dtype=dtype))
        glu.swiglu_bwd(zeros(ROWS, width, dtype=dtype), zeros(ROWS, 2 * width, dtype=dtype))


def rope() -> None:
    for dtype, heads, kv_heads, dim in ((BF16, 9, 3, 64), (BF16, 32, 8, 128), (BF16, 16, 8, 256), (FP32, 32, 8, 128)):
        qkv, tables = zeros(ROWS, (heads + 2 * kv_heads) * dim, dtype=dtype), zeros(2, ROWS, dim // 2)
        q, k, v = rotary.split_rope_fwd(qkv, tables, heads, kv_heads, dim)
        rotary.split_rope_bwd(q, k, v, tables)
    rotary.rope(q, k, tables)
    rotary.rope(q, k, tables, inverse=True)


def prefix_attention() -> None:
    layout = prefix_layout([(16, [24, 24])])

    def run(
        dtype: torch.dtype, dim: int, chosen: bool, window: int | None = None, softcap: float | None = None
    ) -> None:
        rows = torch.arange(0, ROWS, 4) if chosen else None
        count = len(rows) if rows is not None else ROWS
        q, k, v = (zeros(n, h, dim, dtype=dtype) for n, h in ((count, 32), (ROWS, 8), (ROWS, 8)))
        options = (layout, rows, dim**-0.5, window, softcap)
        attention.prefix_attention_fwd(q, k, v, *options)
        attention.prefix_attention_bwd(q, q, k, v, q, zeros(32, count), *options)

    # 80 stands for 96 and 112, which are padded to 128 too; 100 and 200 are no multiples of 16, which have other tiles.
    for dim in (64, 80, 100, 128, 200, 256):
        run(BF16, dim, False)
    for dim in (64, 128, 256):
        run(BF16, dim, True)
        run(BF16, dim, False, 512, 30.0)
        run(FP32, dim, False)
    for dim in (64, 128):
        run(BF16, dim, False, 512)
    for dim in (128, 256):
        run(FP32, dim, False, 512, 30.0)
    run(FP32, 128, True)
    run(FP32, 80, False)


def score_head() -> None:
    for dtype, heads, width in (
        (BF16, 1, 64), (BF16, 1, 576), (BF16, 1, 4096), (BF16, 8, 4096), (BF16, 1, 16384), (FP32, 3, 2048),
    ):  # fmt: skip
        hidden, weight = zeros(ROWS, width, dtype=dtype), zeros(heads, width)
        scores, rstd = score.score_head_fwd(hidden, weight[0], weight, 1e-5)
        score.score_head_bwd(scores, scores, hidden, weight[0], weight, rstd)


def linear_log_prob() -> None:
    for dtype in (BF16, FP32):
        hidden, weight, row = zeros(4, 16, dtype=dtype), zeros(32000, 16, dtype=dtype), zeros(4)
        log_prob.linear_log_prob_fwd(hidden, weight, whole(4), 1.0)
        for entropy in (row, None):
            log_prob.linear_log_prob_bwd(row, entropy, hidden, weight, whole(4), row, row, 1.0)


def ranking_loss() -> None:
    edges, pairs = zeros(ROWS), whole(ROWS)
    ranking.ranking_loss_fwd(zeros(1, ROWS), pairs, pairs, [0.0, 1.0, 1.0], 0.0, None)
    ranking.ranking_loss_fwd(zeros(4, ROWS), pairs, pairs, [edges, edges, edges], 0.01, zeros(1)[0])


def difference_loss() -> None:
    for pairs in (True, False):
        difference.difference_loss_fwd(zeros(ROWS), whole(ROWS), pairs)


def gae() -> None:
    advantages.gae_fwd(zeros(ROWS), zeros(ROWS), torch.tensor([24, 40]), 0.99, 0.95)


def policy_losses() -> None:
    x, mask = zeros(ROWS), torch.ones(ROWS, dtype=torch.bool)
    for policy in (True, False):
        clipped.clipped_loss_fwd(policy, x, x, x, mask, 0.2, None)
    clipped.clipped_loss_fwd(False, x, x, x, mask, None, x.sum())


def info_nce() -> None:
    # Up to 128 wide the backward keeps whole vectors; wider ones go by chunks. Counts and widths that are no multiples
    # of 16 take more registers.
    for dtype, width, rows in (
        (BF16, 128, ROWS), (BF16, 128, ROWS - 1), (BF16, 100, ROWS - 1), (BF16, 768, ROWS), (BF16, 770, ROWS - 1),
        (FP32, 128, ROWS - 1), (FP32, 768, ROWS),
    ):  # fmt: skip
        q, k = zeros(rows, width, dtype=dtype), zeros(2 * rows, width, dtype=dtype)
        _, lse, query_length, key_length = nce.info_nce_fwd(q, k, whole(rows), 0.05)
        nce.info_nce_bwd(zeros(1)[0], q, k, whole(rows), lse, query_length, key_length, 0.05)


def sinkhorn() -> None:
    for columns in (48, 3000):
        assignment.sinkhorn(zeros(16 * ROWS, columns), 0.05, 2)


def swapped() -> None:
    x, prototypes = zeros(ROWS, 128, dtype=BF16), zeros(3000, 128)
    codes = zeros(ROWS, 3000)
    for given in (None, codes):
        _, scores, vectors, centres, length = swap.swapped_fwd(x, x, prototypes, given, given, 0.1, 0.05, 1)
    swap.swapped_bwd(zeros(1)[0], x, x, prototypes, scores, vectors, centres, length)


CASES: dict[str, Callable[[], None]] = {
    op.__name__: op
    for op in (
        rms_norm, swiglu, rope, prefix_attention, score_head, linear_log_prob, ranking_loss, difference_loss, gae,
        policy_losses, info_nce, sinkhorn, swapped,
    )
}  # fmt: skip


def kernels_of_package() -> Iterator[tuple[str, str]]:
    """(kernel, module) of every Triton kernel that rmfast.kernels holds: jit functions named ..._kernel."""
    for info in pkgutil.walk_packages(rmfast.kernels.__path__, "rmfast.kernels."):
        for name, value in vars(importlib.import_module(info.name)).items():
            if name.endswith("_kernel") and isinstance(value, JITFunction) and value.fn.__module__ == info.name:
                yield name, info.name
