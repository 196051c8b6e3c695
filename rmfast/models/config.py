"""The shape of a decoder, read from a Hugging Face config by the table of families."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig

from rmfast.errors import UserError, shown
from rmfast.models.families import FAMILIES, Family, Norms, QKNorm, why_not
from rmfast.models.rope import Rope, layer_ropes, switching_length

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # of activations, by their name in a config
Activation = Literal["silu", "gelu_tanh"]
ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and switches of a decoder.

    Attributes:
        windows: each layer's sliding window in tokens, or None for full attention. ropes: each layer's.
        norm_offset: what is added to the weights of norms.
        fused: see `Family`; it changes the names of weights alone.
        embedding_scale: times the embedding. residual_scale: times what attention and MLP add.
        attention_scale: times q k^T; None for 1 / sqrt(head_dim).
        attention_cap: q k^T becomes cap tanh(q k^T / cap). logit_cap: so do logits, after the divisor.
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
    tied: bool
    windows: tuple[int | None, ...]
    ropes: tuple[Rope, ...]
    activation: Activation = "silu"
    norms: Norms = "before"
    norm_offset: float = 0.0
    qk_norm: QKNorm | None = None
    fused: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_divisor: float = 1.0
    logit_cap: float | None = None

    @cached_property
    def distinct_ropes(self) -> tuple[Rope, ...]:
        """Those of the layers, each once."""
        return tuple(dict.fromkeys(self.ropes))

    @property
    def norm_weights(self) -> int:
        """Weights in the norms of one layer."""
        heads = {"head": 2, "all": self.heads + self.kv_heads}[self.qk_norm] if self.qk_norm else 0
        return self.width * (4 if self.norms == "both" else 2) + heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Weights in the matrices of one layer."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.width * self.ffn


def context_window(hf: PreTrainedConfig, *, switches: bool = False) -> int | None:
    """Tokens of the longest sequence that a config's positions are made for; None where it sets no limit.

    Args:
        switches: whether who computes changes the angles of longrope with the length, as transformers does and the
            decoder does not: prompts are shared there.

    Its `max_position_embeddings`, which RoPE scaling of some kinds extends: linear and dynamic multiply it, YaRN
    multiplies the length before. Elsewhere it is the scaled length already.
    """
    text = hf.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not switches and (short := switching_length(text)) is not None:
        return short
    relative = not getattr(hf, "position_biased_input", True) or getattr(text, "alibi", False)
    if not isinstance(limit, int) or limit <= 0 or relative:
        return None
    rope: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    before = {"linear": limit, "dynamic": limit, "yarn": rope.get("original_max_position_embeddings") or limit}
    try:
        return max(limit, int(before.get(rope.get("rope_type", ""), 0) * (rope.get("factor") or 1)))
    except (TypeError, ValueError, OverflowError):  # of a RoPE that makes no angles, which is said where they are made
        return limit


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
        raise UserError(f"{where}: {why_not(hf)}")
    row = FAMILIES[family]
    _check_numbers(hf, where)
    act = getattr(hf, "hidden_activation", None) or hf.hidden_act
    if act not in ACTIVATIONS:
        raise UserError(f"{where}: activation {act!r} is not supported; the decoder has {', '.join(ACTIVATIONS)}")
    if getattr(hf, "use_bidirectional_attention", None):
        raise UserError(f"{where}: attends in both directions (use_bidirectional_attention), which is not supported")
    heads, kv_heads = hf.num_attention_heads, hf.num_key_value_heads or hf.num_attention_heads
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // heads
    if heads % kv_heads or head_dim % 2:
        raise UserError(
            f"{where}: {heads} heads over {kv_heads} key-value heads of dimension {head_dim} do not fit: "
            "the first must be a multiple of the second, and the dimension even"
        )
    biased = {*row.biases} & {*(("qkv", "out") if getattr(hf, "attention_bias", False) else ())}
    biased |= {*row.biases} & {*(("mlp",) if getattr(hf, "mlp_bias", False) else ())}
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
        qkv_bias=row.always_biased or "qkv" in biased,
        out_bias="out" in biased,
        mlp_bias="mlp" in biased,
        tied=bool(hf.tie_word_embeddings),
        windows=_windows(hf, row, where),
        ropes=layer_ropes(hf, head_dim, partial=row.partial, where=where),
        activation=ACTIVATIONS[act],
        norms=row.norms,
        norm_offset=row.norm_offset,
        qk_norm=row.qk_norm,
        fused=row.fused,
        **row.factors(hf),
    )


SIZES = {  # of a model, with the largest that is one
    "vocab_size": 2**24, "hidden_size": 2**20, "num_hidden_layers": 2**12, "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14, "head_dim": 2**14, "intermediate_size": 2**24, "sliding_window": 2**31,
}  # fmt: skip
OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window")
REALS = {"rms_norm_eps": 1.0, "initializer_range": 1e3}
FACTORS = (  # of some families; positive where they are given
    "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling", "query_pre_attn_scalar",
    "attn_logit_softcapping", "final_logit_softcapping",
)  # fmt: skip


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
    for name in FACTORS:
        value = getattr(hf, name, None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9):
            raise UserError(f"{where}: {name} in config.json is {shown(value)}, not a number above 0")


def _windows(hf: PreTrainedConfig, family: Family, where: str) -> tuple[int | None, ...]:
    """Each layer's window."""
    window, layers = getattr(hf, "sliding_window", None), hf.num_hidden_layers
    if not getattr(hf, "use_sliding_window", True):
        window = None
    if family.windows == "all":
        return (window,) * layers
    kinds = getattr(hf, "layer_types", None) or ["full_attention"] * layers
    if unknown := {*map(str, kinds)} - {"full_attention", "sliding_attention"}:
        raise UserError(f"{where}: layers of the kind {min(unknown)!r} (layer_types) are not supported")
    if len(kinds) != layers:
        raise UserError(f"{where}: config.json says {layers} layers, and {len(kinds)} kinds of them (layer_types)")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
