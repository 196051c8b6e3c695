"""Runs the members' top layers on this process's device: gradients, steps of each member's optimizer, scores."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rmfast.data.pack import Pack
from rmfast.data.table import GroupTable, select
from rmfast.evaluation.scoring.score import score_table
from rmfast.kernels.prefix_attention import flash_lengths
from rmfast.models.copies import Copies
from rmfast.models.members import MemberPacks, Members
from rmfast.models.network import Outputs
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel.engine import ReadRows, Shard
from rmfast.parallel.optimizer import AdamWOptions, Optimizer
from rmfast.parallel.world import World
from rmfast.tasks.ensemble.states import States
from rmfast.tasks.ensemble.top_batch import TopBatch

SUMS = ("loss", "correct", "margin")
"""What is summed of each member's step, of `RewardObjective`'s statistics."""


class TopEngine:
    """M members that step together but share nothing above the trunk. Ranks hold all of them and share each step's
    packs. A member's clipping and optimizer are those of its reward run.

    Args:
        members: on the CPU. budget: tokens of a pack that is scored.
    """

    def __init__(
        self, members: Members, states: States, *, world: World, options: AdamWOptions, objective: RewardObjective,
        budget: int,
    ) -> None:  # fmt: skip
        self.members, self.states, self.world, self.device = members.to(world.device), states, world, world.device
        self.objective, self.budget = objective, budget
        self.copies = Copies(members.cast_weights(), members.decoder.dtype)
        # Each member's weights as parameters, on the memory of all members'.
        self.weights = [{n: nn.Parameter(w) for n, w in members.member(m).items()} for m in range(members.count)]
        self.optimizers = [Optimizer(of.items(), options, world, sharded=False) for of in self.weights]

    def gradients(self, batch: TopBatch) -> Tensor:
        """Leave the gradients of every member's loss over the global batch; gives `SUMS` over it, fp32 [M, 3]."""
        self.members.train()
        sums = torch.zeros(self.members.count, len(SUMS), device=self.device)
        with self.copies:
            for number in range(batch.rounds):
                packs = batch.packs(number)
                inputs = [None if pack is None else pack.to(self.device) for pack in packs]
                before = batch.before(number).to(self.device, non_blocking=True)
                scores, losses = self.members(self._joined(packs, inputs), before), []
                for m, (pack, step) in enumerate(zip(inputs, batch.steps, strict=True)):
                    if pack is not None and step is not None:
                        loss, found = self.objective(Outputs(scores[m]), pack, step.totals)
                        losses.append(loss)
                        sums[m] += torch.stack([found.sums[name] for name in SUMS])
                torch.stack(losses).sum().backward()
        for parameter in self.members.parameters():
            if parameter.grad is not None:
                self.world.sum_(parameter.grad)
        return self.world.sum_(sums)

    def step(self, rates: Sequence[float | None], losses: Tensor) -> Tensor:
        """Apply the gradients, of each member at its learning rate; those with None are left out.

        Returns:
            Gradient norms fp32 [M] before clipping, nan of those that are left out. Where one is not finite, or the
            member's loss, its step changed nothing.
        """
        norms = torch.full_like(losses, torch.nan)
        for m, (rate, optimizer) in enumerate(zip(rates, self.optimizers, strict=True)):
            if rate is None:
                continue
            for name, parameter in self.members.named_parameters():
                self.weights[m][name].grad = None if parameter.grad is None else parameter.grad[m]
            norms[m] = optimizer.step(rate, losses[m].isfinite())
            optimizer.zero_grad()
        self.members.zero_grad()
        return norms

    @torch.no_grad()
    def score(
        self, source: str, table: GroupTable, rows: np.ndarray | None = None, members: Sequence[int] | None = None
    ) -> np.ndarray:
        """Rewards float64 [members, R] of the responses of a table, on every rank.

        Args:
            source: its name for the states. rows: groups of it that are scored; default all.
            members: who scores them; default all.
        """
        self.members.eval()
        rows = np.arange(len(table)) if rows is None else rows
        asked = range(self.members.count) if members is None else members

        def score(packs: Sequence[Pack]) -> list[Tensor]:
            out = []
            for pack in packs:
                inputs = pack.to(self.device)
                before = self.states(source, pack, rows[pack.groups]).to(self.device).repeat(len(asked), 1)
                each = [[one if m in asked else None for m in range(self.members.count)] for one in (pack, inputs)]
                joined = self._joined(*each)
                out.append(torch.cat([s for m, s in enumerate(self.members(joined, before)) if m in asked], dim=1))
            return out

        with self.copies:
            return score_table(score, select(table, rows), self.world, budget=self.budget).T

    def _joined(self, packs: Sequence[Pack | None], inputs: Sequence[Pack | None]) -> MemberPacks:
        """The members' packs, on the CPU and on the device, behind each other on the device."""
        joined = MemberPacks.of(inputs)
        if self.members.decoder.attention_impl == "flash":
            flash_lengths(joined.layout, host=MemberPacks.of(packs).layout)
        return joined

    def state(self) -> dict[str, Shard]:
        """Weights, moments and steps of all members, by name; whole on every rank."""
        tensors = {f"members/{name}": weight.detach() for name, weight in self.members.named_parameters()}
        for m, optimizer in enumerate(self.optimizers):
            for key, moments in optimizer.state().items():
                tensors |= {f"{key}/{m:02d}/{name}": moment for name, moment in moments.items()}
            tensors[f"step/{m:02d}"] = optimizer.steps.reshape(1)
        return {name: Shard(tensor, 0, tuple(tensor.shape)) for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_state(self, read: ReadRows) -> None:
        """Take back what `state` gave."""
        for name, shard in self.state().items():
            shard.tensor.copy_(read(name, 0, len(shard.tensor)))
