"""A finished rollout as it is kept: what it was, and what was made of it."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rmfast.data.example import Example
from rmfast.rollout.stops import draft_text
from rmfast.trainer.ppo.answers import Answers
from rmfast.trainer.ppo.experience import Experience
from rmfast.trainer.ppo.rollouts import exact, sample_record


def drawn_records(tokenizer: PreTrainedTokenizerBase, answers: Answers) -> Iterator[dict[str, Any]]:
    """A record of each prompt, as a row of MetaRM's data: `prompt`, `responses` and no edges, as texts; the prompt as
    its row has it, where a reward model reads that.

    `samples`, one for each response: token ids and why they ended; of each token the log-probability at temperature 1
    and that of the distribution it was drawn from, as the sampler gave them.
    """
    for number, (request, drafts) in enumerate(zip(answers.requests, answers.drafts, strict=True)):
        yield {
            "prompt": tokenizer.decode(request.ids.tolist()),
            **(_asked(answers.prompts[number]) if answers.prompts else {}),
            "responses": [draft_text(tokenizer, request.ids, draft) for draft in drafts],
            "edges": [],
            "samples": [sample_record(draft) for draft in drafts],
        }


def _asked(prompt: Example) -> dict[str, Any]:
    """The columns of a prompt's row that say what is asked."""
    columns = {"prompt": prompt.prompt, "tools": prompt.tools, "chat_template_kwargs": prompt.template_kwargs}
    return {name: value for name, value in columns.items() if value}


def records(
    tokenizer: PreTrainedTokenizerBase, answers: Answers, raw: Tensor, found: Experience
) -> Iterator[dict[str, Any]]:
    """The same, with what was made of it.

    A sample's tokens have their log-probabilities at the sampling temperature too, the policy's and the reference's,
    and the critic's value of the state before; a sample the value of the state after it, the raw reward (a mean
    over members where there are several, whose `rewards` are beside it), the score that it became (null where it is
    masked), and KL.

    Args:
        raw: [B, M], of the members.
    """
    read, kl = found.read, found.read.kl(answers.lengths).tolist()
    ends = [0, *answers.lengths.cumsum(0).tolist()]
    scores, kept = found.scored.scores.tolist(), found.scored.kept.tolist()
    number = 0
    for record in drawn_records(tokenizer, answers):
        samples = []
        for drawn in record["samples"]:
            tokens = slice(ends[number], ends[number + 1])
            sample = {
                **drawn,
                "log_prob": exact(read.old_log_prob[tokens]),
                "reference_log_prob": exact(read.reference[tokens]),
            }
            if read.values is not None and read.after is not None:
                sample |= {"value": exact(read.values[tokens]), "value_after": float(read.after[number])}
            score = scores[number] if kept[number] else None
            rewards: dict[str, Any] = {"reward": float(raw[number].mean())}
            if raw.shape[1] > 1:
                rewards |= {"rewards": raw[number].tolist()}
            samples.append(sample | rewards | {"score": score, "kl": kl[number]})
            number += 1
        yield record | {"samples": samples}
