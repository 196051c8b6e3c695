"""Models that are adapters over one trunk, whose weights are held once."""

from dataclasses import dataclass
from pathlib import Path

import torch

from rmfast.models.lora import adapt
from rmfast.models.low_rank import LoraOptions
from rmfast.models.network import Network
from rmfast.models.peft import chain
from rmfast.models.peft_adapter import add_folder


def same_folder(one: str | Path, other: str | Path) -> bool:
    """Whether two paths are one folder or file."""
    return Path(one).exists() and Path(other).exists() and Path(one).samefile(other)


@dataclass(frozen=True, eq=False)
class Trunk:
    """The model that adapters are of.

    Args:
        path: its folder. network: holds its weights, which nothing trains.
    """

    path: str
    network: Network

    def adapted(self, folder: Path, name: str) -> Network | None:
        """A reward model over the trunk, frozen; None where a folder is no adapter of it that can be computed beside
        its weights.

        Args:
            name: of the adapter.

        Raises:
            UserError: an adapter of another model.
        """
        adapters, base = chain(folder)
        if len(adapters) != 1 or not same_folder(base, self.path):
            return None
        network = self.network.beside(heads=1)
        return None if add_folder(network, adapters[0], name) is None else network


@torch.no_grad()
def trained_copy(network: Network, options: LoraOptions, *, seed: int, name: str) -> Network:
    """A reward network's double over the same trunk, with an adapter and a head that are trained: a copy of its
    adapter, or where it has none a new one.

    Args:
        options: of a new adapter. seed: that its A is drawn from.
    """
    heads = 0 if network.head is None else len(network.head.weight)
    copy, before = network.beside(heads=heads), network.adapter
    adapt(copy, options if before is None else network.decoder.adapters.options[before], seed=seed, name=name)
    weights = dict(network.parts())
    for key, weight in copy.parts():
        theirs = key.replace(f".adapters.{name}.", f".adapters.{before}.")
        if weight.requires_grad and theirs in weights:
            weight.copy_(weights[theirs])
    return copy
