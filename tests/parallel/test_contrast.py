"""A step with a contrastive term: the gradients of the global batch's loss, whatever packs and views it came in."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from rmfast.data.loader import rank_packs, totals_of
from rmfast.data.views import Views, add_views
from rmfast.kernels import linear_log_prob
from rmfast.models.hf import load_network
from rmfast.objectives.base import Statistics
from rmfast.objectives.contrastive import ContrastiveObjective
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel.contrast import Contrast
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.trainer.batch_learner import BatchLearner
from tests.figures import sums
from tests.runs import fork_ranks
from tests.tiny import (
    Group,
    assert_close_by_norm,
    gradients,
    group_of,
    hf_gradients,
    hf_model,
    ids,
    pack_of,
    save_hf_model,
    table_of,
)

MODES = [(kind, on) for kind in ("simcse", "swav") for on in ("pair", "difference")]
QUEUE = 40
WIDTH = 32


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


def weighted_groups() -> list[Group]:
    """Also with edges that weigh nothing: between twins, and the only one of a third response."""
    g = np.random.default_rng(2)
    prompt, answers = ids(g, 6), [ids(g, n) for n in (4, 3, 5)]
    a, b, c = (prompt + answer for answer in answers)
    twins = Group([a, b, a], ((0, 1), (2, 1), (0, 2)), weight=[0.5, 0.25, 0.0])
    outside = Group([c, a, b], ((1, 0), (0, 2)), weight=[1.0, 0.0])
    return [twins, *groups(), outside]


def noise_of(groups: list[Group]) -> Tensor:
    """[2, R, width]: what sets the views of each response apart, in place of dropout."""
    responses = sum(len(group.sequences) for group in groups)
    return 0.5 * torch.randn(2, responses, WIDTH, generator=torch.Generator().manual_seed(5))


def set_views_apart(engine: NativeEngine, noise: Tensor) -> None:
    def add(_: Any, args: Any, outputs: Any) -> Any:
        responses = args[0].responses
        if outputs.features is None or not len(responses):
            return outputs
        return outputs._replace(features=outputs.features + noise[:, responses].flatten(0, 1))

    engine.network.register_forward_hook(add)


def term(kind: str, on: str, **changes: Any) -> ContrastiveObjective:
    values: dict[str, Any] = {"kind": kind, "on": on, "beta": 0.7, "temperature": 0.2, "epsilon": 0.2}
    return ContrastiveObjective(**(values | changes))


@dataclass(frozen=True)
class Trial:
    """An engine, and the term of its objective with what it keeps."""

    engine: NativeEngine
    contrast: Contrast

    @property
    def objective(self) -> RewardObjective:
        return RewardObjective(batch_term=self.contrast)

    @property
    def learner(self) -> BatchLearner:
        loader: Any = SimpleNamespace(total=1)
        nothing: Any = None
        return BatchLearner(self.engine, self.objective, loader, nothing, rate=float, work=nothing, seed=0)


def trial_of(
    folder: Path, contrastive: ContrastiveObjective, dropout: float = 0.0, world: World | None = None, mode: Any = "ddp"
) -> Trial:
    network, _ = load_network(folder, dropout=dropout)
    if contrastive.kind == "swav":
        network.add_prototypes(6, 0)
    world = world or World()
    engine = NativeEngine(network, world=world, options=AdamWOptions(), data_parallel=mode)
    return Trial(engine, Contrast(contrastive, WIDTH, world))


def step(trial: Trial, budget: int, views: Views) -> Statistics:
    table = table_of(groups())
    rows = np.arange(len(table))
    packs, _ = rank_packs(table, rows, ranks=1, rank=0, budget=budget, views=views)
    assert (len(packs) == 1) == (budget > 100)
    return trial.engine.forward_backward(packs, trial.objective, totals_of(table, rows, views))


def by_hand(
    kind: str,
    on: str,
    prototypes: Tensor | None,
    groups: list[Group],
    noise: Tensor | None = None,
    queue: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor, Tensor]:
    """Loss, ranking loss and gradients at dropout 0 from each sequence alone; the term's items in both views, and the
    mean cosine of better and worse. Without `noise` both views are alike."""
    model = hf_model("llama")
    network, _ = load_network_of(model)
    noise = torch.zeros_like(noise_of(groups)) if noise is None else noise
    ranking, weights, items, cosines, first = torch.zeros(()), 0.0, [], [], 0
    for group in groups:
        hidden = [model.model(torch.tensor([s])).last_hidden_state[0, -1] for s in group.sequences]
        views = [hidden[i] + noise[:, first + i] for i in range(len(hidden))]
        first += len(hidden)
        touched = set()
        for (b, w), weight in zip(group.edges, group.edge_values()[2], strict=True):
            ranking = ranking - weight * F.logsigmoid(model.score(hidden[b]) - model.score(hidden[w])).squeeze()
            weights += weight
            if weight:
                touched |= {b, w}
                cosines += [torch.cosine_similarity(x, y, dim=0) for x, y in zip(views[b], views[w], strict=True)]
                items += [views[b] - views[w]] if on == "difference" else []
        items += [views[i] for i in sorted(touched)] if on == "pair" else []
    x = torch.stack(items, 1)
    x = torch.cat((x, -x), 1) if on == "difference" else x
    s, t = F.normalize(x, dim=2)
    if kind == "simcse":
        loss = F.cross_entropy(s @ t.T / 0.2, torch.arange(len(s)))
    else:
        assert prototypes is not None
        centres = F.normalize(prototypes, dim=1)
        whole = x if queue is None else torch.cat((x, queue), 1)
        codes = []
        for view in F.normalize(whole.detach(), dim=2):
            q = (view @ centres.detach().T / 0.2).exp()
            for _ in range(3):
                q = q / q.sum(0)
                q = q / q.sum(1, keepdim=True)
            codes.append(q[: len(s)])
        log_s, log_t = ((view @ centres.T / 0.2).log_softmax(1) for view in (s, t))
        loss = -(codes[0] * log_t + codes[1] * log_s).sum(1).mean()
    ranking = ranking / weights
    (ranking + 0.7 * loss).backward()
    grads = hf_gradients(model, network)
    return ranking + 0.7 * loss, ranking, grads, x.detach(), torch.stack(cosines).mean().detach()


def load_network_of(model: Any) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_network(folder)


@pytest.mark.parametrize(("kind", "on"), MODES)
@pytest.mark.parametrize("views", ["pass", "response"])
@pytest.mark.parametrize("budget", [1000, 40])
def test_the_global_batchs_gradients(folder: Path, kind: str, on: str, views: Views, budget: int) -> None:
    trial = trial_of(folder, term(kind, on))
    prototypes = trial.engine.network.prototypes
    centres = None if prototypes is None else prototypes.detach().clone().requires_grad_()
    loss, ranking, grads, _, overlap = by_hand(kind, on, centres, groups())
    statistics = step(trial, budget, views)
    found = {name: float(value) for name, value in statistics.sums.items()}
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["ranking_loss"] == pytest.approx(ranking.item(), rel=1e-5)
    assert statistics.figures["views_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert statistics.figures["feature_overlap"] == pytest.approx(overlap.item(), rel=1e-5)
    mine = gradients(trial.engine.network)
    if prototypes is not None and centres is not None:
        assert_close_by_norm({"prototypes": mine.pop("prototypes")}, {"prototypes": centres.grad}, 2e-5)  # type: ignore[dict-item]
    assert_close_by_norm(mine, grads, 2e-5)


def two_steps(world: World, folder: Path, kind: str, on: str, views: Views, mode: Any, budget: int) -> dict[str, Any]:
    """What two steps of views that differ leave on a rank, the second one with the first one's items in the queue."""
    trial = trial_of(folder, term(kind, on, queue=QUEUE if kind == "swav" else 0), world=world, mode=mode)
    engine, contrast = trial.engine, trial.contrast
    set_views_apart(engine, noise_of(weighted_groups()))
    table = table_of(weighted_groups())
    rows = np.arange(len(table))
    packs, _ = rank_packs(table, rows, ranks=world.size, rank=world.rank, budget=budget, views=views)
    for _ in range(2):
        engine._drop_gradients()
        statistics = engine.forward_backward(packs, trial.objective, totals_of(table, rows, views))
    whole = {
        name: (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).clone()
        for name, p in engine.network.named_parameters()
        if p.grad is not None
    }
    queue = contrast.queue[:, : contrast.filled].clone()
    figures = {**statistics.sums, **statistics.figures}
    return {"packs": len(packs), "grads": whole, "queue": queue, "figures": figures}


def check_two_steps(found: dict[str, Any], kind: str, on: str, folder: Path) -> None:
    everything, noise = weighted_groups(), noise_of(weighted_groups())
    prototypes = queue = None
    if kind == "swav":
        prototypes = trial_of(folder, term(kind, on)).engine.network.prototypes
        assert prototypes is not None
        _, _, _, queue, _ = by_hand(kind, on, prototypes, everything, noise)
        prototypes.grad = None
    loss, ranking, grads, items, overlap = by_hand(kind, on, prototypes, everything, noise, queue)
    if prototypes is not None and prototypes.grad is not None:
        grads["prototypes"] = prototypes.grad
        # The first step's items behind the second's, each view's own: the weights have not moved.
        torch.testing.assert_close(found["queue"], torch.cat((items, items), 1)[:, :QUEUE], rtol=1e-4, atol=1e-5)
    assert_close_by_norm(found["grads"], grads, 5e-5)
    figures = found["figures"]
    assert figures["contrastive_items"] == items.shape[1] == {"pair": 14, "difference": 16}[on]
    assert figures["ranking_loss"] == pytest.approx(ranking.item(), rel=1e-5)
    assert figures["contrastive_loss"] == pytest.approx((loss - ranking).item() / 0.7, rel=1e-4)
    assert figures["feature_overlap"] == pytest.approx(overlap.item(), rel=1e-4)
    cosine = torch.cosine_similarity(*items, dim=1).mean()
    assert figures["views_cosine"] == pytest.approx(cosine.item(), rel=1e-4) and cosine < 0.9


@pytest.mark.parametrize(("kind", "on"), MODES)
@pytest.mark.parametrize("views", ["pass", "response"])
@pytest.mark.parametrize("budget", [1000, 60])
def test_views_that_differ(folder: Path, kind: str, on: str, views: Views, budget: int) -> None:
    found = two_steps(World(), folder, kind, on, views, "ddp", budget)
    assert (found["packs"] == 1) == (budget == 1000)
    check_two_steps(found, kind, on, folder)


RANKS: list[tuple[str, str, Views, str, int]] = [
    ("simcse", "pair", "response", "fsdp", 60),
    ("simcse", "difference", "pass", "ddp", 1000),
    ("simcse", "difference", "response", "fsdp", 60),
    ("swav", "pair", "pass", "fsdp", 60),
    ("swav", "pair", "response", "ddp", 1000),
    ("swav", "difference", "pass", "ddp", 60),
]


@pytest.mark.slow
def test_views_that_differ_on_two_ranks(folder: Path, tmp_path: Path) -> None:
    assert fork_ranks(2, partial(_as_a_rank, folder, tmp_path / "found")) == [0, 0]
    found = torch.load(tmp_path / "found")
    assert len(found) == len(RANKS)
    for case, result in zip(RANKS, found, strict=True):
        check_two_steps(result, case[0], case[1], folder)


@pytest.mark.parametrize(("kind", "on"), MODES)
def test_an_edge_without_weight_might_as_well_not_be_there(folder: Path, kind: str, on: str) -> None:
    g = np.random.default_rng(3)
    prompt, a, b, c = (ids(g, n) for n in (6, 4, 3, 5))
    sequences, other = [prompt + a, prompt + b, prompt + c], group_of(g, 5, [3, 2], [(0, 1)])
    results = []
    for edges, weight in ((((0, 1), (1, 2), (0, 2)), [1.0, 0.0, 0.0]), (((0, 1),), [1.0])):
        trial = trial_of(folder, term(kind, on, queue=20 if kind == "swav" else 0))
        table = table_of([Group(sequences, edges, weight=weight), other])
        packs, _ = rank_packs(table, np.arange(2), ranks=1, rank=0, budget=1000, views="pass")
        found = trial.engine.forward_backward(packs, trial.objective, totals_of(table, np.arange(2), "pass"))
        assert found.figures["contrastive_items"] == 4
        results.append((found.loss, found.figures, gradients(trial.engine.network)))
    torch.testing.assert_close(results[0][:2], results[1][:2])
    assert_close_by_norm(results[0][2], results[1][2], 1e-6)


@pytest.mark.parametrize(("kind", "on"), MODES)
def test_a_batch_without_items_adds_nothing(folder: Path, kind: str, on: str) -> None:
    trial = trial_of(folder, term(kind, on, queue=9 if kind == "swav" else 0))
    engine, contrast = trial.engine, trial.contrast
    pack = add_views(pack_of([Group([[5, 6], [5, 7]], ((0, 1),), weight=[0.0])]), "pass")
    features = torch.randn(4, WIDTH, requires_grad=True)
    found = contrast([features], [pack], [pack], engine.network.prototypes, engine.optimizer.steps)
    assert found.loss == 0 and not found.packs[0].any() and contrast.filled == 0
    assert all(figure == (1.0 if name == "codes_used" else 0.0) for name, figure in found.figures.items())


def test_the_pass_that_collects_features_computes_no_lm_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def counted(*args: Any, **options: Any) -> Any:
        called.append(torch.is_grad_enabled())
        return linear_log_prob(*args, **options)

    monkeypatch.setattr("rmfast.models.layers.linear_log_prob", counted)
    save_hf_model("llama-tied-llama3", tmp_path / "tied")
    network, _ = load_network(tmp_path / "tied", dropout=0.3, lm=True)
    engine = NativeEngine(network, world=World(), options=AdamWOptions())
    objective = RewardObjective(lm=0.5, batch_term=Contrast(term("simcse", "pair"), WIDTH, World()))
    seen: list[Tensor] = []
    network.register_forward_hook(lambda *a: seen.append(a[2].features.detach()))
    table = table_of(groups())
    rows = np.arange(len(table))
    packs, _ = rank_packs(table, rows, ranks=1, rank=0, budget=40, views="pass", predicts="chosen")
    engine.forward_backward(packs, objective, totals_of(table, rows, "pass"))
    assert called == [True] * len(packs) and len(packs) > 1
    assert all(torch.equal(a, b) for a, b in zip(seen[: len(packs)], seen[len(packs) :], strict=True))


@pytest.mark.parametrize("views", ["pass", "response"])
def test_a_second_pass_repeats_the_firsts_dropout(folder: Path, views: Views) -> None:
    trial = trial_of(folder, term("simcse", "pair"), dropout=0.3)
    seen: list[Tensor] = []
    trial.engine.network.register_forward_hook(lambda *a: seen.append(a[2].features.detach()))
    statistics = step(trial, 40, views)
    packs = len(seen) // 2
    assert packs > 1 and all(torch.equal(a, b) for a, b in zip(seen[:packs], seen[packs:], strict=True))
    first = seen[0]
    assert not torch.allclose(first[: len(first) // 2], first[len(first) // 2 :])
    assert 0.1 < statistics.figures["views_cosine"] < 0.99


def test_prototypes_stay_on_the_sphere_and_wait_while_frozen(folder: Path) -> None:
    trial = trial_of(folder, term("swav", "pair", freeze=2), dropout=0.1)
    prototypes = trial.engine.network.prototypes
    assert prototypes is not None
    drawn = prototypes.detach().clone()
    for number in range(3):
        step(trial, 1000, "pass")
        trial.engine.optimizer_step(1e-2)
        assert torch.equal(drawn, prototypes) == (number < 2)
        torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("on", ["pair", "difference"])
def test_a_pack_without_work_and_the_order_of_packs_change_nothing(folder: Path, on: str) -> None:
    table = table_of(groups())
    rows = np.arange(len(table))
    results = []
    for ranks, budget in ((1, 1000), (1, 40), (7, 1000)):
        trial = trial_of(folder, term("swav", on, queue=14))
        packs = [
            pack
            for rank in reversed(range(ranks))
            for pack in rank_packs(table, rows, ranks=ranks, rank=rank, budget=budget, views="pass")[0]
        ]
        assert (ranks == 7) == any(not len(pack.responses) for pack in packs)
        statistics = trial.engine.forward_backward(packs, trial.objective, totals_of(table, rows, "pass"))
        results.append((sums(statistics), trial.contrast.queue.clone(), gradients(trial.engine.network)))
    for found, queue, grads in results[1:]:
        torch.testing.assert_close(found, results[0][0])
        torch.testing.assert_close(queue, results[0][1], rtol=1e-5, atol=1e-5)
        assert_close_by_norm(grads, results[0][2], 2e-5)


def test_features_that_are_not_finite_never_reach_the_queue(folder: Path) -> None:
    trial = trial_of(folder, term("swav", "pair", queue=20))
    engine, contrast = trial.engine, trial.contrast
    step(trial, 1000, "pass")
    before = contrast.queue.clone()
    with torch.no_grad():
        engine.network.norm.weight[0] = torch.nan
    step(trial, 1000, "pass")
    assert not engine.optimizer_step(1e-3).isfinite()
    assert before.any() and torch.equal(contrast.queue, before)


@pytest.mark.parametrize("on", ["pair", "difference"])
def test_a_batch_that_was_not_stored_does_not_count(folder: Path, on: str) -> None:
    trial, clean = (trial_of(folder, term("swav", on, queue=40)) for _ in range(2))
    weight = trial.engine.network.norm.weight
    for broken in (True, False, True, False):  # the first batch of all, and one after some were stored
        kept = weight.detach().clone()
        if broken:
            with torch.no_grad():
                weight[0] = torch.nan
        found = step(trial, 1000, "pass")
        trial.engine._drop_gradients()
        with torch.no_grad():
            weight.copy_(kept)
        if not broken:
            same = step(clean, 1000, "pass")
            clean.engine._drop_gradients()
            torch.testing.assert_close((sums(found), found.figures), (sums(same), same.figures), rtol=0, atol=0)
        ours, theirs = (each.contrast.state() for each in (trial, clean))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert 0 < clean.contrast.filled < 40


def test_the_queue_holds_the_newest_items_and_is_part_of_the_state(folder: Path) -> None:
    trial = trial_of(folder, term("swav", "difference", queue=14), dropout=0.1)
    contrast = trial.contrast
    step(trial, 1000, "pass")
    assert int(contrast.filled) == 10
    first = contrast.queue.clone()
    assert (first[:, 10:] == 0).all() and (first[0, :5] == -first[0, 5:10]).all() and first[0, :5].any()
    step(trial, 40, "response")
    assert int(contrast.filled) == 14 and torch.equal(contrast.queue[:, 10:], first[:, :4])
    state = {name: shard.tensor.clone() for name, shard in trial.learner.state().items()}
    other = trial_of(folder, term("swav", "difference", queue=14), dropout=0.1)
    other.learner.load_state(lambda name, start, end: state[name][start:end])
    torch.manual_seed(7)
    a = step(trial, 1000, "pass")
    torch.manual_seed(7)
    b = step(other, 1000, "pass")
    assert torch.equal(sums(a), sums(b))
    contrast.queue.fill_(1.0)
    torch.manual_seed(7)
    assert not torch.equal(sums(step(trial, 1000, "pass")), sums(a))


def _as_a_rank(folder: Path, out: Path) -> None:
    world = World()
    with world:
        found = [two_steps(world, folder, *case) for case in RANKS]
        if world.main:
            torch.save(found, out)
