"""The answers to a step's prompts: their table and packs, and figures of their tokens, answer after answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rmfast.data.example import Example
from rmfast.data.loader import Totals, pinned, rank_packs, totals_of
from rmfast.data.pack import Pack
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.store import store_examples
from rmfast.data.table import GroupTable, build_table
from rmfast.data.tail import Tail
from rmfast.parallel.world import World
from rmfast.rollout.draft import Draft, Request

NO_TAIL = Tail()


@dataclass(frozen=True, eq=False)
class Answers:
    """B answers of T tokens in all, the same on every rank.

    Attributes:
        requests: the prompts. drafts: of each its answers.
        table: a group for each prompt, of which every answer is a response.
        prompts: the prompts as their rows have them; none where no reward model reads texts.
    """

    requests: Sequence[Request]
    drafts: Sequence[Sequence[Draft]]
    table: GroupTable
    prompts: Sequence[Example] = ()

    @classmethod
    def of(
        cls,
        requests: Sequence[Request],
        drafts: Sequence[Sequence[Draft]],
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Example] = (),
    ) -> "Answers":
        return cls(requests, drafts, answer_table(requests, drafts, tokenizer), prompts)

    @property
    def flat(self) -> list[Draft]:
        """All answers, in the table's order."""
        return [draft for of_prompt in self.drafts for draft in of_prompt]

    @cached_property
    def lengths(self) -> Tensor:
        """int64 [B]: tokens of each answer."""
        return torch.tensor([len(draft.ids) for draft in self.flat])

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [B]: where each answer's first token is among the T."""
        lengths = self.lengths.numpy()
        return np.cumsum(lengths) - lengths

    @cached_property
    def groups(self) -> Tensor:
        """int64 [B]: the prompt of each answer."""
        return torch.repeat_interleave(torch.tensor([len(of_prompt) for of_prompt in self.drafts]))

    @cached_property
    def cut(self) -> Tensor:
        """bool [B]: whether an answer ended because there was no room for more."""
        return torch.tensor([draft.stop_reason == "length" for draft in self.flat])

    @cached_property
    def behaviour(self) -> Tensor:
        """fp64 [T]: log-probabilities under the distribution that tokens were drawn from."""
        return torch.from_numpy(np.concatenate([draft.behaviour_log_prob for draft in self.flat])).double()

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def packs(self, rows: np.ndarray, world: World, budget: int) -> list[Pack]:
        """This rank's packs of some prompts with their answers, which lists every token of these as predicted."""
        limit = max(budget, int(self.table.stored[rows].max()))
        packs, _ = rank_packs(self.table, rows, ranks=world.size, rank=world.rank, budget=limit, predicts="all")
        return pinned(packs) if world.device.type == "cuda" else packs

    def index(self, pack: Pack) -> np.ndarray:
        """int64 [L]: which of the T tokens a pack's predicted ones are."""
        response = pack.targets.response.numpy()
        counts = np.bincount(response, minlength=len(pack.responses))
        within = np.arange(len(response)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.starts[pack.responses[response]] + within

    def beside(self, pack: Pack, columns: Mapping[str, Tensor]) -> Pack:
        """A pack with figures of its predicted tokens, in fp32. columns: [T] each."""
        index = torch.from_numpy(self.index(pack))
        taken = {name: column[index].float() for name, column in columns.items()}
        if pack.tokens.is_pinned():
            taken = {name: column.pin_memory() for name, column in taken.items()}
        return replace(pack, targets=replace(pack.targets, beside=taken))

    def totals(self, rows: np.ndarray, tokens: int) -> Totals:
        """What means over some prompts' answers divide by. tokens: of these, those that count."""
        return replace(totals_of(self.table, rows), lm_tokens=tokens)


def answer_table(
    requests: Sequence[Request],
    drafts: Sequence[Sequence[Draft]],
    tokenizer: PreTrainedTokenizerBase,
    tail: Tail = NO_TAIL,
) -> GroupTable:
    """A table of prompts with their answers, as token ids.

    Args:
        tail: what follows answers that ended.
    """
    examples = []
    for request, of_prompt in zip(requests, drafts, strict=True):
        front, answers = request.ids.tolist(), [draft.ids.tolist() for draft in of_prompt]
        whole = tuple([*front, *answer, *tail.of(front, answer)] for answer in answers)
        examples.append(Example(None, whole, prompt_ids=len(front)))
    return build_table([store_examples(examples, tokenizer)], kind=RESPONSES)[0]


def minibatches(prompts: int, parts: int, seed: Sequence[int]) -> list[np.ndarray]:
    """Prompts in random order, in so many parts that differ by one at most; none is empty."""
    order = np.random.default_rng(list(seed)).permutation(prompts)
    return [part for part in np.array_split(order, parts) if len(part)]
