"""Weights are cast once for all packs of a step, to the bits of a cast in every layer, and are never out of date."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rmfast.data.loader import Totals, rank_packs, totals_of
from rmfast.data.pack import Pack
from rmfast.data.views import Views
from rmfast.models.copies import Copies
from rmfast.models.hf import load_network
from rmfast.objectives.contrastive import ContrastiveObjective
from rmfast.objectives.meta import DifferenceObjective
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel.contrast import Contrast
from rmfast.parallel.graphs import Recorder
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from tests.casts import Casts
from tests.figures import sums
from tests.tiny import group_of, save_hf_model, table_of

TINY = 48  # tokens of a pack, so that a step has several


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copies") / "model"
    save_hf_model("llama-tied-llama3", folder)
    return folder


def engine_of(model: Path, *, term: ContrastiveObjective | None = None, **options: Any) -> NativeEngine:
    recorder, layers = options.pop("recorder", None), options.pop("top_layers", None)
    network, _ = load_network(model, **({"dtype": torch.bfloat16} | options))
    if layers is not None:
        network.freeze(layers)
    if term is not None and term.kind == "swav":
        network.add_prototypes(6, 0)
    adamw = AdamWOptions(weight_decay=0.1, clip=0.5)
    return NativeEngine(network, world=World(), options=adamw, recorder=recorder)


@cache
def swav_objective(engine: NativeEngine) -> RewardObjective:
    """One for all steps of an engine: it keeps a queue."""
    return RewardObjective(batch_term=Contrast(SWAV, engine.network.config.width, engine.data))


def batch(
    seed: int, budget: int = TINY, groups: int = 5, samples: bool = False, **options: Any
) -> tuple[list[Pack], Totals]:
    """Prompts with a pair, or with three samples each."""
    g = np.random.default_rng(seed)
    edges, responses = ([], 3) if samples else ([(0, 1)], 2)
    each = [group_of(g, int(g.integers(3, 9)), g.integers(2, 8, responses).tolist(), edges) for _ in range(groups)]
    table, rows = table_of(each), np.arange(groups)
    packs, _ = rank_packs(table, rows, ranks=1, rank=0, budget=budget, **options)
    return packs, totals_of(table, rows, options.get("views"))


def reward(engine: NativeEngine, number: int) -> Tensor:
    lm = engine.network.lm
    packs, totals = batch(number, predicts="chosen" if lm else None)
    assert len(packs) > 1
    return sums(engine.forward_backward(packs, RewardObjective(lm=0.5 * lm), totals))


def meta(engine: NativeEngine, number: int) -> Tensor:
    packs, totals = batch(number, samples=True)
    engine.forward_backward(packs, DifferenceObjective(), totals)
    engine.perturb(eta=0.05)
    sums = reward(engine, number)
    engine.restore()
    return sums


def contrastive(engine: NativeEngine, number: int) -> Tensor:
    views: Views = "pass"
    packs, totals = batch(number, 2 * TINY, views=views)
    found = engine.forward_backward(packs, swav_objective(engine), totals)
    return torch.cat([sums(found), found.figures["contrastive_loss"][None]])


SWAV = ContrastiveObjective(kind="swav", on="pair", beta=0.7, temperature=0.2, epsilon=0.2, queue=20)
STEPS: dict[str, tuple[Callable[[NativeEngine, int], Tensor], int, dict[str, Any]]] = {
    "reward, tied LM head": (reward, 20, {"lm": True}),
    "reward, recomputed, dropout": (reward, 4, {"recompute": "selective", "dropout": 0.1}),
    "reward, frozen layers": (reward, 4, {"top_layers": 1}),
    "meta": (meta, 20, {}),
    "contrastive": (contrastive, 20, {"term": SWAV, "dropout": 0.1}),
}


def train(engine: NativeEngine, step: Callable[[NativeEngine, int], Tensor], steps: int) -> list[Tensor]:
    """What each step gave, its gradient's norm, the scores of a batch afterwards, and the final weights."""
    seen = []
    for number in range(steps):
        torch.manual_seed(number)
        seen.append(step(engine, number))
        seen.append(engine.optimizer_step(1e-3))
    seen += engine.score(batch(99)[0])
    return seen + [p.detach().clone() for p in engine.network.parameters()]


@pytest.mark.parametrize("name", STEPS)
def test_the_bits_are_those_of_a_cast_in_every_layer(model: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    step, steps, options = STEPS[name]
    once = train(engine_of(model, **options), step, steps)
    monkeypatch.setattr(Copies, "__enter__", lambda self: None)
    monkeypatch.setattr(Copies, "__exit__", lambda self, *error: None)
    each = train(engine_of(model, **options), step, steps)
    assert all(torch.equal(a, b) for a, b in zip(once, each, strict=True))
    assert not torch.equal(once[0], once[2 * steps - 2]), "training changed nothing"


@pytest.mark.parametrize("lm", [False, True])
def test_a_weight_is_cast_once_a_step_whatever_the_number_of_packs(model: Path, lm: bool) -> None:
    engine = engine_of(model, lm=lm)
    matrices = {n for n, p in engine.network.named_parameters() if p.dim() > 1 and n.startswith("decoder.layers")}
    expected = dict.fromkeys(matrices | ({"decoder.embed.weight"} if lm else set()), 1)
    for budget in (1000, TINY, 24):
        packs, totals = batch(0, budget, predicts="chosen" if lm else None)
        with Casts(engine.network.named_parameters()) as casts:
            engine.forward_backward(packs, RewardObjective(lm=0.5 * lm), totals)
        assert casts.counts == expected, len(packs)
        with Casts(engine.network.named_parameters()) as casts:
            engine.score(packs)
        assert casts.counts == expected, len(packs)
    assert len(packs) > 3


def test_a_frozen_weight_is_cast_once_and_again_when_it_is_loaded(model: Path) -> None:
    """In training and where a model is scored; what is trained is cast once a step."""
    engine = engine_of(model, top_layers=1)
    weights = {name: p for name, p in engine.network.named_parameters() if p.dim() > 1 and "layers" in name}
    frozen = {name for name, p in weights.items() if not p.requires_grad}
    assert frozen and frozen < weights.keys()

    def counts(number: int) -> dict[str, int]:
        with Casts(weights.items()) as casts:
            reward(engine, number)
            engine.optimizer_step(1e-2)
            engine.score(batch(number)[0])
        return casts.counts

    expected = dict.fromkeys(weights.keys() - frozen, 2)
    assert counts(0) == expected | dict.fromkeys(frozen, 1)
    assert counts(1) == expected
    saved = {name: 1.5 * shard.tensor for name, shard in engine.state().items()}
    engine.load_state(lambda name, begin, end, columns=None: saved[name][begin:end])
    assert counts(2) == expected | dict.fromkeys(frozen, 1)


def test_a_pass_that_collects_features_takes_the_same_copies(model: Path) -> None:
    engine = engine_of(model, term=SWAV)
    with Casts(engine.network.named_parameters()) as casts:
        contrastive(engine, 0)
    assert set(casts.counts.values()) == {1}


@pytest.mark.parametrize("top_layers", [None, 1])
def test_copies_are_never_out_of_date(model: Path, top_layers: int | None) -> None:
    """Scores, by copies, are those of the network itself, which casts its weights, after all that changes them."""
    engine, other = engine_of(model, top_layers=top_layers), engine_of(model, top_layers=top_layers)
    with torch.no_grad():
        for weight in other.network.parameters():
            weight.mul_(1.1)  # frozen ones too
    packs = batch(99)[0]
    seen: list[Tensor] = []

    def check() -> None:
        scores = torch.cat(engine.score(packs))
        with torch.no_grad():
            assert torch.equal(scores, torch.cat([engine.network.score(pack) for pack in packs]))
        assert not any(torch.equal(scores, earlier) for earlier in seen)
        seen.append(scores)

    check()
    reward(engine, 0)
    engine.optimizer_step(1e-2)
    check()
    reward(engine, 1)
    engine.perturb(eta=1.0)
    check()
    engine.restore()
    assert torch.equal(torch.cat(engine.score(packs)), seen[1])
    reward(other, 7)
    other.optimizer_step(1e-1)
    saved = {name: shard.tensor.clone() for name, shard in other.state().items()}
    assert saved.keys() == engine.state().keys() and all("cop" not in name for name in saved)
    engine.load_state(lambda name, begin, end, columns=None: saved[name][begin:end])
    check()


class Reads(TorchDispatchMode):
    """Where the operands of matrix products are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.places |= {x.data_ptr() for x in args if isinstance(x, Tensor)}
        return func(*args, **(kwargs or {}))


def test_recorded_packs_read_copies_that_keep_their_place(model: Path) -> None:
    """A graph repeats its kernels on the addresses of its recording: the copies', and no cast is part of it."""

    def run(recorder: Recorder | None) -> list[Tensor]:
        engine, seen = engine_of(model, recorder=recorder), []
        places = {copy.data_ptr() for copy in engine.copies.copies}
        for number in range(3):
            packs, totals = batch(number, 64, fixed=True)
            with Reads() as reads, Casts(engine.network.named_parameters()) as casts:
                seen.append(sums(engine.forward_backward(packs, RewardObjective(), totals)))
            assert places <= reads.places and set(casts.counts.values()) == {1}
            seen.append(engine.optimizer_step(1e-2))
        return seen + [p.detach().clone() for p in engine.network.parameters()]

    def again(run: Callable[[], None]) -> Callable[[], None]:
        run()
        return run

    for repeated, fresh in zip(run(again), run(None), strict=True):
        torch.testing.assert_close(repeated, fresh, rtol=1e-5, atol=1e-5)


def test_weights_in_their_dtype_already_get_no_copies(model: Path) -> None:
    assert engine_of(model, dtype=torch.float32).copies.copies == []
    assert engine_of(model, weights_dtype=torch.bfloat16).copies.copies == []
