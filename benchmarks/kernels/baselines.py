"""Libraries that do the same jobs, as functions of the same inputs. All need a GPU; Liger comes if it is installed."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

Rivals = dict[str, Callable[..., Any]]
Groups = Sequence[tuple[int, Sequence[int]]]


def _liger(device: torch.device) -> bool:
    return device.type == "cuda" and find_spec("liger_kernel") is not None


def rms_norm(device: torch.device) -> Rivals:
    if not _liger(device):
        return {}
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # Not in place: that would overwrite the gradient that is handed in again at the next call.
    return {"liger": lambda x, w: LigerRMSNormFunction.apply(x, w, 1e-5, 0.0, "llama", False)}


def add_rms_norm(device: torch.device) -> Rivals:
    if not _liger(device):
        return {}
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    return {"liger": lambda x, residual, w: LigerFusedAddRMSNormFunction.apply(x, residual, w, 1e-5)}


def swiglu(device: torch.device) -> Rivals:
    if not _liger(device):
        return {}
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return {"liger": lambda gate_up: LigerSiLUMulFunction.apply(*gate_up.chunk(2, dim=-1))}


def rope(device: torch.device, positions: Tensor, inv_freq: Tensor) -> Rivals:
    if not _liger(device):
        return {}
    from liger_kernel.ops.rope import LigerRopeFunction

    # Tables as transformers hands them over; making them is not measured, rotating in place is Liger's way.
    angles = (positions[:, None] * inv_freq).repeat(1, 2)[None]
    cos, sin = angles.cos(), angles.sin()

    def call(q: Tensor, k: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (x.transpose(0, 1)[None] for x in (q, k))
        q, k = LigerRopeFunction.apply(q, k, cos.to(q.dtype), sin.to(q.dtype))
        return q[0].transpose(0, 1), k[0].transpose(0, 1)

    return {"liger": call}


def linear_log_prob(device: torch.device) -> Rivals:
    if not _liger(device):
        return {}
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    def call(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        """The sum of the log-probabilities; without entropy, and with the gradients made in the forward pass."""
        out = LigerFusedLinearCrossEntropyFunction.apply(
            hidden, weight, target, None, None, -100, 0.0, 0.0, "sum", None, False, torch.float32
        )
        return -(out[0] if isinstance(out, tuple) else out)

    return {"liger (cross-entropy)": call}


def prefix_attention(device: torch.device, layout: Tensor, groups: Groups) -> Rivals:
    if device.type != "cuda":
        return {}
    return {"flex": flex_attention(layout), "flash + merge": FlashMerge(groups, device)}


def flex_attention(layout: Tensor) -> Callable[..., Tensor]:
    """torch's FlexAttention, compiled; its block mask is made here and not measured."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    start, prefix_end, segment, _ = layout
    count = layout.shape[1]

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= start[q]) & (k <= q) & ((k < prefix_end[q]) | (k >= segment[q]))

    mask = create_block_mask(sees, None, None, count, count, device=layout.device)
    compiled = torch.compile(flex)

    def call(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return compiled(q, k, v, block_mask=mask, enable_gqa=True)[0].transpose(0, 1)

    return call


class Spans:
    """Cumulative lengths of variable-length attention and the longest of them."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        ends = torch.tensor([0, *lengths]).cumsum(0)
        self.ends, self.longest = ends.to(device, torch.int32), max(lengths, default=0)


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output [T, H, D], log-sum-exp [H, T] and the two random states that the backward wants back."""
    out, lse, seed, offset, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, queries.ends, keys.ends, queries.longest, keys.longest, 0.0, causal, False
    )
    return out, lse, seed, offset


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, queries: Spans, keys: Spans, causal: bool,
    seed: Tensor, offset: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v."""
    return torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, lse, queries.ends, keys.ends, queries.longest, keys.longest, 0.0, causal, seed, offset
    )


class FlashMerge:
    """Two calls of torch's own FlashAttention, merged: every segment by itself, then responses over their prompts.

    Each part's backward is the stock one, fed the merged output and log-sum-exp: with those, its probabilities are
    those of the whole softmax.
    """

    def __init__(self, groups: Groups, device: torch.device) -> None:
        kept = [(p, [r for r in responses if r]) for p, responses in groups]
        self.own = Spans([n for p, responses in kept for n in ((p,) if p else ()) + tuple(responses)], device)
        crossing = [(p, sum(responses)) for p, responses in kept if p and sum(responses)]
        self.answers, self.prompts = Spans([r for _, r in crossing], device), Spans([p for p, _ in crossing], device)
        rows: list[Tensor] = []
        prompt_rows: list[Tensor] = []
        at = 0
        for p, responses in kept:
            if p and responses:
                prompt_rows.append(torch.arange(at, at + p))
                rows.append(torch.arange(at + p, at + p + sum(responses)))
            at += p + sum(responses)
        empty = [torch.empty(0, dtype=torch.int64)]
        self.rows = torch.cat(rows or empty).to(device)
        self.prompt_rows = torch.cat(prompt_rows or empty).to(device)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        return _Merged.apply(q, k, v, self)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: FlashMerge) -> Tensor:
        out, lse, *own_state = flash_forward(q, k, v, plan.own, plan.own, True)
        rows, prompts = plan.rows, plan.prompt_rows
        over, over_lse, *state = flash_forward(q[rows], k[prompts], v[prompts], plan.answers, plan.prompts, False)
        own_lse = lse[:, rows]
        both = torch.logaddexp(own_lse, over_lse)
        share = (own_lse - both).exp().T[:, :, None]
        merged = (out[rows] * share + over * (over_lse - both).exp().T[:, :, None]).to(q.dtype)
        out, lse = out.index_copy(0, rows, merged), lse.index_copy(1, rows, both)
        ctx.save_for_backward(q, k, v, out, lse, *own_state, *state)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse, *states = ctx.saved_tensors
        plan, rows, prompts = ctx.plan, ctx.plan.rows, ctx.plan.prompt_rows
        dq, dk, dv = flash_backward(grad, q, k, v, out, lse, plan.own, plan.own, True, *states[:2])
        parts = (grad[rows], q[rows], k[prompts], v[prompts], out[rows], lse[:, rows].contiguous())
        over_q, over_k, over_v = flash_backward(*parts, plan.answers, plan.prompts, False, *states[2:])
        dq.index_add_(0, rows, over_q)
        dk.index_add_(0, prompts, over_k)
        dv.index_add_(0, prompts, over_v)
        return dq, dk, dv, None
