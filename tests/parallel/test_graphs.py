"""Padded packs compute what the packs alone do, and steps repeated from a recording what fresh steps do."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmfast.data.loader import PINNING, StepLoader, rank_packs, totals_of
from rmfast.data.pack import Pack, empty_pack
from rmfast.data.pad import pad_pack, round_up
from rmfast.data.plan import StepPlan
from rmfast.models.hf import load_network
from rmfast.models.low_rank import LoraOptions
from rmfast.models.network import Network
from rmfast.objectives.base import Statistics
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel.graphs import WARM_UP, CudaRecorder, Recorder
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.trainer.dropout import seed_dropout
from tests.figures import maxima, sums
from tests.models.adapters import add_adapter
from tests.replay import ReplayOnTheCpu
from tests.tiny import Group, assert_close_by_norm, gradients, group_of, save_hf_model, table_of

OPTIONS = AdamWOptions(weight_decay=0.1, clip=0.5)
OBJECTIVE = RewardObjective(center=0.01, lm=0.3, impl="triton")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs") / "model"
    save_hf_model("llama", folder, tie_word_embeddings=True)
    return folder


def network_of(model: Path, impl: str = "triton", dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> Network:
    weights = torch.promote_types(dtype, torch.float32)
    return load_network(model, lm=True, impl=impl, dtype=dtype, weights_dtype=weights, dropout=dropout)[0]


def batches() -> list[list[Group]]:
    """Global batches of differing shapes; one group's response ends inside the prefix."""
    g = np.random.default_rng(5)
    inside = Group([[1, 7, 8], [1, 7, 8, 9]], ((1, 0),))
    return [
        [group_of(g, 7, [4, 2], [(0, 1)]), group_of(g, 3, [5, 6, 1], [(2, 0), (2, 1)])],
        [inside, group_of(g, 5, [3, 2], [(1, 0)])],
        [group_of(g, 2, [9, 3], [(0, 1)])],
    ]


def backward(network: Network, pack: Pack, totals: Any) -> tuple[Statistics, dict[str, Tensor]]:
    network.train().zero_grad()
    objective = RewardObjective(center=0.01, lm=0.3)
    loss, statistics = objective(network(pack, objective.reads(pack)), pack, totals)
    loss.backward()
    return statistics, gradients(network)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_padding_changes_nothing(model: Path, impl: str) -> None:
    network = network_of(model, impl, torch.float64)
    table = table_of(batches()[0])
    rows = np.arange(len(table))
    [pack], padding = rank_packs(table, rows, ranks=1, rank=0, budget=64, predicts="chosen")
    [fixed], added = rank_packs(table, rows, ranks=1, rank=0, budget=64, predicts="chosen", fixed=True)
    assert padding == 0 and added == 64 - len(pack.tokens) > 0
    assert {len(fixed.scored), len(fixed.edges.better)} == {16} and fixed.layout.shape == (4, 64)
    statistics, grads = backward(network, pack, totals_of(table, rows))
    padded_statistics, padded_grads = backward(network, fixed, totals_of(table, rows))
    torch.testing.assert_close(padded_statistics.sums, statistics.sums)
    torch.testing.assert_close(padded_statistics.maxima, statistics.maxima)
    assert statistics.loss > 0 and statistics.sums["lm_loss"] > 0  # so that padding could change them
    assert_close_by_norm(padded_grads, grads, 1e-12)


def test_few_shapes() -> None:
    assert [round_up(n) for n in (0, 1, 16, 17, 64, 65)] == [0, 16, 16, 32, 64, 128]
    idle = pad_pack(empty_pack(), 8)
    assert not idle.is_response.any() and not idle.edges.weight.any() and len(idle.tokens) == 8
    with pytest.raises(ValueError, match="a pack of 8 tokens cannot be padded to 4"):
        pad_pack(idle, 4)


def adapted(model: Path) -> Network:
    network = network_of(model)
    add_adapter(network, LoraOptions(rank=2))
    return network


def steps(
    network: Network, recorder: Recorder | None, data: list[list[Group]]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Two epochs of batches in small packs; norms and statistics of each step, and the final weights."""
    engine = NativeEngine(network, world=World(), options=OPTIONS, recorder=recorder)
    seen = []
    for epoch in range(2):
        for groups in data:
            table = table_of(groups)
            rows = np.arange(len(table))
            packs, _ = rank_packs(table, rows, ranks=1, rank=0, budget=18, predicts="chosen", fixed=True)
            statistics = engine.forward_backward(packs, OBJECTIVE, totals_of(table, rows))
            norm = engine.optimizer_step(1e-2 / (epoch + 1))
            seen.append(torch.cat([sums(statistics), maxima(statistics), norm[None]]))
    return seen, {name: p.detach().clone() for name, p in network.named_parameters()}


def check_repeats(make: Callable[[], Network], recorder: Recorder, data: list[list[Group]]) -> None:
    fresh, weights = steps(make(), None, data)
    repeated, repeated_weights = steps(make(), recorder, data)
    for step, (a, b) in enumerate(zip(repeated, fresh, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=f"step {step}")
    assert all((w != 0).any() for w in weights.values())
    assert_close_by_norm(repeated_weights, weights, 1e-5)
    assert not torch.equal(fresh[0], fresh[len(data)]), "training changed nothing"


def test_recorded_steps_are_fresh_steps(model: Path) -> None:
    recorder = ReplayOnTheCpu()
    check_repeats(lambda: network_of(model), recorder, batches()[:2])
    assert 1 <= recorder.recorded < recorder.replayed


@pytest.mark.slow
def test_recorded_steps_of_an_adapter_are_fresh_steps(model: Path) -> None:
    check_repeats(lambda: adapted(model), ReplayOnTheCpu(), batches()[2:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs(model: Path) -> None:
    for make in (lambda: network_of(model), lambda: adapted(model)):
        check_repeats(make, CudaRecorder(torch.device("cuda")), batches())


def test_scores_held_from_a_graph_stay(model: Path) -> None:
    engine = NativeEngine(network_of(model), world=World(), options=OPTIONS, recorder=ReplayOnTheCpu())
    kept = []
    for groups in batches()[:2]:
        table = table_of(groups)
        packs, _ = rank_packs(table, np.arange(len(table)), ranks=1, rank=0, budget=64, predicts="chosen", fixed=True)
        kept.append(engine.forward_backward(packs, OBJECTIVE, totals_of(table, np.arange(len(table)))))
    assert not torch.equal(sums(kept[0]), sums(kept[1]))


def losses_with_dropout(
    model: Path, recorder: Recorder | None, first: int = 0, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Statistics of one batch at the steps from `first` to 1, the weights held."""
    network = network_of(model, dtype=dtype, dropout=0.3)
    engine = NativeEngine(network, world=World(), options=OPTIONS, recorder=recorder)
    table = table_of(batches()[2])
    rows = np.arange(len(table))
    packs, _ = rank_packs(table, rows, ranks=1, rank=0, budget=16, predicts="chosen", fixed=True)
    seen = []
    for step in range(first, 2):
        seed_dropout(7, step, 0)
        seen.append(sums(engine.forward_backward(packs, OBJECTIVE, totals_of(table, rows))))
    return seen


def test_dropout_is_the_same_fresh_recorded_and_resumed(model: Path) -> None:
    """Whatever step records a shape, and however often recording runs it."""
    fresh = losses_with_dropout(model, None)
    recorded = losses_with_dropout(model, ReplayOnTheCpu(warm_up=1))
    resumed = losses_with_dropout(model, ReplayOnTheCpu(warm_up=1), first=1)
    assert all(torch.equal(a, b) for a, b in zip(recorded, fresh, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(resumed, fresh[1:], strict=True))
    assert not torch.equal(fresh[0], fresh[1]), "steps draw their own"


@contextmanager
def thread_that_pins() -> Iterator[None]:
    """Memory of ever other sizes is pinned all the while, under the loader's lock; without a GPU it is only copied."""
    over, counts, errors = threading.Event(), itertools.count(), []

    def work() -> None:
        while not over.wait(1e-4):
            memory = torch.ones(1 << next(counts) % 16)
            try:
                with PINNING:
                    memory.pin_memory() if torch.cuda.is_available() else memory.clone()
            except RuntimeError as error:
                errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert next(counts) > 0 and not errors


def test_dropout_in_bf16_is_the_same_while_a_thread_pins_memory(model: Path) -> None:
    """With CUDA graphs where there is a GPU."""

    def recorder() -> Recorder:
        return CudaRecorder(torch.device("cuda")) if torch.cuda.is_available() else ReplayOnTheCpu(warm_up=1)

    fresh = losses_with_dropout(model, None, dtype=torch.bfloat16)
    with thread_that_pins():
        recorded = losses_with_dropout(model, recorder(), dtype=torch.bfloat16)
        resumed = losses_with_dropout(model, recorder(), first=1, dtype=torch.bfloat16)
    for a, b in zip(recorded, fresh, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
    assert torch.equal(resumed[0], recorded[1])
    assert not torch.allclose(fresh[0], fresh[1], rtol=2e-2, atol=2e-2), "steps draw their own"


def test_the_loader_s_thread_may_use_cuda_while_a_graph_is_recorded_but_pins_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes, pinned = [], []

    @contextmanager
    def graph(graph: object, *, pool: object, capture_error_mode: str = "global") -> Iterator[None]:
        modes.append((capture_error_mode, PINNING.locked()))
        yield

    class Stream:
        def __init__(self, device: object = None) -> None: ...

        def wait_stream(self, other: "Stream") -> None: ...

    @contextmanager
    def stream(stream: Stream) -> Iterator[None]:
        yield

    class Graph:
        def replay(self) -> None: ...

    for name, stand_in in {
        "graph_pool_handle": lambda: 0,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": stream,
        "CUDAGraph": Graph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    runs: list[bool] = []
    CudaRecorder(torch.device("cuda"))(lambda: runs.append(PINNING.locked()))
    assert modes == [("thread_local", True)]
    assert runs == [False] * WARM_UP + [True]  # warming up takes seconds, in which packs may be pinned

    def pin(pack: Pack) -> Pack:
        pinned.append(PINNING.locked())
        return pack

    monkeypatch.setattr(Pack, "pin", pin)
    table = table_of(batches()[0])
    plan = StepPlan([len(table)], [1.0], groups_per_step=2, seed=0)
    steps = StepLoader(table, plan, total=2, ranks=1, rank=0, budget=64, pin=True)
    assert [steps.step(number).number for number in range(2)] == [0, 1]
    assert pinned == [True, True] and not PINNING.locked()
