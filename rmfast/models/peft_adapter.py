"""A PEFT folder's adapter beside the weights of its base, in place of being merged into them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rmfast.errors import UserError
from rmfast.models.config import DecoderConfig
from rmfast.models.folder import Reader, open_files
from rmfast.models.lora import HEAD_WEIGHT, PREFIX, adapt, adapted_parts
from rmfast.models.low_rank import FUSED, TARGETS, LoraOptions
from rmfast.models.network import Network
from rmfast.models.peft import PeftFolder
from rmfast.models.weights import HEAD


def folder_options(adapter: PeftFolder, stored: Reader, config: DecoderConfig) -> LoraOptions | None:
    """What a PEFT folder's adapter is, where a decoder can compute with it beside its weights: one rank and one alpha
    for whole kinds of layers, and nothing else but a reward head. None of another, which is to be merged.

    Args:
        stored: of the folder's file.
    """
    settings, low = adapter.settings, ".lora_A.weight"
    if any(settings.get(key) for key in ("rank_pattern", "alpha_pattern")):
        return None
    layers = {name.removeprefix(PREFIX).removesuffix(low) for name in stored if name.endswith(low)}
    kinds = {layer.rpartition(".")[2] for layer in layers}
    kinds |= {part for kind in kinds for part in FUSED.get(kind, ())}
    targets = tuple(target for target in TARGETS if target in kinds)
    expected = {part.name: part.end - part.begin for parts in adapted_parts(config, targets).values() for part in parts}
    names = {f"{PREFIX}{layer}.lora_{half}.weight" for layer in expected for half in "AB"} | {HEAD_WEIGHT}
    ranks = {stored[f"{PREFIX}{layer}{low}"].shape[0] for layer in layers}
    if layers != expected.keys() or not stored.keys() <= names or len(ranks) != 1:
        return None
    rank = ranks.pop()
    alpha, rslora = float(settings.get("lora_alpha", 8)), bool(settings.get("use_rslora"))
    return LoraOptions(rank=rank, alpha=alpha, targets=targets, rslora=rslora)


def add_folder(network: Network, adapter: PeftFolder, name: str) -> LoraOptions | None:
    """Give a network's decoder a PEFT folder's adapter, frozen, and the network its reward head.

    Returns:
        What it is; None, and nothing is changed, where it can only be merged (see `folder_options`).

    Raises:
        UserError: shapes of another model.
    """
    with open_files([adapter.weights]) as stored:
        options = folder_options(adapter, stored, network.config)
        if options is None or (network.head is not None and HEAD_WEIGHT not in stored):
            return None
        state = {key: weight() for key, weight in stored.items()}
    adapt(network, options, seed=0, name=name)
    for module, parts in adapted_parts(network.config, options.targets).items():
        for half in "ab":
            theirs = [f"{PREFIX}{part.name}.lora_{half.upper()}.weight" for part in parts]
            _copy(network, f"{module}.adapters.{name}.{half}", theirs, state, adapter)
    if network.head is not None:
        _copy(network, HEAD, [HEAD_WEIGHT], state, adapter)
    for _, weight in network.parts():
        weight.requires_grad_(False)
    return options


@torch.no_grad()
def _copy(network: Network, name: str, theirs: Sequence[str], state: Mapping[str, Tensor], adapter: PeftFolder) -> None:
    """A weight from its parts in PEFT's file."""
    ours, stored = network.get_parameter(name), torch.cat([state[key] for key in theirs])
    if ours.shape != stored.shape:
        raise UserError(f"{adapter.path}: {theirs[0]} does not fit {adapter.base}: it is an adapter of another model")
    ours.copy_(stored)
