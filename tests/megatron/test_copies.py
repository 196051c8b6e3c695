"""The megatron engine casts its weights once for all packs of a step, to the bits of a cast in every layer."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from rmfast.data.loader import Totals, rank_packs, totals_of
from rmfast.data.pack import Pack
from rmfast.models import decoder
from rmfast.models.config import decoder_config
from rmfast.models.copies import Copies
from rmfast.models.hf import read_config
from rmfast.models.rows import open_rows
from rmfast.objectives.contrastive import ContrastiveObjective
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel.contrast import Contrast
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from tests.casts import Casts
from tests.figures import sums
from tests.megatron.standin import install
from tests.tiny import group_of, save_hf_model, table_of

pytest.importorskip("megatron.core")

SIMCSE = ContrastiveObjective(kind="simcse", on="pair", beta=1.0, temperature=0.5)
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copies") / "model"
    save_hf_model("llama-biases", folder, tie_word_embeddings=True)
    return folder


@pytest.fixture
def make(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Engines of one process; `sequence`: with tensor-parallel layers, of one rank, that share the stream or not."""
    install(monkeypatch.setattr)
    from rmfast.parallel.megatron.engine import MegatronEngine
    from rmfast.parallel.megatron.groups import Groups, Layout
    from rmfast.parallel.megatron.layers import TensorParallel
    from rmfast.parallel.megatron.stage import build_stages

    groups = Groups(World(), Layout())

    def make(
        *,
        sequence: bool | None = None,
        lm: bool = False,
        top_layers: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> MegatronEngine:
        hf = read_config(model)
        with ExitStack() as stack:
            if sequence is not None:
                patch = stack.enter_context(pytest.MonkeyPatch.context())
                patch.setattr(decoder, "NativeLayers", partial(TensorParallel, groups.tensor, sequence=sequence))
            stages = build_stages(
                decoder_config(hf, "here"),
                groups,
                heads=1,
                lm=lm,
                top_layers=top_layers,
                prototypes=None,
                dtype=dtype,
            )
            rows = stack.enter_context(open_rows(model, hf, heads=1, seed=0, from_scratch=False, lm=lm))
            return MegatronEngine(stages, groups, rows, options=AdamWOptions(clip=0.5))

    yield make
    dist.destroy_process_group()


def batch(budget: int = 1000, **options: Any) -> tuple[list[Pack], Totals]:
    g = np.random.default_rng(0)
    table = table_of([group_of(g, int(g.integers(3, 9)), [4, 2], [(0, 1)]) for _ in range(6)])
    rows = np.arange(len(table))
    packs, _ = rank_packs(table, rows, ranks=1, rank=0, budget=budget, **options)
    return packs, totals_of(table, rows, options.get("views"))


def products(engine: Any, lm: bool) -> set[str]:
    """Weights and biases of linear layers, and the table of an LM loss."""
    layers = ("qkv", "out", "gate_up", "down")
    own = {name for name in engine.held.parameters if any(f".{layer}." in name for layer in layers)}
    return own | ({"decoder.embed.weight"} if lm else set())


@pytest.mark.parametrize("sequence", [None, False, True])
@pytest.mark.parametrize("lm", [False, True])
def test_a_weight_is_cast_once_a_step_whatever_the_number_of_packs(make: Make, sequence: bool | None, lm: bool) -> None:
    engine = make(sequence=sequence, lm=lm)
    weights = dict.fromkeys(products(engine, lm), 1)
    for budget in (1000, 48, 24):
        packs, totals = batch(budget, predicts="chosen" if lm else None)
        with Casts(engine.held.parameters.items()) as casts:
            engine.forward_backward(packs, RewardObjective(lm=0.5 * lm), totals)
        assert casts.counts == weights, len(packs)
        for read in (engine.score, partial(engine.measure, objective=RewardObjective(), totals=totals)):
            with Casts(engine.held.parameters.items()) as casts:
                read(packs)
            assert casts.counts == weights, len(packs)
    assert len(packs) > 3


def test_a_pass_that_collects_features_takes_the_same_copies(make: Make) -> None:
    engine = make()
    objective = RewardObjective(batch_term=Contrast(SIMCSE, engine.held.config.width, engine.data))
    packs, totals = batch(100, views="pass")
    with Casts(engine.held.parameters.items()) as casts:
        engine.forward_backward(packs, objective, totals)
    assert len(packs) > 1 and casts.counts == dict.fromkeys(products(engine, False), 1)


def test_frozen_weights_are_cast_once(make: Make) -> None:
    engine = make(sequence=False, top_layers=1)
    packs, totals = batch(48)
    counts = []
    for _ in range(2):
        with Casts(engine.held.parameters.items()) as casts:
            engine.forward_backward(packs, RewardObjective(), totals)
        counts.append(casts.counts)
        engine.optimizer_step(1e-2)
    every = products(engine, False)
    trained = {name for name in every if engine.held.parameters[name].requires_grad}
    assert counts == [dict.fromkeys(every, 1), dict.fromkeys(trained, 1)] and trained < every


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sequence", [False, True])
def test_the_bits_are_those_of_a_cast_in_every_layer(
    make: Make, monkeypatch: pytest.MonkeyPatch, sequence: bool, dtype: torch.dtype
) -> None:
    def train() -> list[Tensor]:
        engine, seen = make(sequence=sequence, lm=True, dtype=dtype), []
        packs, totals = batch(48, predicts="chosen")
        for _ in range(4):
            seen.append(sums(engine.forward_backward(packs, RewardObjective(lm=0.5), totals)))
            seen.append(engine.optimizer_step(1e-2))
        return [*seen, *engine.score(packs), *(p.detach().clone() for p in engine.held.parameters.values())]

    once = train()
    monkeypatch.setattr(Copies, "__enter__", lambda self: None)
    monkeypatch.setattr(Copies, "__exit__", lambda self, *error: None)
    assert all(torch.equal(a, b) for a, b in zip(once, train(), strict=True))
    assert not torch.equal(once[0], once[6]), "training changed nothing"
