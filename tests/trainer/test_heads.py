"""Heads trained together, against a plain torch loop for each of them."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rmfast.checkpoint.store import list_checkpoints, remove_checkpoint
from rmfast.data.edge_columns import Edges
from rmfast.data.plan import StepPlan
from rmfast.data.table import table_edges
from rmfast.errors import RunError
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.tasks.ensemble import head_learner as head_learner
from rmfast.tasks.ensemble.head_batch import HeadBatch, HeadData, HeadMember
from rmfast.tasks.ensemble.head_learner import HeadLearner, HeadOptions, head_scores
from rmfast.trainer.loop import take_steps
from rmfast.trainer.schedule import learning_rate
from tests.runs import read_lines
from tests.tiny import group_of, table_of
from tests.trainer.runs import run_in

WIDTH, GROUPS = 8, 23


def data_of(seed: int = 0) -> HeadData:
    """Groups of 2 to 4 responses with 1 to 3 edges, some of them treated; features lie shuffled among others."""
    draw = np.random.default_rng(seed)
    edges = [[(0, 1)], [(1, 0)], [(0, 1), (0, 2)], [(2, 3), (0, 1), (3, 1)]]
    groups = [group_of(draw, 3, [2] * (2 + max(0, i % 4 - 1)), edges[i % 4]) for i in range(GROUPS)]
    table = table_of(groups)
    own = table_edges(table)
    count = len(own.better)
    own = Edges(
        **{name: getattr(own, name) for name in ("better", "worse", "group", "length")},
        margin=draw.normal(size=count).astype(np.float32),
        target=draw.uniform(0.5, 1, count).astype(np.float32),
        weight=draw.uniform(0, 2, count).astype(np.float32),
    )
    responses = int(table.first_response[-1])
    features = draw.normal(size=(responses + 9, WIDTH)).astype(np.float32)
    return HeadData(features=features, place=draw.permutation(responses + 9)[:responses], edges=own)


def member(seed: int, groups: Sequence[int], epochs: int = 3) -> HeadMember:
    plan = StepPlan([len(groups)], [1.0], groups_per_step=5, seed=seed)
    total = plan.first_step(epochs)
    return HeadMember(plan=plan, groups=np.array(groups), total=total, rate=rate_of(total))


def rate_of(total: int, **more: Any) -> Callable[[int], float]:
    """The learning rate of a member's steps."""
    keys: dict[str, Any] = {"peak": 0.05, "schedule": "cosine", "warmup": round(0.2 * total), "floor": 0.1}
    return lambda step: learning_rate(step, total=total, **(keys | more)) if step < total else 0.0


def options(**more: Any) -> HeadOptions:
    keys: dict[str, Any] = {
        "adamw": AdamWOptions(betas=(0.8, 0.95), weight_decay=0.1, clip=0.3),
        "center": 0.02,
    }
    return HeadOptions(**(keys | more))


def heads(count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))


def alone(data: HeadData, own: HeadMember, head: Tensor, o: HeadOptions) -> tuple[Tensor, list[float]]:
    """The same steps of one head as anybody would write them in torch, in fp64."""
    head = torch.nn.Parameter(head.double()[None].clone())
    adamw = torch.optim.AdamW([head], betas=o.adamw.betas, eps=o.adamw.eps, weight_decay=o.adamw.weight_decay)
    features = torch.from_numpy(data.features).double()[data.place]
    e = {name: torch.from_numpy(np.asarray(getattr(data.edges, name))) for name in ("margin", "target", "weight")}
    losses = []
    for step in range(own.total):
        groups = own.groups[own.plan.step(step)[1]]
        mine = np.flatnonzero(np.isin(data.edges.group, groups))
        better, worse = ((features @ head[0])[getattr(data.edges, side)[mine]] for side in ("better", "worse"))
        gap = better - worse - e["margin"][mine].double()
        edge = -F.logsigmoid(gap) + (1 - e["target"][mine].double()) * gap + o.center * (better + worse) ** 2
        loss = (edge * e["weight"][mine].double()).sum() / e["weight"][mine].double().sum()
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([head], o.adamw.clip)
        adamw.param_groups[0]["lr"] = own.rate(step)
        adamw.step()
        losses.append(float(loss.detach()))
    return head.detach()[0], losses


def fit(learner: HeadLearner, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Take all steps, or those that the folder's checkpoint leaves; what was logged."""
    run = run_in(folder, **options)
    run.resume(learner)
    with run.logging(learner.total):
        take_steps(run, learner)
    return read_lines(folder / "metrics.jsonl")


MEMBERS = [member(1, range(GROUPS)), member(2, range(0, GROUPS, 2)), member(3, range(5, GROUPS))]


@pytest.mark.parametrize("number", range(len(MEMBERS)))
def test_each_of_many_heads_is_as_trained_alone(number: int, tmp_path: Path) -> None:
    """Members of other sizes, orders and numbers of steps: the others must not show."""
    data, o = data_of(), options()
    learner = HeadLearner(heads(3), MEMBERS, data, o, torch.device("cpu"))
    lines = fit(learner, tmp_path)
    expected, losses = alone(data, MEMBERS[number], heads(3)[number], o)
    moved = (expected - heads(3)[number]).norm()
    assert moved > 0.1 and (learner.weight[number] - expected).norm() < 1e-5 * moved
    single = HeadLearner(heads(3)[number : number + 1], [MEMBERS[number]], data, o, torch.device("cpu"))
    own = fit(single, tmp_path / "single")
    assert [line["loss"] for line in own] == pytest.approx(losses, rel=1e-5)
    assert (single.weight[0] - expected).norm() < 1e-5 * moved
    assert len(lines) == max(m.total for m in MEMBERS) and len({m.total for m in MEMBERS}) == 3
    assert lines[-1]["members"] == 1 and lines[0]["members"] == 3


def test_no_clipping_and_no_decay_are_plain_adam(tmp_path: Path) -> None:
    data, o = data_of(3), options(adamw=AdamWOptions(clip=0.0), center=0.0)
    one = replace(MEMBERS[0], rate=rate_of(MEMBERS[0].total, warmup=3, schedule="linear"))
    learner = HeadLearner(heads(1), [one], data, o, torch.device("cpu"))
    fit(learner, tmp_path)
    head = torch.nn.Parameter(heads(1)[0].double())
    assert not torch.allclose(learner.weight[0].double(), head)
    no_clip = options(adamw=AdamWOptions(clip=1e9), center=0.0)
    expected, _ = alone(data, one, heads(1)[0], no_clip)
    assert (learner.weight[0] - expected).norm() < 1e-5 * expected.norm()


def test_resume_is_bit_exact(tmp_path: Path) -> None:
    data, o = data_of(), options()
    whole = HeadLearner(heads(3), MEMBERS, data, o, torch.device("cpu"))
    lines = fit(whole, tmp_path / "whole")
    first = HeadLearner(heads(3), MEMBERS, data, o, torch.device("cpu"))
    fit(first, tmp_path / "saved", checkpoint_every=4)
    saved = list_checkpoints(tmp_path / "saved" / "checkpoints")
    assert [path.name for path in saved] == ["step-4", "step-8", "step-12"]
    remove_checkpoint(saved[-1])
    again = HeadLearner(torch.zeros(3, WIDTH), MEMBERS, data, o, torch.device("cpu"))
    rest = fit(again, tmp_path / "saved")
    assert torch.equal(again.weight, whole.weight) and torch.equal(first.weight, whole.weight)
    assert [line["loss"] for line in rest] == [line["loss"] for line in lines]


def test_a_broken_member_stops_the_run_or_stays_behind_alone(tmp_path: Path) -> None:
    data = data_of()
    broken = heads(3)
    broken[1, 0] = torch.inf
    with pytest.raises(RunError, match=r"step 1: loss or gradient of member 1 is not finite"):
        fit(HeadLearner(broken, MEMBERS, data, options(), torch.device("cpu")), tmp_path / "stopped")
    learner = HeadLearner(broken, MEMBERS, data, options(), torch.device("cpu"))
    lines = fit(learner, tmp_path / "skipped", max_skipped=10)
    clean = HeadLearner(heads(3), MEMBERS, data, options(), torch.device("cpu"))
    fit(clean, tmp_path / "clean")
    assert torch.equal(learner.weight[[0, 2]], clean.weight[[0, 2]]) and torch.equal(learner.weight[1], broken[1])
    assert all(line["skipped"] == [1] for line in lines[: MEMBERS[1].total]) and np.isfinite(lines[0]["loss"])


def test_scores_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(0).normal(size=(11, WIDTH)).astype(np.float32)
    expected = features.astype(np.float64) @ heads(3).double().numpy().T
    monkeypatch.setattr("rmfast.tasks.ensemble.head_learner.CHUNK", 4)
    assert head_scores(features, heads(3)) == pytest.approx(expected.T, abs=1e-5)


def test_the_backward_has_no_sum_whose_order_a_gpu_leaves_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it gives the bits of gather's on the CPU, where that has one order."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.overloadpacket.__name__
            assert not any(word in name for word in ("scatter", "gather", "index_put")), name
            return func(*args, **(kwargs or {}))

    data, o = data_of(), options()
    learner = HeadLearner(heads(3), MEMBERS, data, o, torch.device("cpu"))
    batch = learner.batch(0)
    assert any(len(row.unique()) < len(row) for row in batch.better), "a response is in several edges"
    with Watch():
        learner.step(0)
    fit(learner, tmp_path / "ours")
    monkeypatch.setattr(head_learner, "_pick", lambda scores, places: scores.gather(1, places))
    before = HeadLearner(heads(3), MEMBERS, data, o, torch.device("cpu"))
    before.step(0)
    fit(before, tmp_path / "gather")
    assert torch.equal(learner.weight, before.weight)


def test_a_batch_is_one_piece_of_memory_on_every_device() -> None:
    batch = HeadLearner(heads(3), MEMBERS, data_of(), options(), torch.device("cpu")).batch(2)
    moved = batch.to(torch.device("meta"))
    for name in [field.name for field in fields(HeadBatch)][1:]:
        here, there = getattr(batch, name), getattr(moved, name)
        assert here.untyped_storage().data_ptr() == batch.buffer.data_ptr() and here.data_ptr() % 64 == 0
        assert there.untyped_storage()._cdata == moved.buffer.untyped_storage()._cdata
        assert (there.dtype, there.shape, there.storage_offset()) == (here.dtype, here.shape, here.storage_offset())
    assert batch.active.tolist() == [True] * 3


def test_batches_are_built_a_step_ahead_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[int, bool]] = []
    batch, gradients = HeadLearner.batch, head_learner.head_gradients
    second = threading.Event()

    def watched(self: HeadLearner, number: int) -> HeadBatch:
        built.append((number, threading.current_thread() is threading.main_thread()))
        if number == 1:
            second.set()
        return batch(self, number)

    def stepped(*given: Any, **options: Any) -> Any:
        assert second.wait(60), "the second step's batch is built while the first step runs"
        return gradients(*given, **options)

    monkeypatch.setattr(HeadLearner, "batch", watched)
    monkeypatch.setattr(head_learner, "head_gradients", stepped)
    learner = HeadLearner(heads(3), MEMBERS, data_of(), options(), torch.device("cpu"))
    fit(learner, tmp_path)
    assert built == [(number, False) for number in range(learner.total)]
