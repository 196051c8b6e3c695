"""Section `meta`: MetaRM."""

from typing import Literal

from pydantic import Field, model_validator

from rmfast.config.base import Paths, Section, refuse
from rmfast.config.sections import Shared


class MetaConfig(Section):
    data: Paths = Field((), description="task meta: prompts, each with k or more responses sampled from the policy")
    k: int = Field(5, ge=2, le=1024, description="responses taken of each prompt, the first ones that differ")
    prompts_per_step: int | None = Field(None, ge=1, description="prompts in a step; null: data.pairs_per_step")
    eta: float = Field(5e-6, ge=0, description="step of the ascent on the difference loss J: eta times its gradient")
    rho: float | None = Field(None, gt=0, description="in place of eta: length of the ascent, whatever the gradient's")
    normaliser: Literal["k2", "pairs"] = Field("k2", description="of J: 2 / k^2 as in the paper, or mean over pairs")
    check_every: int | None = Field(10, ge=1, description="steps between measuring J after the ascent; null: never")

    @model_validator(mode="after")
    def _one_length(self) -> "MetaConfig":
        both = self.rho is not None and self.eta != MetaConfig.model_fields["eta"].default
        refuse(both, "meta.eta", "does nothing beside meta.rho: one of them sets the ascent's length", "meta.rho")
        return self

    def check(self, config: Shared) -> None:
        refuse(not self.data, "meta.data", "is missing: task meta needs prompts with sampled responses")
