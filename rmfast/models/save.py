"""Models to Hugging Face folders, in keys that transformers 4 and 5 and servers read alike."""

import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import PreTrainedConfig

from rmfast.models.config import DecoderConfig
from rmfast.models.families import FAMILIES
from rmfast.models.names import ENSEMBLE
from rmfast.models.rope import of_layers
from rmfast.models.tensor_file import write_tensors
from rmfast.models.weights import heads_of, to_hf
from rmfast.outputs.checksums import Checksum, write_json
from rmfast.outputs.marks import exported_files

INDEX = "model.safetensors.index.json"
"""Which file of several each weight is in."""
BASE_MODELS = ("auto_map", "custom_pipelines", "sbert_ce_default_activation_function")
"""Keys that a base model's config may have, and that would make others run its code or squash scores."""
RAW_SCORES = {
    "problem_type": "regression",  # transformers' pipelines and vLLM: no sigmoid, no softmax
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},  # its CrossEncoder, and vLLM
}
REWARD_MODELS = (*RAW_SCORES, "rmfast")
"""Keys that a reward model's config has, and a policy's has not."""


@dataclass(frozen=True)
class SharedWeights:
    """Weights that several models have in common, by our names: in separate files, which models after the first have
    by hard links to those of the folder `written`, or by copies where links are not possible."""

    names: frozenset[str]
    written: Path | None = None


def save_hf(
    folder: Path,
    hf: PreTrainedConfig,
    config: DecoderConfig,
    state: dict[str, Tensor],
    *,
    dtype: torch.dtype,
    pad_token_id: int,
    ends: Collection[int] = (),
    shared: SharedWeights | None = None,
) -> dict[str, Checksum]:
    """Write config.json and safetensors into an existing folder: of a `*ForSequenceClassification` model or, from a
    state without reward heads, of a `*ForCausalLM` model.

    Args:
        state: all weights by our names.
        hf, pad_token_id, ends: see `save_config`.
        shared: weights that get separate files, which other folders may have too.

    Returns:
        The checksums of the files of weights and of their index, by name.
    """
    save_config(folder, hf, config, heads=heads_of(state), dtype=dtype, pad_token_id=pad_token_id, ends=ends)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in to_hf(config, state)}
    common = set() if shared is None else {name for name, _ in to_hf(config, {n: state[n] for n in shared.names})}
    of_all, of_one = (_split({n: t for n, t in tensors.items() if (n in common) == c}) for c in (True, False))
    parts = of_all + of_one
    endings = [f"-{i + 1:05d}-of-{len(parts):05d}" for i in range(len(parts))] if len(parts) > 1 else [""]
    names = [f"model{ending}.safetensors" for ending in endings]
    written = {}
    for i, (name, keys) in enumerate(zip(names, parts, strict=True)):
        if shared is not None and shared.written is not None and i < len(of_all):
            written[name] = _linked(shared.written, folder, name)
        else:
            written[name] = write_tensors(folder / name, {key: tensors[key] for key in keys}, {"format": "pt"})
    if len(parts) > 1:
        metadata = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        index = {"metadata": metadata, "weight_map": dict(sorted(_places(names, parts)))}
        written[INDEX] = write_json(folder / INDEX, index)
    return written


def _split(tensors: dict[str, Tensor]) -> list[list[str]]:
    """Names of the tensors of each file: as many as transformers puts into one."""
    return list(split_torch_state_dict_into_shards(tensors).filename_to_tensors.values()) if tensors else []


def _places(files: list[str], parts: list[list[str]]) -> Iterator[tuple[str, str]]:
    """Each tensor's name, and the file that it is in."""
    return ((key, file) for file, keys in zip(files, parts, strict=True) for key in keys)


def _linked(written: Path, folder: Path, name: str) -> Checksum:
    """Give a folder another exported folder's file; its checksum."""
    try:
        os.link(written / name, folder / name)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(written / name, folder / name)
    return Checksum(**exported_files(written)[name])


def save_config(
    folder: Path,
    hf: PreTrainedConfig,
    config: DecoderConfig,
    *,
    heads: int,
    dtype: torch.dtype,
    pad_token_id: int,
    ends: Collection[int] = (),
) -> None:
    """Write config.json into an existing folder and, of a policy, generation_config.json.

    Args:
        hf: the config the model came with; sizes are kept, the architecture and the number of labels are set.
        heads: of a reward model; 0 for a policy.
        pad_token_id: how transformers finds the scored token: the last one that is not this.
        ends: ids that end a policy's samples; transformers' `generate` then stops where they do.
    """
    out = hf.__class__.from_dict(hf.to_dict())
    out.architectures = [FAMILIES[config.family].architecture(classifier=heads > 0)]
    out.pad_token_id = pad_token_id
    out.dtype = dtype
    for key in (*BASE_MODELS, *REWARD_MODELS):
        if hasattr(out, key):
            delattr(out, key)
    if heads:
        out.num_labels = heads
        out.update(RAW_SCORES)
    if heads > 1:
        out.rmfast = {"heads": ENSEMBLE}  # which tells them from the labels of a classifier
    out.save_pretrained(folder)
    file = folder / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, settings | _older_rope(settings))
    if not heads:
        save_ends(folder, ends, pad_token_id)


def save_ends(folder: Path, ends: Collection[int], pad_token_id: int) -> None:
    """Write a policy's generation_config.json: the ids that end its samples, and what it pads with."""
    # Nothing else: whoever samples says how; what a base model's file has would reshape the policy's distribution.
    stops = {"eos_token_id": sorted(ends)} if ends else {}
    write_json(folder / "generation_config.json", stops | {"pad_token_id": pad_token_id})


def _older_rope(settings: dict[str, Any]) -> dict[str, Any]:
    """The keys in which transformers 4 looks for what version 5 writes as `rope_parameters`; without them it takes
    theta 10,000 and no scaling."""
    parameters = settings["rope_parameters"]
    of_kinds = of_layers(parameters)
    scaling = dict(parameters["full_attention"] if of_kinds else parameters)
    found: dict[str, Any] = {"rope_theta": scaling.pop("rope_theta")}
    if of_kinds:  # Gemma 3's; OLMo 3 has one theta there
        found["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
    if settings["model_type"] == "phi3":
        # Version 4 has the part outside, and allows three keys within; 5 takes the rest from where 4 has it.
        found["partial_rotary_factor"] = scaling.pop("partial_rotary_factor", 1.0)
        if scaling["rope_type"] == "longrope" and "attention_factor" not in scaling:
            scaling = {key: scaling[key] for key in ("short_factor", "long_factor")} | {"type": "longrope"}
    kind = scaling.get("rope_type", "")
    return found | {"rope_scaling": None if kind == "default" else scaling}
