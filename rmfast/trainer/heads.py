"""Reward heads of many ensemble members, trained together on the features that one frozen trunk gave.

Shapes: M members, d width, F rows of features, U distinct responses and E edges (the most of any member) of a step.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rmfast.data.loader import built_ahead
from rmfast.errors import RunError
from rmfast.kernels import ranking_loss
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.schedule import Schedule, learning_rate
from rmfast.trainer.head_batch import HeadBatch, HeadData, HeadMember, head_batch
from rmfast.trainer.metrics import Fetched
from rmfast.trainer.stop import StopRequest

CHUNK = 65536  # responses scored at a time


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """As the config's optim and objective sections; a warm-up below 1 is a share of a member's steps."""

    lr: float
    schedule: Schedule
    warmup: float
    floor: float
    adamw: AdamWOptions
    center: float
    on_nonfinite: Literal["stop", "skip"]
    impl: str = "auto"


class HeadTrainer:
    """M heads, one of each member, that step together but share nothing: not gradients, not clipping, not the rate.

    The same steps as a reward run with `model.top_layers: 0` (trunk and final norm frozen): to rounding, for that
    scores its responses pack by pack.

    Args:
        heads: fp32 [M, d], where they begin.
    """

    def __init__(
        self, heads: Tensor, members: Sequence[HeadMember], data: HeadData, options: HeadOptions, device: torch.device
    ) -> None:
        self.members, self.data, self.options, self.device = list(members), data, options, device
        self.weight = heads.detach().to(device, torch.float32, copy=True)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.steps = torch.zeros(len(heads), dtype=torch.float64, device=device)  # taken; those left out do not count
        self.done = 0
        self.total = max(member.total for member in self.members)
        edges = data.edges
        groups = 1 + max(int(member.groups.max()) for member in self.members)
        self._edge_start = np.searchsorted(edges.group, np.arange(groups + 1))

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs beside the number of steps done."""
        return {
            "weight": self.weight,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "steps": self.steps,
        }

    def load_state(self, state: dict[str, Tensor], done: int) -> None:
        """Go on after step `done`."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.done = done

    def rates(self, step: int) -> list[float]:
        """Learning rate of each member at a step; 0 after its last one."""
        o = self.options
        out = []
        for member in self.members:
            warmup = round(o.warmup * member.total) if o.warmup < 1 else round(o.warmup)
            rate = learning_rate(step, peak=o.lr, schedule=o.schedule, warmup=warmup, total=member.total, floor=o.floor)
            out.append(rate if step < member.total else 0.0)
        return out

    def batch(self, step: int) -> HeadBatch:
        """A step's edges, on the CPU; members that are through have none."""
        taken = [member.edges(step, self._edge_start) for member in self.members]
        return head_batch(
            taken,
            self.data,
            rates=np.array(self.rates(step)),
            active=np.array([step < member.total for member in self.members]),
            pin=self.device.type == "cuda",
        )

    def step(self, batch: HeadBatch) -> Tensor:
        """One step of every member that is not through.

        Args:
            batch: the next step's.

        Returns:
            fp32 [5, M] on the device: loss, gradient norm, share of edges ranked right, mean margin, and 1 where loss
            or gradient was not finite, which left the member as it was.
        """
        batch = batch.to(self.device)
        active = batch.active
        losses, gaps, grad = head_gradients(self.weight, batch, center=self.options.center, impl=self.options.impl)
        norm = grad.double().norm(dim=1)
        finite = losses.isfinite() & norm.isfinite()
        self._adamw(grad, norm, batch.rates, finite & active)
        self.done += 1
        count = batch.counted.sum(1).clamp(min=1)
        right, margin = ((gaps > 0) & batch.counted).sum(1) / count, gaps.where(batch.counted, 0.0).sum(1) / count
        rows = (losses, norm, right, margin, (~finite & active))
        return torch.stack([row.float() for row in rows]).where(active, torch.nan)

    def _adamw(self, grad: Tensor, norm: Tensor, rates: Tensor, good: Tensor) -> None:
        """AdamW with every scalar of its own for each member; where `good` is false nothing changes."""
        o = self.options.adamw
        beta1, beta2 = o.betas
        if o.clip:
            grad = grad / ((norm + 1e-6) / o.clip).clamp(min=1.0).float()[:, None]
        steps = self.steps + good
        taken = steps.clamp(min=1)
        rate, decay = (-rates / (1 - beta1**taken)).float()[:, None], (1 - rates * o.weight_decay).float()[:, None]
        exp_avg = torch.lerp(self.exp_avg, grad, 1 - beta1)
        exp_avg_sq = self.exp_avg_sq * beta2 + (1 - beta2) * grad.square()
        root = (1 - beta2**taken).sqrt().float()[:, None]
        weight = self.weight * decay + rate * exp_avg / (exp_avg_sq.sqrt() / root + o.eps)
        keep = good[:, None]
        self.weight = torch.where(keep, weight, self.weight)
        self.exp_avg = torch.where(keep, exp_avg, self.exp_avg)
        self.exp_avg_sq = torch.where(keep, exp_avg_sq, self.exp_avg_sq)
        self.steps = steps

    def fit(
        self,
        log: Callable[[dict[str, Any]], None],
        *,
        save: Callable[[], None],
        save_every: int | None,
        evaluate: Callable[[], None],
        eval_every: int | None,
        stop: StopRequest | None = None,
    ) -> None:
        """The steps that are left.

        Figures are read from the device a step later, so that nothing waits for them.

        Args:
            log: takes each step's metrics. save: is called after every `save_every` steps and after the last.
            evaluate: is called after every `eval_every` steps but the last.
            stop: asked after each step.

        Raises:
            Interrupted: `stop` said so; `save` was called.
            RunError: a loss or gradient that is not finite, under on_nonfinite "stop"; it changed nothing.
        """
        pending: tuple[Fetched, dict[str, Any]] | None = None
        clock = time.perf_counter()
        for batch in built_ahead(self.batch, range(self.done, self.total)):
            rates, epoch = self.rates(self.done), self._epoch(self.done)
            figures = Fetched(self.step(batch))
            now = time.perf_counter()
            values = {"step": self.done, "epoch": epoch, "learning_rate": max(rates), "step_seconds": now - clock}
            clock = now
            if pending is not None:
                self._report(*pending, log)
            pending = figures, values
            stopping = stop is not None and self.done < self.total and stop.asked()
            evaluating, saving = (n is not None and self.done % n == 0 for n in (eval_every, save_every))
            if (evaluating or saving or stopping) and self.done < self.total:
                self._report(*pending, log)
                pending = None
                if evaluating:
                    evaluate()
                if saving or stopping:
                    save()
                if stopping and stop is not None:
                    raise stop.interrupted(f"step {self.done} of {self.total}")
                clock = time.perf_counter()
        if pending is not None:
            self._report(*pending, log)
            save()

    def _epoch(self, step: int) -> float:
        return max(member.plan.progress(min(step, member.total - 1)) for member in self.members)

    def _report(self, figures: Fetched, values: dict[str, Any], log: Callable[[dict[str, Any]], None]) -> None:
        loss, norm, right, margin, broken = figures.wait().double().numpy()
        bad = np.flatnonzero(broken == 1)
        if bad.size and self.options.on_nonfinite == "stop":
            raise RunError(
                f"step {values['step']}: loss or gradient of member {', '.join(map(str, bad.tolist()))} is not finite; "
                "the step changed nothing of it. Lower optim.lr, or set optim.on_nonfinite to skip"
            )
        known = np.isfinite(loss) & np.isfinite(norm)
        rows = {"loss": loss, "grad_norm": norm, "accuracy": right, "margin": margin}
        means = {name: float(row[known].mean()) if known.any() else None for name, row in rows.items()}
        spread = {"loss_std": float(loss[known].std()) if known.any() else None, "members": int(known.sum())}
        skipped = {"skipped": bad.tolist()} if bad.size else {}
        log(values | means | spread | skipped)


def head_gradients(
    weight: Tensor, batch: HeadBatch, *, center: float, impl: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Ranking loss of each head on its own edges.

    Args:
        weight: fp32 [M, d].

    Returns:
        Losses [M], gaps r(better) - r(worse) [M, E], and the losses' gradients [M, d].
    """
    with torch.enable_grad():
        weight = weight.detach().requires_grad_()
        scores = weight @ batch.features.T  # [M, U]: also those of other members' responses, cheaper than M products
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
