"""How alike the answers of a policy are: SelfBLEU and the cosine of features, over answers to different prompts."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rmfast.evaluation.metrics import Floats

ORDERS = (2, 3, 4, 5)
"""Largest n-grams of SelfBLEU, as in the AAAI paper's table 3."""


def self_bleu(texts: Sequence[str]) -> Floats:
    """SelfBLEU of each text against all others (Zhu et al., 2018), [N, 4]: BLEU of n-grams up to 2, 3, 4 and 5.

    Words are what spaces separate. Clipped matches are over the best of the other texts, n-grams of one length have
    equal weight, a length without any match counts as half a match, and the brevity penalty takes the length that is
    nearest. nan for a text without words, and where there is no other.
    """
    words = [text.split() for text in texts]
    lengths = np.array([len(one) for one in words])
    out = np.full((len(words), len(ORDERS)), np.nan)
    kept = np.flatnonzero(lengths)
    if len(kept) < 2:
        return out
    precisions = np.stack([_precisions([words[i] for i in kept], order) for order in range(1, ORDERS[-1] + 1)], axis=1)
    penalty = _brevity(lengths[kept])
    for place, order in enumerate(ORDERS):
        logs = np.log(precisions[:, :order])
        # Of a text with fewer words there are no such n-grams: those that it has count.
        out[kept, place] = penalty * np.exp(np.nanmean(logs, axis=1))
    return out


def _precisions(words: Sequence[Sequence[str]], order: int) -> Floats:
    """Clipped precision [N] of each text's n-grams of a length; nan without any."""
    grams = [Counter(zip(*(one[i:] for i in range(order)), strict=False)) for one in words]
    most: dict[tuple[str, ...], list[int]] = {}  # how often at most, in which text, and how often in any other one
    for number, counts in enumerate(grams):
        for gram, count in counts.items():
            best = most.setdefault(gram, [0, -1, 0])
            if count > best[0]:
                best[:] = [count, number, best[0]]
            else:
                best[2] = max(best[2], count)
    out = np.full(len(words), np.nan)
    for number, counts in enumerate(grams):
        total = sum(counts.values())
        if total:
            others = ((count, most[gram]) for gram, count in counts.items())
            matched = sum(min(count, best[2] if best[1] == number else best[0]) for count, best in others)
            out[number] = max(matched, 0.5) / total
    return out


def _brevity(lengths: np.ndarray) -> Floats:
    """BLEU's brevity penalty [N], of each text's length against the nearest other one."""
    order = np.argsort(lengths, kind="stable")
    ranked = lengths[order].astype(float)
    before, after = np.r_[-np.inf, ranked[:-1]], np.r_[ranked[1:], np.inf]
    nearest = np.where(ranked - before <= after - ranked, before, after)
    out = np.empty(len(lengths))
    out[order] = np.where(nearest > ranked, np.exp(1 - nearest / ranked), 1.0)
    return out


def mean_cosine(features: Floats) -> Floats:
    """Mean cosine [N] of each text's features [N, d] with all others'; nan where there is no other."""
    if len(features) < 2:
        return np.full(len(features), np.nan)
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    return np.asarray(((unit @ unit.sum(0)) - 1) / (len(features) - 1))
