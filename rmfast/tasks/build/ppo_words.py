"""What a run of PPO says before its first step."""

from collections.abc import Collection, Sequence
from pathlib import Path

from rmfast.config import Config
from rmfast.data.tail import answer_end
from rmfast.tasks.build.inputs import Inputs


def beginning(config: Config, inputs: Inputs, ends: Collection[int], members: Sequence[str]) -> list[str]:
    """What a new run begins with, in words.

    Args:
        ends: ids that end an answer. members: names of the reward models.
    """
    ppo = config.ppo
    named = ", ".join(f"{number} {name}" for number, name in enumerate(members))
    rewards = members[0] if len(members) == 1 else f"the {ppo.reward_rule} of members {named},"
    critic = "no critic" if ppo.critic is None else f"critic from {ppo.critic}, {ppo.critic_warmup} steps alone first"
    norm = "as they are" if ppo.reward_norm == "none" else "by running moments"
    norm += f", clipped to {ppo.reward_clip:g}" if ppo.reward_clip else ""
    return [
        f"{ppo.preset}: {ppo.advantage}, {critic}; KL {ppo.kl:g} to {ppo.reference or config.model.path} in the "
        f"{ppo.kl_in if ppo.kl_in != 'both' else 'reward and the loss'}; scores of {rewards} {norm}",
        f"sampling: temperature {ppo.temperature:g}, top_p {ppo.top_p:g}, top_k {ppo.top_k}, min_p {ppo.min_p:g}, "
        f"repetition penalty {ppo.repetition_penalty:g}, at most {ppo.max_new_tokens:,} tokens, which "
        f"{_shown(inputs, ends) or 'nothing'} ends; cut answers: {ppo.truncated}",
    ]


def _shown(inputs: Inputs, ids: Collection[int]) -> str:
    return ", ".join(repr(inputs.tokenizer.convert_ids_to_tokens(token)) for token in sorted(ids))


def notes(config: Config, inputs: Inputs, ends: Collection[int]) -> tuple[str, ...]:
    """What may make a run learn something else, or take more, than it says.

    Args:
        ends: ids that end an answer.
    """
    ppo, found = config.ppo, []
    closes = answer_end(inputs.tokenizer) if any(s.meta["has_messages"] for s in inputs.table.stores) else None
    if closes is not None and closes not in ends:
        found.append(
            f"the chat template closes an answer with {_shown(inputs, [closes])}, which does not end one here: answers "
            f"run on until they are cut; add it to eos_token_id in {Path(config.model.path) / 'generation_config.json'}"
        )
    group = int(inputs.table.stored.max()) + ppo.samples * ppo.max_new_tokens
    if group > config.data.tokens_per_pack:
        found.append(
            f"a prompt with its {ppo.samples} answers may have {group:,} tokens, more than data.tokens_per_pack "
            f"({config.data.tokens_per_pack:,}): it is a pack alone, and takes the memory of one"
        )
    if ppo.repetition_penalty != 1.0:
        found.append(
            "ppo.repetition_penalty: what is drawn depends on the text before, and is no policy's; updates take it for "
            "the policy's (sampler_gap shows by how much they differ)"
        )
    if ppo.top_p < 1 or ppo.top_k or ppo.min_p:
        found.append(
            "ppo.top_p, top_k, min_p: answers come from a part of the policy's distribution; updates take them for "
            "draws from all of it (kept_mass shows the part)"
        )
    if ppo.kl_in == "both":
        found.append("ppo.kl_in both: KL counts twice, in the reward and in the loss")
    return tuple(found)
