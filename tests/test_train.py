"""The entry point, as users call it: whole runs under torchrun, and one line with exit code 2 for all that is wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rmfast.config import known_keys
from tests.runs import (
    DECODER,
    TRAIN,
    Case,
    arguments,
    environment,
    final_weights,
    launch,
    read_lines,
    torchrun,
    write_model,
    write_rows,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", 12)
    return folder


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(), cwd=cwd)


def keys(folder: Path, **more: object) -> list[str]:
    found: dict[str, object] = {
        "model__path": folder / "model",
        "data__train": folder / "rows.jsonl",
        "data__cache": folder / "cache",
        "run__dir": folder / "run",
        "run__max_steps": 2,
    }
    return arguments(**(found | more))


def wrong_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> command line and what its error line must say."""
    good = json.dumps({"prompt": "a", "chosen": " b", "rejected": " c"})
    files = {
        "empty.jsonl": b"",
        "useless.jsonl": b'{"text": "a"}\n{"prompt": "a", "chosen": "", "rejected": ""}\n',
        "same.jsonl": b'{"prompt": "a", "chosen": " b", "rejected": " b"}\n',
        "latin1.jsonl": good.encode() + b'\n{"prompt": "\xe9t\xe9", "chosen": "a", "rejected": "b"}\n',
        "ids.jsonl": b'{"chosen_ids": [5, 9000], "rejected_ids": [5, 6]}\n',
        "long.jsonl": json.dumps({"prompt": "a " * 900, "chosen": "b", "rejected": "c"}).encode(),
        "cut.jsonl.gz": b"\x1f\x8b\x08\x00",
        "rows.csv": b"prompt,chosen,rejected\n",
        "bad.yaml": b"optim: {lr: 1",
        "occupied": b"a file where the run's folder is to be",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)

    def model(name: str, **config: object) -> Path:
        shutil.copytree(folder / "model", folder / name)
        text = json.loads((folder / name / "config.json").read_text()) | config
        (folder / name / "config.json").write_text(json.dumps(text))
        return folder / name

    no_eos = model("no eos")
    settings = json.loads((DECODER / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (no_eos / "tokenizer_config.json").write_text(json.dumps(settings))
    small = model("small", vocab_size=200)  # the tokenizer knows more tokens than the embedding has rows
    state = load_file(small / "model.safetensors")
    rows = {n: t[:200].clone() if t.shape[0] == 4096 else t for n, t in state.items()}
    save_file(rows, small / "model.safetensors", metadata={"format": "pt"})
    no_weights = model("no weights")
    (no_weights / "model.safetensors").unlink()

    def data(name: str, **more: object) -> list[str]:
        return keys(folder, data__train=folder / name, **more)

    return {
        "misspelt key": (keys(folder, optim__lrr=1), "command line: optim.lrr: unknown key; did you mean optim.lr?"),
        "wrong type": (keys(folder, optim__lr="fast"), "command line: optim.lr: "),
        "missing config": ([str(folder / "none.yaml")], "none.yaml: cannot read the config: No such file"),
        "bad YAML": ([str(folder / "bad.yaml")], "bad.yaml:1: not valid YAML"),
        "clash": (
            [*keys(folder), *arguments(data__max_length=64, data__tokens_per_pack=32)],
            "data.tokens_per_pack (32)",
        ),
        "missing data": (data("none.jsonl"), "none.jsonl"),
        "missing held-out data": (keys(folder, data__eval=folder / "none.jsonl"), "none.jsonl"),
        "empty data": (data("empty.jsonl"), "empty.jsonl: no rows"),
        "no usable rows": (data("useless.jsonl"), "useless.jsonl: none of its 2 rows can be used"),
        "identical rows": (data("same.jsonl"), "no usable row"),
        "only long rows": (data("long.jsonl", data__max_length=64), "no usable row"),
        "long row as error": (
            data("long.jsonl", data__max_length=64, data__over_long="error"),
            "long.jsonl:1: over-long",
        ),
        "not UTF-8": (data("latin1.jsonl", data__bad_rows="error"), "latin1.jsonl:2: not UTF-8"),
        "cut file": (data("cut.jsonl.gz"), "cut.jsonl.gz is truncated or damaged"),
        "kind of file": (data("rows.csv"), "rows.csv: CSV is not read"),
        "token ids": (data("ids.jsonl"), "token id outside the tokenizer's vocabulary of 4096"),
        "token ids beyond the model": (keys(folder, model__path=small), "the model's vocabulary has 200"),
        "datasets name": (keys(folder, data__train="nobody/no-such-data"), "nobody/no-such-data"),
        "missing model": (keys(folder, model__path=folder / "none"), "none is not a folder or .gguf file"),
        "architecture": (
            keys(folder, model__path=model("gpt", model_type="gpt2")),
            "architecture 'gpt2' is not supported",
        ),
        "no eos": (keys(folder, model__path=no_eos), "no eos token"),
        "no weights": (keys(folder, model__path=no_weights), "no weights"),
        "too many layers": (keys(folder, model__top_layers=3), "model.top_layers: "),
        "no device for kernels": (
            keys(folder, model__kernels="triton"),
            "model.kernels: impl='triton' is not possible",
        ),
        "missing template": (keys(folder, data__chat_template="none.jinja"), "data.chat_template: no such file"),
        "run.dir is a file": (keys(folder, run__dir=folder / "occupied"), "run.dir: cannot make the folder"),
    }


@pytest.mark.slow
def test_what_is_wrong_is_one_line_and_leaves_nothing(folder: Path) -> None:
    wrong = wrong_inputs(folder)
    before = set(folder.iterdir())
    codes = launch(folder / "wrong", [Case(name, words) for name, (words, _) in wrong.items()])
    for name, (_, hint) in wrong.items():
        log = (folder / "wrong" / f"{name}-0.log").read_text()
        assert codes[name] == [2], f"{name}: {log}"
        assert "Traceback" not in log, name
        ours = [line for line in log.splitlines() if line.startswith("rmfast: ")]
        assert len(ours) == 1 and hint in ours[0], f"{name}: {log}"
        assert log.splitlines()[-1] == ours[0], f"{name}: {log}"
    assert set(folder.iterdir()) - before <= {folder / "wrong", folder / "cache"}  # no run folder
    assert (folder / "occupied").read_bytes().startswith(b"a file")
    left = [path.name for path in (folder / "cache").iterdir() if path.name.startswith(".")]
    assert left == []  # no half-written store


def test_the_exit_code_of_the_script(folder: Path) -> None:
    done = run(sys.executable, str(TRAIN), "--optim.lrr", "1", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rmfast: command line: optim.lrr: unknown key") and done.stderr.count("\n") == 1
    shown = run(sys.executable, str(TRAIN), "--help", cwd=folder)
    assert shown.returncode == 0
    assert all(f"--{key} " in shown.stdout for key in known_keys())
    assert run(sys.executable, str(TRAIN), cwd=folder).returncode == 2


@pytest.mark.slow
def test_a_wrong_file_under_torchrun_is_one_line_too(folder: Path) -> None:
    words = keys(folder, data__train=folder / "none.jsonl")
    done = run(*torchrun(2), str(TRAIN), *words, cwd=folder)
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("rmfast: ")]
    assert len(ours) == 1 and "none.jsonl" in ours[0]
    assert "exitcode  : 2" in done.stderr  # torchrun's report of the worker
    assert "RuntimeError" not in done.stderr and "DistBackendError" not in done.stderr


@pytest.mark.slow
def test_a_whole_run_under_torchrun_leaves_all_that_is_promised(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    shutil.copy(folder / "rows.jsonl", tmp_path / "rows.jsonl")
    (tmp_path / "base.yaml").write_text(
        "model: {path: model}\ndata: {train: rows.jsonl, eval: rows.jsonl, cache: cache}"
    )
    (tmp_path / "more.yaml").write_text("run: {dir: out, max_steps: 3}\noptim: {lr: 1.0e-3}\nparallel: {data: fsdp}")
    # From another folder, and with the package's own folder first on the path as python puts it.
    start = [*torchrun(2), os.path.relpath(TRAIN, tmp_path)]
    done = run(*start, "base.yaml", "more.yaml", "--optim.lr", "2e-3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "eval.jsonl", "checkpoints", "model", "report", "tensorboard"} <= names
    lines = read_lines(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["learning_rate"] for line in lines] == pytest.approx([2e-3, 4e-3 / 3, 2e-3 / 3])
    assert [line["step"] for line in read_lines(out / "eval.jsonl")] == [0, 3]
    shown = done.stdout.splitlines()
    assert [line.split()[1] for line in shown if line.startswith("step ")] == ["1/3", "2/3", "3/3"]  # by one rank
    assert "2 x cpu (fsdp), plain torch; 3 steps of 8 groups" in done.stdout
    assert "transformers gives the same scores" in done.stdout
    assert (out / "report" / "report.html").is_file() and list((out / "report").glob("*.png"))
    model = AutoModelForSequenceClassification.from_pretrained(out / "model")
    assert model.config.num_labels == 1
    assert torch.equal(model.score.weight, final_weights(out)["score.weight"])
