"""data.columns in training, score, eval, plan and denoise: one line where a prompt is left out, the same tokens where
it is mapped, and a line that says what the columns were."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmfast.cli import main
from rmfast.train import main as train
from tests.commands.rows import write, write_models
from tests.runs import arguments, read_lines

ROWS = [
    {"question": f"Who sat {i}?", "chosen": "The cat.", "rejected": "Nobody.", "strength_mean": 1.0 - i, "id": i}
    for i in range(3)
]
PLAIN = [{"prompt" if name == "question" else name: value for name, value in row.items()} for row in ROWS]
TURNS = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in PLAIN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_models(tmp_path_factory.mktemp("columns"))
    config = {"model": {"path": str(folder / "one")}, "data": {"train": str(folder / "rows.jsonl")}}
    (folder / "plan.yaml").write_text(json.dumps(config), encoding="utf-8")
    for name, rows in (("rows", ROWS), ("plain", PLAIN), ("turns", TURNS)):
        write(folder / f"{name}.jsonl", rows)
    return folder


def rewards(folder: Path, data: str, *words: str) -> list[Any]:
    out = folder / "scored.jsonl"
    options = ["--columns", *words] if words else []
    assert main(["score", str(folder / "one"), "--data", str(folder / data), "--out", str(out), *options]) == 0
    return [row["rewards"] for row in read_lines(out)]


@pytest.mark.parametrize(("word", "same"), [("question=prompt", "plain.jsonl"), ("question=user", "turns.jsonl")])
def test_score_of_mapped_columns_is_that_of_rows_with_these_names(
    folder: Path, word: str, same: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rewards(folder, "rows.jsonl", word) == rewards(folder, same)
    printed = capsys.readouterr().out
    use = word.partition("=")[2]
    assert f"columns: question as {use}, chosen, rejected, strength_mean; ignored: id\n" in printed


@pytest.mark.parametrize("suite", ["pairwise", "best-of-n"])
def test_eval_reads_mapped_columns(folder: Path, suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    figures = []
    for data, words in (("plain.jsonl", []), ("rows.jsonl", ["--columns", "question=prompt"])):
        command = ["eval", str(folder / "one"), "--suite", suite, "--data", str(folder / data), *words]
        assert main([*command, "--out", str(folder / "out.json")]) == 0
        figures.append([row["rewards"] for row in json.loads((folder / "out.json").read_text())["items"]])
    assert figures[0] == figures[1]
    assert (
        "Note: columns: question as prompt, chosen, rejected, strength_mean; ignored: id\n" in capsys.readouterr().out
    )


def test_best_of_n_keeps_the_kind_of_its_rows(folder: Path) -> None:
    rows = [
        {"prompt": "Who?", "responses": ["a", "b", "c"], "scores": [1, 3, 2]},
        {"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [[8], [9]]},
    ]
    data, out = write(folder / "bon.jsonl", rows), folder / "bon.json"
    command = ["eval", str(folder / "one"), "--suite", "best-of-n", "--data", str(data), "--out", str(out)]
    assert main(command) == 0
    found = [row["rewards"] for row in json.loads(out.read_text())["items"]]
    assert main(["score", str(folder / "one"), "--data", str(data), "--out", str(folder / "bon.scored.jsonl")]) == 0
    first, second = (row["rewards"] for row in read_lines(folder / "bon.scored.jsonl"))
    assert found == [[first[1], first[0], first[2]], second]


@pytest.mark.parametrize(
    "command",
    [
        ["score", "{folder}/one", "--data", "{folder}/rows.jsonl", "--out", "{folder}/never.jsonl"],
        ["eval", "{folder}/one", "--data", "{folder}/rows.jsonl"],
        ["eval", "{folder}/one", "--data", "{folder}/rows.jsonl", "--suite", "best-of-n"],
        ["data", "report", "{folder}/rows.jsonl"],
        ["plan", "{folder}/plan.yaml", "--gpus", "1"],
    ],
)
def test_an_unmapped_prompt_is_one_line(folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word.format(folder=folder) for word in command]) == 2
    error = capsys.readouterr().err
    assert f"{folder}/rows.jsonl:1: `question`: looks like a prompt" in error and len(error.splitlines()) == 1
    assert not (folder / "never.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--columns", "orcas"], "--columns is ignore, THEIRS=OURS or a layout"),
        (["--columns", "orca", "--suite", "rmb"], "--columns belongs to the suites pairwise and best-of-n; rmb has"),
    ],
)
def test_wrong_words_are_one_line(
    folder: Path, words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(folder / "one"), "--data", str(folder / "rows.jsonl"), *words]) == 2
    assert capsys.readouterr().err.startswith(f"rmfast: {hint}")


def run(folder: Path, name: str, data: str, **more: object) -> list[str]:
    keys: dict[str, object] = {
        "model__path": folder / "one", "data__train": folder / data, "data__eval": folder / data,
        "data__cache": folder / "cache", "run__dir": folder / name, "run__max_steps": 1, "run__tensorboard": False,
    }  # fmt: skip
    return arguments(**(keys | more))


def test_a_run_says_its_columns_keeps_them_and_refuses_to_go_on_with_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
    suite = {"eval__suites": f"pairwise={folder / 'rows.jsonl'}"}
    assert train(run(folder, "never", "rows.jsonl")) == 2
    assert f"{folder / 'rows.jsonl'}:1: `question`: looks like a prompt" in capsys.readouterr().err
    mapped = {"data__columns": "question=prompt"} | suite
    assert train(run(folder, "mapped", "rows.jsonl", **mapped)) == 0
    printed = capsys.readouterr().out
    line = f"columns of {folder / 'rows.jsonl'}: question as prompt, chosen, rejected, strength_mean; ignored: id\n"
    assert f"train: {line}" in printed and f"columns: {line.partition(': ')[2]}".rstrip() in printed
    assert train(run(folder, "plain", "plain.jsonl")) == 0
    losses = [read_lines(folder / name / "metrics.jsonl")[0]["loss"] for name in ("mapped", "plain")]
    assert losses[0] == losses[1]
    capsys.readouterr()
    assert train(run(folder, "mapped", "rows.jsonl", data__columns="question=user", run__max_steps=2)) == 2


def test_denoise_writes_rows_that_need_no_mapping(folder: Path) -> None:
    out = folder / "treated.jsonl"
    words = ["--columns", "question=user", "--flip", "1", "--out", str(out)]
    assert main(["data", "denoise", str(folder / "rows.jsonl"), *words]) == 0
    rows = read_lines(out)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in TURNS] and "question" not in rows[0]
    assert [row["chosen"] for row in rows] == ["The cat.", "The cat.", "Nobody."] and rows[2]["id"] == 2
    flipped, as_they_were = rewards(folder, "treated.jsonl"), rewards(folder, "turns.jsonl")
    np.testing.assert_allclose(flipped, [*as_they_were[:2], as_they_were[2][::-1]], atol=1e-5)


def test_denoise_says_columns_notes_and_splits_of_each_source(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (other := tmp_path / "other").mkdir()
    row = {"prompt": "Who?", "chosen": "I.", "rejected": "You.", "score_chosen": 1, "score_rejected": 2}
    (other / "eval.jsonl").write_text(json.dumps(row) + "\n")
    first = folder / "rows.jsonl"
    assert main(["data", "denoise", str(first), str(other), "--columns", "question=user"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{first}: columns: question as user, chosen, rejected, strength_mean; ignored: id" in lines
    at = lines.index(f"{other}: split eval is read, as there is none called train")
    assert lines[at + 1] == f"{other}: columns: prompt, chosen, rejected; ignored: score_chosen, score_rejected"
    assert lines[at + 2].startswith(f"{other}: 1 row: ratings beside the pair prefer the rejected answer")
