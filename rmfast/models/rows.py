"""A folder's weights in parts, for processes that hold a part of the model each."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from rmfast.models.exported import check_exported
from rmfast.models.hf import build_network, find_weights, head_count, open_model
from rmfast.models.lora import ADAPTER, add_adapter, new_half
from rmfast.models.low_rank import LoraOptions
from rmfast.models.network import Network, draw
from rmfast.models.weights import StoredWeight, hf_parts


class ModelRows:
    """Parts of a folder's weights by our names, fp32, so that a process reads no more than it holds.

    Weights that are to be drawn are drawn whole, one at a time, as `load_network` draws them.

    Attributes:
        network: of all weights, none of which has values. parameters: its, by name.
    """

    def __init__(
        self,
        network: Network,
        stored: dict[str, StoredWeight],
        drawn: set[str],
        seed: int,
        adapter: LoraOptions | None = None,
        adapter_name: str = ADAPTER,
    ) -> None:
        self._numbers = {name: i for i, (name, _) in enumerate(network.named_parameters())}
        if adapter is not None:
            add_adapter(network, adapter, adapter_name)
        self.network, self.parameters, self.adapter = network, dict(network.named_parameters()), adapter
        self._stored, self._drawn, self._seed = stored, drawn, seed
        self._parts = hf_parts(network.config)

    def __call__(self, name: str, begin: int, end: int, columns: tuple[int, int] | None = None, /) -> Tensor:
        """Rows `begin` to `end` (exclusive) of a weight, of each all columns or some."""
        if (drawn := self._new(name)) is not None:
            return drawn[begin:end] if columns is None else drawn[begin:end, slice(*columns)]
        found, start = [], 0
        for part, count in self._parts[name]:
            stored = self._stored[part]
            count = count if count >= 0 else stored.shape[0]
            low, high = max(begin - start, 0), min(end - start, count)
            if low < high:
                view = stored.view()
                found.append(view[low:high] if columns is None else view[low:high, slice(*columns)])
            start += count
        return torch.cat(found).float()

    def _new(self, name: str) -> Tensor | None:
        """A weight that is drawn, whole; None of others."""
        if self.adapter is not None and name not in self._numbers:
            return new_half(self.network.config, name, self.parameters[name].shape, self.adapter, self._seed)
        return draw(self.network, self._seed, self._numbers[name], name) if name in self._drawn else None


@contextlib.contextmanager
def open_rows(
    path: str | Path,
    hf: PreTrainedConfig,
    *,
    heads: int | None,
    seed: int,
    from_scratch: bool,
    lm: bool,
    new_heads: bool = True,
    adapter: LoraOptions | None = None,
    adapter_name: str = ADAPTER,
) -> Iterator[ModelRows]:
    """What `load_network` would load, to be read in parts. Arguments and errors are the same.

    Args:
        adapter: that the model is given, and its name, see `adapt`.
    """
    path = Path(path)
    if from_scratch:
        network = build_network(hf, where=str(path), heads=1 if heads is None else heads, lm=lm)
        yield ModelRows(network, {}, {name for name, _ in network.named_parameters()}, seed)
        return
    check_exported(path)
    with open_model(path, hf, heads=heads) as reader:
        absent, heads = head_count(reader, heads, new_heads, path)
        network = build_network(hf, where=str(path), heads=heads, lm=lm)
        yield ModelRows(network, find_weights(network, reader, absent, path), absent, seed, adapter, adapter_name)
