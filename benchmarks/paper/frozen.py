"""Features of real preference pairs from a frozen decoder, and reward heads trained on them by the hundred.

The trunk runs once (minutes for a small decoder on a CPU) and is kept; every experiment after that trains heads alone,
with the package's own trainer of heads, treatment of edges, and strengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rmfast.data.denoise import Denoise, treat
from rmfast.data.loader import rank_packs
from rmfast.data.plan import StepPlan
from rmfast.data.store import build_store
from rmfast.data.table import Edges, GroupTable, build_table, table_edges
from rmfast.data.tokenizer import load_tokenizer
from rmfast.models.hf import load_network
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.tasks.ensemble.features import Trunk
from rmfast.tasks.ensemble.head_batch import HeadData, HeadMember
from rmfast.tasks.ensemble.head_learner import HeadLearner, HeadOptions, head_scores

CHUNK = 64  # prompt groups between two saves of the features
BATCH, EPOCHS = 32, 4
OPTIONS = HeadOptions(
    lr=2e-3, schedule="linear", warmup=0.1, floor=0.0, adamw=AdamWOptions(weight_decay=0.1), center=0.0,
    on_nonfinite="stop",
)  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """N pairs: features fp32 [2 N, d] of better, worse, better, ... as the data has them; `test` bool [N]."""

    features: np.ndarray
    test: np.ndarray

    @property
    def gaps(self) -> np.ndarray:
        """[N, d]: better minus worse."""
        return self.features[0::2] - self.features[1::2]


@torch.no_grad()
def read_pairs(model: str, data: str, *, limit: int, max_length: int, keep: Path, test_share: float = 0.3) -> Pairs:
    """Features of at most `limit` pairs, drawn with seed 0; what `keep` holds of them already is not made again.

    Prompts are split into training and test, so that no prompt lies on both sides.
    """
    table, order = draw_pairs(model, data, limit=limit, max_length=max_length, cache=keep.parent / "cache")
    known: dict[int, np.ndarray] = {}
    if keep.is_file():
        with np.load(keep) as saved:
            known = dict(zip(saved["numbers"].tolist(), saved["features"], strict=True))
    network = None
    for begin in range(0, len(order), CHUNK):
        rows = np.sort(order[begin : begin + CHUNK])
        if all(int(table.first_response[row]) in known for row in rows):
            continue
        if network is None:
            network = Trunk(load_network(model, new_heads=True)[0]).eval()
        packs, _ = rank_packs(table, rows, ranks=1, rank=0, budget=4096)
        for pack in packs:
            known |= dict(zip(pack.responses.tolist(), network(pack).scores.float().numpy(), strict=True))
        numbers = np.array(sorted(known))
        np.savez(keep, numbers=numbers, features=np.stack([known[n] for n in numbers.tolist()]))
        print(f"features of {min(begin + CHUNK, len(order)):,} of {len(order):,} pairs", flush=True)
    order = np.sort(order)
    edges = table_edges(table)
    mine = np.flatnonzero(np.isin(edges.group, order))
    ends = np.stack((edges.better[mine], edges.worse[mine]), 1).ravel()
    return Pairs(np.stack([known[int(n)] for n in ends]), held_out(table, edges.group[mine], test_share))


def draw_pairs(model: str, data: str, *, limit: int, max_length: int, cache: Path) -> tuple[GroupTable, np.ndarray]:
    """The table of all pairs, and at most `limit` of its rows, drawn with seed 0."""
    store = build_store(data, load_tokenizer(model, None), cache)
    table, _ = build_table([store], max_length=max_length, over_long="truncate")
    return table, np.random.default_rng(0).permutation(len(table))[:limit]


def held_out(table: GroupTable, groups: np.ndarray, share: float) -> np.ndarray:
    """Which of some groups are for testing, bool [G]: all those of a share of their prompts."""
    prompts = np.array([hash_of(table, int(group)) for group in groups])
    names = np.unique(prompts)
    return np.isin(prompts, np.random.default_rng(1).permutation(names)[: int(share * len(names))])


def hash_of(table: GroupTable, group: int) -> str:
    """A name of the group's first 32 prompt tokens: conversations that begin alike share it."""
    store, g = table.stores[table.store[group]], int(table.index[group])
    begin = int(store.token_start[g])
    length = min(32, int(store.answer_start[store.response_start[g]]))
    return store.tokens[begin : begin + length].tobytes().hex()


def edges_of(flipped: np.ndarray) -> Edges:
    """One edge for each of N pairs, its label turned where `flipped` (bool [N])."""
    count = len(flipped)
    first = 2 * np.arange(count)
    return Edges(
        better=first + flipped, worse=first + ~flipped, group=np.arange(count),
        margin=np.zeros(count, np.float32), target=np.ones(count, np.float32), weight=np.ones(count, np.float32),
        length=np.zeros(2 * count, np.int64),
    )  # fmt: skip


def train(features: np.ndarray, edges: Edges, members: Sequence[np.ndarray], seed: int) -> torch.Tensor:
    """Heads fp32 [M, d]; member m sees the edges `members[m]`, in an order and from a start of its own."""
    drawn = torch.Generator().manual_seed(seed)
    heads = 0.02 * torch.randn(len(members), features.shape[1], generator=drawn)
    made = []
    for m, rows in enumerate(members):
        plan = StepPlan([len(rows)], (1.0,), groups_per_step=BATCH, seed=1000 * seed + m)
        made.append(HeadMember(plan=plan, groups=rows, total=plan.first_step(EPOCHS)))
    data = HeadData(features=features, place=np.arange(len(features)), edges=edges)
    trainer = HeadLearner(heads, made, data, OPTIONS, torch.device("cpu"))
    trainer.fit(lambda values: None, save=lambda: None, save_every=None, evaluate=lambda: None, eval_every=None)
    return trainer.weight


def strengths(features: np.ndarray, edges: Edges, members: int, folds: int | None, seed: int) -> np.ndarray:
    """Mean strength of every edge (Part II, equation 4), in-sample or by the members that never saw it."""
    rows = np.arange(len(edges.group))
    fold = np.random.default_rng(seed).permutation(rows) % folds if folds else None
    seen = [rows if fold is None else np.flatnonzero(fold != m % folds) for m in range(members)]  # type: ignore[operator]
    scores = head_scores(features, train(features, edges, seen, seed))
    gaps = scores[:, edges.better] - scores[:, edges.worse]
    if fold is not None:
        judged = np.stack([fold == m % folds for m in range(members)])  # type: ignore[operator]
        gaps = np.where(judged, gaps, np.nan)
    return np.nanmean(gaps, 0)


def treated(edges: Edges, strength: np.ndarray, options: Denoise) -> tuple[Edges, np.ndarray]:
    """The edges as a treatment leaves them, and which are still there."""
    done = treat(
        options, strength=strength.astype(np.float32), margin=edges.margin, target=edges.target, weight=edges.weight,
        identical=np.zeros(len(strength), dtype=bool),
    )  # fmt: skip
    swapped = replace(
        edges,
        better=np.where(done.flipped, edges.worse, edges.better),
        worse=np.where(done.flipped, edges.better, edges.worse),
        margin=done.margin, target=done.target, weight=done.weight,
    )  # fmt: skip
    return swapped, np.flatnonzero(~done.dropped)


def accuracies(weight: torch.Tensor, gaps: np.ndarray) -> np.ndarray:
    """Share of pairs that each head ranks as labelled, [M]; `gaps` [N, d] are better - worse."""
    return (head_scores(gaps.astype(np.float32), weight) > 0).mean(1)


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive has the higher score; ties count half."""
    order = np.argsort(score, kind="stable")
    _, inverse, counts = np.unique(score[order], return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    mine = positive[order]
    n = int(mine.sum())
    return float((ranks[mine].sum() - n * (n + 1) / 2) / (n * (len(mine) - n)))
