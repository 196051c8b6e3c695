"""Reward heads of many ensemble members, trained together on the features that one frozen trunk gave.

Shapes: M members, d width, F rows of features, U distinct responses and E edges (the most of any member) of a step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rmfast.data.loader import BuiltAhead
from rmfast.kernels import ranking_loss
from rmfast.kernels.multi_tensor import adamw_
from rmfast.parallel.engine import ReadRows, Shard
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.tasks.ensemble.head_batch import HeadBatch, HeadData, HeadMember, head_batch
from rmfast.trainer.learner import Evaluation, Figures, Line

CHUNK = 65536  # responses scored at a time


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """As the config's optim and objective sections."""

    adamw: AdamWOptions
    center: float
    impl: str = "auto"


class HeadLearner:
    """M heads, one of each member, that step together but share nothing: not gradients, not clipping, not the rate.

    The same steps as a reward run with `model.top_layers: 0` (trunk and final norm frozen): to rounding, for that
    scores its responses pack by pack.

    Args:
        heads: fp32 [M, d], where they begin.
        evaluate: of heads.
    """

    def __init__(
        self,
        heads: Tensor,
        members: Sequence[HeadMember],
        data: HeadData,
        options: HeadOptions,
        device: torch.device,
        evaluate: Callable[[Tensor], list[Evaluation]] = lambda heads: [],
    ) -> None:
        self.members, self.data, self.options, self.device = list(members), data, options, device
        self.weight = heads.detach().to(device, torch.float32, copy=True)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.steps = torch.zeros(len(heads), dtype=torch.float64, device=device)  # taken; those left out do not count
        self.total = max(member.total for member in self.members)
        self.counters: dict[str, int] = {}
        self._evaluate = evaluate
        groups = 1 + max(int(member.groups.max()) for member in self.members)
        self._edge_start = np.searchsorted(data.edges.group, np.arange(groups + 1))
        self._ahead = BuiltAhead(self.batch, self.total)

    def state(self) -> dict[str, Shard]:
        """See `Learner`."""
        tensors = {"weight": self.weight, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "steps": self.steps}
        return {f"heads/{name}": Shard(tensor, 0, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def load_state(self, read: ReadRows) -> None:
        """See `Learner`."""
        for name, shard in self.state().items():
            shard.tensor.copy_(read(name, 0, len(shard.tensor)))

    def evaluate(self, step: int, final: bool) -> list[Evaluation]:
        """See `Learner`."""
        return self._evaluate(self.weight)

    def batch(self, step: int) -> HeadBatch:
        """A step's edges, on the CPU; members that have finished have none."""
        active = np.array([step < member.total for member in self.members])
        return head_batch(
            [member.edges(step, self._edge_start) for member in self.members],
            self.data,
            active=active,
            pin=self.device.type == "cuda",
        )

    def step(self, number: int) -> Figures:
        """One step of every member that has not finished; see `Learner`.

        Its device figures are fp32 [M]: loss, gradient norm, share of edges ranked right, mean margin, and 1 where loss
        or gradient was not finite, which left the member as it was; all NaN for those that have finished.
        """
        batch = self._ahead(number).to(self.device)
        active = batch.active
        losses, gaps, grad = head_gradients(self.weight, batch, center=self.options.center, impl=self.options.impl)
        norm = grad.double().norm(dim=1)
        finite = losses.isfinite() & norm.isfinite()
        rates = [member.rate(number) for member in self.members]
        self._adamw(grad, norm, rates, finite & active)
        count = batch.counted.sum(1).clamp(min=1)
        right, margin = ((gaps > 0) & batch.counted).sum(1) / count, gaps.where(batch.counted, 0.0).sum(1) / count
        figures = {"loss": losses, "grad_norm": norm, "accuracy": right, "margin": margin, "broken": ~finite & active}
        known = {
            "epoch": max(member.plan.progress(min(number, member.total - 1)) for member in self.members),
            "learning_rate": max(rates),
        }
        return Figures(
            device={name: figure.float().where(active, torch.nan) for name, figure in figures.items()},
            line=lambda values: members_line(known, values),
        )

    def _adamw(self, grad: Tensor, norm: Tensor, rates: list[float], good: Tensor) -> None:
        """AdamW with separate scalars for each member; where `good` is false nothing changes."""
        o = self.options.adamw
        scale = ((norm + 1e-6) / o.clip).clamp(min=1.0).float() if o.clip else torch.ones_like(norm)
        self.steps += good
        adamw_(
            list(self.weight), list(grad), list(self.exp_avg), list(self.exp_avg_sq), step=self.steps, lr=rates,
            grad_scale=scale, skip=~good, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, impl=o.backend,
        )  # fmt: skip


def members_line(known: dict[str, Any], figures: dict[str, list[float]]) -> Line:
    """Means over the members that took the step."""
    rows = {name: np.array(row) for name, row in figures.items()}
    bad = np.flatnonzero(rows.pop("broken") == 1)
    taken = np.isfinite(rows["loss"]) & np.isfinite(rows["grad_norm"])
    values = known | {name: float(row[taken].mean()) if taken.any() else None for name, row in rows.items()}
    values |= {"loss_std": float(rows["loss"][taken].std()) if taken.any() else None, "members": int(taken.sum())}
    if not bad.size:
        return Line(values)
    return Line(
        values | {"skipped": bad.tolist()},
        f"loss or gradient of member {', '.join(map(str, bad.tolist()))} is not finite; the step left it as it was. "
        "Lower optim.lr",
    )


def head_gradients(
    weight: Tensor, batch: HeadBatch, *, center: float, impl: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Ranking loss of each head on its edges.

    Args:
        weight: fp32 [M, d].

    Returns:
        Losses [M], gaps r(better) - r(worse) [M, E], and the losses' gradients [M, d].
    """
    with torch.enable_grad():
        weight = weight.detach().requires_grad_()
        scores = weight @ batch.features.T  # [M, U]: also those of other members' responses, cheaper than M matmuls
        better, worse = _pick(scores, batch.better), _pick(scores, batch.worse)
        place = torch.arange(better.shape[1], device=weight.device)
        losses = ranking_loss(
            torch.cat((better, worse), 1),
            place,
            place + len(place),
            margin=batch.margin,
            target=batch.target,
            weight=batch.weight,
            center=center,
            impl=impl,
        )
        (grad,) = torch.autograd.grad(losses.sum(), weight)
    return losses.detach(), (better - worse).detach(), grad


def _pick(scores: Tensor, places: Tensor) -> Tensor:
    """Of [M, U] the values at [M, E]. Gradients of a response in several edges are summed in one order on every device,
    as gather's on a GPU are not."""
    rows = torch.arange(len(scores), device=scores.device)[:, None]
    return F.embedding(rows * scores.shape[1] + places, scores.reshape(-1, 1))[..., 0]


@torch.no_grad()
def head_scores(features: np.ndarray, weight: Tensor) -> np.ndarray:
    """Scores float64 [M, F] of all features [F, d] by heads fp32 [M, d]."""
    out = np.empty((len(weight), len(features)))
    for begin in range(0, len(features), CHUNK):
        part = torch.from_numpy(np.array(features[begin : begin + CHUNK], dtype=np.float32)).to(weight.device)
        out[:, begin : begin + CHUNK] = (weight @ part.T).double().cpu().numpy()
    return out
