"""The draw of the compiled library, on the CPU."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from rmfast.kernels import compiled
from rmfast.kernels.draw_tokens.options import Options


def refusal(logits: Tensor, seen: Tensor | None, group: dist.ProcessGroup | None) -> str | None:
    """Why the library cannot draw from such logits (fp32), or None."""
    if logits.device.type != "cpu" or group is not None:
        return "it takes whole vocabularies on a CPU"
    if any(x is not None and x.stride(1) != 1 for x in (logits, seen)):
        return "it takes rows that are contiguous"
    return compiled.missing()


def draw(
    logits: Tensor, keys: Tensor, positions: Tensor, seen: Tensor | None, options: Options, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference's; threads take rows."""
    tokens = torch.empty(len(logits), dtype=torch.int64)
    log_prob, behaviour = (torch.empty(len(logits)) for _ in range(2))
    o = options
    torch.ops.rmfast_C.draw_tokens_(
        logits, keys.contiguous(), positions.contiguous(), seen if o.repetition_penalty != 1 else None, o.temperature,
        o.top_k, o.top_p, math.log(o.min_p) if o.min_p else -math.inf, o.repetition_penalty, first,
        tokens, log_prob, behaviour,
    )  # fmt: skip
    return tokens, log_prob, behaviour
