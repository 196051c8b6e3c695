"""A step with a contrastive term: the gradients of the global batch's loss, whatever packs and views it came in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmfast.data.loader import rank_packs, totals_of
from rmfast.data.views import Views
from rmfast.models.hf import load_network
from rmfast.objectives.contrastive import ContrastiveObjective
from rmfast.objectives.reward import SUMS, RewardObjective, Statistics
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from tests.tiny import Group, assert_close_by_norm, gradients, group_of, hf_gradients, hf_model, save_hf_model, table_of

MODES = [(kind, on) for kind in ("simcse", "swav") for on in ("pair", "difference")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contrast") / "model"
    save_hf_model("llama", folder)
    return folder


def groups() -> list[Group]:
    g = np.random.default_rng(1)
    return [
        group_of(g, 7, [4, 2], [(0, 1)]),
        group_of(g, 3, [5, 6, 1], [(2, 0), (2, 1)]),
        group_of(g, 5, [3, 2], [(1, 0)]),
        Group([[1, 7, 8], [1, 7, 8, 9]], ((1, 0),)),
    ]


def term(kind: str, on: str, **changes: Any) -> ContrastiveObjective:
    values: dict[str, Any] = {"kind": kind, "on": on, "beta": 0.7, "temperature": 0.2, "epsilon": 0.2}
    return ContrastiveObjective(**(values | changes))


def engine_of(folder: Path, contrastive: ContrastiveObjective, dropout: float = 0.0) -> NativeEngine:
    network, _ = load_network(folder, dropout=dropout)
    if contrastive.kind == "swav":
        network.add_prototypes(6, 0)
    return NativeEngine(network, world=World(), options=AdamWOptions(), contrastive=contrastive)


def step(engine: NativeEngine, budget: int, views: Views) -> Statistics:
    table = table_of(groups())
    rows = np.arange(len(table))
    packs, _ = rank_packs(table, rows, ranks=1, rank=0, budget=budget, views=views)
    assert (len(packs) == 1) == (budget > 100)
    return engine.forward_backward(packs, RewardObjective(), totals_of(table, rows, views))


def by_hand(kind: str, on: str, prototypes: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, ranking loss and gradients at dropout 0, where both views are alike, from each sequence alone."""
    model = hf_model("llama")
    network, _ = load_network_of(model)
    ranking, weights, features, differences = torch.zeros(()), 0.0, [], []
    for group in groups():
        hidden = [model.model(torch.tensor([s])).last_hidden_state[0, -1] for s in group.sequences]
        features += hidden
        for (b, w), weight in zip(group.edges, group.edge_values()[2], strict=True):
            ranking = ranking - weight * F.logsigmoid(model.score(hidden[b]) - model.score(hidden[w])).squeeze()
            weights += weight
            differences.append(hidden[b] - hidden[w])
    x = torch.stack(features) if on == "pair" else torch.stack([*differences, *(-d for d in differences)])
    x = F.normalize(x, dim=1)
    if kind == "simcse":
        loss = F.cross_entropy(x @ x.T / 0.2, torch.arange(len(x)))
    else:
        assert prototypes is not None
        cosines = x @ F.normalize(prototypes, dim=1).T
        q = (cosines.detach() / 0.2).exp()
        for _ in range(3):
            q = q / q.sum(0)
            q = q / q.sum(1, keepdim=True)
        loss = -2 * (q * (cosines / 0.2).log_softmax(1)).sum(1).mean()
    ranking = ranking / weights
    (ranking + 0.7 * loss).backward()
    return ranking + 0.7 * loss, ranking, hf_gradients(model, network)


def load_network_of(model: Any) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_network(folder)


@pytest.mark.parametrize(("kind", "on"), MODES)
@pytest.mark.parametrize("views", ["pass", "response"])
@pytest.mark.parametrize("budget", [1000, 40])
def test_the_global_batchs_gradients(folder: Path, kind: str, on: str, views: Views, budget: int) -> None:
    engine = engine_of(folder, term(kind, on))
    prototypes = engine.network.prototypes
    centres = None if prototypes is None else prototypes.detach().clone().requires_grad_()
    loss, ranking, grads = by_hand(kind, on, centres)
    statistics = step(engine, budget, views)
    found = dict(zip(SUMS, statistics.sums.tolist(), strict=True))
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["ranking_loss"] == pytest.approx(ranking.item(), rel=1e-5)
    assert statistics.figures["views_cosine"] == pytest.approx(1.0, abs=1e-5)
    mine = gradients(engine.network)
    if prototypes is not None and centres is not None:
        assert_close_by_norm({"prototypes": mine.pop("prototypes")}, {"prototypes": centres.grad}, 2e-5)  # type: ignore[dict-item]
    assert_close_by_norm(mine, grads, 2e-5)


@pytest.mark.parametrize("views", ["pass", "response"])
def test_a_second_pass_repeats_the_firsts_dropout(folder: Path, monkeypatch: pytest.MonkeyPatch, views: Views) -> None:
    engine = engine_of(folder, term("simcse", "pair"), dropout=0.3)
    seen: list[Tensor] = []
    engine.network.register_forward_hook(lambda *a: seen.append(a[2].features.detach()))
    statistics = step(engine, 40, views)
    packs = len(seen) // 2
    assert packs > 1 and all(torch.equal(a, b) for a, b in zip(seen[:packs], seen[packs:], strict=True))
    first = seen[0]
    assert not torch.allclose(first[: len(first) // 2], first[len(first) // 2 :])
    assert 0.1 < statistics.figures["views_cosine"] < 0.99


def test_prototypes_stay_on_the_sphere_and_wait_while_frozen(folder: Path) -> None:
    engine = engine_of(folder, term("swav", "pair", freeze=2), dropout=0.1)
    prototypes = engine.network.prototypes
    assert prototypes is not None
    drawn = prototypes.detach().clone()
    for number in range(3):
        step(engine, 1000, "pass")
        engine.optimizer_step(1e-2)
        assert torch.equal(drawn, prototypes) == (number < 2)
        torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("on", ["pair", "difference"])
def test_a_pack_without_work_and_the_order_of_packs_change_nothing(folder: Path, on: str) -> None:
    table = table_of(groups())
    rows = np.arange(len(table))
    results = []
    for ranks, budget in ((1, 1000), (1, 40), (7, 1000)):
        engine = engine_of(folder, term("swav", on, queue=14))
        contrast = engine.contrast
        assert contrast is not None
        packs = [
            pack
            for rank in reversed(range(ranks))
            for pack in rank_packs(table, rows, ranks=ranks, rank=rank, budget=budget, views="pass")[0]
        ]
        assert (ranks == 7) == any(not len(pack.responses) for pack in packs)
        statistics = engine.forward_backward(packs, RewardObjective(), totals_of(table, rows, "pass"))
        results.append((statistics.sums, contrast.queue.clone(), gradients(engine.network)))
    for sums, queue, grads in results[1:]:
        torch.testing.assert_close(sums, results[0][0])
        torch.testing.assert_close(queue, results[0][1], rtol=1e-5, atol=1e-5)
        assert_close_by_norm(grads, results[0][2], 2e-5)


def test_features_that_are_not_finite_never_reach_the_queue(folder: Path) -> None:
    engine = engine_of(folder, term("swav", "pair", queue=20))
    contrast = engine.contrast
    assert contrast is not None
    step(engine, 1000, "pass")
    before = contrast.queue.clone()
    with torch.no_grad():
        engine.network.norm.weight[0] = torch.nan
    step(engine, 1000, "pass")
    assert not engine.optimizer_step(1e-3).isfinite()
    assert before.any() and torch.equal(contrast.queue, before)


def test_the_queue_holds_the_newest_items_and_is_part_of_the_state(folder: Path) -> None:
    engine = engine_of(folder, term("swav", "difference", queue=14), dropout=0.1)
    contrast = engine.contrast
    assert contrast is not None
    step(engine, 1000, "pass")
    assert int(contrast.filled) == 10
    first = contrast.queue.clone()
    assert (first[:, 10:] == 0).all() and (first[0, :5] == -first[0, 5:10]).all() and first[0, :5].any()
    step(engine, 40, "response")
    assert int(contrast.filled) == 14 and torch.equal(contrast.queue[:, 10:], first[:, :4])
    state = {name: shard.tensor.clone() for name, shard in engine.state().items()}
    other = engine_of(folder, term("swav", "difference", queue=14), dropout=0.1)
    other.load_state(lambda name, start, end: state[name][start:end])
    torch.manual_seed(7)
    a = step(engine, 1000, "pass")
    torch.manual_seed(7)
    b = step(other, 1000, "pass")
    assert torch.equal(a.sums, b.sums)
    contrast.queue.fill_(1.0)
    torch.manual_seed(7)
    assert not torch.equal(step(engine, 1000, "pass").sums, a.sums)
