"""Scores of a table are the same however its groups are laid into packs and spread over ranks; strengths by hand."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmfast.data.example import Example
from rmfast.data.pack import Pack
from rmfast.data.rows import parse_row
from rmfast.data.table import GroupTable
from rmfast.evaluation.scoring import score as module
from rmfast.evaluation.scoring.rows import strengths
from rmfast.evaluation.scoring.score import evaluate_table, score_table
from rmfast.models.hf import load_network
from rmfast.parallel.world import World
from tests.tiny import Group, group_of, hf_scores, odd_groups, save_hf_model, table_of

GROUPS = odd_groups()
TABLE = table_of(GROUPS)
LARGEST = max(g.prefix + sum(len(s) - g.prefix for s in g.sequences) for g in GROUPS)
RESPONSES = sum(len(g.sequences) for g in GROUPS)
SEQUENCES = [sequence for group in GROUPS for sequence in group.sequences]
STARTS = np.cumsum([0] + [len(g.sequences) for g in GROUPS[:-1]])
FIRST_TWIN = [start + g.sequences.index(s) for start, g in zip(STARTS, GROUPS, strict=True) for s in g.sequences]


class Rank(World):
    """One rank of several, alone: what it adds to a sum is kept."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size
        self.added: list[Tensor] = []

    def check_signals(self, reached: str) -> None:
        pass  # what is summed is what this class is asked for

    def sum_(self, tensor: Tensor) -> Tensor:
        self.added.append(tensor.clone())
        return tensor


class Scorer:
    """Scores [S, 2] that tell the response and its last token; remembers its packs, call by call."""

    def __init__(self) -> None:
        self.calls: list[list[Pack]] = []

    def __call__(self, packs: Sequence[Pack]) -> list[Tensor]:
        self.calls.append(list(packs))
        return [self.one(pack) for pack in packs]

    @staticmethod
    def one(pack: Pack) -> Tensor:
        if not len(pack.responses):  # without work: one token is scored all the same
            return torch.full((1, 2), 1e9)
        return torch.stack([torch.from_numpy(pack.responses).float() + 1, pack.tokens[pack.scored].float()], dim=1)


WANTED = np.array([[number + 1, sequence[-1]] for number, sequence in enumerate(SEQUENCES)], dtype=np.float64)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("budget", [1, 60, 100_000])
@pytest.mark.parametrize("chunk", [4, 1024])
def test_packs_and_ranks_share_the_work(monkeypatch: pytest.MonkeyPatch, ranks: int, budget: int, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    worlds, scorers = [Rank(rank, ranks) for rank in range(ranks)], [Scorer() for _ in range(ranks)]
    parts = [score_table(s, TABLE, w, budget=budget) for s, w in zip(scorers, worlds, strict=True)]
    assert [part.shape for part in parts] == [(RESPONSES, 2)] * ranks
    assert all(part.dtype == np.float64 for part in parts)
    # What all ranks get is the sum over them: every response once, and nothing of packs without work.
    assert all(len(w.added) == 1 and w.added[0].dtype == torch.float64 for w in worlds)
    np.testing.assert_array_equal(sum(w.added[0].numpy() for w in worlds), WANTED)
    packs = [pack for scorer in scorers for call in scorer.calls for pack in call]
    assert sorted(np.concatenate([pack.responses for pack in packs]).tolist()) == list(range(RESPONSES))
    # Collectives inside the model meet: the same calls and packs on every rank.
    assert len({tuple(len(call) for call in scorer.calls) for scorer in scorers}) == 1
    assert max(len(pack.tokens) for pack in packs) <= max(budget, LARGEST)


def many_pairs(count: int) -> GroupTable:
    return table_of([group_of(np.random.default_rng(i), 60, [40, 30], [(0, 1)]) for i in range(count)])


def test_many_ranks_run_packs_as_full_as_one() -> None:
    """A rank's share of a chunk is what a single process plans at a time, whatever the number of ranks."""
    table, scorer = many_pairs(5000), Scorer()
    score_table(scorer, table, Rank(3, 64), budget=4096)
    sizes = [len(pack.tokens) for call in scorer.calls for pack in call]
    assert np.mean(sizes) >= 2048 and sum(sizes) == pytest.approx(5000 * 130 / 64, rel=0.05)


def test_the_next_chunk_is_built_while_one_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    built, plan = threading.Semaphore(0), module.rank_packs
    ahead: list[bool] = []
    threads = set()

    def planned(*args: Any, **options: Any) -> Any:
        threads.add(threading.current_thread())
        out = plan(*args, **options)
        built.release()
        return out

    def score(packs: Sequence[Pack]) -> list[Tensor]:
        wanted = {0: 2, 1: 1}.get(len(ahead), 0)  # of three chunks, the second and third come without being asked for
        ahead.append(all(built.acquire(timeout=5) for _ in range(wanted)))
        return [Scorer.one(pack) for pack in packs]

    monkeypatch.setattr(module, "rank_packs", planned)
    seen: list[tuple[int, int]] = []
    table = many_pairs(8)
    score_table(score, table, budget=200, progress=lambda done, of: seen.append((done, of)))
    assert ahead == [True] * 3 and seen == [(3, 8), (6, 8), (8, 8)]
    assert threading.current_thread() not in threads


def test_without_a_world_nothing_is_summed() -> None:
    np.testing.assert_array_equal(score_table(Scorer(), TABLE, budget=60), WANTED[FIRST_TWIN])


def test_identical_responses_get_the_score_of_the_first() -> None:
    """Else rounding would break their ties."""
    assert list(range(RESPONSES)) != FIRST_TWIN  # the groups have twins
    got = score_table(Scorer(), TABLE, budget=60)
    np.testing.assert_array_equal(got, got[FIRST_TWIN])


def test_a_larger_budget_means_fewer_packs() -> None:
    counts = []
    for budget in (1, 200, 100_000):
        scorer = Scorer()
        score_table(scorer, TABLE, budget=budget)
        counts.append(sum(len(call) for call in scorer.calls))
    assert counts[0] > counts[1] > counts[2] == 1


def test_a_network_scores_a_table_as_transformers_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("score")
    reference = save_hf_model("qwen3", folder, num_labels=2)
    network, _ = load_network(folder, label="ensemble")
    with torch.no_grad():
        want = hf_scores(reference, SEQUENCES).double().numpy()
        for budget in (1, 90):
            got = score_table(lambda packs: [network.score(p) for p in packs], TABLE, budget=budget)
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_low_precision_scores_become_float64() -> None:
    got = score_table(lambda packs: [Scorer.one(p).bfloat16() for p in packs], TABLE, budget=60)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, WANTED[FIRST_TWIN], rtol=2**-8)


def held_out() -> GroupTable:
    """Last tokens are the scores: 5 > 3 won, 4 = 4 tied, then a ranking of three that wins one edge of two."""
    return table_of(
        [
            Group([[9, 5], [9, 8, 3]], ((0, 1),)),
            Group([[7, 4], [7, 6, 4]], ((1, 0),), margin=[1.0]),
            Group([[11, 2], [11, 10, 6], [11, 3]], ((0, 1), (1, 2))),
        ]
    )


def test_metrics_of_a_table_by_hand() -> None:
    def last_tokens(packs: Sequence[Pack]) -> list[Tensor]:
        last = [pack.tokens[pack.scored].float() for pack in packs]
        return [torch.stack([s - 1, s + 1], dim=1) for s in last]  # two heads, whose mean it is

    metrics, arrays = evaluate_table(last_tokens, held_out(), budget=8)
    assert arrays["scores"].tolist() == [5, 3, 4, 4, 2, 6, 3]
    assert arrays["better"].tolist() == [0, 3, 4, 5] and arrays["worse"].tolist() == [1, 2, 5, 6]
    assert arrays["lengths"].tolist() == [1, 2, 1, 2, 1, 2, 1]  # of the responses, without the prompt
    assert arrays["labels"].tolist() == ["tiny:1"] * 2 + ["tiny:2"] * 2 + ["tiny:3"] * 3
    assert (metrics["edges"], metrics["ties"], metrics["accuracy"]) == (4, 1, 0.5)
    assert metrics["margin"] == (2 + 0 - 4 + 3) / 4
    # Weights: 1, 1 and 1/2 twice; the second edge asks for a margin of 1.
    losses = [math.log1p(math.exp(-d)) for d in (2.0, -1.0, -4.0, 3.0)]
    assert metrics["loss"] == pytest.approx((losses[0] + losses[1] + losses[2] / 2 + losses[3] / 2) / 3)
    assert (metrics["longer_wins"], metrics["shorter_wins"]) == (0.5, 0.5)


# --- preference strength


def example(**columns: object) -> Example:
    return parse_row({"prompt": "p", **columns})


def test_strength_of_a_pair_by_hand() -> None:
    rewards = np.array([[3.0, 1.0], [0.0, 1.0], [5.0, 1.0], [2.0, 2.0]])  # gaps 2, -1, 4, 0
    got = strengths(example(chosen="a", rejected="b"), rewards)
    assert got == {"strength_mean": 1.25, "strength_std": pytest.approx(math.sqrt(59 / 16)), "votes": 2}
    assert type(got["votes"]) is int  # a tie is no vote
    turned = strengths(example(responses=["a", "b"], edges=[[1, 0]]), rewards)
    assert turned == {"strength_mean": -1.25, "strength_std": pytest.approx(math.sqrt(59 / 16)), "votes": 1}


def test_strengths_of_a_ranking_by_edge() -> None:
    rewards = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 4.0]])
    got = strengths(example(responses=["a", "b", "c"]), rewards)
    # Edges 0 > 1, 0 > 2, 1 > 2: gaps (2, -1), (3, -3), (1, -2).
    assert got["strength_mean"] == [0.5, 0.0, -0.5]
    assert got["strength_std"] == [1.5, 3.0, 1.5]  # population: divided by 2 members, not by 1
    assert got["votes"] == [1, 1, 1]


def test_one_member_has_no_spread() -> None:
    got = strengths(example(chosen="a", rejected="b"), np.array([[1.0, 3.0]]))
    assert got == {"strength_mean": -2.0, "strength_std": 0.0, "votes": 0}
