"""The bootstrap over prompts, on sums: draw prompts, add up what they hold, compute the statistic from the sums.

Rows of one prompt share responses, so that prompts are what is independent. The draws depend on the number of prompts
and the seed alone: two models on the same rows get the same draws, and their difference is a paired one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmfast.evaluation.metrics import SEED, Floats, wilson

DRAWS = 1000
BLOCK = 4_000_000  # counts that are held at once

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Figure:
    """An estimate and its 95 % interval; nan for what nothing defines."""

    value: float
    low: float = np.nan
    high: float = np.nan

    @property
    def side(self) -> int:
        """1 where the whole interval is above 0, -1 where it is below, else 0."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Share:
    """A share of `count` rows and its 95 % interval."""

    count: int
    value: float
    low: float
    high: float


def resampled(sums: Floats, draws: int = DRAWS, seed: int = SEED) -> Floats:
    """Sums over drawn prompts, [draws, K], of each prompt's [P, K]; as many prompts are drawn as there are."""
    prompts = len(sums)
    out = np.empty((draws, sums.shape[1]))
    block = max(1, BLOCK // max(prompts, 1))
    for start in range(0, draws, block):
        stop = min(start + block, draws)
        out[start:stop] = _counts(prompts, start, stop, seed) @ sums
    return out


@lru_cache(maxsize=1)  # one suite's diagnostics ask for the same draws over and over
def _counts(prompts: int, start: int, stop: int, seed: int) -> Floats:
    """How often each prompt is drawn, [stop - start, prompts]."""
    generator = np.random.default_rng((seed, start))
    drawn = (generator.integers(prompts, size=prompts) for _ in range(start, stop))
    return np.array([np.bincount(prompt, minlength=prompts) for prompt in drawn], dtype=np.float64)


def by_prompt(values: ArrayLike, prompt: Indices, prompts: int) -> Floats:
    """Sums [P, K] over each prompt's rows, of values [n, K] (or [n]: K is 1) with prompts [n]."""
    columns = np.asarray(values, dtype=np.float64).reshape(len(prompt), -1)
    return np.stack([np.bincount(prompt, column, prompts) for column in columns.T], axis=1)


def tallies(prompt: Indices, kind: Indices, prompts: int, kinds: int, weight: ArrayLike | None = None) -> Floats:
    """Sums [P, kinds] of the weights [n] (default 1) of rows that are of a prompt and a kind [n]."""
    flat = np.bincount(prompt * kinds + kind, None if weight is None else np.asarray(weight, float), prompts * kinds)
    return flat.reshape(prompts, kinds).astype(np.float64)


def figure(value: float, draws: ArrayLike | None = None) -> Figure:
    """An estimate and the middle 95 % of its draws; draws in which it is undefined do not count."""
    known = np.asarray([] if draws is None else draws, dtype=np.float64)
    known = known[np.isfinite(known)]
    low, high = np.quantile(known, [0.025, 0.975]) if known.size > 1 and np.isfinite(value) else (np.nan, np.nan)
    return Figure(float(value), float(low), float(high))


def of_sums(statistic: Callable[[Floats], Floats], sums: Floats) -> Figure:
    """The figure of a statistic of sums, [..., K] -> [...], with each prompt's [P, K]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(sums.sum(0)))
        return figure(value, statistic(resampled(sums)) if len(sums) > 1 else None)


@np.errstate(invalid="ignore", divide="ignore")
def shares(flags: ArrayLike, kind: Indices, prompt: Indices, prompts: int, kinds: int) -> list[Share]:
    """Of each kind of rows the share of flags among them.

    Where resampling is blind (all flags of a kind alike), the interval is Wilson's, the kind's prompts its sample.

    Args:
        flags: [n] 0 to 1. kind, prompt: of each row [n].
    """
    sums = np.hstack([tallies(prompt, kind, prompts, kinds, weight) for weight in (flags, None)])
    (hits, count), draws = np.split(sums.sum(0), 2), resampled(sums)
    drawn = draws[:, :kinds] / draws[:, kinds:]
    out = []
    for place in range(kinds):
        share = figure(hits[place] / count[place], drawn[:, place])
        low, high = share.low, share.high
        if count[place] and not high - low > 1e-12:
            size = int(np.count_nonzero(sums[:, kinds + place]))
            low, high = wilson(share.value * size, size)
        out.append(Share(int(count[place]), share.value, low, high))
    return out
