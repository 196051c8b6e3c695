"""Which ranks compute together: a world as a grid of tensor x data x pipeline ranks."""

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist

from rmfast.errors import UserError
from rmfast.models.config import DecoderConfig
from rmfast.parallel.megatron.place import BLOCK, vocabulary_share
from rmfast.parallel.process_group import open_group, sole_group
from rmfast.parallel.world import World


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model is divided: `tensor` ranks share each product, `pipeline` ranks the layers, each in `virtual` runs of
    consecutive ones; with `sequence` the tensor ranks share the residual stream too. `split` says how many layers each
    run has, in the model's order; without it all have as many."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    sequence: bool = False
    split: tuple[int, ...] = ()

    def check(self, config: DecoderConfig, ranks: int) -> None:
        """Whether a model can be divided like that among a number of ranks.

        Raises:
            UserError: names the key that does not fit.
        """
        if missing := [name for name in ("megatron.core", "psutil") if not _installed(name)]:
            raise UserError(
                f"parallel.engine megatron: {missing[0]} is not installed: pip install 'rmfast[megatron]' "
                "(megatron-core==0.16.1, psutil)"
            )
        if ranks % (self.tensor * self.pipeline):
            raise UserError(
                f"parallel.tensor {self.tensor} x parallel.pipeline {self.pipeline} does not divide the {ranks} ranks "
                "of this run (torchrun's --nproc_per_node x --nnodes)"
            )
        for what, count in (("heads", config.heads), ("key-value heads", config.kv_heads), ("MLP units", config.ffn)):
            if count % self.tensor:
                raise UserError(f"parallel.tensor {self.tensor} does not divide the model's {count} {what}")
        if self.tensor > 1 and config.qk_norm == "all":
            raise UserError(
                f"parallel.tensor {self.tensor}: a {config.family} model normalises the queries of all heads together, "
                "which ranks that hold some heads do not; use parallel.pipeline or engine native"
            )
        if config.vocabulary <= (self.tensor - 1) * vocabulary_share(config.vocabulary, self.tensor):
            raise UserError(
                f"parallel.tensor {self.tensor} leaves a rank none of the {config.vocabulary} tokens, which ranks "
                f"share in blocks of {BLOCK}"
            )
        runs = self.pipeline * self.virtual
        if self.split and (len(self.split) != runs or sum(self.split) != config.layers):
            raise UserError(
                f"parallel.pipeline_split: {len(self.split)} numbers that add up to {sum(self.split)} are not the "
                f"layers of {runs} runs (parallel.pipeline x parallel.virtual), {config.layers} in all"
            )
        if not self.split and config.layers % runs:
            raise UserError(
                f"parallel.pipeline {self.pipeline} x parallel.virtual {self.virtual} does not divide the model's "
                f"{config.layers} layers: set parallel.pipeline_split"
            )

    @property
    def shares(self) -> int:
        """Ranks that share the tokens of a pack's residual stream."""
        return self.tensor if self.sequence else 1

    def runs(self, layers: int) -> list[range]:
        """The runs of a model's layers, in their order; pipeline ranks hold them in turn."""
        count = self.pipeline * self.virtual
        ends = list(accumulate(self.split or (layers // count,) * count))
        return [range(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]

    def held(self, layers: int, pipeline_rank: int) -> list[range]:
        """The runs of layers that a pipeline rank holds."""
        return self.runs(layers)[pipeline_rank :: self.pipeline]


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


class Groups:
    """This rank's place in the grid, and the ranks along its lines. Tensor ranks are neighbours, then data ranks.

    `collection` holds the process groups as megatron-core takes them.
    """

    def __init__(self, world: World, layout: Layout) -> None:
        from megatron.core import parallel_state
        from megatron.core.process_groups_config import ProcessGroupCollection

        if not dist.is_initialized():  # a world of one
            open_group(world.device, world.timeout, store=dist.HashStore(), rank=0, world_size=1)
        self.world, self.layout = world, layout
        t, p = layout.tensor, layout.pipeline
        d = world.size // (t * p)
        grid = [[[i + t * (j + d * k) for i in range(t)] for j in range(d)] for k in range(p)]
        self.tensor = self._line(world, [grid[k][j] for k in range(p) for j in range(d)])
        self.data = self._line(world, [[grid[k][j][i] for j in range(d)] for k in range(p) for i in range(t)])
        columns = [[grid[k][j][i] for k in range(p)] for j in range(d) for i in range(t)]
        self._columns, self.pipeline = columns, self._line(world, columns)
        collection = ProcessGroupCollection()
        collection.tp, collection.pp = self.tensor.group, self.pipeline.group
        collection.dp = collection.dp_cp = collection.intra_dp_cp = self.data.group
        # The first and the last stage both hold tied embeddings where an LM head reads them.
        collection.embd = world.line([[column[0], column[-1]] for column in columns]) if p > 1 else None
        collection.pos_embd = None
        collection.cp = collection.ep = collection.expt_dp = sole_group()
        self.collection: Any = collection
        if parallel_state._GLOBAL_MEMORY_BUFFER is None:  # the linear functions gather into it
            parallel_state._set_global_memory_buffer()

    @cached_property
    def around(self) -> World | None:
        """The pipeline's ranks once more, for what the last one sends the first in sampling: NCCL puts messages of one
        group between two ranks in one order, in which each would wait for the other's. All ranks ask for it."""
        return self._line(self.world, self._columns) if self.layout.virtual > 1 else None

    @staticmethod
    def _line(world: World, lines: list[list[int]]) -> World:
        group = world.line(lines)
        assert group is not None
        return World.within(world, group)

    @property
    def last(self) -> bool:
        """Whether this rank holds the model's end, and so its scores."""
        return self.pipeline.rank == self.pipeline.size - 1

    def rank_of(self, tensor: int, data: int, pipeline: int) -> int:
        """Number in the world of a place in the grid."""
        return tensor + self.tensor.size * (data + self.data.size * pipeline)


_made: "WeakKeyDictionary[World, dict[Layout, Groups]]" = WeakKeyDictionary()


def groups_of(world: World, layout: Layout) -> Groups:
    """The groups of a world, made once; all ranks call it."""
    known = _made.setdefault(world, {})
    if layout not in known:
        known[layout] = Groups(world, layout)
    return known[layout]
