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
from rmfast.models.network import Network, Product
from rmfast.parallel.engine import Held, SampledEngine
from rmfast.parallel.graphs import CudaRecorder, Recorder
from rmfast.parallel.native import whole_model
from rmfast.parallel.world import World
from rmfast.rollout.pool import Pool, PromptMemory, RowMemory


class Decodes(Protocol):
    """A model that sampling draws from; all processes that compute it together make the same calls.

    Attributes:
        ids: how many ids the tokenizer has; the vocabulary's rest is never drawn.
        first, width, group: of logits that are this process's slice of the vocabulary: the slice's first id, how many
            ids it has, and the processes that hold the others; None where logits are whole.
        recorder: of steps, which are then replayed; None starts their kernels one by one.
        runs: how many runs of layers this process has: `run` says which of them a call is of, from 0 on.
        stages: the processes that pass residual streams on, in order; None where this one has all layers. around: the
            same ones, for the way from the last one to the first.
    """

    device: torch.device
    ids: int
    first: int
    width: int
    group: ProcessGroup | None
    recorder: Recorder | None
    runs: int = 1
    stages: World | None = None
    around: World | None = None

    @property
    def token_bytes(self) -> int:
        """What a token's keys and values take on this process."""
        ...

    def pool(self, tokens: int) -> Pool:
        """Room for keys and values of so many tokens."""
        ...

    def prompts(
        self,
        pool: Pool,
        tokens: Tensor,
        positions: Tensor,
        layout: Tensor,
        places: Tensor,
        run: int = 0,
        before: Tensor | None = None,
    ) -> Tensor:
        """Compute a pack of prompts and keep their keys and values.

        Args:
            tokens, positions: int64 [T]. layout: int32 [4, T]. places: int64 [T], in the pool.
            before: [T, d], the residual stream after the run of layers before.

        Returns:
            fp32 [prompts, width]: logits of the tokens that follow them; of another run than the model's last the
            residual stream [T, d].
        """
        ...

    def decode(
        self,
        pool: Pool,
        tokens: Tensor,
        positions: Tensor,
        layout: Tensor,
        run: int = 0,
        before: Tensor | None = None,
    ) -> Tensor:
        """One token for each of R rows, kept in the pool.

        Args:
            tokens, positions: int64 [R]. layout: int32 [4, R], see `decode_attention`.
            before: [R, d], as for `prompts`.

        Returns:
            fp32 [R, width]: logits of the tokens that follow; the next call may write over them. Or [R, d].
        """
        ...

    def stream(self, tokens: int) -> Tensor:
        """Room [T, d] for a residual stream."""
        ...

    def agreed(self, count: int) -> int:
        """The least of the counts that the processes of a model have."""
        return count

    def any(self, flag: bool) -> bool:
        """Whether a flag is set on one of the processes that share a stage."""
        return flag


class Decoding:
    """What this process holds of a model, as sampling calls it, while its weights stay as they are.

    Args:
        ids: how many ids the tokenizer has.
    """

    def __init__(self, held: Held, ids: int, device: torch.device) -> None:
        self.held, self.device, self.ids = held, device, min(ids, held.config.vocabulary)
        self.first, self.width, self.runs = held.first, held.width, len(held.runs)
        self.group = None if held.tensor is None else held.tensor.group
        self.stages, self.around = held.pipeline, held.around
        # Attention in plain torch waits for the layout on the host, which no graph can hold.
        config = held.config
        kernel = device.type == "cuda" and HAS_TRITON and config.head_dim <= MAX_HEAD_DIM and not config.attention_cap
        self.recorder: Recorder | None = CudaRecorder(device) if kernel and held.replayed else None
        self._product = TableProduct()
        self._written = torch.empty(0)  # what `decode` gives on a CPU, written again by its next call

    @property
    def token_bytes(self) -> int:
        held = self.held
        return 2 * len(held.layers) * held.kv_heads * held.config.head_dim * held.dtype.itemsize

    def pool(self, tokens: int) -> Pool:
        held = self.held
        return Pool(held.layers, tokens, held.kv_heads, held.config.head_dim, held.dtype, self.device)

    def prompts(
        self,
        pool: Pool,
        tokens: Tensor,
        positions: Tensor,
        layout: Tensor,
        places: Tensor,
        run: int = 0,
        before: Tensor | None = None,
    ) -> Tensor:
        ends = (positions[1:] == 0).nonzero().flatten()  # where another prompt follows
        ends = torch.cat((ends, ends.new_full((1,), len(tokens) - 1)))
        return self.held.runs[run](tokens, positions, PromptMemory(pool, layout, places), ends, self._product, before)

    def decode(
        self,
        pool: Pool,
        tokens: Tensor,
        positions: Tensor,
        layout: Tensor,
        run: int = 0,
        before: Tensor | None = None,
    ) -> Tensor:
        count = len(tokens)
        rows, product = torch.arange(count, device=tokens.device), self._product_of(count)
        return self.held.runs[run](tokens, positions, RowMemory(pool, layout), rows, product, before)

    def _product_of(self, count: int) -> Product:
        """Logits of so many rows, on a CPU in the memory of those before them."""
        if self.device.type == "cuda":
            return self._product
        if len(self._written) < count:
            dtype = torch.promote_types(self.held.dtype, torch.float32)
            self._written = torch.empty(count, self.width, dtype=dtype, device=self.device)
        return partial(self._product, out=self._written[:count])

    def stream(self, tokens: int) -> Tensor:
        return torch.empty(tokens, self.held.config.width, dtype=self.held.dtype, device=self.device)

    def agreed(self, count: int) -> int:
        least = torch.tensor(-count)
        for world in (self.held.tensor, self.held.pipeline):
            least = least if world is None else world.max_(least)
        return -int(least)

    def any(self, flag: bool) -> bool:
        return flag if self.held.tensor is None else self.held.tensor.any(flag)


def network_decoding(network: Network, ids: int) -> Decoding:
    """A network, as sampling calls it."""
    return Decoding(whole_model(network), ids, network.norm.weight.device)


@contextlib.contextmanager
def engine_decoding(engine: SampledEngine, ids: int) -> Iterator[Decoding]:
    """An engine's model, as sampling calls it, with the weights that it trains."""
    with engine.decoding() as held:
        yield Decoding(held, ids, engine.device)
