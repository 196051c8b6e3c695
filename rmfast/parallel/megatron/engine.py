"""The megatron engine: schedules, sharded gradients and collectives of megatron-core under the same objectives."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from rmfast.data.loader import Totals
from rmfast.data.pack import Pack, empty_pack
from rmfast.data.pad import pad_tokens
from rmfast.kernels.prefix_attention import flash_lengths
from rmfast.models.copies import Copies
from rmfast.models.network import Network, Outputs, Reads
from rmfast.models.rows import ModelRows
from rmfast.models.weights import HEAD
from rmfast.objectives.base import BatchTerm, FeatureGradients, Objective, Statistics
from rmfast.parallel.engine import Held, ReadRows, Shard, tensor_name
from rmfast.parallel.megatron.groups import Groups
from rmfast.parallel.megatron.layers import sum_partial_gradients
from rmfast.parallel.megatron.messages import Neighbours
from rmfast.parallel.megatron.optimizer import RangeOptimizer
from rmfast.parallel.megatron.reduction import Reduction, reduction_settings
from rmfast.parallel.megatron.stage import Stage, held_model, tag_tied
from rmfast.parallel.megatron.statistics import JoinStatistics
from rmfast.parallel.megatron.weights import Weights
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.stepping import Stepping
from rmfast.parallel.trunk import TRUNK, check_fingerprint

Use = Callable[[int, Outputs], Tensor]
"""(number of a pack, what the heads gave for it) -> the loss that its backward begins with."""


class MegatronEngine(Stepping):
    """Runs a reward network that several ranks hold in parts.

    Args:
        stages: this rank's, from `build_stages`.
        rows: where weights come from.
        options: of the optimizer.
        origin: the key that names the model's folder, for errors.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        groups: Groups,
        rows: ModelRows,
        *,
        options: AdamWOptions,
        origin: str = "model.path",
    ) -> None:
        super().__init__()
        self.origin = origin
        self.optimizer: RangeOptimizer
        self.groups, self.world, self.data = groups, groups.world, groups.data
        self.device, self.leads = self.world.device, groups.last and groups.data.rank == 0 and groups.tensor.rank == 0
        self.stages = list(stages)
        end = self.stages[-1].network
        self.end = end if isinstance(end, Network) else None
        tag_tied(self.stages)
        self.config, settings = self.stages[0].config, reduction_settings()
        self.chunks = [
            DistributedDataParallel(
                self.config, settings, stage, disable_bucketing=i > 0, pg_collection=groups.collection
            )
            for i, stage in enumerate(self.stages)
        ]
        self.config.finalize_model_grads_func = self._finalize
        self.reductions = [Reduction(chunk) for chunk in self.chunks]
        self.held = Weights(
            groups,
            rows.network,
            {name: p for stage in self.stages for name, p in stage.weights().items()},
            rows.adapter,
        )
        self.held.load(rows)
        networks = [stage.network for stage in self.stages]
        self.copies = Copies([w for network in networks for w in network.cast_weights()], networks[0].decoder.dtype)
        self.optimizer = RangeOptimizer(self.chunks, self.held.parameters, options, groups)
        virtual = groups.layout.virtual if groups.layout.virtual > 1 else None
        self._schedule = get_forward_backward_func(groups.layout.pipeline, virtual)
        pipelined = groups.layout.pipeline > 1
        self._neighbours = Neighbours(groups.pipeline.group, self.config) if pipelined else None
        self._trained = self.held.trained()
        self._join = JoinStatistics(groups)

    def _finalize(self, chunks: list[nn.Module], _tokens: Tensor | None, **options: Any) -> None:
        """Sum gradients over ranks; nothing divides them, for each pack's loss is its share of the global mean."""
        for reduction in self.reductions:
            reduction.begin_all()
        finalize_model_grads(chunks, None, **options)
        sum_partial_gradients(chunks, self.groups.tensor)

    def parameters(self) -> list[nn.Parameter]:
        """This rank's part of all weights, trained or not."""
        return list(self.held.parameters.values())

    def parameter_counts(self) -> tuple[int, int]:
        """See `Engine`."""
        sizes = {name: int(np.prod(shape)) for name, shape in self.held.shapes.items()}
        return sum(sizes.values()), sum(size for name, size in sizes.items() if name in self._trained)

    def _inputs(self, packs: Sequence[Pack]) -> list[Pack]:
        """Packs on the device, as many and as long as the layout asks for."""
        layout, out = self.groups.layout, []
        missing = -len(packs) % layout.pipeline if layout.virtual > 1 else 0
        for pack in [*packs, *[empty_pack()] * missing]:
            pack = pad_tokens(pack, -(-len(pack.tokens) // layout.shares) * layout.shares)
            inputs = pack.to(self.device)
            if any(stage.network.decoder.attention_impl == "flash" for stage in self.stages):
                flash_lengths(inputs.layout, host=pack.layout)
            out.append(inputs)
        return out

    def _run(
        self, packs: Sequence[Pack], reads: Callable[[Pack], Reads], use: Use, *, seed: int | None, backward: bool
    ) -> None:
        """Run packs through all stages.

        Args:
            reads: of a pack. use: called on the last stage.
            seed: of dropout; None for evaluation.
        """
        for chunk in self.chunks:
            chunk.train(seed is not None)
        nothing = torch.zeros((), dtype=torch.int, device=self.device)

        def forward(iterator: Any, chunk: DistributedDataParallel) -> tuple[Any, Callable[[Outputs], Any]]:
            number, pack = next(iterator)
            stage = chunk.module
            if seed is not None and stage.drops:
                self._seed(seed, number, stage)

            def loss(outputs: Outputs) -> tuple[Tensor, Tensor, None]:
                return use(number, outputs).clone(), nothing, None  # the schedule may change it in place

            return chunk(pack, reads(pack)), loss

        iterators = [iter(list(enumerate(packs))) for _ in self.chunks]
        single = len(self.chunks) == 1
        self._schedule_reductions(backward)
        if self._neighbours is not None:
            self._neighbours.expect([len(pack.tokens) // self.groups.layout.shares for pack in packs])
        with torch.set_grad_enabled(backward):
            self._schedule(
                forward_step_func=forward,
                data_iterator=iterators[0] if single else iterators,
                model=self.chunks,
                num_microbatches=len(packs),
                seq_length=0,  # lengths vary: see `Neighbours`
                micro_batch_size=1,
                forward_only=not backward,
                p2p_communicator=self._neighbours,
                pg_collection=self.groups.collection,
            )

    def _schedule_reductions(self, backward: bool) -> None:
        """What the schedules call around the last pack's backward. Stages of a pipeline begin at the same time, as
        megatron-core has it (align_grad_reduce): what they send slows their work, and one would wait for the other."""
        quiet: list[Any] = [reduction.no_sync for reduction in self.reductions]
        begin: list[Any] = [reduction.begin_all for reduction in self.reductions]
        single, pipelined = len(quiet) == 1, self.groups.layout.pipeline > 1
        # The schedules enter `no_sync` without a backward too, and one of them never leaves it then.
        self.config.no_sync_func = (quiet[0] if single else quiet) if backward else None
        self.config.grad_sync_func = (begin[0] if single else begin) if backward and pipelined else None

    def _seed(self, seed: int, number: int, stage: Stage) -> None:
        """Dropout of a pack in a stage depends on these alone, whatever order the schedule runs them in. Tensor ranks
        draw the same masks for what all of them hold, and different ones for their parts of a shared stream."""
        part = self.groups.tensor.rank if self.groups.layout.sequence else 0
        state = np.random.SeedSequence((seed, number, stage.number, part)).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))

    def forward_backward(self, packs: Sequence[Pack], objective: Objective[Pack], totals: Totals) -> Statistics:
        """See `Engine`. Every stage builds the packs by itself: only residual streams travel between them."""
        self._drop_gradients()
        seed, inputs = self._draw(), self._inputs(packs)
        batch_term = objective.batch_term
        for reduction in self.reductions:
            reduction.reset(() if self.end is None else self.end.unread(objective.reads(inputs[0])))
        term: FeatureGradients | None = None
        collected: dict[int, Statistics] = {}

        def use(number: int, outputs: Outputs) -> Tensor:
            nonlocal term
            loss, collected[number] = objective(outputs, inputs[number], totals)
            if batch_term is None:
                return loss
            assert outputs.features is not None
            term = term or self._term(batch_term, {0: outputs.features}, packs, inputs)
            if number < len(packs):
                loss = loss + (outputs.features * term.packs[number]).sum()
            if outputs.prototypes is not None and term.prototypes is not None and number == len(inputs) - 1:
                loss = loss + (outputs.prototypes * term.prototypes).sum()
            return loss

        with self.copies:
            if batch_term is not None and len(inputs) > 1:
                term = self._collect(batch_term, objective, packs, inputs, seed)
            self._run(inputs, objective.reads, use, seed=seed, backward=True)
        statistics = self._join(objective, list(collected.values()), term, of_batch=batch_term is not None)
        self._loss = statistics.loss
        return statistics

    def _draw(self) -> int:
        """A seed for this step's dropout, from the generator that the loop seeds for each step."""
        return int(torch.randint(2**62, ()))

    def _collect(
        self,
        batch_term: BatchTerm[Pack],
        objective: Objective[Pack],
        packs: Sequence[Pack],
        inputs: Sequence[Pack],
        seed: int,
    ) -> FeatureGradients | None:
        """The term of all packs' features, on the last stage, by a pass without gradients."""
        features: dict[int, Tensor] = {}

        def keep(number: int, outputs: Outputs) -> Tensor:
            assert outputs.features is not None
            features[number] = outputs.features
            return outputs.scores.sum()

        self._run(inputs, lambda pack: objective.reads(pack).without_targets(), keep, seed=seed, backward=False)
        return None if self.end is None else self._term(batch_term, features, packs, inputs)

    def _term(
        self,
        batch_term: BatchTerm[Pack],
        features: dict[int, Tensor],
        packs: Sequence[Pack],
        inputs: Sequence[Pack],
    ) -> FeatureGradients:
        assert self.end is not None
        in_order = [features[number] for number in range(len(packs))]
        prototypes = None if self.end.prototypes is None else self.end.prototypes.detach().float()
        return batch_term(in_order, packs, inputs[: len(packs)], prototypes, self.optimizer.steps)

    @torch.no_grad()
    def measure(self, packs: Sequence[Pack], objective: Objective[Pack], totals: Totals) -> Statistics:
        """See `Engine`."""
        inputs, collected = self._inputs(packs), {}

        def use(number: int, outputs: Outputs) -> Tensor:
            loss, collected[number] = objective(outputs, inputs[number], totals)
            return loss

        with self.copies:
            self._run(inputs, objective.reads, use, seed=self._draw(), backward=False)
        return self._join(objective, list(collected.values()))

    @torch.no_grad()
    def read(self, packs: Sequence[Pack], reads: Callable[[Pack], Reads]) -> list[Outputs]:
        """See `Engine`. The last stage sends what it found to the others of its pipeline."""
        inputs, found = self._inputs(packs), {}

        def use(number: int, outputs: Outputs) -> Tensor:
            found[number] = outputs
            return outputs.scores.sum()

        with self.copies:
            self._run(inputs, reads, use, seed=None, backward=False)
        asked = [reads(pack) for pack in inputs[: len(packs)]]
        width, heads = self.held.config.width, self.held.shapes.get(HEAD, (0,))[0]
        sizes = [len(one.scores) for one in asked]
        fields: dict[str, list[Tensor]] = {"scores": self._from_last(found, "scores", sizes, (heads,))}
        if asked[0].features:
            fields["features"] = self._from_last(found, "features", sizes, (width,))
        if (first := asked[0].log_prob) is not None and first[1] is not None:
            lengths = [0 if one.log_prob is None else len(one.log_prob[0]) for one in asked]
            for name in ("log_prob", *(["entropy"] if asked[0].entropy else [])):
                fields[name] = self._from_last(found, name, lengths, ())
        return [Outputs(**dict(zip(fields, of_pack, strict=True))) for of_pack in zip(*fields.values(), strict=True)]

    @contextlib.contextmanager
    def decoding(self) -> Iterator[Held]:
        """See `SampledEngine`: the stages as they are, of which none gathers weights."""
        for chunk in self.chunks:
            chunk.eval()
        with self.copies, contextlib.ExitStack() as whole:
            for stage in self.stages:
                whole.enter_context(stage.whole_streams())
            yield held_model(self.stages, self.groups)

    def _from_last(
        self, found: dict[int, Outputs], name: str, sizes: Sequence[int], shape: tuple[int, ...]
    ) -> list[Tensor]:
        """A field of each pack's outputs, of so many rows of a shape, on every stage."""
        if self.groups.last:
            whole = torch.cat([getattr(found[number], name) for number in range(len(sizes))])
        else:
            whole = torch.empty(sum(sizes), *shape, device=self.device)
        if self.groups.pipeline.size > 1:
            end = self.groups.rank_of(self.groups.tensor.rank, self.data.rank, self.groups.pipeline.size - 1)
            dist.broadcast(whole, src=end, group=self.groups.pipeline.group)
        return list(whole.split(list(sizes)))

    def _weights_changed(self) -> None:
        """Each data rank has changed its ranges: gather the others'."""
        for chunk in self.chunks:
            chunk.start_param_sync(force_sync=True)

    _stepped = _weights_changed

    def _drop_gradients(self) -> None:
        for chunk in self.chunks:
            chunk.zero_grad_buffer()

    def _prototypes(self) -> Tensor | None:
        return None if self.end is None else self.end.prototypes

    def state(self) -> dict[str, Shard]:
        """See `Engine`. Every data rank gives its ranges, cut into rectangles of the whole weights."""
        return self.held.state(self.optimizer)

    @torch.no_grad()
    def load_state(self, read: ReadRows) -> None:
        """See `Engine`."""
        for key, shard in self.state().items():
            rows = shard.tensor.shape[0]
            if key == TRUNK:
                check_fingerprint(self.origin, shard.tensor, read(TRUNK, 0, rows))
                continue
            columns = (shard.column, shard.column + shard.tensor.shape[1]) if shard.tensor.dim() > 1 else None
            shard.tensor.copy_(read(tensor_name(key), shard.start, shard.start + rows, columns))
        self._weights_changed()

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return self.held.gather()

    @torch.no_grad()
    def adapter(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return self.held.adapter()
