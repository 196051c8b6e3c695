"""RoPE of each layer: its angles, and up to which length they stay the same."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rmfast.errors import UserError, first_line

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Rope:
    """Radians a position of the pairs that are rotated, the first 2 x len of a head's dimensions; and the factor that
    some scalings put on them. A layer without RoPE has angles of 0, which change no bit."""

    frequencies: tuple[float, ...]
    scale: float = 1.0


def of_layers(parameters: dict[str, Any]) -> bool:
    """Whether rope_parameters are given for each kind of layer."""
    return any(key.endswith("_attention") for key in parameters)


def switching_length(hf: PreTrainedConfig) -> int | None:
    """Tokens up to which longrope takes its short factors; None where angles depend on no length.

    All keys of a longer sequence turn by the long ones, those of a prompt that a shorter one shares with it too.
    """
    parameters = getattr(hf, "rope_parameters", None) or {}
    if parameters.get("rope_type") != "longrope" or parameters.get("short_factor") == parameters.get("long_factor"):
        return None
    length = parameters.get("original_max_position_embeddings")
    return length if isinstance(length, int) else None


def layer_ropes(hf: PreTrainedConfig, head_dim: int, *, partial: bool, where: str) -> tuple[Rope, ...]:
    """The RoPE of every layer.

    Args:
        partial: whether transformers' model rotates a part of each head, where the config says so.

    Raises:
        UserError: a scaling that is computed in another way, or parameters that make no angles.
    """
    layers, parameters = hf.num_hidden_layers, dict(hf.rope_parameters or {})
    try:
        if of_layers(parameters):
            made = {kind: _rope(hf, parameters[kind], head_dim, partial, where, kind) for kind in set(hf.layer_types)}
            ropes = tuple(made[kind] for kind in hf.layer_types)
        else:
            ropes = (_rope(hf, parameters, head_dim, partial, where),) * layers
        turns = getattr(hf, "no_rope_layers", None) or [1] * layers  # 0 for a layer without, in spite of the name
        still = Rope((0.0,) * len(ropes[0].frequencies))
        found = tuple(rope if turn else still for rope, turn in zip(ropes, turns, strict=False))
    except UserError:
        raise
    except Exception as error:  # arithmetic with whatever the folder holds, ours and transformers'
        raise UserError(f"{where}: rope_parameters in config.json make no angles: {first_line(error)}") from error
    if len(found) != layers:
        raise UserError(f"{where}: config.json says {layers} layers, and which have RoPE of {len(found)}")
    return found


def _rope(
    hf: PreTrainedConfig,
    parameters: dict[str, Any],
    head_dim: int,
    partial: bool,
    where: str,
    layers: str | None = None,
) -> Rope:
    """Of layers of one kind, `layers`, where parameters are given by it."""
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise UserError(f"{where}: RoPE scaling {kind!r} is not supported; these are: {', '.join(ROPE_TYPES)}")
    part = parameters.get("partial_rotary_factor", 1.0)
    if part != 1.0 and not partial:
        raise UserError(f"{where}: partial rotary embedding is not supported in a {hf.model_type} model")
    rotated = int(head_dim * part)
    if rotated < 2 or rotated % 2:
        raise UserError(f"{where}: {part} of {head_dim} dimensions are {rotated}, and RoPE turns pairs of them")
    if kind == "default":
        # fp32 arithmetic as in transformers, so that the angles agree to the last bit.
        exponent = torch.arange(0, rotated, 2, dtype=torch.float) / rotated
        frequencies, scale = 1.0 / (parameters["rope_theta"] ** exponent), 1.0
    else:
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](hf, "cpu", layer_type=layers)
    if not (torch.isfinite(frequencies).all() and math.isfinite(scale)):
        raise ValueError("they are not finite")
    if len(frequencies) != rotated // 2:
        raise ValueError(f"they are {len(frequencies)} for {rotated // 2} pairs")
    return Rope(tuple(frequencies.tolist()), float(scale))
