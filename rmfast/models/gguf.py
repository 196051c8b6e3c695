"""Models from GGUF files: config and weights, by the rules of llama.cpp, which writes and runs them.

transformers' reader passes over tensors and keys that it does not know, among them the RoPE scaling of Llama 3 and
all biases, and so loads another model. Here each tensor and each key of the architecture is used, changes nothing, or
is refused by name. Rules: llama.cpp, conversion/llama.py and conversion/base.py (what the names mean, how queries and
keys are permuted), src/llama-model.cpp and src/llama-context.cpp (defaults, RoPE).
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from rmfast.errors import UserError, first_line
from rmfast.gguf_file import GGUFModel, GGUFTensor, first_part, open_gguf
from rmfast.models.gguf_rope import ROPE_FREQS, rope_parameters
from rmfast.models.weights import StoredWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "cls.output": "score"}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
READ = ("llama", "qwen2", "qwen3")
"""llama.cpp's architectures whose every key is known here; Mistral is a llama."""
HARMLESS = (  # keys that change nothing of what is computed here
    "vocab_size",  # the rows of the embedding say it
    "tensor_data_layout",
    "pooling_type",
    "classifier.output_labels",
    "rope.scaling.finetuned",
)


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one in a folder without safetensors.

    Of a file that is split into parts it is the first part, which has the keys.
    """
    if path.is_file():
        return first_part(path) if path.suffix.lower() == ".gguf" or _has_magic(path) else None
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    found = {first_part(file) for file in path.iterdir() if file.suffix.lower() == ".gguf"}
    if len(found) > 1:
        raise UserError(f"{path} holds {len(found)} .gguf files; name one of them")
    return next(iter(found), None)


def read_gguf_config(path: Path) -> PreTrainedConfig:
    """The Hugging Face config of the model in a GGUF file.

    Raises:
        UserError: no whole GGUF file, no model of `READ`, or a key that rmfast does not know.
    """
    model = open_gguf(path)
    family = model.keys.get("general.architecture")
    if model.keys.get("general.type", "model") != "model":
        raise UserError(f"{path}: holds a GGUF {model.keys['general.type']}, which is no whole model")
    if family not in READ:
        raise UserError(f"{path}: architecture {family!r} is not supported as GGUF; these are: {', '.join(READ)}")
    if "token_embd.weight" not in model.tensors:
        raise UserError(f"{path}: holds no weights (no tensor token_embd.weight)")
    prefix = f"{family}."
    keys = {key.removeprefix(prefix): value for key, value in model.keys.items() if key.startswith(prefix)}
    try:
        settings = _settings(path, prefix, keys, model)
    except UserError:
        raise
    except (ArithmeticError, TypeError, ValueError, RuntimeError, LookupError) as error:  # of values that fit no model
        raise UserError(f"{path}: its {prefix}* keys and tensors make no model: {first_line(error)}") from error
    odd = sorted(key for key, value in keys.items() if value and key not in HARMLESS)
    if odd:
        raise UserError(f"{path}: rmfast does not know what {prefix}{odd[0]} = {keys[odd[0]]!r} changes in the model")
    if settings.get("sliding_window"):
        if family != "llama":
            raise UserError(f"{path}: {prefix}attention.sliding_window does not say which layers of a {family} have it")
        family = "mistral"  # to transformers, a Llama with a window
    try:
        return CONFIG_MAPPING[family](**settings)
    except Exception as error:  # its validation raises errors of several kinds
        raise UserError(f"{path}: the model's config cannot be read: {first_line(error)}") from error


def gguf_architecture(path: Path) -> str | None:
    """llama.cpp's name of the architecture of the model in a GGUF file."""
    return open_gguf(path).keys.get("general.architecture")


def gguf_weights(path: Path) -> dict[str, StoredWeight]:
    """What reads each weight of a GGUF file, by Hugging Face's names; nothing is read yet.

    Raises:
        UserError: a tensor that belongs to no such model.
    """
    model, weights = open_gguf(path), {}
    permuted = model.keys["general.architecture"] == "llama"
    heads = model.keys.get("llama.attention.head_count", 0)
    rows = {"attn_q": heads, "attn_k": model.keys.get("llama.attention.head_count_kv", heads)} if permuted else {}
    for name, tensor in model.tensors.items():
        if name == ROPE_FREQS:
            continue  # in the config
        stem, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        part = LAYER_TENSORS.get(layer[2]) if layer else TENSORS.get(stem)
        if part is None or kind not in ("weight", "bias"):
            raise UserError(f"{path}: rmfast does not know what tensor {name} is for")
        if name == "cls.output.weight" and tensor.shape[0] > 1:
            raise UserError(f"{path}: {name} is a classifier of {tensor.shape[0]} labels, no reward head")
        stored = replace(tensor, heads=rows.get(layer[2], 0) if layer else 0)
        if stored.heads and tensor.shape[0] % (2 * stored.heads):
            raise UserError(
                f"{path}: tensor {name} has {tensor.shape[0]} rows, which {stored.heads} heads do not divide"
            )
        part = f"model.layers.{layer[1]}.{part}" if layer else part
        weights[f"{part}.{kind}"] = StoredWeight(stored.read, _itself(stored))
    return weights


def tensor_name(name: str) -> str:
    """llama.cpp's name of a weight that has a name of Hugging Face's."""
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    names, part = (LAYER_TENSORS, layer[2]) if layer else (TENSORS, stem)
    found = next((ours for ours, theirs in names.items() if theirs == part), None)
    return name if found is None else f"{f'blk.{layer[1]}.' if layer else ''}{found}.{kind}"


def load_gguf_language_model(path: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """transformers' causal language model with the weights of a GGUF file.

    Raises:
        UserError: see `read_gguf_config` and `gguf_weights`; or tensors are missing or of another model.
    """
    from transformers import AutoModelForCausalLM  # it takes seconds to import

    model = AutoModelForCausalLM.from_config(read_gguf_config(path), dtype=dtype)
    state = {name: weight().to(dtype) for name, weight in gguf_weights(path).items()}
    try:
        found = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:  # shapes
        raise UserError(f"{path}: {str(error).strip().splitlines()[-1].strip()}") from None
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    odd = sorted({*found.missing_keys, *found.unexpected_keys} - tied)
    if odd:
        raise UserError(
            f"{path}: tensor {tensor_name(odd[0])} is missing, or is not part of a {model.config.model_type} model"
        )
    model.tie_weights()
    return model


def _itself(tensor: GGUFTensor) -> Callable[[], GGUFTensor]:
    return lambda: tensor


def _settings(path: Path, prefix: str, keys: dict[str, Any], model: GGUFModel) -> dict[str, Any]:
    """Arguments of a Hugging Face config; the keys that were used are taken out of `keys`."""

    def take(key: str, default: Any = None) -> Any:
        value = keys.pop(key, default)
        if isinstance(value, list) and len(set(map(str, value))) == 1:  # one for each layer
            value = value[0]
        if value is None or isinstance(value, list):
            what = "is missing" if value is None else "differs between layers, which is not supported"
            raise UserError(f"{path}: {prefix}{key} {what}")
        return value

    vocabulary, width = model.tensors["token_embd.weight"].shape
    heads = take("attention.head_count")
    head_dim = take("attention.key_length", keys.get("rope.dimension_count", width // max(heads, 1)))
    for key in ("attention.value_length", "rope.dimension_count"):
        if take(key, head_dim) != head_dim:
            raise UserError(f"{path}: {prefix}{key} is not the heads' dimension {head_dim}, which is not supported")
    if not take("attention.causal", True):
        raise UserError(f"{path}: {prefix}attention.causal = False is not supported")
    context = take("context_length")
    window = take("attention.sliding_window", 0)
    freqs = model.tensors.get(ROPE_FREQS)
    divisors = None if freqs is None else freqs.read()
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": take("embedding_length"),
        "intermediate_size": take("feed_forward_length"),
        "num_hidden_layers": take("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": take("attention.head_count_kv", heads),
        "max_position_embeddings": context,
        "rms_norm_eps": take("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "rope_parameters": rope_parameters(path, take, divisors, context, head_dim),
        "num_labels": 1,
    }
    if prefix != "qwen2." or head_dim != width // heads:  # no key of Qwen2's config, though its model takes it
        settings["head_dim"] = head_dim
    if prefix != "qwen2.":  # which always has them
        settings["attention_bias"] = "blk.0.attn_q.bias" in model.tensors
    if prefix == "llama.":
        settings["mlp_bias"] = "blk.0.ffn_gate.bias" in model.tensors
    if 0 < window < context:
        settings["sliding_window"] = window
    for ours, theirs in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        settings[f"{ours}_token_id"] = model.keys.get(f"tokenizer.ggml.{theirs}_token_id")
    return settings


def _has_magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False
