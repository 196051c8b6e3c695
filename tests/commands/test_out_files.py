"""No command writes over what it reads, or over a file that it cannot have written."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from rmfast.cli import main
from rmfast.commands.flags import check_writable
from rmfast.errors import UserError
from rmfast.launch.hardware import GPUS
from tests.commands.rows import PAIRS, write, write_models
from tests.runs import DECODER

RESULT = {"format": 1, "suite": "pairwise", "data": "x", "items": []}
SUITE = "from rmfast.evaluation.suites.pairwise import SUITE\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_models(tmp_path_factory.mktemp("out"))
    (folder / "data").mkdir()
    write(folder / "data" / "rows.jsonl", PAIRS)
    strengths = [{"prompt": "a", "chosen": " b", "rejected": f" {i}", "strength_mean": i - 2.0} for i in range(5)]
    write(folder / "strengths.jsonl", strengths)
    values = {
        "model": {"path": str(DECODER), "from_scratch": True},
        "data": {"train": "pairs.jsonl", "eval": "strengths.jsonl"},
        "run": {"dir": "run"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    (folder / "mine.py").write_text(SUITE)
    (folder / "words.txt").write_text("Be brief.")
    (folder / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert main(["eval", str(folder / "one"), "--data", str(folder / "pairs.jsonl"), "--out", f"{folder}/a.json"]) == 0
    assert main(["score", str(folder / "one"), "--data", f"{folder}/pairs.jsonl", "--out", f"{folder}/a.jsonl"]) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    capsys.readouterr()
    return shutil.copytree(made, tmp_path / "work")


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that ends a command, which has changed nothing."""
    before = contents(folder)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert contents(folder) == before
    assert printed.err.startswith("rmfast: ") and printed.err.count("\n") == 1 and not printed.out, printed
    return printed.err


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_what_cannot_be_written_is_refused_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def written(path: Path, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.chdir(folder)
    monkeypatch.setattr(Path, "write_bytes", written)
    monkeypatch.setattr("rmfast.commands.score.load_models", None)  # as all that would take long
    line = f"rmfast: --out new: cannot be written: {os.strerror(number)}\n"
    assert refused([*SCORE, "--out", "new"], folder, capsys) == line
    assert refused(["export", "one", "--out", "new"], folder, capsys) == line


def test_a_device_is_asked_and_nothing_is_written_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable("--out", Path("/dev/full"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="--out /dev/full: cannot be written: Permission denied"):
        check_writable("--out", Path("/dev/full"))


JUDGE = ["eval", "--judge", "base", "--criteria", "words.txt", "--data", "pairs.jsonl"]
EVAL = ["eval", "one", "--data", "pairs.jsonl", "--suite", "mine.py"]
SCORE = ["score", "one", "two", "--data", "data", "--chat-template", "chat.jinja"]
COMPARE = ["compare", "a.json", "--candidates", "a.jsonl", "--gold", "gold.jsonl", "--suite", "mine.py"]
DENOISE = ["data", "denoise", "strengths.jsonl", "--preset", "flip"]
PLAN = ["plan", "run.yaml", "--gpus", "2"]
SLURM = ["launch", "slurm", "run.yaml", "--time", "60"]

OVER_INPUTS = [
    (EVAL, "--out", "one/model.safetensors", "CKPT, one"),
    (EVAL, "--out", "pairs.jsonl", "--data, pairs.jsonl"),
    (EVAL, "--out", "mine.py", "--suite, mine.py"),
    (JUDGE, "--out", "base/new.json", "--judge, base"),
    (JUDGE, "--out", "words.txt", "--criteria, words.txt"),
    (JUDGE, "--judge-log", "pairs.jsonl", "--data, pairs.jsonl"),
    (SCORE, "--out", "two/new.jsonl", "CKPT, two"),
    (SCORE, "--out", "two/model.safetensors", "CKPT, two"),
    (SCORE, "--out", "data/scored.jsonl", "--data, data"),
    (SCORE, "--out", "chat.jinja", "--chat-template, chat.jinja"),
    (COMPARE, "--out", "a.json", "RESULT, a.json"),
    (COMPARE, "--html", "a.jsonl", "--candidates, a.jsonl"),
    (COMPARE, "--html", "gold.jsonl", "--gold, gold.jsonl"),
    (COMPARE, "--out", "mine.py", "--suite, mine.py"),
    (DENOISE, "--out", "strengths.jsonl", "PATH, strengths.jsonl"),
    (DENOISE, "--plot", "strengths.jsonl", "PATH, strengths.jsonl"),
    (PLAN, "--out", "run.yaml", "the config, run.yaml"),
    (PLAN, "--out", "strengths.jsonl", "data.eval, strengths.jsonl"),
    (SLURM, "--out", "run.yaml", "the config, run.yaml"),
    (SLURM, "--out", "pairs.jsonl", "data.train, pairs.jsonl"),
    (["export", "one"], "--out", "one/new", "CKPT, one"),
]


@pytest.mark.parametrize("other_name", ["as it is", "soft", "hard"])
@pytest.mark.parametrize(("words", "option", "out", "given"), OVER_INPUTS)
def test_an_input_is_not_written_over(
    folder: Path,
    words: list[str],
    option: str,
    out: str,
    given: str,
    other_name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    shutil.copy(folder / "a.jsonl", folder / "gold.jsonl")
    if other_name != "as it is" and Path(out).is_file():
        (os.symlink if other_name == "soft" else os.link)(Path(out).absolute(), folder / "other")
        out = "other"
    line = refused([*words, option, out], folder, capsys)
    assert line.startswith(f"rmfast: {option}: {out} ") and given in line and "name another" in line


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (EVAL, "--out"),
        (SCORE, "--out"),
        (COMPARE[:2], "--out"),
        (COMPARE[:2], "--html"),
        (DENOISE, "--out"),
        (DENOISE, "--plot"),
        (PLAN, "--out"),
        (SLURM, "--out"),
    ],
)
def test_a_file_of_another_kind_is_not_replaced_and_an_earlier_result_is(
    folder: Path,
    words: list[str],
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    mine = folder / "mine.txt"
    for text in ("learning_rate: 1\n", json.dumps({"prompt": "x", "chosen": "a", "rejected": "b"})):
        mine.write_text(text)
        line = refused([*words, option, "mine.txt"], folder, capsys)
        assert (
            f"rmfast: {option}: mine.txt is there already and is no " in line and "name another file, or remove" in line
        )
    mine.write_bytes(b"")
    for _ in range(2):  # over nothing, and over what the first time wrote
        assert main([*words, option, "mine.txt"]) == 0
        assert mine.stat().st_size
        capsys.readouterr()


def test_companions_of_a_script_and_the_logs_folder_are_outputs_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    os.link("run.yaml", "a_vote.sbatch")
    array = [*SLURM, "--task", "ensemble", "--array", "--out", "a.sbatch"]
    assert "--out: a_vote.sbatch would overwrite the config, run.yaml" in refused(array, folder, capsys)
    (folder / "a_collect.sbatch").write_text("mine")
    sweep = [*SLURM, "--scaling", "1", "--out", "a.sbatch"]
    assert "a_collect.sbatch is there already and is no script" in refused(sweep, folder, capsys)
    (folder / "base.yaml").write_text(f"model: {{path: {folder / 'base'}}}\ndata: {{train: {folder / 'data'}}}\n")
    for logs in ("base/logs", "data/logs"):
        words = ["launch", "slurm", "base.yaml", "--time", "60", "--out", "a.sbatch", "--logs", logs]
        assert f"--logs: {logs} is inside" in refused(words, folder, capsys)


def test_rates_of_a_gpu_are_an_input_of_a_plan(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "rates.json").write_text(json.dumps(vars(GPUS["h100"])))
    line = refused([*PLAN, "--gpu", "rates.json", "--out", "rates.json"], folder, capsys)
    assert "--out: rates.json would overwrite --gpu, rates.json" in line


def test_two_outputs_are_two_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert "--out and --plot both name x" in refused([*DENOISE, "--out", "x", "--plot", "./x"], folder, capsys)
    log = [*JUDGE, "--out", "x.json", "--judge-log", "x.json"]
    assert "--out and --judge-log both name x.json" in refused(log, folder, capsys)
    # A log that nobody named is a file beside --out.
    os.link("pairs.jsonl", "x.judge.jsonl")
    assert "--judge-log: x.judge.jsonl would overwrite --data, pairs" in refused(
        [*JUDGE, "--out", "x.json"], folder, capsys
    )


def test_a_link_to_an_earlier_result_becomes_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "kept").mkdir()
    shutil.copy("a.json", "kept/b.json")
    before = Path("kept/b.json").read_bytes()
    os.symlink("kept/b.json", "b.json")
    assert main(["eval", "two", "--data", "pairs.jsonl", "--out", "b.json"]) == 0
    assert Path("kept/b.json").read_bytes() == before and not Path("b.json").is_symlink()
