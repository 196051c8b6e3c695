"""What tells that a policy runs away from its reference, and the limits at which a run ends for it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rmfast.errors import LimitReached
from rmfast.trainer.ppo.answers import Answers
from rmfast.trainer.ppo.experience import Read


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where a run ends; None for no limit.

    Args:
        kl: the highest KL of an answer. entropy: the lowest of a token. cut: the largest share of cut answers.
    """

    kl: float | None = None
    entropy: float | None = None
    cut: float | None = None

    def check(self, step: int, figures: Mapping[str, float]) -> None:
        """Compare what was sampled for a step with the limits.

        Args:
            figures: see `watched`.

        Raises:
            LimitReached: one is passed.
        """
        kl, entropy, cut = (figures[name] for name in ("objective/kl", "entropy_per_token", "cut_share"))
        said = None
        if self.kl is not None and kl > self.kl:
            said = f"an answer is {kl:.4g} nats (KL) from the reference, above ppo.stop_kl {self.kl:g}"
        elif self.entropy is not None and entropy < self.entropy:
            said = f"a token has {entropy:.4g} nats of entropy, below ppo.stop_entropy {self.entropy:g}"
        elif self.cut is not None and cut > self.cut:
            said = f"{cut:.0%} of the answers are cut, above ppo.stop_cut {self.cut:g}"
        if said is not None:
            then = "nothing was learnt from these answers; look at report/report.html, and raise the limit to go on"
            raise LimitReached(f"step {step}: {said}: {then}")


NO_LIMITS = Limits()


def watched(answers: Answers, read: Read) -> dict[str, float]:
    """Figures of a step's answers under the policy that drew them: KL of an answer; entropy of a token, and perplexity,
    exp of a token's mean negative log-probability, at the sampling temperature; share of cut answers."""
    return {
        "objective/kl": mean(read.kl(answers.lengths)),
        "entropy_per_token": mean(read.entropy),
        "perplexity": float(torch.exp(-read.old_log_prob.mean())),
        "cut_share": mean(answers.cut.double()),
    }


def mean(values: Tensor) -> float:
    """The mean; 0 of nothing."""
    return float(values.double().mean()) if values.numel() else 0.0


def skewness(values: Tensor) -> float:
    """The population skewness, above 0 where the tail is at the right; 0 without any spread."""
    centred = values.double() - values.double().mean()
    spread = float(centred.square().mean())
    return float(centred.pow(3).mean()) / spread**1.5 if spread > 0 else 0.0
