"""Sequences in groups by what they begin with: the cuts are the best, and scores are those of each alone."""

from itertools import combinations

import numpy as np
import pytest

import rmfast
from rmfast.evaluation.scoring import sequences as module
from rmfast.evaluation.scoring.sequences import by_beginning, score_distinct
from tests.scoring import CLOSE, save_reward_model


def saved(groups: list[list[int]], sequences: list[np.ndarray]) -> int:
    shared = [min(module.common_prefix(sequences[group[0]], sequences[i]) for i in group) for group in groups]
    return sum(prefix * (len(group) - 1) for prefix, group in zip(shared, groups, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_groups_save_the_most_tokens(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT", 1)
    draw = np.random.default_rng(seed)
    found = {tuple(draw.integers(0, 2, draw.integers(1, 9)).tolist()) for _ in range(8)}
    sequences = [np.array(one, dtype=np.int32) for one in sorted(found, key=str)]
    groups = by_beginning(sequences)
    assert sorted(i for group in groups for i in group) == list(range(len(sequences)))
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].tolist())
    cuts = (cut for many in range(len(order)) for cut in combinations(range(1, len(order)), many))
    best = max(
        saved([order[a:b] for a, b in zip((0, *cut), (*cut, len(order)), strict=True)], sequences) for cut in cuts
    )
    assert saved(groups, sequences) == best


@pytest.mark.parametrize("budget", [1, 40, 4096])
def test_scores_are_those_of_each_alone(tmp_path: object, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT", 1)
    model = rmfast.load(save_reward_model(tmp_path / "m"))  # type: ignore[operator]
    draw = np.random.default_rng(1)
    prompt, answer = draw.integers(3, 4000, 20).tolist(), draw.integers(3, 4000, 9).tolist()
    rows = [prompt, prompt + answer, prompt + answer[:4], answer, [*prompt[:10], *answer], prompt + answer, [5]]
    rows += [draw.integers(3, 4000, draw.integers(1, 30)).tolist() for _ in range(9)]
    ids = [np.array(row, dtype=np.int32) for row in rows]
    sizes: list[int] = []

    def counted(pack: module.SequencePack) -> module.Tensor:
        sizes.append(len(pack.tokens))
        return model.network.score(pack)

    each = [score_distinct([one], model.network.score, budget=4096)[0, 0] for one in ids]
    together = score_distinct(ids, counted, budget=budget)[:, 0]
    assert np.abs(together - each).max() < CLOSE and together[1] == together[5]
    assert sum(sizes) < sum(map(len, ids)) - 60  # what they begin with is computed once
    assert max(sizes) <= max(budget, 40)
    bits = score_distinct(ids, model.network.score, budget=budget, alone=True)[:, 0]
    assert bits.tolist() == each
