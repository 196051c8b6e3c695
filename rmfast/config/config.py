"""The whole config of a run."""

from pydantic import model_validator

from rmfast.config.base import Section
from rmfast.config.ensemble import EnsembleConfig
from rmfast.config.iterate import IterateConfig
from rmfast.config.meta import MetaConfig
from rmfast.config.ppo import PPOConfig
from rmfast.config.rollout import RolloutConfig
from rmfast.config.sections import Shared
from rmfast.config.sft import SFTConfig


class Config(Shared):
    """One run: what every task reads, and a section for each task that needs one, by the task's name."""

    meta: MetaConfig = MetaConfig()
    sft: SFTConfig = SFTConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    ppo: PPOConfig = PPOConfig()
    rollout: RolloutConfig = RolloutConfig()
    iterate: IterateConfig = IterateConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> "Config":
        ppo = self.ppo.settled(self.optim.lr, self.run.max_steps) if self.task == "ppo" else self.ppo
        fitted = {"data": self.data.fitted(self.objective.copies), "ppo": ppo}
        changed = {name: section for name, section in fitted.items() if section is not getattr(self, name)}
        config = self.model_copy(update=changed) if changed else self
        for name in (self.task, *Shared.model_fields):
            section = getattr(config, name, None)
            if isinstance(section, Section):
                section.check(config)
        return config

    @property
    def ranks_per_member(self) -> int:
        """Ranks of each group under `ensemble.spread: ranks`."""
        return self.ensemble.group_size(self.parallel)
