"""The whole config of a run."""

from pydantic import model_validator

from rmfast.config.base import Section
from rmfast.config.ensemble import EnsembleConfig
from rmfast.config.meta import MetaConfig
from rmfast.config.sections import Shared


class Config(Shared):
    """One run: what every task reads, and a section for each task that needs one, by the task's name."""

    meta: MetaConfig = MetaConfig()
    ensemble: EnsembleConfig = EnsembleConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> "Config":
        data = self.data.fitted(self.objective.copies)
        config = self if data is self.data else self.model_copy(update={"data": data})
        for name in (self.task, *Shared.model_fields):
            section = getattr(config, name, None)
            if isinstance(section, Section):
                section.check(config)
        return config

    @property
    def ranks_per_member(self) -> int:
        """Ranks of each group under `ensemble.spread: ranks`."""
        return self.ensemble.group_size(self.parallel)
