"""Adapted networks for tests: weights that do something, and PEFT's model with the same ones."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rmfast.models.hf import load_network
from rmfast.models.lora import ADAPTER, adapt, to_peft
from rmfast.models.low_rank import LoraOptions
from rmfast.models.network import Network
from rmfast.models.peft import peft_settings

SETUPS = {
    "all targets": LoraOptions(rank=4, alpha=6),
    "some targets": LoraOptions(rank=3, alpha=8, targets=("q_proj", "v_proj", "up_proj", "down_proj"), rslora=True),
    "one target": LoraOptions(rank=2, alpha=2, targets=("k_proj",)),
}


def adapted(folder: Path, options: LoraOptions, *, name: str = ADAPTER, seed: int = 0, **more: Any) -> Network:
    """A folder's network with a random adapter, B too."""
    network, _ = load_network(folder, **more)
    add_adapter(network, options, name=name, seed=seed)
    return network


@torch.no_grad()
def add_adapter(network: Network, options: LoraOptions, *, name: str = ADAPTER, seed: int = 0) -> None:
    adapt(network, options, seed=seed, name=name)
    draw = torch.Generator().manual_seed(seed)
    for key, parameter in network.named_parameters():
        if key.endswith(f".adapters.{name}.b"):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))


def peft_model(base: PreTrainedModel, network: Network, options: LoraOptions) -> Any:
    """PEFT's model over the same base with the network's adapter and head."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(
        task_type="SEQ_CLS",
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=peft_settings(options, Path(), to_peft(network, state_of(network)))["target_modules"],
        use_rslora=options.rslora,
    )
    model = get_peft_model(base, config)
    loaded = set_peft_model_state_dict(model, to_peft(network, state_of(network)))
    assert not loaded.unexpected_keys
    return model.eval()


def state_of(network: Network) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}
