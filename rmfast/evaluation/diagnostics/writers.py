"""Rewards by who wrote the response, and which writers a model favours beyond what the labels say."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rmfast.evaluation.diagnostics.correlate import centred, ranks_within
from rmfast.evaluation.diagnostics.resample import Figure, Indices, figure, resampled, tallies
from rmfast.evaluation.diagnostics.table import Table
from rmfast.evaluation.metrics import Floats


@dataclass(frozen=True)
class WriterRewards:
    """Rewards of a writer's responses: their number, spread, the mean less that of the prompt's responses, and the mean
    rank within the prompt, from 0 (the last) to 1 (the first)."""

    responses: int
    mean: float
    std: float
    min: float
    q05: float
    q25: float
    median: float
    q75: float
    q95: float
    max: float
    above_prompt: float
    mean_rank: float


NO_REWARDS = WriterRewards(0, *[np.nan] * 11)


@dataclass(frozen=True)
class Writer:
    """How a model treats one writer's responses, on `edges` with another writer: see `by_writer`."""

    name: str
    rewards: WriterRewards | None
    edges: int
    win_share: Figure
    labelled_share: float
    favour: Figure
    beyond_errors: Figure


@dataclass(frozen=True)
class Writers:
    """All writers, the one first that gains most beyond errors; mean and std of all rewards, None without any."""

    reward_mean: float | None
    reward_std: float | None
    writers: list[Writer]


def by_writer(table: Table) -> Writers | None:
    """What a model gives each writer beyond the labels; None where no row names its writers.

    Responses and edges in several rows of a prompt count once. Win shares are over edges whose answers have
    different writers and whose gap is known; a tie is half a win for each. `favour` is the mean over a writer's edges
    of (preferred by the model) - (better by the label). A model that errs at random favours every weak writer so: it
    wins where it should not. `beyond_errors` is the win share less accuracy * labelled + (1 - accuracy) * (1 -
    labelled), what errors that do not look at the writer would give (ours); it tells taste from noise.
    """
    if not table.writers:
        return None
    rewards = [_rewards(table, writer) for writer in range(len(table.writers))]
    shares = _win_shares(table)
    rows = [Writer(name, rewards[w], **shares[w]) for w, name in enumerate(table.writers)]
    known = np.empty(0) if table.reward is None else table.reward[np.isfinite(table.reward)]
    return Writers(
        float(known.mean()) if known.size else None,
        float(known.std()) if known.size else None,
        sorted(rows, key=lambda row: -np.nan_to_num(row.beyond_errors.value, nan=-np.inf)),
    )


def _rewards(table: Table, writer: int) -> WriterRewards | None:
    if table.reward is None:
        return None
    known = np.isfinite(table.reward)
    wrote = table.writer[known] == writer
    reward, owner = table.reward[known], table.owner[known]
    if not wrote.any():
        return NO_REWARDS
    quantiles = np.quantile(reward[wrote], [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0])
    low, q05, q25, median, q75, q95, high = map(float, quantiles)
    mean, std = float(reward[wrote].mean()), float(reward[wrote].std())
    above, rank = centred(reward, owner)[wrote].mean(), ranks_within(reward, owner)[wrote].mean()
    return WriterRewards(int(wrote.sum()), mean, std, low, q05, q25, median, q75, q95, high, float(above), float(rank))


def _win_shares(table: Table) -> list[dict[str, Any]]:
    use = (table.better_writer != table.worse_writer) & np.isfinite(table.gap) & table.first
    use &= (table.better_writer >= 0) & (table.worse_writer >= 0)
    better, worse, prompt = table.better_writer[use], table.worse_writer[use], table.prompt[use]
    wins = (np.sign(table.gap[use]) + 1) / 2  # of the better answer's writer
    count = len(table.writers)

    def sums(of_better: Floats, of_worse: Floats) -> Floats:
        ends: list[tuple[Indices, Floats]] = [(better, of_better), (worse, of_worse)]
        return sum(tallies(prompt, end, table.prompts, count, value) for end, value in ends)  # type: ignore[return-value]

    one = np.ones_like(wins)
    every = np.hstack((sums(wins, 1 - wins), sums(one, 0 * one), sums(one, one), sums(wins, 0 * one)))
    statistics = _statistics(every.sum(0)), _statistics(resampled(every))
    return [
        {
            "edges": int(every[:, 2 * count + w].sum()),
            "win_share": figure(statistics[0]["won"][w], statistics[1]["won"][:, w]),
            "labelled_share": float(statistics[0]["labelled"][w]),
            "favour": figure(statistics[0]["favour"][w], statistics[1]["favour"][:, w]),
            "beyond_errors": figure(statistics[0]["beyond"][w], statistics[1]["beyond"][:, w]),
        }
        for w in range(count)
    ]


@np.errstate(invalid="ignore", divide="ignore")
def _statistics(sums: Floats) -> dict[str, Floats]:
    """Shares [..., W] from sums of wins, labels, edges, and wins of labelled answers [..., 4 W]."""
    won, labelled, edges, right = np.split(sums, 4, axis=-1)
    accuracy = right.sum(-1, keepdims=True) / labelled.sum(-1, keepdims=True)
    won, labelled = won / edges, labelled / edges
    chance = accuracy * labelled + (1 - accuracy) * (1 - labelled)
    return {"won": won, "labelled": labelled, "favour": won - labelled, "beyond": won - chance}
