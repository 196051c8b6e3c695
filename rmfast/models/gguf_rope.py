"""RoPE of a GGUF file in transformers' terms; llama.cpp's defaults and rules, see `rmfast.models.gguf`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmfast.errors import UserError

ROPE_FREQS = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # of every Llama that has this scaling


def rope_parameters(
    path: Path, take: Callable[..., Any], divisors: Tensor | None, context: int, head_dim: int
) -> dict[str, Any]:
    """transformers' rope_parameters of a file.

    Args:
        take: gives a key of the architecture, or a default. divisors: the tensor `ROPE_FREQS` [head_dim / 2].
        context: the key context_length.

    Raises:
        UserError: a scaling that transformers cannot express.
    """
    theta = take("rope.freq_base", 10_000.0)
    kind = take("rope.scaling.type", "linear")
    factor = take("rope.scaling.factor", take("rope.scale_linear", 0.0)) or 1.0
    original = take("rope.scaling.original_context_length", context)
    scale = take("rope.scaling.attn_factor", 1.0)
    yarn = {key: take(f"rope.scaling.yarn_{key}", 0.0) for key in ("attn_factor", "beta_fast", "beta_slow")}
    if take("rope.scaling.yarn_ext_factor", 1.0) not in (1.0, -1.0):  # -1: not set
        raise UserError(f"{path}: rope.scaling.yarn_ext_factor is not supported")
    if kind not in ("none", "linear", "yarn"):
        raise UserError(f"{path}: RoPE scaling {kind!r} is not supported; these are: none, linear, yarn, {ROPE_FREQS}")
    scaled = kind != "none" and factor != 1.0
    if divisors is not None and scaled or scale != 1.0 and not (scaled and kind == "yarn"):
        raise UserError(f"{path}: RoPE scaling {kind!r} with {ROPE_FREQS} or an attn_factor is not supported")
    if divisors is not None and not (divisors.isfinite() & (divisors > 0)).all():
        raise UserError(f"{path}: {ROPE_FREQS} holds numbers that are not positive")
    if min(theta, factor) <= 0 or context <= 0:
        raise UserError(
            f"{path}: rope.freq_base {theta:g}, rope.scaling.factor {factor:g}, context_length {context}: "
            "one of them is not positive"
        )
    if divisors is not None:
        return {"rope_theta": theta} | _divided(divisors.double(), theta, context, head_dim)
    if not scaled:
        return {"rope_theta": theta, "rope_type": "default"}
    parameters = {"rope_theta": theta, "rope_type": kind, "factor": factor}
    if kind == "linear":
        return parameters
    parameters["original_max_position_embeddings"] = original
    parameters |= {key: value for key, value in yarn.items() if value and key != "attn_factor"}
    if scale != 1.0 or yarn["attn_factor"]:
        # The converter writes transformers' attention_factor as yarn_attn_factor; attn_factor multiplies the usual one.
        parameters["attention_factor"] = yarn["attn_factor"] or scale * (0.1 * math.log(factor) + 1.0)
    return parameters


def _divided(divisors: Tensor, theta: float, context: int, head_dim: int) -> dict[str, Any]:
    """rope_parameters that divide the frequencies as the tensor `rope_freqs.weight` [head_dim / 2] does.

    The converter computes it from Llama 3's scaling; where it can be told which, that is given, since every program
    knows it. Else longrope with these divisors.
    """
    lengths = 2 * math.pi * theta ** (torch.arange(0, head_dim, 2, dtype=torch.double) / head_dim)
    factor = float(divisors.max())
    low, high = LLAMA3.values()
    originals = [8192]
    for divisor, length in zip(divisors.tolist(), lengths.tolist(), strict=False):
        if 1.0 < divisor < factor:  # between the two limits, where the divisor tells them
            smooth = (1 / divisor - 1 / factor) / (1 - 1 / factor)
            originals.append(round((smooth * (high - low) + low) * length))
    for original in originals:
        smooth = ((original / lengths - low) / (high - low)).clamp(0, 1)
        if len(divisors) == len(lengths) and torch.allclose(
            1 / ((1 - smooth) / factor + smooth), divisors, rtol=1e-5, atol=0
        ):
            scaling = {"factor": factor, "original_max_position_embeddings": original}
            return {"rope_type": "llama3"} | scaling | LLAMA3
    return {
        "rope_type": "longrope",
        "short_factor": divisors.tolist(),
        "long_factor": divisors.tolist(),
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }
