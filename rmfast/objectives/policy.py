"""PPO's objectives over packs of sampled answers: the policy's clipped surrogate, and the critic's clipped error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from rmfast.kernels import policy_loss, value_loss
from rmfast.models.network import Outputs, Reads
from rmfast.objectives.base import BatchCounts, BatchTotals, Statistics, TargetTensors, token_count


class AnswerTensors(TargetTensors, Protocol):
    """L predicted tokens with columns [L] by name; without work there are no columns."""

    @property
    def beside(self) -> Mapping[str, Tensor]: ...


class AnswerPack(Protocol):
    """What objectives of sampled answers read of a pack."""

    @property
    def targets(self) -> AnswerTensors: ...


@dataclass(frozen=True, kw_only=True)
class PolicyObjective:
    """PPO's clipped surrogate (`rmfast.kernels.policy_loss`), plus `kl` times the KL to a reference, less `entropy`
    times the entropy; each is a mean over the answers' tokens.

    Columns of a pack's targets: old_log_prob, advantage, mask (0: the token takes no part), and reference where the
    loss has a KL. All are of softmax(logits / temperature) over the first `ids` ids, as are the entropies.

    Args:
        clip, clip_high: how far the ratio may fall below 1 and rise above it; None: as far.
        kl: coefficient of the KL, 0 for none. kl_estimator: see `kl_loss`.
        entropy: coefficient of the entropy bonus.
        ids: how many ids of the vocabulary there are; None for all.
        impl: of the kernels.
    """

    clip: float = 0.2
    clip_high: float | None = None
    kl: float = 0.0
    kl_estimator: Literal["k2", "k3"] = "k2"
    entropy: float = 0.0
    temperature: float = 1.0
    ids: int | None = None
    impl: str = "auto"

    @property
    def batch_term(self) -> None:
        """None: see `Objective`."""

    def reads(self, pack: AnswerPack) -> Reads:
        """See `Objective`."""
        rows, ids = pack.targets.rows, pack.targets.ids
        return Reads(scores=rows[:0], log_prob=(rows, ids), ids=self.ids, temperature=self.temperature, entropy=True)

    def __call__(self, outputs: Outputs, pack: AnswerPack, totals: BatchTotals) -> tuple[Tensor, Statistics]:
        """The pack's share of the global batch's loss.

        Args:
            outputs: log_prob and entropy [L].
            totals: of the global batch; `lm_tokens` counts the tokens whose mask is 1.

        Returns:
            Loss (a scalar that carries gradients) and detached statistics.
        """
        log_prob, entropy, count = outputs.log_prob, outputs.entropy, token_count(totals)
        assert log_prob is not None and entropy is not None
        mask, old, advantage = (_column(pack, name) for name in ("mask", "old_log_prob", "advantage"))
        surrogate = policy_loss(
            log_prob, old, advantage, mask, clip=self.clip, clip_high=self.clip_high, total=count, impl=self.impl
        )
        loss, divergence = surrogate, torch.zeros_like(surrogate)
        if self.kl:
            # Masked before: what is not finite there would meet a gradient of 0.
            new, before, reference = (_kept(x, mask) for x in (log_prob, old, _column(pack, "reference")))
            divergence = _sum(kl_loss(new, before, reference, self.kl_estimator), mask) / count
            loss = loss + self.kl * divergence
        if self.entropy:
            loss = loss - self.entropy * (_sum(entropy, mask) / count)
        shares = {"loss": loss, "policy_loss": surrogate, "kl_loss": divergence}
        return loss, self._statistics(shares, log_prob, entropy, old, advantage, mask)

    @torch.no_grad()
    def _statistics(
        self,
        shares: Mapping[str, Tensor],
        log_prob: Tensor,
        entropy: Tensor,
        old: Tensor,
        advantage: Tensor,
        mask: Tensor,
    ) -> Statistics:
        log_ratio = log_prob - old
        gap = log_ratio.expm1()  # of the ratio to 1, to the last digit where it is small
        high = self.clip if self.clip_high is None else self.clip_high
        beyond = gap - gap.clamp(-self.clip, high)
        sums = {
            "entropy": entropy,
            "approx_kl": 0.5 * log_ratio.square(),
            "clipped": advantage * beyond > 0,
            "ratio_gap": gap,
            "ratio_gap_squared": gap.square(),
        }
        widest = _kept(gap.abs(), mask)
        return Statistics(
            {name: share.detach() for name, share in shares.items()}
            | {name: _sum(values, mask) for name, values in sums.items()}
            | {"tokens": mask.sum()},
            {"ratio_gap_max": torch.cat((widest, widest.new_zeros(1))).amax()},
        )

    def metrics(self, values: Mapping[str, float], totals: BatchCounts) -> dict[str, float]:
        """See `Objective`. The ratio's variance is over tokens."""
        tokens = max(values["tokens"], 1)
        gap = values["ratio_gap"] / tokens
        metrics = {
            "loss/policy_avg": values["policy_loss"],
            "policy/approxkl_avg": values["approx_kl"] / tokens,
            "policy/clipfrac_avg": values["clipped"] / tokens,
            "policy/entropy_avg": values["entropy"] / tokens,
            "val/ratio": 1 + gap,
            "val/ratio_var": max(values["ratio_gap_squared"] / tokens - gap * gap, 0.0),
        }
        return metrics | ({"loss/kl_avg": values["kl_loss"]} if self.kl else {})


def kl_loss(log_prob: Tensor, old_log_prob: Tensor, reference: Tensor, estimator: Literal["k2", "k3"]) -> Tensor:
    """Estimates [L] of KL(pi || ref) at tokens that were drawn from the old policy, whose gradient is the KL's.

    With h = log pi - log ref and rho = pi / pi_old, k2 is h^2 / 2, and k3 is rho (exp(-h) - 1 + h), whose value is
    unbiased. The gradient of k3 counts rho's too:

        rho (exp(-h) - 1 + h) grad log pi + rho (1 - exp(-h)) grad log pi = rho h grad log pi

    and that of k2 is h grad log pi. As sum_a pi(a) grad log pi(a) = 0, the gradient of KL = sum_a pi(a) h(a) is
    sum_a pi(a) h(a) grad log pi(a): what k3's has as its mean over tokens of the old policy, and k2's where that is pi.
    Source: Schulman, Approximating KL divergence (2020), for the values.

    Args:
        log_prob, old_log_prob, reference: [L]; differentiable in the first.
    """
    gap = log_prob - reference
    if estimator == "k2":
        return 0.5 * gap.square()
    with torch.no_grad():
        ratio = (log_prob - old_log_prob).exp()
        value, slope = ratio * (torch.expm1(-gap) + gap), ratio * gap
    # The two parts above cancel to nothing but rounding where exp(-h) is large: the slope is given as it is.
    return value + slope * (log_prob - log_prob.detach())


@dataclass(frozen=True, kw_only=True)
class ValueObjective:
    """PPO's clipped squared error of the critic (`rmfast.kernels.value_loss`), a mean over the answers' tokens.

    The reward head at the token before a predicted one is the value of the state that it was drawn in. Columns of a
    pack's targets: old_value, returns, mask (0: the token takes no part).

    Args:
        clip: how far a value may move from the old one; None for a plain squared error.
        shift, scale: a value is (score - shift) / scale, in the units of rewards that were normalised so.
        impl: of the kernel.
    """

    clip: float | None = None
    shift: float = 0.0
    scale: float = 1.0
    impl: str = "auto"

    @property
    def batch_term(self) -> None:
        """None: see `Objective`."""

    def reads(self, pack: AnswerPack) -> Reads:
        """See `Objective`."""
        return Reads(scores=pack.targets.rows)

    def values(self, outputs: Outputs) -> Tensor:
        """Values [L] of scores [L, M]; of several heads the mean."""
        return (outputs.scores.mean(1) - self.shift) / self.scale

    def __call__(self, outputs: Outputs, pack: AnswerPack, totals: BatchTotals) -> tuple[Tensor, Statistics]:
        """The pack's share of the global batch's loss; see `PolicyObjective`.

        Args:
            outputs: scores [L, M].
        """
        value = self.values(outputs)
        mask, old, returns = (_column(pack, name) for name in ("mask", "old_value", "returns"))
        loss = value_loss(value, old, returns, mask, clip=self.clip, total=token_count(totals), impl=self.impl)
        with torch.no_grad():
            near = value if self.clip is None else value.clamp(old - self.clip, old + self.clip)
            clipped = _sum((near - returns).abs() > (value - returns).abs(), mask)
        return loss, Statistics({"loss": loss.detach(), "clipped": clipped, "tokens": mask.sum()})

    def metrics(self, values: Mapping[str, float], totals: BatchCounts) -> dict[str, float]:
        """See `Objective`."""
        return {
            "loss/value_avg": values["loss"],
            "val/clipfrac_avg": values["clipped"] / max(values["tokens"], 1),
        }


def _column(pack: AnswerPack, name: str) -> Tensor:
    """A column [L]; the mask is 0 where nothing is predicted."""
    targets = pack.targets
    column = targets.beside[name] if targets.beside else torch.zeros_like(targets.ids, dtype=torch.float32)
    return column.where(targets.ids >= 0, 0.0) if name == "mask" else column


def _kept(values: Tensor, mask: Tensor) -> Tensor:
    """Values [L], 0 where the mask is 0, whatever they are there."""
    return torch.where(mask != 0, values, 0)


def _sum(values: Tensor, mask: Tensor) -> Tensor:
    """The sum of values [L] with the mask as their weights."""
    return (_kept(values, mask) * mask).sum()
