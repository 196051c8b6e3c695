"""Weights of the megatron engine: read in parts from a model folder, saved in parts, gathered whole for an export."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rmfast.models.config import DecoderConfig
from rmfast.models.lora import merged, to_peft
from rmfast.models.low_rank import TARGETS, LoraOptions
from rmfast.models.network import Network
from rmfast.models.rows import ModelRows
from rmfast.models.weights import EMBEDDING, PROTOTYPES
from rmfast.parallel.engine import Shard, piece_name
from rmfast.parallel.megatron.groups import Groups
from rmfast.parallel.megatron.optimizer import RangeOptimizer
from rmfast.parallel.megatron.place import Place, place_of, vocabulary_share
from rmfast.parallel.trunk import TRUNK, fingerprint


@dataclass(frozen=True)
class Weights:
    """This rank's part of a model.

    Args:
        model: of all weights, without values; it has no prototypes.
        parameters: this rank's, by the names that they have in the whole model.
        options: of the model's adapter, which is trained in place of the trunk; None without one.
    """

    groups: Groups
    model: Network
    parameters: dict[str, nn.Parameter]
    options: LoraOptions | None = None

    @property
    def config(self) -> DecoderConfig:
        """The decoder's."""
        return self.model.config

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the whole model's weights, by name."""
        return {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}

    @torch.no_grad()
    def load(self, rows: ModelRows) -> None:
        """Fill them, reading no others; prototypes have their values already."""
        for name, parameter in self.parameters.items():
            if name == PROTOTYPES:
                continue
            parameter.zero_()  # rows that belong to no weight
            flat = parameter.view(-1)
            for piece in self.place(name).pieces(0, len(flat)):
                piece.of(flat).copy_(rows(name, piece.row, piece.row + piece.size[0], piece.columns))

    def trained(self) -> set[str]:
        """Weights that some stage trains."""
        trained = {name for name, p in self.parameters.items() if p.requires_grad}
        pipeline = self.groups.pipeline
        if pipeline.size == 1:
            return trained
        stages: list[set[str]] = [trained] * pipeline.size
        dist.all_gather_object(stages, trained, group=pipeline.group)
        return set().union(*stages)

    def place(self, name: str) -> Place:
        """Where this rank's part of a weight is."""
        return self._place(name, self.whole_shape(name), self.groups.tensor.rank)

    def _place(self, name: str, shape: tuple[int, ...], rank: int) -> Place:
        targets = TARGETS if self.options is None else self.options.targets
        return place_of(self.config, name, shape, ranks=self.groups.tensor.size, rank=rank, targets=targets)

    def whole_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight over all ranks."""
        return tuple(self.parameters[name].shape) if name == PROTOTYPES else self.shapes[name]

    def state(self, optimizer: RangeOptimizer) -> dict[str, Shard]:
        """This rank's part of weights and optimizer state."""
        groups = self.groups
        out = {"step": Shard(optimizer.steps.reshape(1), 0, (1,), writer=groups.world.main)}
        if self.options is not None:
            out[TRUNK] = Shard(self.fingerprint, 0, tuple(self.fingerprint.shape), writer=groups.world.main)
        moments = {"model": optimizer.parts} | optimizer.state()
        for name, parameter in self.parameters.items():
            place = self.place(name)
            writer = self._counts(name)
            if not parameter.requires_grad and self.options is not None:
                continue
            if not parameter.requires_grad:  # every data rank has it whole
                flat = {"model": parameter.detach().view(-1)}
                begin, end = 0, parameter.numel()
                writer = writer and groups.data.rank == 0
            elif parameter in optimizer.ranges:
                flat = {key: parts[name] for key, parts in moments.items()}
                begin, end = optimizer.ranges[parameter]
            else:
                continue
            for key, values in flat.items():
                for number, piece in enumerate(place.pieces(begin, end)):
                    shard = Shard(piece.of(values), piece.row, place.shape, piece.column, writer)
                    out[piece_name(f"{key}/{name}", number)] = shard
        return out

    def _counts(self, name: str) -> bool:
        """Whether this rank holds a part of a weight that no rank before it holds, of those with the same data."""
        first = self.groups.tensor.rank == 0 or self.place(name).part
        return first and not hasattr(self.parameters[name], "copy_of_embedding")

    @cached_property
    def fingerprint(self) -> Tensor:
        """Of the trunk under an adapter, on the CPU of every rank; all call it."""
        groups = self.groups
        frozen = [name for name in self.shapes if not self.model.get_parameter(name).requires_grad]
        found = torch.zeros(len(frozen), dtype=torch.int64, device=groups.world.device)
        for number, name in enumerate(frozen):
            if name in self.parameters and groups.data.rank == 0 and self._counts(name):
                found[number] = fingerprint([self.parameters[name]])[0]  # rows of no weight are of bits that are 0
        return groups.world.sum_(found).cpu()

    def gather(self) -> dict[str, Tensor]:
        """All weights, whole, on the CPU of rank 0, which asks for one part at a time; empty on the others. With an
        adapter these are merged."""
        out = self._gathered(self.shapes)
        return merged(self.model, out, self.model.adapter) if self.model.adapter is not None and out else out

    def adapter(self) -> dict[str, Tensor]:
        """See `Engine`."""
        if self.model.adapter is None:
            return {}
        out = self._gathered([name for name in self.shapes if self.model.get_parameter(name).requires_grad])
        return to_peft(self.model, out, self.model.adapter) if out else {}

    def _gathered(self, names: Iterable[str]) -> dict[str, Tensor]:
        groups, config, world = self.groups, self.config, self.groups.world
        out: dict[str, Tensor] = {}
        for name in names:
            shape, stage = self.shapes[name], stage_of(groups, config.layers, name)
            if world.main:
                out[name] = torch.empty(shape)
            for rank in range(groups.tensor.size):
                place = self._place(name, shape, rank)
                if rank and not place.part:
                    break
                source = groups.rank_of(rank, 0, stage)
                size = _own_size(place, groups.tensor.size)
                part = torch.empty(size)
                if world.rank == source:
                    part = self.parameters[name].detach().float().cpu().reshape(-1)
                    if not world.main:
                        dist.send(part, dst=0)
                elif world.main:
                    dist.recv(part, src=source)
                if world.main:
                    for piece in place.pieces(0, size):
                        target = out[name][piece.row : piece.row + piece.size[0]]
                        (target if piece.columns is None else target[:, slice(*piece.columns)]).copy_(piece.of(part))
        return out


def stage_of(groups: Groups, layers: int, name: str) -> int:
    """The pipeline rank that holds a weight."""
    if name == EMBEDDING:
        return 0
    parts = name.split(".")
    if parts[:2] != ["decoder", "layers"]:
        return groups.pipeline.size - 1
    runs = groups.layout.runs(layers)
    return next(number for number, run in enumerate(runs) if int(parts[2]) in run) % groups.layout.pipeline


def _own_size(place: Place, ranks: int) -> int:
    """Elements of a rank's part, with rows that belong to no weight."""
    rows = sum(segment.count for segment in place.segments)
    if place.part and len(place.segments) == 1 and place.width == (place.shape[1] if len(place.shape) > 1 else 1):
        rows = vocabulary_share(place.shape[0], ranks)
    return rows * place.width
