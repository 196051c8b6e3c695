"""The shape of a decoder, read from a Hugging Face config. One table lists the families that work."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rmfast.errors import UserError, first_line, shown

FAMILIES = {
    "llama": "Llama 2/3 and SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen2 and Qwen2.5",
    "qwen3": "Qwen3",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # of activations, by their name in a config
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and switches of a decoder of the Llama family.

    `windows` holds each layer's sliding window in tokens, or None for full attention. `rope` are radians a position,
    `rope_scale` the factor that some RoPE scalings put on queries and keys.
    """

    family: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    norm_eps: float
    init_std: float
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool
    windows: tuple[int | None, ...]
    rope: tuple[float, ...]
    rope_scale: float

    @property
    def layer_parameters(self) -> int:
        """Weights in the matrices of one layer."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.width * self.ffn


def context_window(hf: PreTrainedConfig) -> int | None:
    """Tokens of the longest sequence that a config's positions are made for; None where it sets no limit.

    Its `max_position_embeddings`, which RoPE scaling of some kinds extends: linear and dynamic multiply it, YaRN
    multiplies the length before. Elsewhere it is the scaled length already.
    """
    text = hf.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    relative = not getattr(hf, "position_biased_input", True) or getattr(text, "alibi", False)
    if not isinstance(limit, int) or limit <= 0 or relative:
        return None
    rope: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    before = {"linear": limit, "dynamic": limit, "yarn": rope.get("original_max_position_embeddings") or limit}
    try:
        return max(limit, int(before.get(rope.get("rope_type", ""), 0) * (rope.get("factor") or 1)))
    except (TypeError, ValueError, OverflowError):  # of a RoPE that makes no angles, which is said where they are made
        return limit


def supported_families() -> str:
    return ", ".join(f"{name} ({text})" for name, text in FAMILIES.items())


def decoder_config(hf: PreTrainedConfig, where: str = "the model") -> DecoderConfig:
    """Shape of the decoder that a Hugging Face config describes.

    Args:
        hf: config of a model of one of `FAMILIES`.
        where: named in errors, the model's path.

    Raises:
        UserError: another architecture, or a variant of these that is computed in another way.
    """
    family = hf.model_type
    if family not in FAMILIES:
        raise UserError(f"{where}: architecture {family!r} is not supported; these are: {supported_families()}")
    _check_numbers(hf, where)
    if hf.hidden_act not in ("silu", "swish"):
        raise UserError(f"{where}: activation {hf.hidden_act!r} is not supported; the decoder uses silu")
    heads, kv_heads = hf.num_attention_heads, hf.num_key_value_heads or hf.num_attention_heads
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // heads
    if heads % kv_heads or head_dim % 2:
        raise UserError(
            f"{where}: {heads} heads over {kv_heads} key-value heads of dimension {head_dim} do not fit: "
            "the first must be a multiple of the second, and the dimension even"
        )
    rope, rope_scale = _rope(hf, head_dim, where)
    return DecoderConfig(
        family=family,
        vocabulary=hf.vocab_size,
        width=hf.hidden_size,
        layers=hf.num_hidden_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=hf.intermediate_size,
        norm_eps=hf.rms_norm_eps,
        init_std=hf.initializer_range,
        qkv_bias=family == "qwen2" or getattr(hf, "attention_bias", False),
        out_bias=family in ("llama", "qwen3") and getattr(hf, "attention_bias", False),
        mlp_bias=family == "llama" and getattr(hf, "mlp_bias", False),
        qk_norm=family == "qwen3",
        tied=bool(hf.tie_word_embeddings),
        windows=_windows(hf),
        rope=rope,
        rope_scale=rope_scale,
    )


SIZES = {  # of a model, with the largest that is one
    "vocab_size": 2**24, "hidden_size": 2**20, "num_hidden_layers": 2**12, "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14, "head_dim": 2**14, "intermediate_size": 2**24, "sliding_window": 2**31,
}  # fmt: skip
OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window")
REALS = {"rms_norm_eps": 1.0, "initializer_range": 1e3}


def _check_numbers(hf: PreTrainedConfig, where: str) -> None:
    """Refuse sizes that no model has.

    Raises:
        UserError: it names the key of config.json.
    """
    for name, largest in SIZES.items():
        value = getattr(hf, name, None)
        if value is None and name in OPTIONAL:
            continue
        if type(value) is not int or not 1 <= value <= largest:
            raise UserError(
                f"{where}: {name} in config.json is {shown(value)}, not a whole number from 1 to {largest:,}"
            )
    for name, most in REALS.items():
        value = getattr(hf, name, None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise UserError(f"{where}: {name} in config.json is {shown(value)}, not a number from 0 to {most:g}")


def _windows(hf: PreTrainedConfig) -> tuple[int | None, ...]:
    window = getattr(hf, "sliding_window", None)
    if hf.model_type == "mistral":
        return (window,) * hf.num_hidden_layers
    kinds = getattr(hf, "layer_types", None) or ["full_attention"] * hf.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope(hf: PreTrainedConfig, head_dim: int, where: str) -> tuple[tuple[float, ...], float]:
    try:
        return _angles(hf, dict(hf.rope_parameters or {}), head_dim, where)
    except UserError:
        raise
    except Exception as error:  # arithmetic with whatever the folder holds, ours and transformers'
        raise UserError(f"{where}: rope_parameters in config.json make no angles: {first_line(error)}") from error


def _angles(
    hf: PreTrainedConfig, parameters: dict[str, Any], head_dim: int, where: str
) -> tuple[tuple[float, ...], float]:
    kind = parameters.get("rope_type", "default")
    if kind == "longrope" and parameters["short_factor"] == parameters["long_factor"]:
        pass  # with one list it does not depend on the batch's longest sequence
    elif kind not in ROPE_TYPES:
        raise UserError(f"{where}: RoPE scaling {kind!r} is not supported; these are: {', '.join(ROPE_TYPES)}")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{where}: partial rotary embedding is not supported")
    if kind == "default":
        # fp32 arithmetic as in transformers, so that the angles agree to the last bit.
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        inv_freq, scale = 1.0 / (parameters["rope_theta"] ** exponent), 1.0
    else:
        inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](hf, "cpu")
    if not (torch.isfinite(inv_freq).all() and math.isfinite(scale)):
        raise ValueError("they are not finite")
    return tuple(inv_freq.tolist()), float(scale)
