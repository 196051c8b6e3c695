"""Models to Hugging Face folders, in keys that transformers 4 and 5 and servers read alike."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from rmfast.models.config import DecoderConfig
from rmfast.models.names import ENSEMBLE
from rmfast.models.weights import HEAD, to_hf

BASE_MODELS = ("auto_map", "custom_pipelines", "sbert_ce_default_activation_function")
"""Keys that a base model's config may have, and that would make others run its code or squash scores."""
RAW_SCORES = {
    "problem_type": "regression",  # transformers' pipelines and vLLM: no sigmoid, no softmax
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},  # its CrossEncoder, and vLLM
}


def save_hf(
    folder: Path,
    hf: PreTrainedConfig,
    config: DecoderConfig,
    state: dict[str, Tensor],
    *,
    dtype: torch.dtype,
    pad_token_id: int,
) -> None:
    """Write config.json and safetensors of a `*ForSequenceClassification` model into an existing folder.

    Args:
        hf: the config the model came with; sizes are kept, the architecture and the number of labels are set.
        state: all weights by our names.
        pad_token_id: how transformers finds the scored token: the last one that is not this.
    """
    out = hf.__class__.from_dict(hf.to_dict())
    prefix = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[config.family]
    out.architectures = [f"{prefix}ForSequenceClassification"]
    out.num_labels = heads = state[HEAD].shape[0]
    out.pad_token_id = pad_token_id
    if heads > 1:
        out.rmfast = {"heads": ENSEMBLE}  # which tells them from the labels of a classifier
    out.dtype = dtype
    for key in BASE_MODELS:
        if hasattr(out, key):
            delattr(out, key)
    out.update(RAW_SCORES)
    out.save_pretrained(folder)
    file = folder / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(settings | _older_rope(settings), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in to_hf(config, state)}
    shards = split_torch_state_dict_into_shards(tensors, filename_pattern="model{suffix}.safetensors")
    for name, keys in shards.filename_to_tensors.items():
        save_file({key: tensors[key].clone() for key in keys}, folder / name, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _older_rope(settings: dict[str, Any]) -> dict[str, Any]:
    """The keys in which transformers 4 looks for what version 5 writes as `rope_parameters`; without them it takes
    theta 10,000 and no scaling."""
    scaling = dict(settings["rope_parameters"])
    theta = scaling.pop("rope_theta")
    return {"rope_theta": theta, "rope_scaling": None if scaling["rope_type"] == "default" else scaling}
