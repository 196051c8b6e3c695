"""Does a suite predict best-of-N selection? Each model picks among candidates; a gold scorer says how good its pick is.

The quality of a model's picks is (mean gold of its picks - that of random picks) / (that of gold's picks - random).
Best of n < N is no simulation: over all C(N, n) subsets of a row's N candidates, the one of rank r (0 the model's
favourite) is picked from C(N - 1 - r, n - 1) of them. Candidates that a model scores alike are picked at random: each
has the mean gold of them. Scorers are compared with gold as RMB does with its downstream alignment, by correlation over
models; the rest of the definition is ours.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.errors import UserError
from rmfast.evaluation.diagnostics.correlate import kendall, pearson, permutation_p, spearman
from rmfast.evaluation.diagnostics.headline import Resamples
from rmfast.evaluation.diagnostics.resample import DRAWS, Figure, Indices, by_prompt, figure, resampled
from rmfast.evaluation.metrics import SEED, Floats

ADDED = ("rewards", "error", "strength_mean", "strength_std", "votes")  # columns that rmfast score writes
FEW = 10  # models below which a correlation is called what it is


@dataclass(frozen=True)
class Candidates:
    """Rows of candidates that M models and a gold scorer have scored.

    Attributes:
        scores: [M] of [rows] of [N]. gold: [rows] of [N].
        prompt: [rows]. left_out: rows that some scorer could not score.
    """

    scores: list[list[Floats]]
    gold: list[Floats]
    prompt: Indices
    left_out: int = 0


@dataclass(frozen=True)
class Picks:
    """A model's picks: their mean gold among all candidates, its quality (0 a random pick, 1 gold's pick), and both by
    the number of candidates n, from 1."""

    name: str
    picked: Figure
    quality: Figure
    curve: list[float]
    quality_curve: list[float]


@dataclass(frozen=True)
class Correlation:
    """Of a figure of the suite (a headline's name, or part and path) with the quality of picks, over models; p of
    Kendall's under permutation."""

    figure: str
    pearson: Figure
    spearman: Figure
    kendall: Figure
    p: float


@dataclass(frozen=True)
class Selection:
    """Best-of-n selection: `most` candidates of a row, mean gold of a random pick and of gold's pick (`gold_curve` by
    n), every model's picks, correlations with the headline first, and what they say in words."""

    rows: int
    rows_left_out: int
    prompts: int
    most: int
    random: float
    best: float
    gold_curve: list[float]
    models: list[Picks]
    correlations: list[Correlation]
    conclusion: str


def read_candidates(models: Sequence[str | Path], gold: str | Path) -> Candidates:
    """Files of `rmfast score`, one a model; a row with several heads or members counts with their mean.

    Raises:
        UserError: a file cannot be read, or does not hold the rows of the gold file; it names the first that differs.
    """
    paths = [*models, gold]
    files = [_read(path) for path in paths]
    for path, rows in zip(paths, files, strict=True):
        for number, (row, of_gold) in enumerate(zip(rows, files[-1], strict=False), 1):
            if row[0] != of_gold[0]:
                raise UserError(f"{path}:{number}: another row than {gold}:{number}; score the same --data with both")
        if len(rows) != len(files[-1]):
            raise UserError(
                f"{path}: {len(rows):,} rows, but {gold} has {len(files[-1]):,}; score the same --data with both"
            )
    scored = [[_rewards(row, path, n) for n, (_, row) in enumerate(rows, 1)]
              for path, rows in zip(paths, files, strict=True)]  # fmt: skip
    kept = []
    for place, each in enumerate(zip(*scored, strict=True)):
        known = [rewards for rewards in each if rewards is not None]
        if len({rewards.size for rewards in known}) > 1:
            sizes = ", ".join(str(rewards.size) for rewards in known)
            raise UserError(f"{paths[0]}:{place + 1}: files differ in the number of rewards ({sizes})")
        if len(known) == len(each) and all(np.isfinite(rewards).all() for rewards in known):
            kept.append(place)
    if not kept:
        raise UserError(f"{gold}: no row of {len(files[-1]):,} was scored by every model and by gold")
    shared = [[rewards[place] for place in kept] for rewards in scored]
    numbers: dict[str, int] = {}
    prompt = [numbers.setdefault(_prompt(files[-1][place][1]), len(numbers)) for place in kept]
    every = [[r for r in rewards if r is not None] for rewards in shared]
    return Candidates(every[:-1], every[-1], np.array(prompt, dtype=np.intp), len(files[-1]) - len(kept))


def _read(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """What each row is beside its scores, and the row."""
    rows = []
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                if not isinstance(row, dict) or "rewards" not in row:
                    raise UserError(f"{path}:{number}: no `rewards`; give a file that rmfast score --out wrote")
                content = {key: value for key, value in row.items() if key not in ADDED}
                rows.append((json.dumps(content, sort_keys=True), row))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file that rmfast score --out wrote") from None
    except ValueError as error:
        raise UserError(f"{path}: no JSON lines ({error}); give a file that rmfast score --out wrote") from None
    return rows


def _rewards(row: dict[str, Any], path: str | Path, number: int) -> Floats | None:
    if row["rewards"] is None:
        return None
    try:
        rewards = np.array(row["rewards"], dtype=np.float64)  # [N] or [members, N]
    except (TypeError, ValueError):
        rewards = np.empty(0)
    if rewards.ndim not in (1, 2) or not rewards.size:
        raise UserError(f"{path}:{number}: `rewards` is no list of numbers; give a file that rmfast score --out wrote")
    return rewards if rewards.ndim == 1 else rewards.mean(0)


def _prompt(row: dict[str, Any]) -> str:
    prompt = row.get("prompt")
    return json.dumps(row if prompt is None else prompt, sort_keys=True, default=str)


def best_of_n(scores: Floats, gold: Floats) -> Floats:
    """Expected gold [N] of the pick by score among n = 1 .. N random candidates, exact; scores and gold [N]."""
    size = scores.size
    level = np.unique(-scores, return_inverse=True)[1].reshape(-1)
    shared = (np.bincount(level, gold) / np.bincount(level))[level]
    ordered = shared[np.argsort(level, kind="stable")]
    return np.asarray(_chances(size) @ ordered)


@lru_cache(maxsize=4)  # rows mostly have the same number of candidates
def _chances(size: int) -> Floats:
    """C(size - 1 - r, n - 1) / C(size, n) [n, r], that the candidate of rank r is the best of n: n / size for rank 0,
    and from rank to rank less by a factor."""
    n, r = np.arange(1, size + 1)[:, None], np.arange(size - 1)
    ratios = np.maximum(size - n - r, 0) / (size - 1 - r)
    return np.asarray(n / size * np.cumprod(np.hstack([np.ones((size, 1)), ratios]), axis=1))


def select(candidates: Candidates, names: Sequence[str], resamples: Sequence[Resamples]) -> Selection:
    """How good the models' picks are, and whether the suite tells.

    A row with fewer than n candidates gives the pick of all that it has. The bootstrap draws prompts of the candidates
    and, apart from them, prompts of the suite.

    Args:
        names, resamples: of the models, in the candidates' order.
    """
    gold, prompt = candidates.gold, candidates.prompt
    most = max(row.size for row in gold)
    prompts = int(prompt.max()) + 1
    curves = [_mean_curve(scores, gold, most) for scores in [*candidates.scores, gold]]
    rows = np.stack([curve[:, -1] for curve in curves] + [curves[-1][:, 0], np.ones(len(gold))], axis=1)
    sums = by_prompt(rows, prompt, prompts)
    total, drawn = sums.sum(0), resampled(sums, seed=SEED + 1)  # other draws than the suite's, which has other prompts
    (*picked, best, random), (*picked_drawn, best_drawn, random_drawn) = (
        (values[..., :-1] / values[..., -1:]).T for values in (total, drawn)
    )
    mean = np.array([curve.mean(0) for curve in curves])
    spread = best - random
    with np.errstate(invalid="ignore", divide="ignore"):
        quality = (np.array(picked) - random) / spread if spread > 0 else np.full(len(names), np.nan)
        quality_drawn = (np.array(picked_drawn) - random_drawn) / (best_drawn - random_drawn)  # [M, D]
    models = []
    for m, name in enumerate(names):
        of_n = (mean[m] - random) / spread if spread > 0 else np.full(most, np.nan)
        estimates = figure(picked[m], picked_drawn[m]), figure(quality[m], quality_drawn[m])
        models.append(Picks(name, *estimates, mean[m].tolist(), of_n.tolist()))
    correlations = _correlations(quality, quality_drawn, resamples)
    return Selection(
        rows=len(gold),
        rows_left_out=candidates.left_out,
        prompts=prompts,
        most=most,
        random=float(random),
        best=float(best),
        gold_curve=mean[-1].tolist(),
        models=models,
        correlations=correlations,
        conclusion=conclusion(len(names), correlations),
    )


def _mean_curve(scores: Sequence[Floats], gold: Sequence[Floats], most: int) -> Floats:
    """`best_of_n` of each row [rows, most]."""
    curves = [best_of_n(s, g) for s, g in zip(scores, gold, strict=True)]
    return np.array([np.pad(curve, (0, most - curve.size), mode="edge") for curve in curves])


def _correlations(quality: Floats, drawn: Floats, resamples: Sequence[Resamples]) -> list[Correlation]:
    """Over models, of the quality with every headline figure and every cell."""
    if len(resamples) < 2:
        return []
    blank = np.full(DRAWS, np.nan)
    first = resamples[0]
    figures = [
        (name, [(r.headline[name], r.headline_drawn.get(name, blank)) for r in resamples]) for name in first.headline
    ]
    figures += [
        (" ".join([part, *path]), [(r.cells[part, path], r.drawn[:, place]) for r in resamples])
        for place, (part, path) in enumerate(first.cells)
    ]
    out = []
    for name, models in figures:
        score = np.array([value for value, _ in models])
        size = min(len(draws) for _, draws in models)  # a headline of rows has fewer
        score_drawn = np.array([draws[:size] for _, draws in models]).T
        estimates = {
            kind: figure(float(of(score, quality)), of(score_drawn, drawn[:, :size].T))
            for kind, of in (("pearson", pearson), ("spearman", spearman), ("kendall", kendall))
        }
        out.append(Correlation(figure=name, p=permutation_p(score, quality), **estimates))
    return out


def conclusion(models: int, correlations: Sequence[Correlation]) -> str:
    """What the first correlation says, with its doubts, for people."""
    if models < 2:
        return "One model: whether the suite predicts selection needs several."
    if models < 4:
        return f"{models} models: a correlation over so few means nothing; take {FEW} or more."
    first = correlations[0]
    tau, p = first.kendall.value, first.p
    if not np.isfinite(tau):
        return f"{first.figure}: all models do alike, there is nothing to correlate."
    sure = "which chance alone would rarely give" if p < 0.05 else "which chance alone may give"
    few = f" {models} models are few: take {FEW} or more." if models < FEW else ""
    return f"Kendall's tau of {first.figure} with the quality of picks is {tau:.2f} (p {p:.3f}), {sure}.{few}"
