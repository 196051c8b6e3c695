"""The native engine: one process, DDP or FSDP2, from torch as it is."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rmfast.data.loader import Totals
from rmfast.data.pack import Pack, empty_pack
from rmfast.kernels.prefix_attention import flash_lengths
from rmfast.models.copies import Copies
from rmfast.models.lora import merged, to_peft
from rmfast.models.network import Network, Outputs, Reads
from rmfast.objectives.base import (
    BatchTerm,
    BatchTotals,
    FeatureGradients,
    Objective,
    Statistics,
    join_statistics,
)
from rmfast.parallel.engine import Held, ReadRows, Shard
from rmfast.parallel.graphs import FlatGradients, PackGraphs, Recorder
from rmfast.parallel.optimizer import AdamWOptions, Optimizer, local
from rmfast.parallel.replicas import DataParallel, first_row, replicate, shard_weights, sharded_modules
from rmfast.parallel.stepping import Stepping
from rmfast.parallel.trunk import TRUNK, check_fingerprint, fingerprint
from rmfast.parallel.world import World


def whole_model(network: Network, *, replayed: bool = True) -> Held:
    """A network that this process holds alone."""
    config = network.config
    return Held(
        runs=(network.logits,),
        layers=tuple(range(config.layers)),
        config=config,
        dtype=network.decoder.dtype,
        kv_heads=config.kv_heads,
        width=config.vocabulary,
        replayed=replayed,
    )


class NativeEngine(Stepping):
    """Runs a reward network on this process's device.

    Args:
        network: on the CPU, frozen as wanted; one that is frozen whole is only read.
        options: of the optimizer.
        data_parallel: how more than one process shares the work: "ddp" holds the model whole, "fsdp" shards weights,
            gradients and optimizer state.
        origin: the key that names the model's folder, for errors.
        recorder: run packs by graphs that it records; packs must then be padded, and objectives have no batch term. Not
            with "fsdp".
    """

    def __init__(
        self,
        network: Network,
        *,
        world: World,
        options: AdamWOptions,
        data_parallel: DataParallel = "ddp",
        origin: str = "model.path",
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__()
        self.world = self.data = world
        self.device, self.leads = world.device, world.main
        self.origin, self.recorder = origin, recorder
        self.gradients: FlatGradients | None = None
        self._graphs: dict[Objective[Pack], PackGraphs] = {}
        self.network = network
        self.sharded = world.size > 1 and data_parallel == "fsdp"
        self.module: nn.Module = network.to(self.device)
        if self.sharded:
            shard_weights(network, world)
        elif recorder is not None:
            self.gradients = FlatGradients(parameter for _, parameter in network.parts())
        elif world.size > 1 and any(p.requires_grad for _, p in network.parts()):
            self._wrap()
        # FSDP2 casts what it gathers.
        self.copies = Copies([] if self.sharded else network.cast_weights(), network.decoder.dtype)
        self.optimizer = Optimizer(network.parts(), options, world, sharded=self.sharded)

    def _wrap(self) -> None:
        """Share the work by DDP."""
        self.module = replicate(self.network)
        # Gradients become views of DDP's buckets in a backward that reduces them. Let the first be one of no work, so
        # that no step adds up its packs in tensors beside the buckets.
        pack = empty_pack().to(self.device)
        outputs = self.module.train()(pack, self._reads(Reads(scores=pack.scored)))
        torch.stack([output.sum() for output in outputs if output is not None]).sum().backward()
        self._drop_gradients()

    def _reads(self, reads: Reads) -> Reads:
        """What is read of a pack in training: under DDP every head, if of no row. Of a weight that no output depends on
        DDP would ask the device whether other ranks used it."""
        if not isinstance(self.module, DistributedDataParallel):
            return reads
        none = reads.scores[:0]
        log_prob = reads.log_prob or ((none, none) if self.network.lm else None)
        return replace(reads, log_prob=log_prob, features=reads.features or self.network.prototypes is not None)

    def forward_backward(self, packs: Sequence[Pack], objective: Objective[Pack], totals: Totals) -> Statistics:
        """See `Engine`. DDP reduces gradients once, with the last pack; FSDP2 each pack's, for to wait would keep
        fp32 gradients of all weights on every rank."""
        self.module.train()
        term: FeatureGradients | None = None
        with self.copies:
            if objective.batch_term is not None:
                collected, term = self._run_with_term(objective.batch_term, packs, objective, totals)
            else:
                collected = []
                for i, pack in enumerate(packs):
                    with self._reduce_gradients(i == len(packs) - 1):
                        collected.append(self._run(pack, objective, totals))
        if self.gradients is not None:
            self.world.sum_(self.gradients.buffer)
        statistics = self._join(collected)
        if term is not None:
            statistics = term.added_to(statistics)
        self._loss = statistics.loss
        return statistics

    def _join(self, packs: Sequence[Statistics]) -> Statistics:
        """Statistics over this rank's packs and all ranks."""
        return join_statistics(packs, self.world.sum_, self.world.max_)

    def _inputs(self, pack: Pack) -> Pack:
        inputs = pack.to(self.device)
        if self.network.decoder.attention_impl == "flash":
            flash_lengths(inputs.layout, host=pack.layout)
        return inputs

    def _run(self, pack: Pack, objective: Objective[Pack], totals: Totals) -> Statistics:
        def compute(pack: Pack, totals: BatchTotals) -> Statistics:
            outputs = self.module(pack, self._reads(objective.reads(pack)))
            loss, statistics = objective(outputs, pack, totals)
            if loss.requires_grad:
                loss.backward()
            return statistics

        if self.gradients is None or self.recorder is None:
            return compute(self._inputs(pack), totals)
        if objective not in self._graphs:
            self._graphs[objective] = PackGraphs(compute, self.gradients, self.recorder)
        return self._graphs[objective](pack, totals)

    def _run_with_term(
        self, batch_term: BatchTerm[Pack], packs: Sequence[Pack], objective: Objective[Pack], totals: Totals
    ) -> tuple[list[Statistics], FeatureGradients]:
        """Forward and backward of packs whose features meet in one term."""
        inputs = [self._inputs(pack) for pack in packs]

        term, states = None, []
        if len(packs) > 1:
            features = []
            with torch.no_grad():
                for pack in inputs:
                    states.append(self._random_state())
                    outputs = self.network(pack, objective.reads(pack).without_targets())
                    features.append(outputs.features)
            term = batch_term(features, packs, inputs, outputs.prototypes, self.optimizer.steps)
        collected = []
        for i, pack in enumerate(inputs):
            last = i == len(packs) - 1
            with self._reduce_gradients(last):
                if states:
                    self._random_state(states[i])
                outputs = self.module(pack, self._reads(objective.reads(pack)))
                loss, statistics = objective(outputs, pack, totals)
                term = term or batch_term([outputs.features], packs, inputs, outputs.prototypes, self.optimizer.steps)
                ends, grads = [loss, outputs.features], [None, term.packs[i]]
                if outputs.prototypes is not None and last:
                    ends.append(outputs.prototypes)
                    grads.append(term.prototypes)
                torch.autograd.backward(ends, grads)
                collected.append(statistics)
        assert term is not None
        return collected, term

    def _random_state(self, state: Tensor | None = None) -> Tensor:
        """The state that dropout draws from, after setting it if one is given."""
        if self.device.type == "cuda":
            if state is not None:
                torch.cuda.set_rng_state(state, self.device)
            return torch.cuda.get_rng_state(self.device)
        if state is not None:
            torch.set_rng_state(state)
        return torch.get_rng_state()

    def _reduce_gradients(self, now: bool) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.module, DistributedDataParallel) and not now:
            return self.module.no_sync()
        return contextlib.nullcontext()

    @torch.no_grad()
    def measure(self, packs: Sequence[Pack], objective: Objective[Pack], totals: Totals) -> Statistics:
        """See `Engine`."""
        self.module.train()
        inputs = [self._inputs(pack) for pack in packs]
        with self.copies:  # not through DDP, which would expect a backward pass
            outputs = [self.network(pack, objective.reads(pack)) for pack in inputs]
        parts = zip(outputs, inputs, strict=True)
        return self._join([objective(out, pack, totals)[1] for out, pack in parts])

    def _weights_changed(self) -> None:
        """FSDP2 may hold weights that it gathered before, where no backward pass came after."""
        for module in sharded_modules(self.network):
            module.reshard()

    def _stepped(self) -> None:
        """DDP's weights are whole, and FSDP2 gathers them again."""

    def _drop_gradients(self) -> None:
        if self.gradients is not None:
            self.gradients.buffer.zero_()
        elif isinstance(self.module, DistributedDataParallel):
            # Its buckets stay. A weight that a step leaves out (MetaRM's the LM head) has its part of them, so that DDP
            # does not copy to the host which weights other ranks used: it would wait for the device.
            torch._foreach_zero_([p.grad for _, p in self.network.parts() if p.grad is not None])
        else:
            self.optimizer.zero_grad()

    def _prototypes(self) -> Tensor | None:
        return self.network.prototypes

    def parameters(self) -> list[nn.Parameter]:
        """All weights that it computes with, trained or not."""
        return [parameter for _, parameter in self.network.parts()]

    def parameter_counts(self) -> tuple[int, int]:
        """See `Engine`."""
        sizes = [(p.numel(), p.requires_grad) for _, p in self.network.parts()]
        return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)

    @torch.no_grad()
    def read(self, packs: Sequence[Pack], reads: Callable[[Pack], Reads]) -> list[Outputs]:
        """See `Engine`."""
        self.network.eval()
        with self.copies:
            return [self.network(inputs, reads(inputs)) for inputs in map(self._inputs, packs)]

    @contextlib.contextmanager
    def decoding(self) -> Iterator[Held]:
        """See `SampledEngine`. FSDP2 gathers all weights at its beginning: processes need not take the same steps."""
        self.network.eval()
        sharded = list(sharded_modules(self.network))
        layers: list[object] = [*self.network.decoder.layers]
        for module in sharded:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            with self.copies:
                # FSDP2's hooks make streams wait for each other, within a graph for good.
                yield whole_model(self.network, replayed=not self.sharded)
        finally:
            for module in sharded:
                module.set_reshard_after_forward(module in layers, recurse=False)
            self._weights_changed()

    def state(self) -> dict[str, Shard]:
        """See `Engine`. With an adapter: of what is trained alone, and the trunk's fingerprint."""
        self._weights_changed()  # FSDP2 may hold weights whole after a forward pass: their parts' places are asked for
        parameters = dict(self._kept())
        starts = {name: first_row(p, self.world) for name, p in parameters.items()}
        out = {f"model/{n}": Shard(local(p).detach(), starts[n], tuple(p.shape)) for n, p in parameters.items()}
        for key, moments in self.optimizer.state().items():
            for name, tensor in moments.items():
                out[f"{key}/{name}"] = Shard(tensor, starts[name], tuple(parameters[name].shape))
        if self.network.adapter is not None:
            out[TRUNK] = Shard(self._fingerprint, 0, tuple(self._fingerprint.shape))
        return out | {"step": Shard(self.optimizer.steps.reshape(1), 0, (1,))}

    def _kept(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Weights that a checkpoint holds: all, or with an adapter those that are trained."""
        for name, parameter in self.network.parts():
            if self.network.adapter is None or parameter.requires_grad:
                yield name, parameter

    @cached_property
    def _fingerprint(self) -> Tensor:
        """Of the trunk under an adapter, whole."""
        sums = fingerprint(local(p) for _, p in self.network.parts() if not p.requires_grad)
        return (self.world.sum_(sums) if self.sharded else sums).cpu()

    @torch.no_grad()
    def load_state(self, read: ReadRows) -> None:
        """See `Engine`."""
        for name, shard in self.state().items():
            rows = shard.tensor.shape[0]
            if name == TRUNK:
                check_fingerprint(self.origin, shard.tensor, read(TRUNK, 0, rows))
            elif rows:
                shard.tensor.copy_(read(name, shard.start, shard.start + rows))

    def weights(self) -> dict[str, Tensor]:
        """See `Engine`."""
        state, adapter = self._whole(self.network.parts()), self.network.adapter
        return merged(self.network, state, adapter) if state and adapter is not None else state

    def adapter(self) -> dict[str, Tensor]:
        """See `Engine`."""
        if (adapter := self.network.adapter) is None:
            return {}
        return to_peft(self.network, state, adapter) if (state := self._whole(self._kept())) else {}

    @torch.no_grad()
    def _whole(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
        """Weights, whole, on the CPU of rank 0; empty on the others."""
        self._weights_changed()  # FSDP2 may hold some whole after a forward pass, rounded to the activations' dtype
        out = {}
        for name, parameter in parameters:
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if self.world.main:
                out[name] = whole.detach().cpu()
        return out
