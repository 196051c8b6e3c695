"""rmfast: fast, exact training of reward models from preference data, and sampling from policies.

`rmfast.load(path).score(rows)` scores responses; `rmfast.load_policy(path).sample(prompts)` draws them;
`torchrun rmfast/train.py CONFIG.yaml` trains.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmfast.evaluation.scoring.reward_model import RewardModel, load
    from rmfast.rollout.policy import Policy, Sample, load_policy

__all__ = ["Policy", "RewardModel", "Sample", "load", "load_policy"]

_MODULES = {
    "rollout.policy": ("Policy", "Sample", "load_policy"),
    "evaluation.scoring.reward_model": ("RewardModel", "load"),
}


def __getattr__(name: str) -> Any:
    # On first use, so that commands answer a wrong option before torch is imported.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"rmfast.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
