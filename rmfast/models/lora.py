"""LoRA on a decoder: named adapters beside its frozen weights, merged into them, and by the names that PEFT has."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple, Protocol
from zlib import crc32

import torch
from torch import Tensor, nn

from rmfast.errors import UserError
from rmfast.models.config import DecoderConfig
from rmfast.models.decoder import Decoder
from rmfast.models.layers import Linear
from rmfast.models.low_rank import FUSED, TARGETS, LoraOptions, LowRank
from rmfast.models.network import Network
from rmfast.models.weights import HEAD, hf_parts

ADAPTER = "default"
"""The name of a run's adapter, which is PEFT's too."""
PREFIX = "base_model.model."
"""Before every name in PEFT's files."""
HEAD_WEIGHT = f"{PREFIX}score.weight"
"""The reward head there."""


class Part(NamedTuple):
    """A linear layer of Hugging Face's, as outputs `begin` to `end` (exclusive) of one of ours."""

    name: str
    begin: int
    end: int


@cache
def adapted_parts(config: DecoderConfig, targets: tuple[str, ...] = TARGETS) -> dict[str, list[Part]]:
    """Our linear layers that have targets, and which of Hugging Face's in each are.

    Raises:
        UserError: targets that are a part of one matrix of the model.
    """
    found = {}
    for name, theirs in hf_parts(config).items():
        ends = list(accumulate(rows for _, rows in theirs))
        parts = [
            Part(hf.removesuffix(".weight"), end - rows, end) for (hf, rows), end in zip(theirs, ends, strict=True)
        ]
        if parts := [part for part in parts if name.endswith(".weight") and _adapted(part.name, targets)]:
            found[name.removesuffix(".weight")] = parts
    return found


def _adapted(name: str, targets: tuple[str, ...]) -> bool:
    kind = name.rpartition(".")[2]
    parts = FUSED.get(kind, (kind,))
    found = [part for part in parts if part in targets]
    if 0 < len(found) < len(parts):
        raise UserError(
            f"model.lora_targets: {found[0]} is part of one matrix ({kind}) in this model: name all of "
            f"{', '.join(parts)}, or none"
        )
    return bool(found)


def adapter_weights(config: DecoderConfig, options: LoraOptions) -> int:
    """How many weights an adapter has."""
    hidden = {"out": config.heads * config.head_dim, "down": config.ffn}
    found = 0
    for module, parts in adapted_parts(config, options.targets).items():
        inputs = hidden.get(module.rpartition(".")[2], config.width)
        found += options.rank * sum(inputs + part.end - part.begin for part in parts)
    return found


class Adaptable(Protocol):
    """A network, or a part of one: layers of a decoder, with or without heads.

    Attributes:
        adapter: the decoder's adapter that it computes with.
    """

    adapter: str | None

    @property
    def decoder(self) -> Decoder: ...
    @property
    def head(self) -> Linear | None: ...
    def narrow(self) -> Any:
        """See `Network.narrow`."""
        ...


def adapt(network: Network, options: LoraOptions, *, seed: int, name: str = ADAPTER) -> None:
    """Give a network's decoder an adapter, and let the network compute with it and train it and the reward heads alone.

    All else is frozen, and stored in the decoder's dtype where it is read in it (see `Network.narrow`); adapters are
    fp32. A new adapter changes nothing: A is drawn as PEFT draws it, uniform within 1 / sqrt(in), and B is 0.

    Raises:
        ValueError: the decoder has an adapter of that name.
        UserError: see `adapted_parts`.
    """
    for module, adapter in add_adapter(network, options, name).items():
        for half, weight in (("a", adapter.a), ("b", adapter.b)):
            with torch.no_grad():
                weight.copy_(new_half(network.config, f"{module}.adapters.{name}.{half}", weight.shape, options, seed))


def add_adapter(network: Adaptable, options: LoraOptions, name: str = ADAPTER) -> dict[str, LowRank]:
    """What `adapt` does, without values: the new adapters by the names of their layers, of those that are held."""
    decoder, adapters = network.decoder, network.decoder.adapters
    if name in adapters.options:
        raise ValueError(f"the decoder has an adapter {name!r} already")
    modules = adapted_parts(decoder.config, options.targets)
    if not adapters.options:
        network.narrow()
    adapters.options[name] = options
    found = {}
    for module, parts in modules.items():
        if int(module.split(".")[2]) not in decoder.held:
            continue
        layer = decoder.get_submodule(module.removeprefix("decoder."))
        assert isinstance(layer, Linear)
        if layer.adapters is None:
            layer.adapters, layer.trunk = nn.ModuleDict(), adapters
        with layer.weight.device:
            found[module] = layer.low_rank([(part.begin, part.end) for part in parts], options)
        layer.adapters[name] = found[module]
    if network.head is not None:
        network.head.requires_grad_(True)
    network.adapter = name
    return found


def new_half(config: DecoderConfig, name: str, shape: Sequence[int], options: LoraOptions, seed: int) -> Tensor:
    """fp32: the values that a new adapter's A or B begins with, whole.

    Args:
        name: ours. shape: of all of it.
    """
    module, _, half = name.partition(".adapters.")
    out = torch.zeros(*shape, device="cpu")
    if half.endswith(".a"):
        parts = adapted_parts(config, options.targets)[module]
        for part, rows in zip(parts, out.split(options.rank), strict=True):
            # A separate stream: it is the same whatever else is adapted.
            generator = torch.Generator().manual_seed((seed << 32) + crc32(part.name.encode()))
            drawn = torch.rand(rows.shape, generator=generator, device="cpu")
            rows.copy_((2 * drawn - 1) / math.sqrt(shape[1]))
    return out


def merged(network: Network, state: Mapping[str, Tensor], name: str = ADAPTER) -> dict[str, Tensor]:
    """A network's state dict without adapters, one of which is added to the weights.

    The sum is made in fp32 (fp64 where the weights are) and rounded to the dtype that a weight is stored in.

    Args:
        state: whole tensors by our names.
    """
    out = {key: tensor for key, tensor in state.items() if ".adapters." not in key}
    for module, layer in network.named_modules():
        if isinstance(layer, Linear) and layer.adapters is not None and name in layer.adapters:
            adapter = layer.adapters[name]
            assert isinstance(adapter, LowRank)
            weight = state[f"{module}.weight"]
            total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            a, b = (state[f"{module}.adapters.{name}.{part}"].to(total.dtype) for part in ("a", "b"))
            for begin, end, change in adapter.change(a, b):
                total[begin:end] += change
            out[f"{module}.weight"] = total.to(weight.dtype)
    return out


def to_peft(network: Network, state: Mapping[str, Tensor], name: str = ADAPTER) -> dict[str, Tensor]:
    """What PEFT's adapter_model.safetensors holds of a state dict of ours: A and B of each layer, and the reward head.

    Args:
        state: with the adapter and, of a reward model, the head; what else it has is left out.
    """
    out: dict[str, Tensor] = {}
    options = network.decoder.adapters.options[name]
    for module, parts in adapted_parts(network.config, options.targets).items():
        a, b = (state[f"{module}.adapters.{name}.{part}"] for part in ("a", "b"))
        rows = [part.end - part.begin for part in parts]
        for part, low, up in zip(parts, a.split(options.rank), b.split(rows), strict=True):
            out |= {f"{PREFIX}{part.name}.lora_A.weight": low, f"{PREFIX}{part.name}.lora_B.weight": up}
    return out | ({HEAD_WEIGHT: state[HEAD]} if HEAD in state else {})
