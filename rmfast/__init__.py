"""rmfast: fast, exact training of reward models from preference data.

`rmfast.load(path).score(rows)` scores responses; `torchrun rmfast/train.py CONFIG.yaml` trains.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmfast.evaluation.scoring.reward_model import RewardModel, load

__all__ = ["RewardModel", "load"]


def __getattr__(name: str) -> Any:
    # On first use, so that commands answer a wrong option before torch is imported.
    if name in __all__:
        from rmfast.evaluation.scoring import reward_model

        return getattr(reward_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
