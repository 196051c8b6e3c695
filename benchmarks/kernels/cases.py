"""The ops of rmfast.kernels as they are timed, compiled and searched for tiles: inputs at named sizes, the least work
that their maths needs, and who else does the job.

To add an op, write a function that makes its Problem and give it an entry in OPS.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import baselines
from benchmarks.kernels.problem import At, Op, Problem, forms, sizes
from benchmarks.lengths import draw_groups
from rmfast import kernels
from rmfast.kernels import compiled


def rms_norm(at: At, rows: int, width: int, heads: int = 0) -> Problem:
    """`heads`: queries within rows of queries, keys and values."""
    x = at.normal(rows, heads + heads // 2, width)[:, :heads] if heads else at.normal(rows, width)
    weight, traffic = at.ones(width), x.numel() * at.dtype.itemsize
    call = partial(kernels.rms_norm, eps=1e-5)
    return Problem([x, weight], call, (2 * traffic, 5 * traffic), rivals=baselines.rms_norm(at.device))


def add_rms_norm(at: At, rows: int, width: int) -> Problem:
    x, residual = at.normal(rows, width), at.normal(rows, width)
    weight, traffic = at.ones(width), rows * width * at.dtype.itemsize
    call = partial(kernels.add_rms_norm, eps=1e-5)
    return Problem([x, residual, weight], call, (4 * traffic, 8 * traffic), rivals=baselines.add_rms_norm(at.device))


def swiglu(at: At, rows: int, width: int) -> Problem:
    gate_up, traffic = at.normal(rows, 2 * width), rows * width * at.dtype.itemsize
    return Problem([gate_up], kernels.swiglu, (3 * traffic, 8 * traffic), rivals=baselines.swiglu(at.device))


def turned(at: At, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Positions and inverse frequencies."""
    return at.count(rows) % 1024, 500000.0 ** (-at.count(0, dim, 2) / dim)


def rope(at: At, rows: int, heads: int, kv_heads: int, dim: int) -> Problem:
    q, k = at.normal(rows, heads, dim), at.normal(rows, kv_heads, dim)
    positions, inv_freq = turned(at, rows, dim)

    def call(q: Tensor, k: Tensor, positions: Tensor, impl: str) -> Any:
        return kernels.rope(q, k, positions, inv_freq=inv_freq, impl=impl)

    traffic = rows * (heads + kv_heads) * dim * at.dtype.itemsize
    rivals = baselines.rope(at.device, positions, inv_freq)
    return Problem([q, k, positions], call, (2 * traffic, 4 * traffic), rivals=rivals)


def split_rope(at: At, rows: int, heads: int, kv_heads: int, dim: int) -> Problem:
    width = (heads + 2 * kv_heads) * dim
    qkv, tables = at.normal(rows, width), kernels.rope_tables(*turned(at, rows, dim), dtype=at.dtype)
    call = partial(kernels.split_rope, heads=heads, kv_heads=kv_heads, head_dim=dim)
    traffic = rows * width * at.dtype.itemsize
    return Problem([qkv, tables], call, (2 * traffic, 4 * traffic))


def score_head(at: At, rows: int, width: int, heads: int) -> Problem:
    hidden, head = at.normal(rows, width), at.wide(heads, width)
    weight, traffic = at.ones(width), rows * width * at.dtype.itemsize
    return Problem([hidden, weight, head], partial(kernels.score_head, eps=1e-5), (traffic, 3 * traffic))


def ranking_loss(at: At, pairs: int, heads: int, given: tuple[str, ...] = ("margin",), **more: float) -> Problem:
    """`given`: which keywords have a number for each edge."""
    scores = at.wide(heads, 2 * pairs)
    better, worse = (at.count(i, 2 * pairs, 2) for i in range(2))
    edges = [torch.rand(pairs, device=at.device) for _ in given]

    def call(scores: Tensor, better: Tensor, worse: Tensor, *edges: Tensor, impl: str) -> Any:
        return kernels.ranking_loss(scores, better, worse, impl=impl, **dict(zip(given, edges, strict=True)), **more)

    edge = 4 * heads * pairs  # bytes of one fp32 an edge
    return Problem([scores, better, worse, *edges], call, (2 * edge + 20 * pairs, 4 * edge + 20 * pairs))


def linear_log_prob(at: At, rows: int, width: int, vocabulary: int) -> Problem:
    hidden = at.normal(rows, width)
    weight = (torch.randn(vocabulary, width, device=at.device) / width**0.5).to(at.dtype).requires_grad_()
    target = torch.randint(vocabulary, (rows,), device=at.device)
    product, traffic = 2.0 * rows * width * vocabulary, (rows + vocabulary) * width * at.dtype.itemsize
    rivals = baselines.linear_log_prob(at.device)
    call = kernels.linear_log_prob
    return Problem([hidden, weight, target], call, (traffic, 3 * traffic), (product, 3 * product), rivals)


def prefix_attention(
    at: At, lengths: str, tokens: int, heads: int, kv_heads: int, dim: int,
    every: int = 0, **options: Any,
) -> Problem:  # fmt: skip
    """`every`: queries are every so many rows alone."""
    groups = draw_groups(lengths, tokens)
    layout = kernels.prefix_layout(groups).to(at.device)
    count = layout.shape[1]
    rows = at.count(0, count, every) if every else None
    q = at.normal(count if rows is None else len(rows), heads, dim)
    k, v = (at.normal(count, kv_heads, dim) for _ in range(2))
    # Pairs of a query and a key that it sees.
    visible = sum(p * (p + 1) // 2 + sum(r * (r + 1) // 2 + r * p for r in responses) for p, responses in groups)
    traffic, product = count * dim * at.dtype.itemsize * (heads + kv_heads), 2.0 * heads * dim * visible
    return Problem(
        [q, k, v, layout], partial(kernels.prefix_attention, rows=rows, **options), (2 * traffic, 6 * traffic),
        (2 * product, 7 * product),  # two products forward; backward S again, dP, dV, dQ, dK
        baselines.prefix_attention(at.device, layout),
    )  # fmt: skip


def decode_attention(
    at: At, rows: int, together: int, prompt: int, own: int, heads: int, kv_heads: int, dim: int,
    window: int | None = None,
) -> Problem:  # fmt: skip
    """A prompt for each `together` rows, and `own` tokens of each row, the current one appended."""
    prompts = rows // together
    q, k, v = at.normal(rows, heads + 2 * kv_heads, dim, grad=False).split((heads, kv_heads, kv_heads), 1)
    pools = [at.normal(2, tokens, kv_heads, dim, grad=False) for tokens in (prompts * prompt, rows * own)]
    begin = torch.stack((at.count(prompts).repeat_interleave(together) * prompt, at.count(rows) * own))
    layout = torch.stack((begin, begin + torch.tensor([[prompt], [own]], device=at.device)), 1).view(4, rows).int()
    call = partial(kernels.decode_attention, append=(k, v), window=window)
    csrc = {"csrc": partial(call, impl="csrc")} if at.device.type == "cpu" and compiled.missing() is None else {}
    read = 2 * kv_heads * (prompts * prompt + rows * own)
    traffic, product = (read + 2 * rows * (heads + kv_heads)) * dim * at.dtype.itemsize, 4.0 * heads * dim * rows
    work = product * (prompt + own)
    return Problem([q, *pools, layout], call, (traffic, traffic), (work, work), csrc)


def difference_loss(at: At, groups: int, responses: int, **options: Any) -> Problem:
    scores = at.wide(groups * responses)
    group = at.count(groups).repeat_interleave(responses)
    traffic = 4 * groups * responses
    return Problem([scores, group], partial(kernels.difference_loss, **options), (3 * traffic, 4 * traffic))


def info_nce(at: At, rows: int, keys: int, width: int) -> Problem:
    q, k = at.normal(rows, width), at.normal(keys, width)
    product, traffic = 2.0 * rows * keys * width, (rows + keys) * width * at.dtype.itemsize
    call = partial(kernels.info_nce, temperature=0.05)
    return Problem([q, k], call, (traffic, 3 * traffic), (product, 4 * product))  # nothing is kept: S once more


def sinkhorn(at: At, rows: int, prototypes: int) -> Problem:
    scores = at.wide(rows, prototypes, grad=False)
    call, traffic = partial(kernels.sinkhorn, epsilon=0.05, iterations=3), 2 * 4 * rows * prototypes
    return Problem([scores], call, (traffic, traffic))


def swapped(at: At, rows: int, prototypes: int, width: int, coded: bool = False) -> Problem:
    """`coded`: the codes are given."""
    s, t, c = (at.normal(n, width) for n in (rows, rows, prototypes))
    codes = (torch.ones(rows, prototypes, device=at.device),) * 2 if coded else None
    product, traffic = 4.0 * rows * prototypes * width, (2 * rows + prototypes) * width * at.dtype.itemsize
    call = partial(kernels.swapped_prediction_loss, temperature=0.1, epsilon=0.05, iterations=3, codes=codes)
    return Problem([s, t, c], call, (traffic, 3 * traffic), (product, 3 * product))


def gae(at: At, sequences: int, longest: int, gamma: float = 1.0, lam: float = 0.95) -> Problem:
    lengths = torch.randint(longest // 2, longest + 1, (sequences,), device=at.device)
    tokens = int(lengths.sum())
    rewards, values = (at.wide(tokens, grad=False) for _ in range(2))
    call = partial(kernels.gae, gamma=gamma, lam=lam)
    return Problem([rewards, values, lengths], call, (16 * tokens, 16 * tokens))


def draw_tokens(at: At, rows: int, vocabulary: int, **options: Any) -> Problem:
    logits = 3 * at.wide(rows, vocabulary, grad=False)
    row, none = at.count(rows), torch.zeros(rows, dtype=torch.int64, device=at.device)
    call, traffic = partial(kernels.draw_tokens, **options), 4 * rows * vocabulary
    rivals = baselines.draw_tokens(at.device, call)
    return Problem([logits, kernels.row_keys(0, row, none), none], call, (traffic, traffic), rivals=rivals)


def clipped(name: str, at: At, tokens: int, **options: Any) -> Problem:
    first = at.wide(tokens)
    second, third = (first.detach() + 0.1 * torch.randn(tokens, device=at.device) for _ in range(2))
    mask = torch.rand(tokens, device=at.device) > 0.3
    call = partial(getattr(kernels, name), **{"clip": 0.2} | options)
    return Problem([first, second, third, mask], call, (13 * tokens, 21 * tokens))


BF16, FP32 = torch.bfloat16, torch.float32
ROWS = 64
QKV = "rows heads kv_heads dim"
ROTATED = sizes(QKV, tiny=(32, 4, 2, 16), **{f"16384 D={dim}": (16384, 32, 8, dim) for dim in (64, 128)})
NORMS = sizes("rows width", tiny=(32, 64), **{"16384x2048": (16384, 2048), "16384x4096": (16384, 4096)})
HEADS = {"tokens": ROWS, "lengths": "tiny", "heads": 32, "kv_heads": 8}
ATTENTION = [  # 80 stands for 96 and 112, which are padded to 128 too; 100 and 200 are no multiples of 16
    *forms("dim", *((BF16, dim) for dim in (64, 80, 100, 128, 200, 256)), **HEADS),
    *forms("dim", (FP32, 64), (FP32, 80), (FP32, 128), (FP32, 256), **HEADS),
    *forms("dim", (BF16, 64), (BF16, 128), (BF16, 256), (FP32, 128), every=4, **HEADS),
    *forms("dim", (BF16, 64), (BF16, 128), (BF16, 256), (FP32, 128), (FP32, 256), window=512, softcap=30.0, **HEADS),
    *forms("dim", (BF16, 64), (BF16, 128), window=512, **HEADS),
]
CACHED = {"rows": ROWS, "together": 4, "prompt": 32, "own": 16}
DECODING = [  # programs of 16, 4 and 1 rows, and two for the heads of a key head
    *forms(
        "heads kv_heads dim",
        *(
            (BF16, *sizes)
            for sizes in (
                (4, 4, 64),
                (9, 3, 64),
                (32, 8, 100),
                (32, 8, 128),
                (16, 8, 256),
                (32, 1, 128),
            )
        ),
        **CACHED,
    ),
    *forms("heads kv_heads dim", (FP32, 9, 3, 64), (FP32, 32, 8, 128), (FP32, 16, 8, 256), **CACHED),
    *forms("heads kv_heads dim", (BF16, 9, 3, 64), (BF16, 32, 8, 128), window=24, **CACHED),
]
OPS = {
    "rms_norm": Op(
        "test_rms_norm.py", rms_norm, NORMS | sizes("rows width", **{"heads 524288x128": (524288, 128)}),
        [*forms("rows width", (BF16, ROWS, 64)), *forms("rows width heads", (BF16, ROWS, 128, 32))],
    ),
    "add_rms_norm": Op(  # tiles of 8, 2 and 1 rows, in 4 and 8 warps; 64 is a head's norm
        "test_rms_norm.py", add_rms_norm, NORMS,
        forms("width", (BF16, 64), (BF16, 2048), (BF16, 4095), (BF16, 8192), (FP32, 8192), rows=ROWS),
    ),
    "swiglu": Op(
        "test_swiglu.py", swiglu,
        sizes("rows width", tiny=(32, 96), **{"16384x8192": (16384, 8192), "16384x14336": (16384, 14336)}),
        forms("width", (BF16, 100), (BF16, 1536), (FP32, 1536), rows=ROWS),
    ),
    "rope": Op("test_rope.py", rope, ROTATED, forms(QKV, (FP32, ROWS, 32, 8, 128))),
    "split_rope": Op(
        "test_rope.py", split_rope, ROTATED,
        forms("heads kv_heads dim", (BF16, 9, 3, 64), (BF16, 32, 8, 128), (BF16, 16, 8, 256), (FP32, 32, 8, 128),
              rows=ROWS),
    ),
    "score_head": Op(
        "test_score_head.py", score_head,
        sizes("rows width heads", tiny=(8, 64, 2), **{"256x2048": (256, 2048, 1), "256x4096 M=8": (256, 4096, 8)}),
        forms("heads width", (BF16, 1, 64), (BF16, 1, 576), (BF16, 1, 4096), (BF16, 8, 4096), (BF16, 1, 16384),
              (FP32, 3, 2048), rows=ROWS),
    ),
    "ranking_loss": Op(
        "test_ranking_loss_kernel.py", ranking_loss,
        sizes("pairs heads", tiny=(8, 2), **{"128": (128, 1), "1024 M=8": (1024, 8)}),
        [*forms("heads given", (FP32, 1, ()), pairs=ROWS),
         *forms("heads given", (FP32, 4, ("margin", "target", "weight")), pairs=ROWS, center=0.01,
                total_weight=torch.ones(()))],
    ),
    "linear_log_prob": Op(
        "test_linear_log_prob.py", linear_log_prob,
        sizes("rows width vocabulary", tiny=(16, 32, 128), **{
            "8192x576 V=49152": (8192, 576, 49152), "8192x2048 V=128256": (8192, 2048, 128256),
            "8192x4096 V=128256": (8192, 4096, 128256),
        }),
        forms("rows width vocabulary", (BF16, 4, 16, 32000), (FP32, 4, 16, 32000)), alone=True,
    ),
    "prefix_attention": Op(
        "test_prefix_attention_kernel.py", prefix_attention,
        sizes("lengths tokens heads kv_heads dim", tiny=("tiny", 96, 4, 2, 16), **{
            f"{name} D={dim}": (name, 16384, 32, 8, dim)
            for name in ("hh", "ultrafeedback", "long") for dim in (64, 128)
        }),
        ATTENTION,
    ),
    "decode_attention": Op(
        "test_decode_attention.py", decode_attention,
        sizes("rows together prompt own heads kv_heads dim", tiny=(8, 4, 24, 12, 6, 2, 16), **{
            "64x4 135M": (256, 4, 125, 64, 9, 3, 64), "64x4 1B": (256, 4, 512, 256, 32, 8, 64),
            "16x16 8B": (256, 16, 512, 256, 32, 8, 128), "8x1 8B": (8, 1, 4096, 1024, 32, 8, 128),
        }),
        DECODING, differentiable=False,
    ),
    "difference_loss": Op(
        "test_difference_loss.py", difference_loss, sizes("groups responses", tiny=(4, 3), **{"1024x4": (1024, 4)}),
        forms("normaliser", (FP32, "pairs"), (FP32, "k2"), groups=1, responses=ROWS),
    ),
    "info_nce": Op(  # up to 128 wide the backward keeps whole vectors; wider ones go by chunks
        "test_info_nce.py", info_nce,
        sizes("rows keys width", tiny=(16, 24, 32), **{
            "256x256 d=4096": (256, 256, 4096), "8192x8192 d=1024": (8192, 8192, 1024),
        }),
        forms("rows keys width", *((dtype, rows, 2 * rows, width) for dtype, width, rows in (
            (BF16, 128, ROWS), (BF16, 128, ROWS - 1), (BF16, 100, ROWS - 1), (BF16, 768, ROWS), (BF16, 770, ROWS - 1),
            (FP32, 128, ROWS - 1), (FP32, 768, ROWS),
        ))),
    ),
    "sinkhorn": Op(
        "test_sinkhorn.py", sinkhorn,
        sizes("rows prototypes", tiny=(16, 8), **{"256x512": (256, 512), "4096x3000": (4096, 3000)}),
        forms("prototypes", (FP32, 48), (FP32, 3000), rows=16 * ROWS), differentiable=False,
    ),
    "swapped_prediction_loss": Op(
        "test_swapped_prediction_loss.py", swapped,
        sizes("rows prototypes width", tiny=(16, 8, 32), **{
            "256x512 d=4096": (256, 512, 4096), "4096x3000 d=128": (4096, 3000, 128),
        }),
        forms("width coded", (BF16, 128, False), (FP32, 128, True), rows=ROWS, prototypes=3000),
    ),
    "gae": Op(
        "test_gae.py", gae, sizes("sequences longest", tiny=(4, 16), **{"512x1024": (512, 1024)}),
        forms("gamma lam", (FP32, 0.99, 0.95), sequences=2, longest=32), differentiable=False,
    ),
    "draw_tokens": Op(  # no kernel of Triton: nothing to compile
        "test_draw_tokens.py", draw_tokens,
        sizes("rows vocabulary", tiny=(4, 600), **{"256 V=49152": (256, 49152)})
        | sizes("rows vocabulary top_p", **{"256 V=49152 top-p": (256, 49152, 0.9)}),
        [], differentiable=False,
    ),
    "policy_loss": Op(
        "test_clipped_losses.py", partial(clipped, "policy_loss"), sizes("tokens", tiny=(64,), **{"524288": (524288,)}),
        forms("tokens", (FP32, ROWS)),
    ),
    "value_loss": Op(
        "test_clipped_losses.py", partial(clipped, "value_loss"), sizes("tokens", tiny=(64,), **{"524288": (524288,)}),
        [*forms("tokens", (FP32, ROWS)), *forms("clip total", (FP32, None, 3.0), tokens=ROWS)],
    ),
}  # fmt: skip
