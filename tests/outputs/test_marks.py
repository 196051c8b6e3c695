"""A run's folder and its model are told from what others wrote."""

import json
from pathlib import Path

import pytest

from rmfast.outputs.marks import (
    LOCK,
    config_text,
    is_own_config,
    is_run,
    kept_model,
    mark_earlier_model,
    mark_model,
    stranger,
)


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def earlier_run(folder: Path) -> Path:
    """What tells a run from before there were marks."""
    values = {"format": 1, "step": 2, "ranks": 1, "progress": {}}
    write(folder / "checkpoints" / "step-2" / "manifest.json", json.dumps(values))
    return folder


def test_logs_and_notes_of_jobs_do_not_fill_a_folder(tmp_path: Path) -> None:
    harmless = ("train.log", "job-3.out", "a/job.err", ".slurm-7", "run.sbatch", "stop", f"members/00/{LOCK}")
    for name in (*harmless, "scaling/weak-1.json"):
        write(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "again").symlink_to(tmp_path)
    assert stranger(tmp_path, ()) is None and not is_run(tmp_path)
    notes = write(tmp_path / "a" / "notes.txt")
    assert stranger(tmp_path, ()) == notes
    for known in (notes, notes.parent, tmp_path / "again" / "a"):
        assert stranger(tmp_path, [known]) is None


def test_a_link_to_a_folder_with_files_is_a_stranger(tmp_path: Path) -> None:
    write(tmp_path / "base" / "config.json")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tmp_path / "base")
    assert stranger(tmp_path / "run", ()) == tmp_path / "run" / "model" / "config.json"


@pytest.mark.parametrize("name", ["checkpoints/step-2/manifest.json", "ensemble.json", "config.yaml", "metrics.jsonl"])
def test_files_of_the_names_of_a_run_make_none(name: str, tmp_path: Path) -> None:
    for text in ('{"step": 1}', "[]", "not JSON", ""):
        write(tmp_path / name, text)
        assert not is_run(tmp_path)


def test_runs_from_before_there_were_marks_are_runs(tmp_path: Path) -> None:
    assert is_run(earlier_run(tmp_path / "a"))
    write(tmp_path / "b" / "ensemble.json", '{"settings": {}}')
    assert is_run(tmp_path / "b")


def test_a_config_of_a_run_is_told_from_a_users(tmp_path: Path) -> None:
    values = {"task": "reward", "run": {"dir": "x"}, "model": {"path": "a"}, "checkpoint": {"every": None}}
    ours = config_text(values)
    text = ours.partition("\n")[2]
    file = tmp_path / "config.yaml"
    for good in (ours, ours.replace("every: null", "every: 7 # more often"), text):
        assert is_own_config(write(file, good))
    for bad in (f"# mine\n{text}", text.replace("path: a", 'path: "a"'), "run: {dir: x}\n", "- a\n", "{", ""):
        assert not is_own_config(write(file, bad)), bad


def test_a_model_is_replaced_only_with_the_files_that_came_with_it(tmp_path: Path) -> None:
    model = tmp_path / "run" / "model"
    assert kept_model(model) is None
    model.mkdir(parents=True)
    assert kept_model(model) is None
    write(model / "config.json")
    assert kept_model(model) == model
    mark_model(model)
    assert kept_model(model) is None
    notes = write(model / "README.md")
    assert kept_model(model) == notes
    (tmp_path / "link").symlink_to(model)
    assert kept_model(tmp_path / "link") == tmp_path / "link"
    assert kept_model(notes) == notes


def test_the_model_of_an_earlier_run_is_marked_once(tmp_path: Path) -> None:
    run = earlier_run(tmp_path)
    write(run / "model" / "config.json")
    assert kept_model(run / "model") is None
    mark_earlier_model(run)
    write(run / LOCK)
    assert kept_model(run / "model") is None
    notes = write(run / "model" / "README.md")
    mark_earlier_model(run)
    assert kept_model(run / "model") == notes
