"""rmfast doctor: what of a run folder is whole, what is damaged, and where the run would go on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rmfast.cli import main
from rmfast.outputs.checksums import sealed_line, write_summed
from rmfast.outputs.marks import CONFIG, LOCK, config_text, mark_model
from tests.checkpoint.saving import edit_manifest
from tests.trainer.test_run import train


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with something of each kind."""
    run = tmp_path_factory.mktemp("doctor") / "run"
    train(run, keep=2)
    (run / LOCK).touch()
    (run / CONFIG).write_text(config_text({"task": "ppo", "run": {"dir": "run"}}))
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    mark_model(run / "model", {"w.safetensors": write_summed(run / "model" / "w.safetensors", bytes(9))})
    (run / "eval").mkdir()
    np.savez(run / "eval" / "eval-final.npz", scores=np.arange(5.0))
    (run / "summary.json").write_text("{}")
    (run / "rollouts").mkdir()
    for number in (2, 10):
        line = {"number": 0, "key": "k", "samples": [{"reward": 0.25}]}
        (run / "rollouts" / f"step-{number}.jsonl").write_bytes(sealed_line(json.dumps(line)))
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def test_a_whole_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in run.rglob("*") if file.is_file()}
    assert main(["doctor", str(run)]) == 0
    printed = capsys.readouterr()
    size = (
        sum(file.stat().st_size for file in (run / "checkpoints" / "step-9").iterdir())
        - (run / "checkpoints" / "step-9" / "manifest.json").stat().st_size
    )
    assert printed.out.splitlines() == [
        "ok       config.yaml          task ppo",
        "ok       metrics.jsonl        9 lines, the last of step 9",
        "ok       eval.jsonl           no line yet",
        f"ok       checkpoints/step-8   whole, 2 files, {size} bytes",
        f"ok       checkpoints/step-9   whole, 2 files, {size} bytes",
        "ok       model                whole, 2 files",
        "ok       eval/eval-final.npz  1 arrays",
        "ok       summary.json         can be read",
        "ok       rollouts             2 files, the last step-10.jsonl",
        "resume   the run would go on from step 9",
    ]
    assert not printed.err
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in run.rglob("*") if file.is_file()}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def drop_line(file: Path) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3] + lines[4:]))


def tear_line(file: Path) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:3], "{\n", *lines[4:]]))


HARMS: list[tuple[str, Callable[[Path], None], str]] = [
    ("checkpoints/step-9/rank-00000.safetensors", flip, "checkpoints/step-9   damaged: rank-00000.safetensors is not"),
    ("checkpoints/step-9/rank-00000.json", Path.unlink, "checkpoints/step-9   damaged: rank-00000.json is not there"),
    ("checkpoints/step-8/manifest.json", Path.unlink, "checkpoints/step-8   damaged: no readable manifest.json"),
    ("model/w.safetensors", flip, "model/w.safetensors  is not what was written"),
    ("model/config.json", Path.unlink, "model/config.json    is not there"),
    ("model/rmfast.json", flip, "model/rmfast.json    it"),
    ("metrics.jsonl", Path.unlink, "metrics.jsonl        ends at step 0, before checkpoints/step-8"),
    ("metrics.jsonl", drop_line, "metrics.jsonl        step 4 is not in its place"),
    ("metrics.jsonl", tear_line, "metrics.jsonl        line 4 cannot be read; it would be left out"),
    ("config.yaml", Path.unlink, "config.yaml          is not there"),
    ("config.yaml", lambda file: file.write_text("- a\n"), "config.yaml          cannot be read: it is no config"),
    ("config.yaml", lambda file: file.write_bytes(b"\xff\x00"), "config.yaml          cannot be read: "),
    ("eval/eval-final.npz", flip, "eval/eval-final.npz  cannot be read: "),
    ("summary.json", lambda file: file.write_text("{"), "summary.json         cannot be read: "),
    ("rollouts/step-2.jsonl", lambda file: file.write_text("{}\n"), "rollouts/step-2.jsonl  line 1 cannot be read"),
    ("rollouts/step-2.jsonl", flip, "rollouts/step-2.jsonl  line 1 cannot be read (its checksum differs"),
]


@pytest.mark.parametrize(("name", "harm", "line"), HARMS, ids=[f"{h[1].__name__} {h[0]}" for h in HARMS])
def test_what_is_damaged_is_named(
    run: Path, name: str, harm: Callable[[Path], None], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(run / name)
    assert main(["doctor", str(run)]) == 1
    printed = capsys.readouterr()
    damaged = [text for text in printed.out.splitlines() if text.startswith("DAMAGED  ")]
    assert damaged and damaged[0].removeprefix("DAMAGED  ").startswith(line)
    assert printed.err.startswith(f"rmfast: {run}: ") and "damaged, the first " in printed.err
    assert printed.err.count("\n") == 1
    newest = 8 if name.startswith("checkpoints/step-9") else 9
    assert f"resume   the run would go on from step {newest}" in printed.out


def test_a_counter_that_was_edited(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_manifest(run / "checkpoints" / "step-9", step=10)
    assert main(["doctor", str(run)]) == 1
    assert "damaged or edited" in capsys.readouterr().out


def test_a_line_that_a_crash_cut_off_is_no_damage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    assert main(["doctor", str(run)]) == 0


def test_what_was_not_written_to_its_end_can_be_swept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / ".step-12.partial").mkdir()
    (run / ".model.partial").mkdir()
    (run / "rollouts" / ".step-11.0.partial").touch()
    (run / "eval" / ".eval-final.host-1.partial.npz").touch()
    assert main(["doctor", str(run)]) == 0
    swept = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("sweep")]
    names = [
        *(".model.partial", "checkpoints/.step-12.partial", "eval/.eval-final.host-1.partial.npz"),
        "rollouts/.step-11.0.partial",
    ]
    assert swept == [f"sweep    {name}" for name in names]


def test_members_of_an_ensemble_are_runs_too(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ensemble = tmp_path / "ensemble"
    shutil.copytree(run, ensemble / "members" / "00")
    (ensemble / LOCK).touch()
    shutil.copy(run / CONFIG, ensemble)
    assert main(["doctor", str(ensemble)]) == 0
    assert "resume   members/00 would go on from step 9" in capsys.readouterr().out
    flip(ensemble / "members" / "00" / "checkpoints" / "step-9" / "rank-00000.json")
    assert main(["doctor", str(ensemble)]) == 1
    assert "DAMAGED  members/00/checkpoints/step-9 " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["nothing", "a file", "another folder"])
def test_what_is_no_run_is_refused(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    if kind == "a file":
        path.touch()
    elif kind == "another folder":
        (path / "model").mkdir(parents=True)
    assert main(["doctor", str(path)]) == 2
    assert capsys.readouterr().err == f"rmfast: {path}: no run folder of rmfast; give the run.dir of a training run\n"
