"""The ops that are measured: inputs at named sizes, the least work that their maths needs, and who else does the job.

To add an op, write a function that builds its Problem and give it an entry in OPS: its test file, its sizes ("tiny"
for a CPU, any other name is a real one) and that function.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import rmfast.kernels
from benchmarks.kernels import baselines
from benchmarks.lengths import draw_groups

Call = Callable[..., Any]


@dataclass(frozen=True)
class Problem:
    """One op at one size.

    Args:
        inputs: given to every contender in this order; those that require gradients get them.
        call: `call(*inputs, impl=...)` is the public op.
        bytes: least traffic of the forward, and of forward and backward together, if nothing is cached.
        flops: of matrix products, likewise; 0 where there are none.
        rivals: libraries' functions of the same inputs.
    """

    inputs: list[Any]
    call: Call
    bytes: tuple[float, float]
    flops: tuple[float, float] = (0.0, 0.0)
    rivals: dict[str, Call] = field(default_factory=dict)


@dataclass(frozen=True)
class Op:
    """How to build an op's problems: `build(device, dtype, **sizes[name])`. `test` is its file in tests/kernels."""

    test: str
    build: Callable[..., Problem]
    sizes: dict[str, dict[str, Any]]
    differentiable: bool = True


def public(name: str) -> Call:
    """The public function, looked up when it is needed: an older revision may lack it."""
    return getattr(rmfast.kernels, name)


def normal(device: torch.device, dtype: torch.dtype, *shape: int, grad: bool = True) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).requires_grad_(grad)


def rms_norm(device: torch.device, dtype: torch.dtype, rows: int, width: int) -> Problem:
    x, weight = normal(device, dtype, rows, width), torch.ones(width, device=device, requires_grad=True)
    traffic = rows * width * dtype.itemsize
    call = partial(public("rms_norm"), eps=1e-5)
    return Problem([x, weight], call, (2 * traffic, 5 * traffic), rivals=baselines.rms_norm(device))


def add_rms_norm(device: torch.device, dtype: torch.dtype, rows: int, width: int) -> Problem:
    x, residual = normal(device, dtype, rows, width), normal(device, dtype, rows, width)
    weight = torch.ones(width, device=device, requires_grad=True)
    traffic = rows * width * dtype.itemsize
    call = partial(public("add_rms_norm"), eps=1e-5)
    return Problem([x, residual, weight], call, (4 * traffic, 8 * traffic), rivals=baselines.add_rms_norm(device))


def swiglu(device: torch.device, dtype: torch.dtype, rows: int, width: int) -> Problem:
    traffic = rows * width * dtype.itemsize
    gate_up = normal(device, dtype, rows, 2 * width)
    return Problem([gate_up], public("swiglu"), (3 * traffic, 8 * traffic), rivals=baselines.swiglu(device))


def rope(device: torch.device, dtype: torch.dtype, rows: int, heads: int, kv_heads: int, dim: int) -> Problem:
    q, k = normal(device, dtype, rows, heads, dim), normal(device, dtype, rows, kv_heads, dim)
    positions = torch.arange(rows, device=device) % 1024
    inv_freq = 500000.0 ** (-torch.arange(0, dim, 2, device=device) / dim)

    def call(q: Tensor, k: Tensor, positions: Tensor, impl: str) -> Any:
        return public("rope")(q, k, positions, inv_freq=inv_freq, impl=impl)

    traffic = rows * (heads + kv_heads) * dim * dtype.itemsize
    rivals = baselines.rope(device, positions, inv_freq)
    return Problem([q, k, positions], call, (2 * traffic, 4 * traffic), rivals=rivals)


def split_rope(device: torch.device, dtype: torch.dtype, rows: int, heads: int, kv_heads: int, dim: int) -> Problem:
    width = (heads + 2 * kv_heads) * dim
    qkv, positions = normal(device, dtype, rows, width), torch.arange(rows, device=device) % 1024
    inv_freq = 500000.0 ** (-torch.arange(0, dim, 2, device=device) / dim)
    tables = public("rope_tables")(positions, inv_freq, dtype=dtype)
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim}
    traffic = rows * width * dtype.itemsize
    return Problem([qkv, tables], partial(public("split_rope"), **shape), (2 * traffic, 4 * traffic))


def score_head(device: torch.device, dtype: torch.dtype, rows: int, width: int, heads: int) -> Problem:
    hidden, head = normal(device, dtype, rows, width), normal(device, torch.float32, heads, width)
    weight = torch.ones(width, device=device, requires_grad=True)
    traffic = rows * width * dtype.itemsize
    return Problem([hidden, weight, head], partial(public("score_head"), eps=1e-5), (traffic, 3 * traffic))


def ranking_loss(device: torch.device, dtype: torch.dtype, pairs: int, heads: int) -> Problem:
    scores = normal(device, torch.float32, heads, 2 * pairs)
    better, worse = (torch.arange(i, 2 * pairs, 2, device=device) for i in range(2))
    margin = torch.rand(pairs, device=device)

    def call(scores: Tensor, better: Tensor, worse: Tensor, margin: Tensor, impl: str) -> Tensor:
        return public("ranking_loss")(scores, better, worse, margin=margin, impl=impl)

    edge = 4 * heads * pairs  # bytes of one fp32 an edge
    return Problem([scores, better, worse, margin], call, (2 * edge + 20 * pairs, 4 * edge + 20 * pairs))


def linear_log_prob(device: torch.device, dtype: torch.dtype, rows: int, width: int, vocabulary: int) -> Problem:
    hidden = normal(device, dtype, rows, width)
    weight = (torch.randn(vocabulary, width, device=device) / width**0.5).to(dtype).requires_grad_()
    target = torch.randint(vocabulary, (rows,), device=device)
    product = 2.0 * rows * width * vocabulary
    traffic = (rows + vocabulary) * width * dtype.itemsize
    rivals = baselines.linear_log_prob(device)
    call = public("linear_log_prob")
    return Problem([hidden, weight, target], call, (traffic, 3 * traffic), (product, 3 * product), rivals)


def prefix_attention(
    device: torch.device, dtype: torch.dtype, lengths: str, tokens: int, heads: int, kv_heads: int, dim: int
) -> Problem:
    groups = draw_groups(lengths, tokens)
    layout = rmfast.kernels.prefix_layout(groups).to(device)
    count = layout.shape[1]
    q, k, v = (normal(device, dtype, count, n, dim) for n in (heads, kv_heads, kv_heads))
    # Pairs of a query and a key that it sees.
    visible = sum(p * (p + 1) // 2 + sum(r * (r + 1) // 2 + r * p for r in responses) for p, responses in groups)
    traffic, product = count * dim * dtype.itemsize * (heads + kv_heads), 2.0 * heads * dim * visible
    return Problem(
        [q, k, v, layout],
        public("prefix_attention"),
        (2 * traffic, 6 * traffic),
        (2 * product, 7 * product),  # two products forward; backward S again, dP, dV, dQ, dK
        baselines.prefix_attention(device, layout),
    )


def difference_loss(device: torch.device, dtype: torch.dtype, groups: int, responses: int) -> Problem:
    scores = normal(device, torch.float32, groups * responses)
    group = torch.arange(groups, device=device).repeat_interleave(responses)
    traffic = 4 * groups * responses
    return Problem([scores, group], public("difference_loss"), (3 * traffic, 4 * traffic))


def info_nce(device: torch.device, dtype: torch.dtype, rows: int, keys: int, width: int) -> Problem:
    q, k = normal(device, dtype, rows, width), normal(device, dtype, keys, width)
    product, traffic = 2.0 * rows * keys * width, (rows + keys) * width * dtype.itemsize
    call = partial(public("info_nce"), temperature=0.05)
    return Problem([q, k], call, (traffic, 3 * traffic), (product, 4 * product))  # nothing is kept: S once more


def sinkhorn(device: torch.device, dtype: torch.dtype, rows: int, prototypes: int) -> Problem:
    scores = normal(device, torch.float32, rows, prototypes, grad=False)
    call = partial(public("sinkhorn"), epsilon=0.05, iterations=3)
    traffic = 2 * 4 * rows * prototypes
    return Problem([scores], call, (traffic, traffic))


def swapped(device: torch.device, dtype: torch.dtype, rows: int, prototypes: int, width: int) -> Problem:
    s, t, c = (normal(device, dtype, n, width) for n in (rows, rows, prototypes))
    product, traffic = 4.0 * rows * prototypes * width, (2 * rows + prototypes) * width * dtype.itemsize
    call = partial(public("swapped_prediction_loss"), temperature=0.1, epsilon=0.05, iterations=3)
    return Problem([s, t, c], call, (traffic, 3 * traffic), (product, 3 * product))


def gae(device: torch.device, dtype: torch.dtype, sequences: int, longest: int) -> Problem:
    lengths = torch.randint(longest // 2, longest + 1, (sequences,), device=device)
    tokens = int(lengths.sum())
    rewards, values = (normal(device, torch.float32, tokens, grad=False) for _ in range(2))
    call = partial(public("gae"), gamma=1.0, lam=0.95)
    return Problem([rewards, values, lengths], call, (16 * tokens, 16 * tokens))


def _clipped(name: str, device: torch.device, tokens: int) -> Problem:
    first = normal(device, torch.float32, tokens)
    second, third = (first.detach() + 0.1 * torch.randn(tokens, device=device) for _ in range(2))
    mask = torch.rand(tokens, device=device) > 0.3
    return Problem([first, second, third, mask], partial(public(name), clip=0.2), (13 * tokens, 21 * tokens))


def policy_loss(device: torch.device, dtype: torch.dtype, tokens: int) -> Problem:
    return _clipped("policy_loss", device, tokens)


def value_loss(device: torch.device, dtype: torch.dtype, tokens: int) -> Problem:
    return _clipped("value_loss", device, tokens)


LAYOUTS = {
    f"{name} D={dim}": {"lengths": name, "tokens": 16384, "heads": 32, "kv_heads": 8, "dim": dim}
    for name in ("hh", "ultrafeedback", "long")
    for dim in (64, 128)
}
NORMS = {
    "tiny": {"rows": 32, "width": 64},
    "16384x2048": {"rows": 16384, "width": 2048},
    "16384x4096": {"rows": 16384, "width": 4096},
}
ROTATED = {
    "tiny": {"rows": 32, "heads": 4, "kv_heads": 2, "dim": 16},
    "16384 D=64": {"rows": 16384, "heads": 32, "kv_heads": 8, "dim": 64},
    "16384 D=128": {"rows": 16384, "heads": 32, "kv_heads": 8, "dim": 128},
}
OPS: dict[str, Op] = {
    "rms_norm": Op("test_norm.py", rms_norm, NORMS | {"heads 524288x128": {"rows": 524288, "width": 128}}),
    "add_rms_norm": Op("test_norm.py", add_rms_norm, NORMS),
    "swiglu": Op(
        "test_swiglu.py",
        swiglu,
        {
            "tiny": {"rows": 32, "width": 96},
            "16384x8192": {"rows": 16384, "width": 8192},
            "16384x14336": {"rows": 16384, "width": 14336},
        },
    ),
    "rope": Op("test_rope.py", rope, ROTATED),
    "split_rope": Op("test_rope.py", split_rope, ROTATED),
    "score_head": Op(
        "test_score_head.py",
        score_head,
        {
            "tiny": {"rows": 8, "width": 64, "heads": 2},
            "256x2048": {"rows": 256, "width": 2048, "heads": 1},
            "256x4096 M=8": {"rows": 256, "width": 4096, "heads": 8},
        },
    ),
    "ranking_loss": Op(
        "test_ranking_kernel.py",
        ranking_loss,
        {"tiny": {"pairs": 8, "heads": 2}, "128": {"pairs": 128, "heads": 1}, "1024 M=8": {"pairs": 1024, "heads": 8}},
    ),
    "linear_log_prob": Op(
        "test_log_prob.py",
        linear_log_prob,
        {
            "tiny": {"rows": 16, "width": 32, "vocabulary": 128},
            "8192x576 V=49152": {"rows": 8192, "width": 576, "vocabulary": 49152},
            "8192x2048 V=128256": {"rows": 8192, "width": 2048, "vocabulary": 128256},
            "8192x4096 V=128256": {"rows": 8192, "width": 4096, "vocabulary": 128256},
        },
    ),
    "prefix_attention": Op(
        "test_prefix_attention.py",
        prefix_attention,
        {"tiny": {"lengths": "tiny", "tokens": 96, "heads": 4, "kv_heads": 2, "dim": 16}} | LAYOUTS,
    ),
    "difference_loss": Op(
        "test_difference_loss.py",
        difference_loss,
        {"tiny": {"groups": 4, "responses": 3}, "1024x4": {"groups": 1024, "responses": 4}},
    ),
    "info_nce": Op(
        "test_info_nce.py",
        info_nce,
        {
            "tiny": {"rows": 16, "keys": 24, "width": 32},
            "256x256 d=4096": {"rows": 256, "keys": 256, "width": 4096},
            "8192x8192 d=1024": {"rows": 8192, "keys": 8192, "width": 1024},
        },
    ),
    "sinkhorn": Op(
        "test_sinkhorn.py",
        sinkhorn,
        {
            "tiny": {"rows": 16, "prototypes": 8},
            "256x512": {"rows": 256, "prototypes": 512},
            "4096x3000": {"rows": 4096, "prototypes": 3000},
        },
        differentiable=False,
    ),
    "swapped_prediction_loss": Op(
        "test_swapped.py",
        swapped,
        {
            "tiny": {"rows": 16, "prototypes": 8, "width": 32},
            "256x512 d=4096": {"rows": 256, "prototypes": 512, "width": 4096},
            "4096x3000 d=128": {"rows": 4096, "prototypes": 3000, "width": 128},
        },
    ),
    "gae": Op(
        "test_gae.py",
        gae,
        {"tiny": {"sequences": 4, "longest": 16}, "512x1024": {"sequences": 512, "longest": 1024}},
        differentiable=False,
    ),
    "policy_loss": Op("test_policy_losses.py", policy_loss, {"tiny": {"tokens": 64}, "524288": {"tokens": 524288}}),
    "value_loss": Op("test_policy_losses.py", value_loss, {"tiny": {"tokens": 64}, "524288": {"tokens": 524288}}),
}
