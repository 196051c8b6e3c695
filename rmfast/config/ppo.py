"""Section `ppo`: PPO against a reward model, as two presets of which each trick is a key."""

from typing import Any, Literal

from pydantic import Field

from rmfast.config.base import Paths, PathText, Section, refuse
from rmfast.config.sections import Shared
from rmfast.config.unused import refuse_unused
from rmfast.evaluation.combine import Rule

PRESETS: dict[str, dict[str, Any]] = {
    "ppo_max": {
        "critic": "reward", "critic_warmup": 20, "lam": 0.95, "value_clip": 0.2, "epochs": 1, "whiten": False,
        "reward_norm": "running", "reward_clip": 0.8, "reward_warmup": 1, "truncated": "bootstrap",
    },
    "ppo": {
        "critic": "policy", "critic_warmup": 0, "lam": 0.95, "value_clip": 0.2, "epochs": 4, "whiten": True,
        "reward_norm": "none", "reward_clip": 0.0, "reward_warmup": 0, "truncated": "zero",
    },
}  # fmt: skip
"""What null means in each preset. ppo_max: Secrets of RLHF, Part I (the tricks starred in figure 5) and Part II."""

OF_THE_CRITIC = {"critic": None, "critic_warmup": 0, "critic_lr": None, "lam": 1.0, "value_clip": 0.0}
"""Keys of the critic, and the values that say what is so without one too."""
CRITIC_RATE = 3.0
"""The critic's learning rate over the policy's: 1.5e-6 and 5e-7 in Part I."""
MINIBATCHES = 4
"""Updates in an epoch: batches of 32 from 128 answers in Part I."""


class PPOConfig(Section):
    preset: Literal["ppo_max", "ppo"] = Field("ppo_max", description="what null means in the other keys of ppo")
    reward: Paths = Field((), description="task ppo: folders of reward models; each head is a member")
    reward_rule: Rule = Field(
        "mean", description="how members' scores become one: mean, median, worst, mean-k-std or majority (a vote)"
    )
    reward_k: float = Field(1.0, ge=0, description="standard deviations that mean-k-std takes off")
    reference: PathText | None = Field(None, description="folder that KL is taken to; null: the first policy")
    critic: PathText | None = Field(
        None, description="begins as: reward, policy or a folder; null: ppo_max reward, ppo policy"
    )
    critic_warmup: int | None = Field(
        None,
        ge=0,
        description="first steps, in which the critic alone learns; null: ppo_max 20 or half of run.max_steps, ppo 0",
    )
    critic_lr: float | None = Field(None, gt=0, description="peak learning rate of the critic; null: 3 x optim.lr")
    prompts: Paths = Field((), description="task ppo: prompts to sample from, in the forms of data.train")
    eval_prompts: Paths = Field((), description="held-out prompts, sampled every eval.every steps")
    prompts_per_step: int = Field(32, ge=1, le=2**20, description="prompts of a step")
    samples: int = Field(4, ge=1, le=1024, description="answers sampled to each prompt")
    minibatches: int | None = Field(
        None, ge=1, description="updates in an epoch, each of whole prompt groups; null: 4, or prompts_per_step if less"
    )
    epochs: int | None = Field(None, ge=1, description="passes over a step's answers; null: ppo_max 1, ppo 4")
    advantage: Literal["gae", "rloo", "grpo", "reinforce"] = Field(
        "gae", description="gae: with a critic; rloo, grpo: against a prompt's other answers; reinforce: reward to go"
    )
    kl: float = Field(0.05, ge=0, description="coefficient of the KL divergence from the reference")
    kl_in: Literal["reward", "loss", "both"] = Field("reward", description="where KL is counted; both counts it twice")
    kl_estimator: Literal["k1", "k2", "k3"] | None = Field(
        None, description="reward: k1; loss: k2, or k3 weighted by the ratio; both: that of the loss; null: k1, k2, k2"
    )
    kl_target: float | None = Field(None, gt=0, description="KL of an answer that ppo.kl adapts to; null: ppo.kl stays")
    kl_horizon: int = Field(10000, ge=1, lt=2**31, description="answers over which ppo.kl adapts")
    gamma: float = Field(1.0, gt=0, le=1, description="discount of a token")
    lam: float | None = Field(None, ge=0, le=1, description="gae's lambda; null: 0.95")
    clip: float = Field(0.2, gt=0, description="the policy's ratio is clipped at 1 - clip")
    clip_high: float | None = Field(None, gt=0, description="and at 1 + clip_high; null: ppo.clip")
    value_clip: float | None = Field(None, ge=0, description="how far a value may move in a step; 0: any; null: 0.2")
    reward_norm: Literal["running", "none"] | None = Field(
        None, description="running: (score - mean) / std of all answers so far; null: ppo_max running, ppo none"
    )
    reward_clip: float | None = Field(
        None, ge=0, description="scores are clipped to +- it; 0: none; null: ppo_max 0.8 with reward_norm, else 0"
    )
    reward_warmup: int | None = Field(
        None,
        ge=0,
        description="batches of reference samples that the moments begin with; null: ppo_max 1 with a norm, else 0",
    )
    whiten: bool | None = Field(None, description="advantages to mean 0, std 1; null: ppo_max false, ppo true")
    entropy: float = Field(0.0, ge=0, description="coefficient of the entropy bonus")
    max_new_tokens: int = Field(256, ge=1, lt=2**31, description="longest answer, its end included")
    temperature: float = Field(1.0, ge=1e-5, description="of sampling and of all log-probabilities")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens that hold so much; 1: all")
    top_k: int = Field(0, ge=0, lt=2**31, description="sample from the k likeliest tokens; 0: all")
    min_p: float = Field(0.0, ge=0, lt=1, description="sample from tokens so likely beside the likeliest; 0: all")
    repetition_penalty: float = Field(1.0, gt=0, description="on tokens that were there before; 1: none")
    truncated: Literal["zero", "penalty", "bootstrap", "mask"] | None = Field(
        None, description="a cut answer's score: 0, truncated_score, + V, or unused; null: ppo_max bootstrap, ppo zero"
    )
    truncated_score: float = Field(-1.0, description="score of a cut answer under ppo.truncated penalty")
    overlong_buffer: int = Field(0, ge=0, description="last tokens of max_new_tokens in which the score falls; 0: none")
    overlong_penalty: float = Field(1.0, ge=0, description="by how much it falls there")
    ptx: float = Field(0.0, ge=0, description="weight of the loss on demonstrations beside the policy's; 0: none")
    ptx_data: Paths = Field((), description="the demonstrations, in the forms of task sft (sft.turns)")
    ptx_rows: int = Field(32, ge=1, le=2**20, description="demonstrations of each update")
    offload: Literal["none", "frozen", "all"] = Field(
        "none", description="to the host: models that a phase only reads; all: moments too, while nothing is updated"
    )
    gold: PathText | None = Field(None, description="held-out reward model, for evaluation alone")
    stop_kl: float | None = Field(None, gt=0, description="KL of an answer above which the run ends; null: none")
    stop_entropy: float | None = Field(None, gt=0, description="entropy of a token below which it ends; null: none")
    stop_cut: float | None = Field(None, ge=0, lt=1, description="share of cut answers above which it ends; null: none")

    def models(self) -> list[tuple[str, str]]:
        """(key, folder) of each model that is read beside the policy."""
        critic = None if self.critic in ("reward", "policy") else self.critic
        one = {"reference": self.reference, "critic": critic, "gold": self.gold}
        return [("reward", model) for model in self.reward] + [(key, model) for key, model in one.items() if model]

    def settled(self, lr: float, steps: int | None) -> "PPOConfig":
        """The same, with values where a preset or another key says what null means.

        Settling again changes nothing. These stay null: the critic's keys without a critic, and reference, kl_target,
        gold and limits, of which null is a value.

        Args:
            lr: `optim.lr`. steps: `run.max_steps`.

        Raises:
            KeyClash: a key of the critic is set, and there is none.
        """
        critic, without = self.advantage == "gae", f"and ppo.advantage {self.advantage} has none"
        for key, anyway in OF_THE_CRITIC.items():
            refuse(not critic and getattr(self, key) not in (None, anyway), f"ppo.{key}", f"is for a critic, {without}")
        refuse(not critic and self.truncated == "bootstrap", "ppo.truncated", f"bootstrap needs a critic, {without}")
        null = PRESETS[self.preset] | {
            "critic_lr": float(f"{CRITIC_RATE * lr:.12g}"),  # 3e-05 in place of 3.0000000000000004e-05
            "clip_high": self.clip,
            "minibatches": min(MINIBATCHES, self.prompts_per_step),
            "kl_estimator": "k1" if self.kl_in == "reward" else "k2",
        }
        if (self.reward_norm or null["reward_norm"]) == "none":  # the preset's clip is in standard deviations
            null |= {"reward_clip": 0.0, "reward_warmup": 0}
        if steps:  # a short run trains its policy too
            null["critic_warmup"] = min(null["critic_warmup"], steps // 2)
        if not critic:
            null["truncated"] = "zero"
        filled = {key: value for key, value in null.items() if getattr(self, key) is None}
        return self.model_copy(update=filled if critic else filled | dict.fromkeys(OF_THE_CRITIC))

    def check(self, config: Shared) -> None:
        refuse(not self.prompts, "ppo.prompts", "is missing: task ppo needs prompts to sample from")
        refuse(not self.reward, "ppo.reward", "is missing: task ppo needs the folder of a reward model")
        self._check_kl()
        self._check_advantage()
        self._check_scores()
        self._check_steps(config)
        refuse(self.ptx and not self.ptx_data, "ppo.ptx_data", "is missing: ppo.ptx is a weight of demonstrations")
        refuse(self.ptx_data and not self.ptx, "ppo.ptx_data", "is not read while ppo.ptx is 0", "ppo.ptx")
        self._refuse_set("ptx_rows", not self.ptx, "belongs to ppo.ptx, which is 0")
        refuse_unused(config)
        dropout = "must be 0 or null: task ppo takes the ratio of new and old probabilities without dropout"
        refuse(config.model.dropout, "model.dropout", dropout)

    def _check_kl(self) -> None:
        key, name = "ppo.kl_estimator", self.kl_estimator
        if self.kl_in == "reward":
            refuse(
                name != "k1", key, f"{name} has a biased gradient in the reward: ppo.kl_in reward takes k1", "ppo.kl_in"
            )
        else:
            nothing = f"k1 has a gradient of expectation 0 in the loss: ppo.kl_in {self.kl_in} takes k2 or k3"
            refuse(name == "k1", key, nothing, "ppo.kl_in")
        refuse(self.kl_target and not self.kl, "ppo.kl", "0 stays 0, whatever ppo.kl_target", "ppo.kl_target")
        self._refuse_set("kl_horizon", self.kl_target is None, "belongs to ppo.kl_target, which is null")
        answers = self.prompts_per_step * self.samples
        short = (
            f"({self.kl_horizon}) is not above a fifth of a step's {answers} answers: ppo.kl could fall to 0 in a step"
        )
        refuse(self.kl_target and 5 * self.kl_horizon <= answers, "ppo.kl_horizon", short, "ppo.prompts_per_step")

    def _check_advantage(self) -> None:
        if self.advantage in ("rloo", "grpo"):
            others = f"1 leaves ppo.advantage {self.advantage} no other answer to compare with"
            refuse(self.samples == 1, "ppo.samples", others, "ppo.advantage")
            whole = f"({self.gamma:g}) is not 1, and ppo.advantage {self.advantage} takes an answer's reward as a whole"
            refuse(self.gamma != 1, "ppo.gamma", whole, "ppo.advantage")

    def _check_scores(self) -> None:
        alone = "1 leaves a vote (ppo.reward_rule majority) no other answer to compare with"
        refuse(self.reward_rule == "majority" and self.samples == 1, "ppo.samples", alone, "ppo.reward_rule")
        spread = f"belongs to ppo.reward_rule mean-k-std, which is {self.reward_rule}"
        self._refuse_set("reward_k", self.reward_rule != "mean-k-std", spread)
        moments = "fills running moments, and ppo.reward_norm is none"
        refuse(self.reward_warmup and self.reward_norm == "none", "ppo.reward_warmup", moments, "ppo.reward_norm")
        cut = f"belongs to ppo.truncated penalty, which is {self.truncated}"
        self._refuse_set("truncated_score", self.truncated != "penalty", cut)
        longest = f"({self.overlong_buffer}) is above ppo.max_new_tokens ({self.max_new_tokens})"
        above = self.overlong_buffer > self.max_new_tokens
        refuse(above, "ppo.overlong_buffer", longest, "ppo.max_new_tokens")
        cheaper = (
            "would make it pay to be cut: a cut answer's score is 0 (ppo.truncated zero), one just shorter's is less"
        )
        refuse(self.overlong_buffer and self.truncated == "zero", "ppo.overlong_buffer", cheaper, "ppo.truncated")
        self._refuse_set("overlong_penalty", not self.overlong_buffer, "belongs to ppo.overlong_buffer, which is 0")

    def _check_steps(self, config: Shared) -> None:
        sharded = "needs parallel.data ddp: fsdp shards frozen weights over the ranks in place of it"
        refuse(self.offload != "none" and config.parallel.data == "fsdp", "ppo.offload", sharded, "parallel.data")
        whole = (
            f"({self.minibatches}) is above ppo.prompts_per_step ({self.prompts_per_step}): prompt groups stay whole"
        )
        above = (self.minibatches or 1) > self.prompts_per_step
        refuse(above, "ppo.minibatches", whole, "ppo.prompts_per_step")
        longest = config.data.max_length
        room = f"({self.max_new_tokens}) leaves no room for a prompt in data.max_length ({longest})"
        refuse(self.max_new_tokens >= longest, "ppo.max_new_tokens", room, "data.max_length", "data.tokens_per_pack")
        warmup, steps = self.critic_warmup or 0, config.run.max_steps
        none_left = f"({warmup}) leaves the policy none of the {steps} steps (run.max_steps)"
        refuse(steps and warmup >= steps, "ppo.critic_warmup", none_left, "run.max_steps")
        refuse(config.eval.every and not self.eval_prompts, "eval.every", "is set but ppo.eval_prompts is empty")
        unused = "scores the samples of ppo.eval_prompts, which is empty"
        refuse(self.gold and not self.eval_prompts, "ppo.gold", unused)

    def _refuse_set(self, key: str, unused: bool, text: str) -> None:
        """Refuse a key that does nothing where it differs from its default; a resolved config sets all the others."""
        differs = getattr(self, key) != PPOConfig.model_fields[key].default
        refuse(unused and differs, f"ppo.{key}", text)
