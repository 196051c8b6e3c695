"""MetaRM's step on the engine, against algorithm 1 written out in transformers; what it moves comes back to the bit."""

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from rmfast.data.loader import Totals, rank_packs, totals_of
from rmfast.data.pack import Pack
from rmfast.models.hf import load_network
from rmfast.models.network import Network
from rmfast.models.weights import hf_parts
from rmfast.objectives.meta import DifferenceObjective
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel import replicas
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from tests.figures import sums
from tests.tiny import (
    Group,
    assert_close_by_norm,
    gradients,
    group_of,
    hf_gradients,
    hf_model,
    hf_scores,
    save_hf_model,
    table_of,
)

LR, ETA = 1e-2, 0.05


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meta") / "model"
    save_hf_model("llama-tied-llama3", folder)
    return folder


def engine_of(model: Path, **options: Any) -> NativeEngine:
    dtype = options.pop("dtype", torch.float64)
    recorder, layers = options.pop("recorder", None), options.pop("top_layers", None)
    options.setdefault("weights_dtype", torch.float64 if dtype == torch.float64 else torch.float32)
    network: Network = load_network(model, dtype=dtype, **options)[0]
    if layers is not None:
        network.freeze(layers)
    return NativeEngine(network, world=World(), options=AdamWOptions(clip=0.0), recorder=recorder)


def batches(seed: int) -> tuple[list[Group], list[Group]]:
    """Pairs, and prompts with two to five samples of which one begins another."""
    g = np.random.default_rng(seed)
    pairs = [group_of(g, 7, [4, 2], [(0, 1)]), group_of(g, 3, [5, 6], [(1, 0)]), group_of(g, 5, [2, 7], [(0, 1)])]
    first = group_of(g, 6, [3, 5, 4, 6, 2])
    inside = group_of(g, 4, [2, 3, 4])
    inside = Group([*inside.sequences, inside.sequences[0] + [7, 8]])
    return pairs, [first, inside, group_of(g, 8, [4, 4])]


def packed(groups: list[Group], budget: int = 128, **options: Any) -> tuple[list[Pack], Totals]:
    table = table_of(groups)
    rows = np.arange(len(table))
    return rank_packs(table, rows, ranks=1, rank=0, budget=budget, **options)[0], totals_of(table, rows)


def difference_loss(model: PreTrainedModel, groups: list[Group]) -> Tensor:
    """J, written out; mean over prompts."""
    each = []
    for group in groups:
        r = hf_scores(model, group.sequences)[:, 0]
        pairs = [torch.sigmoid((a - b).abs()) for a, b in itertools.combinations(r, 2)]
        each.append(2 / len(r) ** 2 * torch.stack(pairs).sum())
    return torch.stack(each).mean()


def pair_loss(model: PreTrainedModel, groups: list[Group]) -> Tensor:
    gaps = []
    for group in groups:
        r = hf_scores(model, group.sequences)[:, 0]
        gaps += [r[better] - r[worse] for better, worse in group.edges]
    return -F.logsigmoid(torch.stack(gaps)).mean()


def weights_of(model: PreTrainedModel, network: Network) -> dict[str, Tensor]:
    """A transformers model's weights by our names."""
    weights, parts = dict(model.named_parameters()), hf_parts(network.config)
    return {n: torch.cat([weights[hf].detach() for hf, _ in parts[n]]) for n, _ in network.named_parameters()}


def test_the_step_is_algorithm_1(model: Path) -> None:
    engine = engine_of(model)
    theirs = hf_model("llama-tied-llama3").double()
    adamw = torch.optim.AdamW(theirs.parameters(), lr=LR, weight_decay=0.0)
    for step in range(3):
        pairs, prompts = batches(step)
        # The algorithm: J at theta, ascent to theta', the pairs' loss there, its gradient applied to theta.
        there = copy.deepcopy(theirs)
        j = difference_loss(there, prompts)
        j.backward()
        with torch.no_grad():
            for parameter in there.parameters():
                if parameter.grad is not None:
                    parameter += ETA * parameter.grad
                    parameter.grad = None
        loss = pair_loss(there, pairs)
        loss.backward()
        plain = copy.deepcopy(theirs)
        pair_loss(plain, pairs).backward()
        for (name, ours), moved in zip(theirs.named_parameters(), there.parameters(), strict=True):
            ours.grad = moved.grad
            if moved.grad is not None and "norm" not in name:
                other = plain.get_parameter(name).grad
                assert other is not None and (other - moved.grad).norm() > 1e-3 * other.norm(), "the ascent is seen"

        statistics = engine.forward_backward(*_with(packed(prompts), DifferenceObjective()))
        assert statistics.loss.item() == pytest.approx(j.item(), rel=1e-6)  # RoPE's angles are fp32 there
        engine.perturb(eta=ETA)
        assert_close_by_norm(named(engine), weights_of(there, engine.network), 1e-6)
        found = engine.forward_backward(*_with(packed(pairs), RewardObjective()))
        engine.restore()
        assert found.loss.item() == pytest.approx(loss.item(), rel=1e-6)
        assert_close_by_norm(gradients(engine.network), hf_gradients(theirs, engine.network), 1e-5)
        engine.optimizer_step(LR)
        adamw.step()
        adamw.zero_grad()
        assert_close_by_norm(named(engine), weights_of(theirs, engine.network), 1e-5)


def test_the_gradient_moves_by_the_hessian_times_the_ascent(model: Path) -> None:
    """grad L(theta') - grad L(theta) = eta H grad J + O(eta^2), the Hessian's product from autograd in transformers."""
    pairs, prompts = batches(0)
    theirs = hf_model("llama-tied-llama3", attn_implementation="eager").double()
    weights = list(theirs.parameters())
    ascent = torch.autograd.grad(difference_loss(theirs, prompts), weights, allow_unused=True)
    slopes = torch.autograd.grad(pair_loss(theirs, pairs), weights, create_graph=True, allow_unused=True)
    parts = [(a * b).sum() for a, b in zip(slopes, ascent, strict=True) if a is not None and b is not None]
    torch.stack(parts).sum().backward()

    engine = engine_of(model)
    expected = hf_gradients(theirs, engine.network)

    def slope(eta: float) -> Tensor:
        engine.forward_backward(*_with(packed(prompts), DifferenceObjective()))
        engine.perturb(eta=eta)
        engine.forward_backward(*_with(packed(pairs), RewardObjective()))
        engine.restore()
        found = gradients(engine.network)
        engine._drop_gradients()
        return torch.cat([found[name].flatten() for name in expected])

    product, before = torch.cat([grad.flatten() for grad in expected.values()]), slope(0.0)
    errors = [float(((slope(eta) - before) / eta - product).norm() / product.norm()) for eta in (1e-3, 1e-4)]
    assert errors[0] < 0.05 and errors[1] < 0.2 * errors[0]


def _with(batch: tuple[list[Pack], Totals], objective: Any) -> tuple[list[Pack], Any, Totals]:
    return batch[0], objective, batch[1]


def named(engine: NativeEngine) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in engine.network.named_parameters()}


def j_and_ascent(engine: NativeEngine, budget: int = 128, **ascent: Any) -> tuple[float, float, float]:
    """J before the ascent, the norm of its gradient, J after."""
    batch = _with(packed(batches(0)[1], budget), DifferenceObjective())
    before = engine.forward_backward(*batch).loss.item()
    norm = engine.perturb(**ascent).item()
    return before, norm, engine.measure(*batch).loss.item()


@pytest.mark.parametrize(
    ("dtype", "eta", "tolerance"), [(torch.float64, 2**-20, 1e-4), (torch.float32, 2**-10, 0.02)], ids=["fp64", "fp32"]
)
def test_j_rises_by_what_its_gradient_predicts(model: Path, dtype: torch.dtype, eta: float, tolerance: float) -> None:
    before, norm, after = j_and_ascent(engine_of(model, dtype=dtype), eta=eta)
    assert norm > 0.1
    assert after - before == pytest.approx(eta * norm**2, rel=tolerance)


def test_a_step_of_given_length(model: Path) -> None:
    engine = engine_of(model)
    weights = named(engine)
    before, norm, after = j_and_ascent(engine, eta=1e9, rho=1e-4)
    moved = torch.stack([(p - weights[name]).norm() for name, p in named(engine).items()]).norm()
    assert moved.item() == pytest.approx(1e-4, rel=1e-6)
    assert after - before == pytest.approx(1e-4 * norm, rel=1e-2)


def test_a_gradient_of_zero_moves_nothing(model: Path) -> None:
    engine = engine_of(model)
    weights = named(engine)
    batch = _with(packed([group_of(np.random.default_rng(0), 5, [3])]), DifferenceObjective())
    assert engine.forward_backward(*batch).loss.item() == 0  # there is no pair
    assert engine.perturb(eta=1.0, rho=1.0).item() == 0
    assert all(torch.equal(p, weights[name]) for name, p in named(engine).items())


def test_many_packs_are_one(model: Path) -> None:
    one, many = engine_of(model), engine_of(model)
    packs = packed(batches(0)[1], 32)[0]
    assert len(packs) == 3
    assert j_and_ascent(many, 32, eta=ETA) == pytest.approx(j_and_ascent(one, eta=ETA), rel=1e-6)
    assert_close_by_norm(named(many), named(one), 1e-12)


def test_padding_changes_nothing(model: Path) -> None:
    engine, prompts = engine_of(model), batches(0)[1]
    batch, padded = packed(prompts, 48), packed(prompts, 48, fixed=True)
    assert [len(pack.scored) for pack in padded[0]] == [16, 16] != [len(pack.scored) for pack in batch[0]]
    expected = sums(engine.measure(*_with(batch, DifferenceObjective())))
    torch.testing.assert_close(sums(engine.measure(*_with(padded, DifferenceObjective()))), expected)


SETUPS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": torch.float32},
    "bf16": {"dtype": torch.bfloat16},
    "frozen trunk, two heads": {"dtype": torch.float32, "top_layers": 1, "heads": 2, "new_heads": True, "seed": 3},
    "LM loss": {"dtype": torch.float32, "lm": True},
}


@pytest.mark.parametrize("setup", SETUPS.values(), ids=list(SETUPS))
def test_what_was_moved_comes_back_to_the_bit(tmp_path: Path, model: Path, setup: dict[str, Any]) -> None:
    if setup.get("heads"):
        model = tmp_path / "two"
        save_hf_model("llama-tied-llama3", model, num_labels=2)
        setup = {key: value for key, value in setup.items() if key not in ("new_heads", "seed")}
    engine = engine_of(model, **setup)
    weights = named(engine)
    trained = {name for name, p in engine.network.named_parameters() if p.requires_grad}
    j_and_ascent(engine, eta=0.3)
    moved = {name for name, p in named(engine).items() if not torch.equal(p, weights[name])}
    assert moved == trained and all(p.grad is None for p in engine.network.parameters())
    lm = bool(setup.get("lm"))
    engine.forward_backward(
        *_with(packed(batches(0)[0], predicts="chosen" if lm else None), RewardObjective(lm=0.5 * lm))
    )
    before = gradients(engine.network)
    engine.restore()
    assert all(torch.equal(p.view(torch.int32), weights[name].view(torch.int32)) for name, p in named(engine).items())
    assert all(torch.equal(grad, before[name]) for name, grad in gradients(engine.network).items())


def test_measuring_draws_the_same_dropout(model: Path) -> None:
    engine = engine_of(model, dtype=torch.float32, dropout=0.2)
    batch = _with(packed(batches(0)[1], 48), DifferenceObjective())
    values = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        measured = sums(engine.measure(*batch))
        torch.manual_seed(seed)
        assert torch.equal(measured, sums(engine.forward_backward(*batch)))
        values.append(measured)
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_gradient_of_j_that_is_not_finite_leaves_the_step_out(model: Path, value: float) -> None:
    engine = engine_of(model, dtype=torch.float32)
    weights = named(engine)
    pairs = _with(packed(batches(0)[0]), RewardObjective())
    engine.forward_backward(*_with(packed(batches(0)[1]), DifferenceObjective()))
    # A row of the embedding that no pair reads: only J's gradient tells.
    grad = engine.network.decoder.embed.weight.grad
    assert grad is not None and not (pairs[0][0].tokens == 0).any()
    grad[0, 0] = value
    engine.perturb(eta=ETA)
    assert engine.forward_backward(*pairs).loss.isfinite()
    engine.restore()
    assert engine.optimizer_step(LR).isnan() and engine.optimizer.steps == 0
    assert all(torch.equal(p, weights[name]) for name, p in named(engine).items())
    # A step of its own after it counts again.
    engine.forward_backward(*pairs)
    assert engine.optimizer_step(LR).isfinite() and engine.optimizer.steps == 1


@pytest.fixture
def sharded(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NativeEngine]:
    """An engine that shards, over this process alone."""
    world = World()
    world.size = 2
    monkeypatch.setattr(replicas, "init_device_mesh", lambda kind, shape: init_device_mesh(kind, (1,)))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        network = load_network(model, dtype=torch.bfloat16)[0]
        yield NativeEngine(network, world=world, options=AdamWOptions(), data_parallel="fsdp")
    finally:
        dist.destroy_process_group()


def test_weights_that_fsdp_gathered_are_not_kept(sharded: NativeEngine) -> None:
    """FSDP2 keeps what it gathered for a forward pass without a backward; the weights change under it."""
    batch = _with(packed(batches(0)[1]), DifferenceObjective())
    before = sums(sharded.forward_backward(*batch))
    sharded.perturb(eta=ETA)
    after = sums(sharded.measure(*batch))
    sharded.restore()
    assert torch.equal(sums(sharded.measure(*batch)), before) and after[0] > before[0]


def test_fsdp_keeps_no_whole_gradients_from_pack_to_pack(sharded: NativeEngine) -> None:
    packs, _, totals = _with(packed(batches(0)[0], 16), RewardObjective())
    held = []

    class Looking(RewardObjective):
        def __call__(self, *arguments: Any) -> Any:
            groups = [
                m._get_fsdp_state()._fsdp_param_group for m in sharded.network.modules() if isinstance(m, FSDPModule)
            ]
            held.append(sum(p.unsharded_accumulated_grad is not None for group in groups for p in group.fsdp_params))
            return super().__call__(*arguments)

    sharded.forward_backward(packs, Looking(), totals)
    assert len(held) == len(packs) > 2 and not any(held)
