"""The architectures that rmfast's decoder computes: one table of what each differs in from Llama.

A family's row says only what its config does not. Source of each: transformers' modeling file of that name, with which
the tests compare scores and gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig

Norms = Literal["before", "after", "both"]
"""Where a layer has norms: before attention and MLP, on what they add to the residual stream, or on both."""
QKNorm = Literal["head", "all"]
"""What of queries and keys is normalised before RoPE: each head, or all heads of a token as one row."""


def _nothing(hf: PreTrainedConfig) -> dict[str, Any]:
    return {}


def _granite(hf: PreTrainedConfig) -> dict[str, Any]:
    return {
        "embedding_scale": float(hf.embedding_multiplier),
        "residual_scale": float(hf.residual_multiplier),
        "attention_scale": float(hf.attention_multiplier),
        "logit_divisor": float(hf.logits_scaling),
    }


def _gemma(hf: PreTrainedConfig) -> dict[str, Any]:
    caps = hf.model_type == "gemma2"  # transformers' Gemma 3 has the key for attention, and does not read it
    return {
        "embedding_scale": hf.hidden_size**0.5,
        "attention_scale": hf.query_pre_attn_scalar**-0.5,
        "attention_cap": hf.attn_logit_softcapping if caps else None,
        "logit_cap": hf.final_logit_softcapping,
    }


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture.

    Args:
        title: for people.
        prefix: of transformers' classes; `classifier` of its *ForSequenceClassification, where that is another.
        biases: of "qkv", "out", "mlp", those that attention_bias and mlp_bias turn on.
        always_biased: queries, keys and values have biases whatever the config says.
        windows: which layers have sliding_window: those that layer_types says, or all.
        fused: Hugging Face has queries, keys and values in one matrix, and gate and up in one.
        partial: RoPE may turn a part of each head.
        factors: numbers of the config, as fields of a `DecoderConfig`.
    """

    title: str
    prefix: str
    classifier: str | None = None
    biases: tuple[str, ...] = ()
    always_biased: bool = False
    windows: Literal["types", "all"] = "types"
    norms: Norms = "before"
    norm_offset: float = 0.0
    qk_norm: QKNorm | None = None
    fused: bool = False
    partial: bool = False
    factors: Callable[[PreTrainedConfig], dict[str, Any]] = _nothing

    def architecture(self, *, classifier: bool) -> str:
        """The name of transformers' class."""
        prefix = self.classifier or self.prefix if classifier else self.prefix
        return f"{prefix}For{'SequenceClassification' if classifier else 'CausalLM'}"


FAMILIES = {
    "llama": Family(title="Llama 2/3 and SmolLM2", prefix="Llama", biases=("qkv", "out", "mlp")),
    "mistral": Family(title="Mistral", prefix="Mistral", windows="all"),
    "qwen2": Family(title="Qwen2 and Qwen2.5", prefix="Qwen2", always_biased=True),
    "qwen3": Family(title="Qwen3", prefix="Qwen3", biases=("qkv", "out"), qk_norm="head"),
    "smollm3": Family(title="SmolLM3", prefix="SmolLM3", biases=("qkv", "out", "mlp")),
    "granite": Family(title="Granite 3", prefix="Granite", biases=("qkv", "out", "mlp"), factors=_granite),
    "olmo2": Family(title="OLMo 2", prefix="Olmo2", biases=("qkv", "out"), norms="after", qk_norm="all"),
    "olmo3": Family(title="OLMo 3", prefix="Olmo3", biases=("qkv", "out"), norms="after", qk_norm="all"),
    "gemma2": Family(
        title="Gemma 2", prefix="Gemma2", biases=("qkv", "out"), norms="both", norm_offset=1.0, factors=_gemma
    ),
    "gemma3_text": Family(
        title="Gemma 3, text",
        prefix="Gemma3",
        classifier="Gemma3Text",
        biases=("qkv", "out"),
        norms="both",
        norm_offset=1.0,
        qk_norm="head",
        factors=_gemma,
    ),
    "phi3": Family(title="Phi-3 and Phi-4-mini", prefix="Phi3", windows="all", fused=True, partial=True),
}
"""By transformers' model_type."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Keys of config.json that a mixture of experts has."""


def supported_families() -> str:
    return ", ".join(f"{name} ({family.title})" for name, family in FAMILIES.items())


def why_not(hf: PreTrainedConfig) -> str:
    """Why an architecture that is not in the table is not supported, as the end of an error's line."""
    text = hf.get_text_config()
    counts = [count for key in EXPERTS if isinstance(count := getattr(text, key, None), int) and count > 1]
    if counts:
        return (
            f"architecture {hf.model_type!r} is a mixture of {counts[0]} experts, which rmfast does not train: it "
            "would need a router with its balancing loss, products grouped by expert, and experts divided among ranks"
        )
    if text is not hf:
        part = "supported: save that" if text.model_type in FAMILIES else "not supported either"
        return (
            f"architecture {hf.model_type!r} takes more than text, which rmfast does not; its text part alone "
            f"({text.model_type!r}) is {part}"
        )
    return f"architecture {hf.model_type!r} is not supported; these are: {supported_families()}"
