"""The names of our weights and of Hugging Face's: which of theirs, joined along the rows, make one of ours."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmfast.models.config import DecoderConfig
from rmfast.models.families import Norms

EMBEDDING = "decoder.embed.weight"
NORM = "norm.weight"
HEAD = "head.weight"
LM_HEAD = "lm_head.weight"
PROTOTYPES = "prototypes"
TRAINING_ONLY = (LM_HEAD, PROTOTYPES)
"""Weights that some objectives train beside the reward model; they are no part of it."""


NORM_NAMES: dict[Norms, dict[str, str]] = {
    "before": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "after": {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"},
    "both": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}
"""Hugging Face's names of a layer's norms, by where they are: post_attention_layernorm is of two kinds."""


def heads_of(state: Mapping[str, Tensor]) -> int:
    """How many reward heads a state dict of ours has: 0 of a policy."""
    return state[HEAD].shape[0] if HEAD in state else 0


REAL = {"F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"}


@dataclass(frozen=True)
class StoredWeight:
    """A weight of a model folder. Calling it reads it whole; `view` gives what reads a part where it is indexed."""

    whole: Callable[[], Tensor]
    view: Callable[[], Any]

    def __call__(self) -> Tensor:
        return self.whole()

    @property
    def shape(self) -> tuple[int, ...]:
        view = self.view()
        return tuple(view.shape if isinstance(view, Tensor) else view.get_shape())

    @property
    def kind(self) -> str:
        """The dtype by safetensors' name, or by torch's; GGUF's are dequantised, to fp32."""
        view = self.view()
        return str(view.dtype if isinstance(view, Tensor) else view.get_dtype())

    @property
    def real(self) -> bool:
        """Whether it holds plain floating-point numbers, of which a model can be made."""
        return self.kind in REAL

    def row(self, number: int) -> "StoredWeight":
        """One of its rows, as a weight of one row."""
        rows = slice(number, number + 1)
        return StoredWeight(lambda: self.view()[rows], lambda: self.view()[rows])


def hf_parts(config: DecoderConfig) -> dict[str, list[tuple[str, int]]]:
    """For each of our weights the Hugging Face weights it is made of, with their rows, in order.

    The reward head is "score.weight"; its rows, the number of heads, are given as -1.
    """
    c = config
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    joined = {
        "qkv": [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)],
        "out": [("self_attn.o_proj", c.width)],
        "gate_up": [("mlp.gate_proj", c.ffn), ("mlp.up_proj", c.ffn)],
        "down": [("mlp.down_proj", c.width)],
    }
    if c.fused:
        joined |= {"qkv": [("self_attn.qkv_proj", q + 2 * kv)], "gate_up": [("mlp.gate_up_proj", 2 * c.ffn)]}
    joined |= {ours: [(theirs, c.width)] for ours, theirs in NORM_NAMES[c.norms].items()}
    if c.qk_norm:
        q_rows, k_rows = (q, kv) if c.qk_norm == "all" else (c.head_dim, c.head_dim)
        joined |= {"q_norm": [("self_attn.q_norm", q_rows)], "k_norm": [("self_attn.k_norm", k_rows)]}
    biased = {"qkv": c.qkv_bias, "out": c.out_bias, "gate_up": c.mlp_bias, "down": c.mlp_bias}
    parts = {EMBEDDING: [("model.embed_tokens.weight", c.vocabulary)]}
    for i in range(c.layers):
        for ours, theirs in joined.items():
            for kind in ("weight", "bias") if biased.get(ours) else ("weight",):
                names = [(f"model.layers.{i}.{name}.{kind}", rows) for name, rows in theirs]
                parts[f"decoder.layers.{i}.{ours}.{kind}"] = names
    parts[NORM] = [("model.norm.weight", c.width)]
    parts[HEAD] = [("score.weight", -1)]
    parts[LM_HEAD] = [("lm_head.weight", c.vocabulary)]
    return parts


def join(parts: list[tuple[str, int]], get: Callable[[str], Tensor]) -> Tensor:
    """One of our weights from Hugging Face's."""
    return torch.cat([get(name) for name, _ in parts]) if len(parts) > 1 else get(parts[0][0])


def to_hf(config: DecoderConfig, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face names and weights of a state dict of ours.

    With reward heads it is a reward model, of which what is for training only is left out; without, a policy, which has
    a language-model head where that is not the embedding.
    """
    parts = hf_parts(config)
    left_out = TRAINING_ONLY if heads_of(state) or config.tied else (PROTOTYPES,)
    for name, tensor in state.items():
        if name in left_out or not tensor.shape[0]:
            continue
        names = [hf for hf, _ in parts[name]]
        rows = [tensor.shape[0]] if len(names) == 1 else [count for _, count in parts[name]]
        yield from zip(names, tensor.split(rows), strict=True)
