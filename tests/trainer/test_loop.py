"""The loop: its order of events, its figures, its answer to NaN, and its losses beside a plain transformers loop."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_scheduler

from rmfast.data.loader import StepLoader, Totals
from rmfast.data.pack import Pack
from rmfast.data.plan import StepPlan
from rmfast.data.rows import parse_row
from rmfast.data.store import store_examples
from rmfast.data.table import GroupTable, build_table
from rmfast.errors import RunError
from rmfast.models.config import decoder_config
from rmfast.models.hf import load_network
from rmfast.objectives.base import Statistics
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.trainer.batch_learner import BatchLearner
from rmfast.trainer.flops import Work
from rmfast.trainer.held_out import HeldOut
from rmfast.trainer.loop import fit, take_steps
from rmfast.trainer.memory import begin_part, memory_figures, part_bytes
from rmfast.trainer.schedule import Schedule, learning_rate
from tests.data.test_plan import steps_of
from tests.runs import read_lines, write_model, write_rows
from tests.tiny import hf_config
from tests.trainer.runs import run_in

DECODER = decoder_config(hf_config("llama"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("loop") / "base")


@pytest.fixture(scope="module")
def table(base: Path) -> GroupTable:
    rows = read_lines(write_rows(base.with_name("rows.jsonl"), 10))
    return build_table([store_examples([parse_row(row) for row in rows], AutoTokenizer.from_pretrained(base))])[0]


def make_loader(table: GroupTable, steps: int) -> StepLoader:
    plan = StepPlan([len(table)], [1.0], groups_per_step=4, seed=3)
    return StepLoader(table, plan, total=steps, ranks=1, rank=0, budget=128)


class ScriptedEngine:
    """Gives the figures that a test wants, and notes what it was asked."""

    device = torch.device("cpu")

    def __init__(self, events: list[str], bad: dict[int, tuple[float, float]] | None = None) -> None:
        self.events, self.bad, self.done = events, bad or {}, 0

    def forward_backward(self, packs: Sequence[Pack], objective: RewardObjective, totals: Totals) -> Statistics:
        self.done += 1
        self.events.append(f"step {self.done}")
        loss, self.norm = self.bad.get(self.done, (0.5, 1.0))
        sums = {"loss": loss, "ranking_loss": loss, "lm_loss": 0.0, "correct": 2.0, "margin": 1.0, "reward": 1.0}
        of = {name: torch.tensor(value) for name, value in sums.items()}
        return Statistics(of, {name: torch.zeros(()) for name in ("max_reward", "negative_reward")})

    def optimizer_step(self, lr: float) -> Tensor:
        return torch.tensor(self.norm)


def learner_of(engine: Any, loader: StepLoader, rate: Callable[[int], float] = lambda step: 1e-3) -> BatchLearner:
    held_out = HeldOut(tables={}, budget=128)
    work = Work(DECODER)
    return BatchLearner(engine, RewardObjective(center=0.01), loader, held_out, rate=rate, work=work, seed=0)


def run_scripted(
    table: GroupTable, folder: Path, steps: int, bad: dict[int, tuple[float, float]] | None = None, **options: Any
) -> list[str]:
    """What happens in a run, in its order."""
    events: list[str] = []
    run = run_in(folder, **options)
    learner = learner_of(ScriptedEngine(events, bad), make_loader(table, steps))

    def evaluate(learner: Any, final: bool = False) -> dict[str, Any]:
        events.append(f"evaluate {run.step}")
        return {"eval_accuracy": 0.25}

    run.evaluate = evaluate  # type: ignore[method-assign]
    run.save = lambda learner: events.append(f"save {run.step}")  # type: ignore[method-assign]
    try:
        with run.logging(steps):
            assert run.log is not None
            write = run.log.step

            def noted(values: dict[str, Any], seconds_left: float) -> None:
                events.append(f"log {values['step']}")
                write(values, seconds_left)

            run.log.step = noted  # type: ignore[method-assign]
            take_steps(run, learner)
    finally:
        (folder / "events").write_text("\n".join(events))
    return events


def test_figures_come_a_step_later_but_before_their_checkpoint(table: GroupTable, tmp_path: Path) -> None:
    events = run_scripted(table, tmp_path, 6, evaluate_every=(2, None), checkpoint_every=3)
    assert events == [
        *("step 1", "step 2", "log 1", "evaluate 2", "log 2"),
        *("step 3", "log 3", "save 3", "step 4", "evaluate 4", "log 4"),
        *("step 5", "step 6", "log 5", "log 6"),  # what follows the last step belongs to the task
    ]
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "eval_accuracy" in line] == [2, 4]


def test_an_evaluation_comes_before_the_checkpoint_of_its_step(table: GroupTable, tmp_path: Path) -> None:
    events = run_scripted(table, tmp_path, 3, evaluate_every=(None, 2), checkpoint_every=2)
    assert events == ["step 1", "step 2", "log 1", "evaluate 2", "log 2", "save 2", "step 3", "log 3"]


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (0.5, math.inf), (math.inf, math.nan)])
def test_stop_names_the_step_and_its_rows_and_saves_nothing(
    table: GroupTable, tmp_path: Path, bad: tuple[float, float]
) -> None:
    with pytest.raises(RunError) as caught:
        run_scripted(table, tmp_path, 6, {2: bad}, checkpoint_every=2)
    message = str(caught.value)
    assert message.startswith("step 2: ")
    assert "\n" not in message
    rows = make_loader(table, 6).build(1).rows
    assert all(table.label(int(row)) in message for row in rows)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1]
    assert "save" not in (tmp_path / "events").read_text()


def test_skip_logs_null_and_goes_on(table: GroupTable, tmp_path: Path) -> None:
    bad = {2: (math.nan, math.nan), 3: (math.inf, 1.0)}
    run_scripted(table, tmp_path, 4, bad, max_skipped=10)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line.get("skipped") for line in lines] == [None, True, True, None]
    for line in lines[1:3]:
        touched = ("loss", "grad_norm", "accuracy", "margin", "mean_reward", "min_reward", "max_reward")
        assert [line[key] for key in touched] == [None] * 7
        assert line["learning_rate"] is not None and line["num_tokens"] is not None
    assert lines[3]["loss"] == 0.5


def test_too_many_skips_in_a_row_end_the_run(table: GroupTable, tmp_path: Path) -> None:
    bad = dict.fromkeys((1, 2, 4, 5, 6), (math.nan, 1.0))
    with pytest.raises(
        RunError, match=r"step 6: 3 steps in a row are left out \(optim.max_skipped\): loss nan .*Rows: "
    ):
        run_scripted(table, tmp_path, 8, bad, max_skipped=2)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_every_promised_figure_is_logged_and_adds_up(table: GroupTable, tmp_path: Path) -> None:
    run_scripted(table, tmp_path, 4)
    lines = read_lines(tmp_path / "metrics.jsonl")
    trl = {"loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "accuracy"}
    trl |= {"min_reward", "mean_reward", "max_reward", "margin"}
    ours = {"tokens_per_second", "pairs_per_second", "mfu", "padding_share", "prefix_saved_share", "memory_gib"}
    for line in lines:
        assert trl | ours <= line.keys()
        assert line["tokens_per_second"] > 0 and line["pairs_per_second"] > 0 and line["memory_gib"] > 0
        assert line["mfu"] is None  # no peak is known
    assert [line["pairs"] for line in lines] == [4, 4, 2, 4]  # 10 groups: the epoch's last step is smaller
    assert [line["epoch"] for line in lines] == [0.4, 0.8, 1.0, 1.4]
    steps = steps_of(make_loader(table, 4))
    sequences = [sum(len(s) for row in step.rows for s in table.sequences_of(int(row))) for step in steps]
    stored = [sum(len(pack.tokens) for pack in step.packs) for step in steps]
    assert [line["num_tokens"] for line in lines] == [sum(sequences[: i + 1]) for i in range(4)]
    assert [line["num_computed_tokens"] for line in lines] == [sum(stored[: i + 1]) for i in range(4)]
    for line, saved, whole in zip(lines, stored, sequences, strict=True):
        assert line["prefix_saved_share"] == pytest.approx(1 - saved / whole)
        assert line["padding_share"] == 0.0


@pytest.mark.parametrize(("schedule", "warmup", "decay"), [("linear", 0, 0.0), ("cosine", 2, 0.1)])
def test_the_loss_curve_is_that_of_a_plain_transformers_loop(
    base: Path, table: GroupTable, tmp_path: Path, schedule: Schedule, warmup: int, decay: float
) -> None:
    total, lr = 9, 2e-3
    network, _ = load_network(base, new_heads=True)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).train()
    with torch.no_grad():
        model.score.weight.copy_(network.head.weight)
    engine = NativeEngine(network, world=World(), options=AdamWOptions(weight_decay=decay))
    rate = partial(learning_rate, peak=lr, schedule=schedule, warmup=warmup, total=total)
    learner = learner_of(engine, make_loader(table, total), rate)
    assert fit(run_in(tmp_path), learner) == {}

    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0}], lr
    )
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for line, step in zip(read_lines(tmp_path / "metrics.jsonl"), steps_of(make_loader(table, total)), strict=True):
        better, worse = (torch.stack([reward(model, table, row, side) for row in step.rows]) for side in (0, 1))
        loss = (-F.logsigmoid(better - worse) + 0.01 * (better + worse) ** 2).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert line["loss"] == pytest.approx(loss.item(), abs=1e-4), line["step"]
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert line["accuracy"] == (better > worse).float().mean().item()
        assert line["margin"] == pytest.approx((better - worse).mean().item(), abs=1e-4)
        assert line["learning_rate"] == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def reward(model: torch.nn.Module, table: GroupTable, row: int, side: int) -> Tensor:
    ids = torch.tensor([table.sequences_of(int(row))[side]])
    return model.score(model.model(ids).last_hidden_state[:, -1])[0, 0]


def test_on_a_gpu_what_torch_took_and_how_often_it_had_to_free_is_logged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = {"allocated_bytes.all.peak": 3 << 30, "reserved_bytes.all.peak": 5 << 30, "num_alloc_retries": 2}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats)
    assert memory_figures(torch.device("cuda")) == {"memory_gib": 3, "memory_reserved_gib": 5, "alloc_retries": 2}
    here = memory_figures(torch.device("cpu"))
    assert here["memory_gib"] and here["memory_reserved_gib"] is None and here["alloc_retries"] is None


def test_a_part_of_a_step_has_its_peak_and_the_run_keeps_the_highest(monkeypatch: pytest.MonkeyPatch) -> None:
    device, stats = torch.device("cuda"), {"num_alloc_retries": 0}

    def peak(gib: int) -> None:
        stats.update({"allocated_bytes.all.peak": gib << 30, "reserved_bytes.all.peak": gib << 31})

    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: stats["allocated_bytes.all.peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak(1))
    monkeypatch.setattr("rmfast.trainer.memory._BEFORE", {})
    peak(1)
    for gib in (4, 2, 3):
        begin_part(device)
        peak(gib)
        assert part_bytes(device) == gib << 30
    found = memory_figures(device)
    assert (found["memory_gib"], found["memory_reserved_gib"]) == (4, 8)
    assert 0.05 < part_bytes(torch.device("cpu")) / 2**30 <= (memory_figures(torch.device("cpu"))["memory_gib"] or 0)
