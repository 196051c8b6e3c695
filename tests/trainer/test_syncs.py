"""No step makes the host wait for its device. The device is torch's "meta", whose tensors hold nothing to read; kernels
give the shapes that they would on a GPU."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rmfast.data.loader import StepLoader
from rmfast.data.plan import StepPlan
from rmfast.models.hf import load_network
from rmfast.objectives.meta import DifferenceObjective
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.tasks.ensemble.head_learner import HeadLearner
from rmfast.trainer.batch_learner import BatchLearner
from rmfast.trainer.learner import Learner
from rmfast.trainer.loop import take_steps
from rmfast.trainer.meta_learner import MetaLearner
from rmfast.trainer.metric_queue import MetricQueue
from tests.tiny import Group, group_of, save_hf_model, table_of
from tests.trainer.runs import run_in
from tests.trainer.test_heads import MEMBERS, data_of, heads, options
from tests.trainer.test_loop import learner_of

DEVICE = torch.device("meta")


class NoNumbers(TorchFunctionMode):
    """Refuses tensors that are made on the device of Python's numbers: a copy that is waited for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            assert torch.device(kwargs.get("device") or "cpu") != DEVICE, "a tensor of Python's numbers"
        return func(*args, **kwargs)


class NoWaits(TorchDispatchMode):
    """Refuses what waits for the device: reading it, sizes that depend on what is there, copies to and from memory that
    is not on it, unless they are asked for as copies that nothing waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.device == DEVICE for tensor in given):
            assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal"), name
            assert name != "index" or all(tensor.dtype != torch.bool for tensor in given[1:]), "index by a mask"
        out = func(*args, **kwargs)
        made = {leaf.device for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
        if name in ("_to_copy", "copy_"):
            came = {tensor.device for tensor in given if name == "_to_copy" or tensor is not given[0]}
            assert made == came or made == {DEVICE}, "a copy from the device"
            if made != came:
                self.sent += 1
                assert kwargs.get("non_blocking") or args[2:] == (True,), "a copy to the device that is waited for"
        return out


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops take their kernels."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("rmfast.kernels", "kernels")) and hasattr(module, "use_triton"):
            monkeypatch.setattr(module, "use_triton", lambda *_, **__: True)


def pairs() -> list[Group]:
    g = np.random.default_rng(3)
    return [group_of(g, 5, [4, 2, 3], [(0, 1), (2, 1)]) for _ in range(8)]


def prompts() -> list[Group]:
    g = np.random.default_rng(4)
    return [group_of(g, 4, [3, 5, 2]) for _ in range(8)]


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_of_a_run(
    like_a_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meta: bool, dtype: str
) -> None:
    """From packs in memory to new weights: losses, clipping, dropout, skipped steps; MetaRM's ascent and way back."""
    save_hf_model("llama", tmp_path / "model", tie_word_embeddings=True)
    world = World()
    world.device = DEVICE
    network, _ = load_network(tmp_path / "model", lm=True, dtype=getattr(torch, dtype), dropout=0.1)
    engine = NativeEngine(network, world=world, options=AdamWOptions(clip=0.5, weight_decay=0.1))

    def loader(groups: list[Group], lm: bool) -> StepLoader:
        table = table_of(groups)
        plan = StepPlan([len(table)], [1.0], groups_per_step=4, seed=0)
        return StepLoader(table, plan, total=2, ranks=1, rank=0, budget=32, predicts="chosen" if lm else None)

    loaders = [loader(pairs(), True), *([loader(prompts(), False)] if meta else [])]
    parts = sum(len(one.build(number).packs) for number in range(2) for one in loaders)
    learner: Learner = learner_of(engine, loaders[0])
    assert isinstance(learner, BatchLearner)
    learner.objective = RewardObjective(lm=0.3)
    if meta:
        learner = MetaLearner(learner, loaders[1], DifferenceObjective(), eta=1.0, rho=0.1, check_every=1)
    read: list[int] = []
    monkeypatch.setattr(MetricQueue, "pop", lambda self, leave=0: read.append(leave) or [])
    run = run_in(tmp_path, max_skipped=10)
    with NoWaits() as watch, NoNumbers():
        take_steps(run, learner)
    assert read == [1, 1, 0]  # figures are read a step later
    assert parts > 2 and watch.sent >= 13 * parts


def test_a_step_of_an_ensemble_s_heads(like_a_gpu: None) -> None:
    """All that a step needs goes to the device in one copy."""
    learner = HeadLearner(heads(3), MEMBERS, data_of(), options(), DEVICE)
    with NoWaits() as watch, NoNumbers():
        for number in range(2):
            learner.step(number)
    assert watch.sent == 2


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: torch.empty(3).copy_(x),
        lambda x: torch.ones(3).to(DEVICE),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: torch.tensor([1.0, 2.0], device=DEVICE),
    ],
)
def test_what_waits_is_found(wait: Callable[[Tensor], Any]) -> None:
    # torch raises a RuntimeError of some kind where a tensor without memory is read.
    with pytest.raises((AssertionError, RuntimeError)), NoWaits(), NoNumbers():
        wait(torch.empty(3, device=DEVICE))
