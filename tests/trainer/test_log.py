"""metrics.jsonl and eval.jsonl hold each step once, whatever was interrupted, and no number that is none."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rmfast.trainer.log import RunLog, console_line, finite_or_null
from tests.runs import read_lines


def open_log(folder: Path, last_step: int = 0, *, total: int = 9, every: int = 1, tensorboard: bool = False) -> RunLog:
    return RunLog(
        folder, last_step=last_step, total=total, every=every, tensorboard=tensorboard, wandb=False, config={}
    )


def evaluation(accuracy: float = 0.5) -> dict[str, Any]:
    names = ("accuracy_low", "accuracy_high", "loss", "calibration_error", "mean_reward", "baseline_accuracy")
    return {f"eval_{name}": 0.25 for name in names} | {"eval_accuracy": accuracy, "eval_baseline": "longer wins"}


def write_steps(log: RunLog, steps: range) -> None:
    for step in steps:
        log.step({"step": step, "loss": 0.5}, 0.0)
    log.close()


def steps_in(path: Path) -> list[int]:
    return [line["step"] for line in read_lines(path)]


def test_lines_after_the_checkpoint_are_cut_and_written_again(tmp_path: Path) -> None:
    write_steps(open_log(tmp_path), range(1, 8))
    write_steps(open_log(tmp_path, 4), range(5, 10))
    assert steps_in(tmp_path / "metrics.jsonl") == list(range(1, 10))


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path: Path) -> None:
    write_steps(open_log(tmp_path), range(1, 4))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    write_steps(open_log(tmp_path, 3), range(4, 6))
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.jsonl", "metrics.jsonl"]


@pytest.mark.parametrize("line", [b"\xff\0", b"[3]", b"3", b'{"step": "3"}', b'{"step": null}', b"{", b"[" * 9999])
def test_a_damaged_line_costs_no_other(tmp_path: Path, line: bytes) -> None:
    write_steps(open_log(tmp_path), range(1, 5))
    file = tmp_path / "metrics.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([*lines[:2], line, lines[3], b""]))
    write_steps(open_log(tmp_path, 4), range(5, 7))
    assert steps_in(file) == [1, 2, 4, 5, 6]


@pytest.mark.parametrize(
    ("last_step", "kept"), [(0, []), (3, [0, 3]), (5, [0, 3]), (6, [0, 3, 6]), (9, [0, 3, 6])], ids=str
)
def test_evaluations_that_are_made_again_are_not_kept_twice(tmp_path: Path, last_step: int, kept: list[int]) -> None:
    log = open_log(tmp_path)
    for step in (0, 3, 6, 9):
        log.evaluation(step, "eval", evaluation())
    log.close()
    open_log(tmp_path, last_step).close()
    assert steps_in(tmp_path / "eval.jsonl") == kept


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    values = {"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "pairs": 3, "mfu": None, "name": "a"}
    assert finite_or_null(values) == {"step": 1, "loss": None, "grad_norm": None, "pairs": 3, "mfu": None, "name": "a"}
    log = open_log(tmp_path)
    log.step(values, 0.0)
    log.evaluation(1, "eval", evaluation(float("nan")))
    log.close()
    for file in ("metrics.jsonl", "eval.jsonl"):
        assert "NaN" not in (tmp_path / file).read_text() and "Infinity" not in (tmp_path / file).read_text()
    assert read_lines(tmp_path / "eval.jsonl")[0]["eval_accuracy"] is None


def test_each_line_is_there_at_once(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.step({"step": 1, "loss": 0.5}, 0.0)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1  # before close
    log.close()


def test_the_console_shows_every_nth_step_and_both_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_steps(open_log(tmp_path, every=4), range(1, 10))
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["1/9", "4/9", "8/9", "9/9"]
    assert steps_in(tmp_path / "metrics.jsonl") == list(range(1, 10))


def test_a_console_line_leaves_out_what_is_not_known() -> None:
    values = {"step": 3, "loss": 0.12345, "accuracy": 0.5, "mfu": None, "tokens_per_second": 12345.6}
    line = console_line(values, 100, 3725)
    assert line == "step   3/100  loss 0.1235  acc 0.500  tok/s 12,346  left 1:02:05"


def test_a_step_of_ppo_shows_reward_kl_entropy_and_length() -> None:
    values = {"step": 12, "loss": 0.5, "objective/scores": 1.25, "objective/kl": 3.5, "policy/entropy_avg": 2.125}
    values |= {"mean_length": 57.25, "cut_share": 0.125, "lr": 1e-6, "tokens_per_second": 1234.5}
    line = console_line(values, 100, 60)
    assert line == (
        "step  12/100  loss 0.5000  reward +1.250  KL 3.500  entropy 2.125  length 57.2  cut 12%  lr 1.0e-06  "
        "tok/s 1,234  left 0:01:00"
    )


def test_tensorboard_has_finite_scalars_of_training_and_evaluation(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = open_log(tmp_path, tensorboard=True)
    log.step({"step": 1, "loss": 0.5, "grad_norm": float("nan")}, 0.0)
    log.step({"step": 2, "loss": 0.25}, 0.0)
    log.evaluation(2, "eval", evaluation(0.75))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("eval/eval_accuracy")] == [(2, 0.75)]
    assert "train/grad_norm" not in events.Tags()["scalars"]


def test_a_full_disk_names_the_file_and_ends_a_run_once(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    with pytest.raises(OSError) as raised, open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), log._metrics.fileno())
        log.step({"step": 1, "loss": 0.5}, 0.0)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "metrics.jsonl"))
    log.close()  # not of what has been said


def test_what_tensorboards_thread_cannot_write_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(self: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back afterwards
    with pytest.raises(OSError) as raised:
        open_log(tmp_path, tensorboard=True)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "tensorboard"))
    assert "Traceback" not in capfd.readouterr().err
