"""How a reward model reads sampled answers: from their ids, or as text through its tokenizer and template."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rmfast.data.example import BadRow, Example
from rmfast.data.open_end import encode_answers
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.store import store_examples
from rmfast.data.table import GroupTable, build_table
from rmfast.data.tail import Tail
from rmfast.errors import RunError
from rmfast.evaluation.scoring.reader import first_too_long
from rmfast.rollout.stops import draft_text
from rmfast.trainer.ppo.answers import Answers, answer_table


@dataclass(frozen=True, eq=False)
class ById:
    """For a reward model with the policy's tokenizer: the ids that were sampled.

    A cut answer is read as it is: nothing closes it. After one that ended as the chat template ends answers comes what
    the template writes there, so that it is the conversation that `RewardModel.score` reads.

    Args:
        tail: of the policy's chat template.
    """

    tokenizer: PreTrainedTokenizerBase
    tail: Tail

    def __call__(self, answers: Answers) -> GroupTable:
        """See `ReadAnswers`."""
        if not self.tail.after:
            return answers.table
        return answer_table(answers.requests, answers.drafts, self.tokenizer, self.tail)


@dataclass(frozen=True, eq=False)
class ByText:
    """For a reward model with another tokenizer or template: the decoded answers behind their rows' prompts, as
    `RewardModel.score` reads them. A cut answer has nothing behind it that would end it.

    Args:
        name: the reward model's folder.
        policy: the tokenizer that answers are decoded by. tokenizer: the reward model's.
        window: tokens that it takes; None for any number. vocabulary: ids that its embedding has.
    """

    name: str
    policy: PreTrainedTokenizerBase
    tokenizer: PreTrainedTokenizerBase
    window: int | None
    vocabulary: int

    def __call__(self, answers: Answers) -> GroupTable:
        """See `ReadAnswers`.

        Raises:
            RunError: an answer that the reward model cannot read.
        """
        asked = zip(answers.requests, answers.drafts, strict=True)
        texts = [[draft_text(self.policy, request.ids, draft) for draft in drafts] for request, drafts in asked]
        cut = [[draft.stop_reason == "length" for draft in drafts] for drafts in answers.drafts]
        examples: list[Example] = []
        for found in encode_answers(self.tokenizer, answers.prompts, texts, cut):
            if isinstance(found, BadRow):
                raise RunError(f"{self.name} cannot read an answer: {found}")
            examples.append(found)
        store = store_examples(examples, self.tokenizer)
        if beyond := first_too_long(store, self.window):
            raise RunError(
                f"{self.name}: an answer with its prompt has {beyond[1].detail}: lower ppo.max_new_tokens or "
                "data.max_length, and begin again"
            )
        if store.meta["max_id"] >= self.vocabulary:
            raise RunError(f"{self.name}: its tokenizer has ids ({store.meta['max_id']}) that its weights do not have")
        return build_table([store], kind=RESPONSES)[0]
