"""Section `iterate`: rounds of sampling, MetaRM and PPO, made of the tasks that exist."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rmfast.config.base import Section, refuse

StageTask = Literal["sft", "reward", "meta", "ppo"]


def _mapping(value: Any) -> Any:
    """A section with nothing under it is an empty one."""
    if not isinstance(value, dict):
        return {} if value is None else value
    return {name: {} if keys is None else keys for name, keys in value.items()}


Stages = Annotated[dict[StageTask, dict[str, Any]], BeforeValidator(_mapping)]
"""Keys of each stage, in sections: {"ppo": {"optim": {"lr": 1e-6}}}."""


class IterateConfig(Section):
    rounds: int = Field(3, ge=1, le=1000, description="rounds of samples, MetaRM and PPO; may be raised later")
    sft: bool = Field(True, description="begin with SFT on data.train; false: model.path is the policy to begin with")
    reward: Literal["restart", "continue"] = Field(
        "restart", description="what MetaRM of a round begins as: the first policy, or the reward model before it"
    )
    policy: Literal["continue", "restart"] = Field(
        "continue", description="what PPO of a round begins as: the policy of the round before, or the first one"
    )
    reference: Literal["first", "previous"] = Field(
        "first", description="what KL is taken to: the first policy, or the one that the round's PPO begins as"
    )
    control: bool = Field(False, description="also as many rounds of PPO against the first reward model, no MetaRM")
    prompts: int | None = Field(None, ge=1, description="prompts that each round samples for MetaRM; null: all")
    temperature: float = Field(1.0, ge=1e-5, description="of these samples; the authors' is a little above PPO's")
    answers: int = Field(
        2, ge=2, le=64, description="answers to each of ppo.eval_prompts, by which policies are compared"
    )
    judge_url: str | None = Field(None, description="LLM judge: an OpenAI-compatible endpoint, http://HOST:PORT/v1")
    judge_model: str | None = Field(None, description="its model's name; the key is in RMFAST_JUDGE_KEY")
    stages: Stages = Field({}, description="keys of one stage alone: stages.STAGE.SECTION.KEY; sft, reward, meta, ppo")

    def check(self, config: Any) -> None:
        ppo, meta = config.ppo, config.meta
        made = "is made by the stages of task iterate: leave it out"
        refuse(ppo.reward, "ppo.reward", made)
        refuse(meta.data, "meta.data", made)
        refuse(ppo.reference, "ppo.reference", "is set by iterate.reference: leave it out")
        held_out = "is missing: task iterate compares its rounds by answers to held-out prompts"
        refuse(not ppo.eval_prompts, "ppo.eval_prompts", held_out)
        random = "leaves nothing to begin with: iterate.sft false takes model.path for a policy"
        refuse(config.model.from_scratch and not self.sft, "model.from_scratch", random, "iterate.sft")
        no_stage = "is for SFT, and iterate.sft is false"
        refuse(not self.sft and self.stages.get("sft"), "iterate.stages.sft", no_stage, "iterate.sft")
        pair = "and iterate.judge_model go together: the endpoint, and its model's name"
        refuse((self.judge_url is None) != (self.judge_model is None), "iterate.judge_url", pair, "iterate.judge_model")
