"""The calls that sampling makes to a model: prompts, then one token for each of many rows."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rmfast.kernels.common import HAS_TRITON
from rmfast.kernels.decode_attention.op import MAX_HEAD_DIM
from rmfast.kernels.linear_log_prob.products import TableProduct
from rmfast.models.config import DecoderConfig
from rmfast.models.network import Network, NextLogits
from rmfast.parallel.engine import SampledEngine
from rmfast.parallel.graphs import CudaRecorder, Recorder
from rmfast.rollout.pool import Pool, PromptMemory, RowMemory, token_bytes


class Decodes(Protocol):
    """A model that sampling draws from; all processes that compute it together make the same calls.

    Attributes:
        ids: how many ids the tokenizer has; the vocabulary's rest is never drawn.
        first, group: of logits that are this process's slice of the vocabulary: the slice's first id, and the processes
            that hold the others; None where logits are whole.
        recorder: of steps, which are then replayed; None starts their kernels one by one.
    """

    device: torch.device
    ids: int
    first: int
    group: ProcessGroup | None
    recorder: Recorder | None

    @property
    def token_bytes(self) -> int:
        """What a token's keys and values take on this process."""
        ...

    def pool(self, tokens: int) -> Pool:
        """Room for keys and values of so many tokens."""
        ...

    def prompts(self, pool: Pool, tokens: Tensor, positions: Tensor, layout: Tensor, places: Tensor) -> Tensor:
        """Compute a pack of prompts and keep their keys and values.

        Args:
            tokens, positions: int64 [T]. layout: int32 [4, T]. places: int64 [T], in the pool.

        Returns:
            fp32 [prompts, V]: logits of the tokens that follow them.
        """
        ...

    def decode(self, pool: Pool, tokens: Tensor, positions: Tensor, layout: Tensor) -> Tensor:
        """One token for each of R rows, kept in the pool.

        Args:
            tokens, positions: int64 [R]. layout: int32 [4, R], see `decode_attention`.

        Returns:
            fp32 [R, V]: logits of the tokens that follow; the next call may write over them.
        """
        ...


class Decoding:
    """A whole model on this process, as sampling calls it, while its weights stay as they are.

    Args:
        logits: of a network, or of an engine that holds one.
        config, dtype, device: the network's, of activations.
        ids: how many ids the tokenizer has.
    """

    first = 0
    group: ProcessGroup | None = None

    def __init__(
        self, logits: NextLogits, config: DecoderConfig, ids: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.logits, self.config, self.dtype, self.device = logits, config, dtype, device
        # Attention in plain torch waits for the layout on the host, which no graph can hold.
        kernel = device.type == "cuda" and HAS_TRITON and config.head_dim <= MAX_HEAD_DIM and not config.attention_cap
        self.recorder: Recorder | None = CudaRecorder(device) if kernel else None
        self.ids = min(ids, config.vocabulary)
        self._product = TableProduct()
        self._written = torch.empty(0)  # what `decode` gives on a CPU, written again by its next call

    @property
    def token_bytes(self) -> int:
        return token_bytes(self.config, self.dtype)

    def pool(self, tokens: int) -> Pool:
        c = self.config
        return Pool(range(c.layers), tokens, c.kv_heads, c.head_dim, self.dtype, self.device)

    def prompts(self, pool: Pool, tokens: Tensor, positions: Tensor, layout: Tensor, places: Tensor) -> Tensor:
        ends = (positions[1:] == 0).nonzero().flatten()  # where another prompt follows
        ends = torch.cat((ends, ends.new_full((1,), len(tokens) - 1)))
        return self.logits(tokens, positions, PromptMemory(pool, layout, places), ends, self._product)

    def decode(self, pool: Pool, tokens: Tensor, positions: Tensor, layout: Tensor) -> Tensor:
        count = len(tokens)
        rows = torch.arange(count, device=tokens.device)
        if tokens.is_cuda:
            return self.logits(tokens, positions, RowMemory(pool, layout), rows, self._product)
        if len(self._written) < count:
            dtype = torch.promote_types(self.dtype, torch.float32)
            self._written = torch.empty(count, self.config.vocabulary, dtype=dtype, device=self.device)
        product = partial(self._product, out=self._written[:count])
        return self.logits(tokens, positions, RowMemory(pool, layout), rows, product)


def network_decoding(network: Network, ids: int) -> Decoding:
    """A network, as sampling calls it."""
    device = network.norm.weight.device
    return Decoding(network.logits, network.config, ids, dtype=network.decoder.dtype, device=device)


@contextlib.contextmanager
def engine_decoding(engine: SampledEngine, ids: int) -> Iterator[Decoding]:
    """An engine that holds the model whole, as sampling calls it, with the weights that it trains."""
    with engine.decoding() as (logits, config, dtype):
        model = Decoding(logits, config, ids, dtype=dtype, device=engine.device)
        if engine.sharded:
            model.recorder = None  # FSDP2's hooks make streams wait for each other, within a graph for good
        yield model
