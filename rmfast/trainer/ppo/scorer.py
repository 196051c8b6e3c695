"""Reward models that score sampled answers, as they score them anywhere else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rmfast.data.example import Example
from rmfast.data.table import GroupTable
from rmfast.errors import RunError
from rmfast.evaluation.scoring.foreign import ForeignModel
from rmfast.parallel.residence import Movable
from rmfast.parallel.world import World
from rmfast.trainer.ppo.answers import Answers

ReadAnswers = Callable[[Answers], GroupTable]
"""Makes of answers the sequences that a reward model reads: a group for each prompt, in the answers' order."""
ScoreTable = Callable[[GroupTable], np.ndarray]
"""Gives the rewards of all sequences of a table, float64 [B, M], on every rank."""


@dataclass(frozen=True, eq=False)
class Scorer:
    """Reward models that read the same sequences and score them together.

    Args:
        names: of the M members, each a folder or one of its heads.
        read: how they read answers. rewards: how they score what was read.
        held: what holds their weights on the device; None where transformers does.
    """

    names: tuple[str, ...]
    read: ReadAnswers
    rewards: ScoreTable
    held: Movable | None = None

    def score(self, answers: Answers) -> Tensor:
        """fp64 [B, M]: the rewards of each answer, on every rank.

        Raises:
            RunError: a score that is not finite.
        """
        scores = torch.from_numpy(self.rewards(self.read(answers)))
        for name, column in zip(self.names, scores.T, strict=True):
            if not bool(column.isfinite().all()):
                raise RunError(f"{name}: the score of an answer is not finite: its weights are broken")
        return scores


@dataclass(frozen=True, eq=False)
class Rewards:
    """The reward models that a policy is trained against; every head of every folder is a member."""

    scorers: Sequence[Scorer]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the M members."""
        return tuple(name for scorer in self.scorers for name in scorer.names)

    def score(self, answers: Answers) -> Tensor:
        """fp64 [B, M]: each member's reward of each answer, on every rank. See `Scorer.score`."""
        return torch.cat([scorer.score(answers) for scorer in self.scorers], 1)


def head_names(folder: str, heads: int) -> tuple[str, ...]:
    """Names of a folder's members."""
    return (folder,) if heads == 1 else tuple(f"{folder}, head {head}" for head in range(heads))


def score_foreign(model: ForeignModel, world: World, table: GroupTable) -> np.ndarray:
    """Rewards float64 [R, M] of a table's sequences by a transformers model; ranks share its groups."""
    groups = range(world.rank, len(table), world.size)
    found = model.score_examples([Example(None, tuple(table.sequences_of(group))) for group in groups])
    scores = np.zeros((int(table.first_response[-1]), model.heads))
    for group, rewards in zip(groups, found, strict=True):
        scores[table.first_response[group] : table.first_response[group + 1]] = rewards
    return world.sum_(torch.from_numpy(scores)).numpy()
