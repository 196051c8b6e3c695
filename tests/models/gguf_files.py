"""GGUF files of tiny models, written by the rules of llama.cpp's convert_hf_to_gguf."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, dequantize, quantize
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "score": "cls.output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in the order in which llama.cpp rotates a Llama's."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def stored(tensor: Tensor, kind: str) -> tuple[np.ndarray, GGMLQuantizationType]:
    """A tensor as a file of a kind holds it: matrices in it (F16 where rows are no whole blocks), the rest in F32."""
    if tensor.dim() == 1 or kind == "F32":
        return tensor.numpy(), GGMLQuantizationType.F32
    quantised = GGMLQuantizationType[kind if tensor.shape[-1] % 32 == 0 else "F16"]
    return quantize(tensor.numpy(), quantised), quantised


@torch.no_grad()
def round_weights(model: PreTrainedModel, kind: str) -> None:
    """Gives a model the weights that a file of a kind can hold."""
    for parameter in model.parameters():
        parameter.copy_(torch.from_numpy(dequantize(*stored(parameter.detach(), kind)).copy()))


def llama3_divisors(rope: Mapping[str, Any], head_dim: int) -> Tensor:
    """rope_freqs.weight, as the converter computes it."""
    factors = []
    for freq in (1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)).tolist():
        wavelength, old = 2 * math.pi / freq, rope["original_max_position_embeddings"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(rope["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return torch.tensor(factors)


def config_keys(config: PreTrainedConfig, head_dim: int) -> dict[str, Any]:
    rope = config.rope_parameters
    keys = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if getattr(config, "head_dim", None):
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if config.model_type in ("llama", "mistral"):
        keys |= {"vocab_size": config.vocab_size, "rope.dimension_count": head_dim}
    if rope["rope_type"] in ("linear", "yarn"):
        keys |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        for ours, theirs in {"attention_factor": "yarn_attn_factor", "beta_fast": "yarn_beta_fast"}.items():
            if rope.get(ours):
                keys[f"rope.scaling.{theirs}"] = float(rope[ours])
    return keys


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    *,
    kind: str = "F32",
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor | None] | None = None,
    head: bool = True,
    parts: int = 1,
    tokenizer: Path | None = None,
    pre: str | None = "gpt-2",
) -> Path:
    """Writes a model; the path of the (first) file.

    Args:
        kind: F32, F16, BF16, Q8_0, ...: of the matrices.
        keys: in place of the model's or beside them, without the architecture's name in front; None leaves one out.
        tensors: likewise, by their names in the file.
        head: whether to write the reward head.
        parts: over how many files, named as llama.cpp's gguf-split names them.
        tokenizer: a folder with a byte-level tokenizer, written into the (first) file.
        pre: llama.cpp's name of how it splits texts.
    """
    config = model.config
    family = "llama" if config.model_type == "mistral" else config.model_type
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    weights: dict[str, Tensor | None] = {}
    for name, tensor in model.state_dict().items():
        if (name == "lm_head.weight" and config.tie_word_embeddings) or (name == "score.weight" and not head):
            continue
        if family == "llama" and ".q_proj." in name:
            tensor = permute(tensor, config.num_attention_heads)
        if family == "llama" and ".k_proj." in name:
            tensor = permute(tensor, config.num_key_value_heads)
        weights[gguf_name(name)] = tensor
    if config.rope_parameters["rope_type"] == "llama3":
        weights["rope_freqs.weight"] = llama3_divisors(config.rope_parameters, head_dim)
    weights |= tensors or {}
    values = {f"{family}.{key}": value for key, value in (config_keys(config, head_dim) | dict(keys or {})).items()}
    names = [name for name, tensor in weights.items() if tensor is not None]
    size = -(-len(names) // parts)
    files = [path.with_name(f"{path.stem}-{i + 1:05d}-of-{parts:05d}.gguf") for i in range(parts)]
    for i, file in enumerate(files if parts > 1 else [path]):
        writer = GGUFWriter(file, family)
        for key, value in values.items() if i == 0 else ():
            add_value(writer, key, value)
        if tokenizer is not None and i == 0:
            add_tokenizer(writer, tokenizer, pre)
        if parts > 1:
            writer.add_uint16("split.no", i)
            writer.add_uint16("split.count", parts)
            writer.add_int32("split.tensors.count", len(names))
        for name in names[i * size : (i + 1) * size]:
            tensor = weights[name]
            assert tensor is not None
            data, quantised = stored(tensor.detach().contiguous(), kind)
            writer.add_tensor(name, data, raw_dtype=quantised)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files[0] if parts > 1 else path


def add_tokenizer(writer: GGUFWriter, folder: Path, pre: str | None) -> None:
    backend = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in backend["added_tokens"]}
    vocabulary = backend["model"]["vocab"] | special
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in backend["model"]["merges"]])
    writer.add_eos_token_id(vocabulary[settings["eos_token"]])
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)
