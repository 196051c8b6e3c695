"""Reading a run folder, whole and broken, and the words about it."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from rmfast.errors import UserError
from rmfast.report.run_folder import column, read_run
from rmfast.report.summary import final_summary, verdict

GOOD = {"accuracy": 0.62, "accuracy_low": 0.58, "accuracy_high": 0.66, "edges": 480}
LENGTH = {"baseline": "shorter wins", "baseline_accuracy": 0.546}


def test_reads_what_the_trainer_wrote(run_dir, scored):
    run = read_run(run_dir)
    assert column(run.train, "step").tolist() == list(range(1, 21))
    assert column(run.evals["hh"], "accuracy")[0] == 0.55
    assert run.finals["hh"].labels.tolist() == scored["labels"].tolist()
    np.testing.assert_array_equal(run.finals["hh"].scores, scored["scores"])
    assert run.notes == ()


def test_the_last_line_of_a_step_holds(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 19, "loss": 9.0}\n{"step": 20, "loss": 8.0}\n{"step": 21, "loss": 7.0}\n')
    run = read_run(run_dir)
    assert column(run.train, "step").tolist() == list(range(1, 22))
    assert column(run.train, "loss")[-3:].tolist() == [9.0, 8.0, 7.0]


def test_broken_lines_and_values(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss": NaN}\n{"step": 22, "loss": null}\n{"step": 23, "loss": Infinity}\n')
        file.write('{"step": 24, "loss": "high"}\n[1]\n\n{"loss": 1}\n{"step": 25, "lo')
    run = read_run(run_dir)
    assert np.isnan(column(run.train, "loss")[20:]).all() and column(run.train, "step")[-1] == 24
    assert run.notes == ("metrics.jsonl: 3 unreadable lines left out.",)


def test_an_empty_folder_is_all_notes_and_no_folder_is_an_error(tmp_path):
    run = read_run(tmp_path)
    assert (run.train, run.evals, run.finals, run.config) == ((), {}, {}, None)
    assert [note.split()[0] for note in run.notes] == ["metrics.jsonl", "eval.jsonl", "config.yaml"]
    with pytest.raises(UserError, match="absent"):
        read_run(tmp_path / "absent")


def test_broken_score_files_are_named(run_dir, scored):
    folder = run_dir / "eval"
    whole = (folder / "hh-final.npz").read_bytes()
    (folder / "cut-final.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty-final.npz").write_bytes(b"")
    np.savez(folder / "part-final.npz", scores=scored["scores"])
    np.savez(folder / "pickled-final.npz", **scored | {"labels": scored["labels"].astype(object)})
    np.savez(folder / "outside-final.npz", **scored | {"worse": scored["worse"] + 1})
    np.savez(folder / "short-final.npz", **scored | {"lengths": scored["lengths"][1:]})
    run = read_run(run_dir)
    assert list(run.finals) == ["hh"]
    for name in ("cut", "empty", "part", "pickled", "outside", "short"):
        assert any(f"eval/{name}-final.npz" in note for note in run.notes), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, 'is above "shorter wins" (54.6 %)'),
        ({"accuracy_low": 0.54}, "does not clear"),
        ({"accuracy_low": 0.546}, "does not clear"),
        ({"accuracy_low": 0.4, "accuracy_high": 0.5}, "is below"),
        ({"accuracy_low": None}, "unknown"),
        ({"nonfinite": 3}, "3 scores are not finite"),
        ({"baseline": None, "baseline_accuracy": None}, "above a fair coin (50.0 %)"),
    ],
)
def test_verdict(change, says):
    assert says in verdict(GOOD | LENGTH | change)


def test_final_summary_names_everything_and_what_to_type_next(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/somewhere/{name}")
    model = Path("runs/my run/model")
    text = final_summary(
        GOOD | LENGTH, model=model, report=Path("runs/my run/report"), data="held out.jsonl", name="hh"
    )
    assert "Accuracy on hh: 62.0 % (95 % interval 58.0 to 66.0 %) on 480 pairs" in text
    assert '"shorter wins" (54.6 %)' in text and "runs/my run/report/report.html" in text
    command = next(line for line in text.splitlines() if "rmfast eval" in line).removeprefix("Next").strip()
    want = ["rmfast", "eval", "runs/my run/model", "--suite", "pairwise", "--data", "held out.jsonl", "--out"]
    assert shlex.split(command)[:-1] == want


def test_final_summary_names_a_command_that_works_without_an_activated_environment(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    text = final_summary(None, model=Path("r/model"), report=None, checkpoints=Path("r/checkpoints"))
    assert "Next     .venv/bin/rmfast eval r/model" in text and "r/checkpoints" in text


def test_final_summary_without_a_held_out_set():
    text = final_summary(None, model=Path("r/model"), report=None)
    assert "No held-out pairs" in text and "Report" not in text and "--data PAIRS.jsonl" in text
