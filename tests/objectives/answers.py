"""Sampled answers as packs with columns beside their tokens, and what plain softmaxes give of each answer alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rmfast.data.loader import Totals, rank_packs, totals_of
from rmfast.data.pack import Pack, empty_pack
from tests.tiny import Group, group_of, ids, table_of

Columns = Mapping[str, Sequence[Tensor]]
"""By name, [tokens] of each answer of a table."""


def answered() -> list[Group]:
    """Prompts with answers that share tokens of their own: some begin alike, one begins another, two are equal."""
    g = np.random.default_rng(8)
    prompt, start, ends = ids(g, 5), ids(g, 3), [ids(g, n) for n in (4, 2, 1)]
    together = [prompt + start + end for end in (*ends, [])]
    equal = [prompt[:4] + ends[0]] * 2 + [prompt[:4] + ends[1]]
    return [Group(together, answer=[5] * 4), Group(equal, answer=[4] * 3), group_of(g, 6, [5, 3]), group_of(g, 3, [2])]


def each_answer(groups: Sequence[Group]) -> list[tuple[list[int], int]]:
    """Full sequences, and where their answers begin."""
    return [pair for group in groups for pair in zip(group.sequences, group.answers, strict=True)]


def per_answer(groups: Sequence[Group], draw: Callable[[int], Tensor]) -> list[Tensor]:
    """A column: what is drawn for an answer of so many tokens."""
    return [draw(len(sequence) - begin) for sequence, begin in each_answer(groups)]


def packs_of(columns: Columns, *, budget: int, ranks: int = 1, rank: int = 0, dtype: torch.dtype) -> list[Pack]:
    """This rank's packs of all answers, in which every token of theirs is predicted."""
    table = table_of(answered())
    packs, _ = rank_packs(table, np.arange(len(table)), ranks=ranks, rank=rank, budget=budget, predicts="all")
    return [beside(pack, columns, dtype) for pack in packs]


def beside(pack: Pack, columns: Columns, dtype: torch.dtype) -> Pack:
    """The pack with its answers' columns; one without work has none."""
    of_pack = {name: [values[i] for i in pack.responses] for name, values in columns.items()}
    joined = {name: torch.cat(values).to(dtype) for name, values in of_pack.items() if values}
    return replace(pack, targets=replace(pack.targets, beside=joined))


def idle() -> Pack:
    """A pack without work."""
    return beside(empty_pack(), {}, torch.float32)


def totals(mask: Sequence[Tensor]) -> Totals:
    """Of all answers, counting the tokens that take part."""
    whole = totals_of(table_of(answered()), np.arange(len(answered())))
    return replace(whole, lm_tokens=int(torch.cat(list(mask)).sum()))


def dense_policy(
    model: PreTrainedModel, temperature: float = 1.0, known: int | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities and entropies of each answer's tokens, each sequence run alone."""
    log_probs, entropies = [], []
    for sequence, begin in each_answer(answered()):
        logits = model(torch.tensor([sequence])).logits[0, begin - 1 : -1, :known]
        probabilities = (logits / temperature).softmax(-1)
        target = torch.tensor(sequence[begin:])[:, None]
        log_probs.append(probabilities.gather(1, target)[:, 0].log())
        entropies.append(-(probabilities * probabilities.log()).sum(-1))
    return log_probs, entropies


def dense_values(model: PreTrainedModel) -> list[Tensor]:
    """The score of the token before each of an answer's, each sequence run alone."""
    hidden = [(model.model(torch.tensor([s])).last_hidden_state[0], begin) for s, begin in each_answer(answered())]
    return [model.score(states[begin - 1 : -1])[:, 0] for states, begin in hidden]


def split(pack: Pack, values: Tensor) -> dict[int, Tensor]:
    """Values [L] of a pack's targets by the number of the answer that they belong to."""
    return {answer: values[pack.targets.response == i] for i, answer in enumerate(pack.responses.tolist())}
