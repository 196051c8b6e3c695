"""Section `rollout`: how much is sampled at once."""

from pydantic import Field

from rmfast.config.base import Section


class RolloutConfig(Section):
    rows: int = Field(256, ge=1, le=2**20, description="samples that each rank decodes at once")
    memory: float | None = Field(
        None, gt=0, description="gigabytes of keys and values, at most; null: half of what is free"
    )
