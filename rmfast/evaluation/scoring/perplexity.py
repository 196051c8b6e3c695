"""How likely a language model finds held-out demonstrations."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from rmfast.data.pack import Pack
from rmfast.data.table import GroupTable
from rmfast.evaluation.metrics import Z95
from rmfast.evaluation.scoring.score import table_packs
from rmfast.models.network import Outputs, Reads
from rmfast.parallel.world import World

ReadPacks = Callable[[Sequence[Pack], Callable[[Pack], Reads]], list[Outputs]]

GREEDY = 1e-4
"""The temperature at which a token that is the likeliest has nearly all of the probability: above a half, unless
another logit is within it."""


def evaluate_demonstrations(
    read: ReadPacks, table: GroupTable, world: World | None = None, *, budget: int
) -> dict[str, float | int]:
    """Loss, perplexity and token accuracy on a table of demonstrations, on every rank.

    Args:
        read: what the model gives for packs (`Engine.read`); twice for each.
        world, budget: see `table_packs`.

    Returns:
        rows, tokens: counts of demonstrations and of their targets.
        loss: mean negative log-likelihood of a target. perplexity: exp of it.
        mean_token_accuracy: share of the targets that are the likeliest token.
        *_low, *_high of the three: 95 % interval over rows, see `ratio_interval`.
    """
    sums = np.zeros((2, len(table)))
    for packs, _ in table_packs(table, world, budget=budget, predicts="targets"):
        for row, temperature in enumerate((1.0, GREEDY)):
            for pack, outputs in zip(packs, read(packs, _reads(temperature)), strict=True):
                if not len(pack.responses):
                    continue
                assert outputs.log_prob is not None
                values = outputs.log_prob.double().cpu().numpy()
                values = values > np.log(0.5) if row else -values
                # A demonstration is one response: they are numbered as the table's rows.
                np.add.at(sums[row], pack.responses[pack.targets.response.cpu().numpy()], values)
    if world is not None:
        sums = world.sum_(torch.from_numpy(sums)).numpy()
    losses, right = sums
    loss, low, high = ratio_interval(losses, table.lm)
    share, fewest, most = ratio_interval(right, table.lm)
    return {
        "rows": len(table),
        "tokens": int(table.lm.sum()),
        "loss": loss,
        "loss_low": low,
        "loss_high": high,
        "perplexity": float(np.exp(loss)),
        "perplexity_low": float(np.exp(low)),
        "perplexity_high": float(np.exp(high)),
        "mean_token_accuracy": share,
        "mean_token_accuracy_low": max(fewest, 0.0),
        "mean_token_accuracy_high": min(most, 1.0),
    }


def _reads(temperature: float) -> Callable[[Pack], Reads]:
    def reads(pack: Pack) -> Reads:
        rows, ids = pack.targets.rows, pack.targets.ids
        return Reads(scores=rows[:0], log_prob=(rows, ids), temperature=temperature)

    return reads


def ratio_interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """The mean of all tokens and its 95 % interval: rows are drawn, each with all of its tokens.

    The standard error is that of a ratio estimator (Cochran, Sampling Techniques, 1977, 2.11). NaN for a single row.

    Args:
        sums: of the tokens of each row [G]. counts: its tokens [G].
    """
    mean = float(sums.sum() / counts.sum())
    rows = len(sums)
    if rows < 2:
        return mean, float("nan"), float("nan")
    spread = np.square(sums - mean * counts).sum() * rows / (rows - 1)
    half = Z95 * float(np.sqrt(spread)) / float(counts.sum())
    return mean, mean - half, mean + half
