"""The models of PPO: what is trained, and what is only read."""

from dataclasses import dataclass

from rmfast.parallel.engine import Engine
from rmfast.trainer.ppo.rollouts import Policy
from rmfast.trainer.ppo.scorer import Rewards, Scorer


@dataclass(frozen=True, kw_only=True, eq=False)
class Models:
    """The policy, and a critic that is trained beside it, None for estimators without; the reference that KL is taken
    to, the reward models, and a held-out one that scores evaluations, None for none."""

    policy: Policy
    critic: Engine | None
    reference: Policy
    reward: Rewards
    gold: Scorer | None = None
