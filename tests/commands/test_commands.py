"""The command line in this process: figures against transformers, files that are written or not, one-line errors."""

import json
import math
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

import rmfast
from rmfast.checkpoint.export import write_model as write_export
from rmfast.cli import main
from rmfast.train import main as train
from tests.commands.rows import (
    ANSWERS,
    BROKEN,
    PAIRS,
    spoil,
    spoiled_copy,
    strict_json,
    write,
    write_models,
)
from tests.runs import DECODER, arguments, read_lines, write_model, write_rows
from tests.scoring import assert_same_scores, transformers_scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("commands"))


# --- score


def test_score_keeps_every_column_and_adds_rewards(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scored.jsonl"
    assert main(["score", str(folder / "one"), "--data", str(folder / "pairs.jsonl"), "--out", str(out)]) == 0
    rows = read_lines(out)
    assert [{k: v for k, v in row.items() if k != "rewards"} for row in rows] == PAIRS
    assert_same_scores([row["rewards"] for row in rows], transformers_scores(folder / "one", PAIRS))
    assert "10 rows scored by 1 model(s)" in capsys.readouterr().out
    assert "世界" in out.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["scored.jsonl"]  # nothing partial is left


def test_score_by_several_models_adds_strengths(folder: Path, tmp_path: Path) -> None:
    lone = {"prompt": "The cat", "responses": ANSWERS[:1]}
    tied = {"prompt": "The cat", "responses": ANSWERS[:2], "ranks": [1, 1]}
    data = write(tmp_path / "rows.jsonl", [PAIRS[1], lone, tied, PAIRS[7]])
    out = tmp_path / "scored.jsonl"
    assert main(["score", *(str(folder / m) for m in ("one", "two")), "--data", str(data), "--out", str(out)]) == 0
    pair, single, without_edges, ranking = read_lines(out)
    sources = [PAIRS[1], lone, tied, PAIRS[7]]
    for name, member in (("one", 0), ("two", 1)):
        ours = [row["rewards"][member] for row in (pair, single, without_edges, ranking)]
        assert_same_scores(ours, transformers_scores(folder / name, sources))
    for row in (single, without_edges):  # nothing is preferred: no strength
        assert not {"strength_mean", "strength_std", "votes"} & row.keys() and "error" not in row
    ((better, worse),) = PAIRS[1]["edges"]
    first, second = (member[better] - member[worse] for member in pair["rewards"])
    assert pair["strength_mean"] == pytest.approx((first + second) / 2)
    assert pair["strength_std"] == pytest.approx(abs(first - second) / 2)
    assert pair["votes"] == (first > 0) + (second > 0)
    gaps = np.array([[member[b] - member[w] for member in ranking["rewards"]] for b, w in PAIRS[7]["edges"]])
    assert ranking["strength_mean"] == pytest.approx(gaps.mean(1).tolist())
    assert ranking["strength_std"] == pytest.approx(gaps.std(1).tolist())
    assert ranking["votes"] == (gaps > 0).sum(1).tolist()


def test_scoring_again_leaves_nothing_of_the_first_time(folder: Path, tmp_path: Path) -> None:
    old = {"rewards": [[1.0, 2.0]], "strength_mean": -9.0, "strength_std": 9.0, "votes": 9, "members": [2], "fold": 2}
    rows = [
        PAIRS[0] | old | {"error": "old", "id": 1},
        BROKEN[0] | old,
        PAIRS[1] | {"strength_mean": -9.0, "error": "mine"},
    ]
    data, out = write(tmp_path / "data.jsonl", rows), tmp_path / "out.jsonl"
    for models in (["one"], ["one", "two"]):
        assert main(["score", *(str(folder / m) for m in models), "--data", str(data), "--out", str(out)]) == 0
        first, bad, fresh = (json.loads(line) for line in out.read_text().splitlines())
        made = {"rewards"} | ({"strength_mean", "strength_std", "votes"} if len(models) > 1 else set())
        assert first.keys() == {*PAIRS[0], "id"} | made and first.get("strength_mean") != -9.0
        assert bad["rewards"] is None and bad["error"] != "old" and not {"strength_mean", "members"} & bad.keys()
        assert fresh["error"] == "mine"  # a column of the user's, in a row that was never scored
        assert (fresh["strength_mean"] == -9.0) == (len(models) == 1)


def test_old_strengths_of_any_kind_do_not_stop_new_ones(folder: Path, tmp_path: Path) -> None:
    rows = [PAIRS[0] | {"strength_mean": value} for value in (math.nan, "0.5", [1, 2, 3])]
    data, out = write(tmp_path / "data.jsonl", rows), tmp_path / "out.jsonl"
    for command in (["score", "--out", str(out)], ["eval"]):
        assert main([command[0], str(folder / "one"), str(folder / "two"), "--data", str(data), *command[1:]]) == 0
    assert all(np.isfinite(json.loads(line)["strength_mean"]) for line in out.read_text().splitlines())


def test_identical_responses_get_no_vote(folder: Path, tmp_path: Path) -> None:
    twins = [{"prompt": f"{'p' * i} a", "responses": [" yes"] * (2 + i % 3)} for i in range(20)]
    data, out = write(tmp_path / "twins.jsonl", twins), tmp_path / "scored.jsonl"
    assert main(["score", *(str(folder / m) for m in ("one", "two")), "--data", str(data), "--out", str(out)]) == 0
    for row in read_lines(out):
        assert not np.any(row["votes"]) and not np.any(row["strength_mean"])
        assert all(len(set(member)) == 1 for member in row["rewards"])


@pytest.mark.parametrize("models", [["one"], ["one", "two"]])
def test_bad_rows_stay_in_place_with_their_error(
    folder: Path, tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "rows.jsonl", [BROKEN[0], PAIRS[0], *BROKEN[1:], PAIRS[7]])
    out = tmp_path / "scored.jsonl"
    assert main(["score", *(str(folder / m) for m in models), "--data", str(data), "--out", str(out)]) == 0
    rows = read_lines(out)
    assert [row.get("id") for row in rows] == [None, None, None, 17, None]
    for row, source, cause in zip([rows[0], *rows[2:4]], BROKEN, ("empty", "wrong type", "wrong roles"), strict=True):
        assert row.pop("error").startswith(f"{cause}: ") and row == source | {"rewards": None}
    good = transformers_scores(folder / "one", [PAIRS[0], PAIRS[7]])
    assert_same_scores([rows[i]["rewards"] if len(models) == 1 else rows[i]["rewards"][0] for i in (1, 4)], good)
    assert all("error" not in rows[i] for i in (1, 4))
    printed = capsys.readouterr().out
    assert "2 rows scored" in printed and "3 of 5 rows could not be scored" in printed
    assert f"first: {data}:1: empty" in printed


def test_a_row_that_only_the_tokenizer_refuses_is_a_bad_row_too(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = '{"prompt": "x", "responses": [" \\ud800", " b"]}'
    data = write(tmp_path / "rows.jsonl", [PAIRS[0], half, PAIRS[1]])
    out = tmp_path / "scored.jsonl"
    assert main(["score", str(folder / "one"), "--data", str(data), "--out", str(out)]) == 0, capsys.readouterr().err
    rows = read_lines(out)
    assert [row["rewards"] is None for row in rows] == [False, True, False]
    assert rows[1]["error"].startswith("not UTF-8")
    assert "1 of 3 rows could not be scored" in capsys.readouterr().out


def test_rows_of_parquet_with_dates_and_nan(folder: Path, tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"prompt": ["The cat", "A dog"], "chosen": ANSWERS[:2], "rejected": ANSWERS[2:]}
    columns |= {"when": [datetime(2024, 5, 6)] * 2, "grade": [1.5, math.nan], "raw": [b"a", b"b"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    out = tmp_path / "scored.jsonl"
    command = ["score", str(folder / "one"), "--data", str(tmp_path / "rows.parquet"), "--out", str(out)]
    assert main(command) == 0
    rows = [strict_json(line) for line in out.read_text().splitlines()]
    assert [row["grade"] for row in rows] == [1.5, None] and "2024-05-06" in rows[0]["when"]
    assert all(len(row["rewards"]) == 2 for row in rows)


def test_every_row_has_its_line_also_one_that_cannot_be_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A date after the year 9999, a line that is no JSON, and a column that is nested as deep as text is read."""
    years = pyarrow.array([0, 10**15, 0], pyarrow.timestamp("s"))
    table = pyarrow.table({"prompt": ["The cat"] * 3, "responses": [ANSWERS[:2]] * 3, "when": years})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    deep = '{"prompt": "The cat", "responses": [" a", " b"], "more": %s}' % ("[" * 900 + "NaN" + "]" * 900)
    write(tmp_path / "rows.jsonl", [PAIRS[0], '{"prompt": ', deep])
    out = tmp_path / "scored.jsonl"
    for name, cause in {"rows.parquet": "unreadable value: column 'when'", "rows.jsonl": "not JSON: "}.items():
        assert main(["score", str(folder / "one"), "--data", str(tmp_path / name), "--out", str(out)]) == 0
        first, bad, last = (strict_json(line) for line in out.read_text(encoding="utf-8").splitlines())
        assert len(first["rewards"]) == len(last["rewards"]) == 2
        assert bad["rewards"] is None and bad["error"].startswith(cause) and bad.keys() == {"rewards", "error"}
        assert "1 of 3 rows could not be scored" in capsys.readouterr().out
    assert str(last["more"]).strip("[]") == "None", "what JSON has no number for is null at any depth"


def test_columns_that_scoring_replaces_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [PAIRS[0] | {"rewards": "mine", "votes": 3}, PAIRS[1] | {"rewards": [1.0, 2.0]}, PAIRS[2] | {"votes": 1}]
    data, out = write(tmp_path / "data.jsonl", rows), tmp_path / "out.jsonl"
    assert main(["score", str(folder / "one"), "--data", str(data), "--out", str(out)]) == 0
    line = f"replaced by this scoring, and only in {data} still: rewards (2 rows), votes (1 rows)"
    assert line in capsys.readouterr().out and read_lines(out)[2]["votes"] == 1
    write(data, [PAIRS[0]])
    assert main(["score", str(folder / "one"), "--data", str(data), "--out", str(out)]) == 0
    assert "replaced by" not in capsys.readouterr().out


def test_a_broken_model_gives_null_rewards(folder: Path, tmp_path: Path) -> None:
    broken = spoiled_copy(folder / "one", tmp_path / "broken", torch.nan)
    out = tmp_path / "scored.jsonl"
    assert main(["score", str(broken), "--data", str(folder / "pairs.jsonl"), "--out", str(out)]) == 0
    rows = [strict_json(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["rewards"] for row in rows] == [[None] * len(row["responses"]) for row in PAIRS]


def test_an_older_file_is_replaced_and_a_device_is_written_to(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored.jsonl"
    out.write_text('{"prompt": "older", "rewards": [1.0]}\n' * 100)
    command = ["score", str(folder / "one"), "--data", str(folder / "pairs.jsonl"), "--out"]
    assert main([*command, str(out)]) == 0
    assert len(read_lines(out)) == len(PAIRS)
    assert main([*command, "/dev/null"]) == 0
    assert not Path("/dev/null").is_file()


# --- export


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unfinished run: its checkpoints alone."""
    folder = tmp_path_factory.mktemp("commands-run")
    write_model(folder / "base")
    write_rows(folder / "rows.jsonl", 8)
    command = arguments(
        model__path=folder / "base",
        data__train=folder / "rows.jsonl",
        data__cache=folder / "cache",
        data__pairs_per_step=4,
        optim__lr=1e-2,
        run__dir=folder / "run",
        run__tensorboard=False,
        run__max_steps=2,
        checkpoint__every=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
        assert train(command) == 0
    (folder / "run" / "model").rename(folder / "final")
    return folder / "run"


@pytest.mark.parametrize("source", ["checkpoints/step-1", "checkpoints/step-2", "."])
def test_export_of_a_checkpoint(run: Path, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "exported"
    assert main(["export", str(run / source), "--out", str(out)]) == 0
    ours = rmfast.load(run / source).score(PAIRS)
    assert_same_scores(ours, transformers_scores(out, PAIRS))
    assert_same_scores(ours, rmfast.load(out).score(PAIRS))
    final = transformers_scores(run.parent / "final", PAIRS)
    assert np.allclose(ours[0], final[0], atol=1e-5) == (source != "checkpoints/step-1")
    assert str(out) in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_export_in_bfloat16_with_another_template(folder: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    (tmp_path / "chat.jinja").write_text(template)
    out = tmp_path / "exported"
    options = ["--dtype", "bfloat16", "--chat-template", str(tmp_path / "chat.jinja")]
    assert main(["export", str(folder / "one"), "--out", str(out), *options]) == 0
    stored = load_file(out / "model.safetensors")
    original = load_file(folder / "one" / "model.safetensors")
    assert all(torch.equal(stored[name], weight.bfloat16()) for name, weight in original.items())
    reloaded = rmfast.load(out)
    assert reloaded.tokenizer.chat_template == template
    ours = np.concatenate(reloaded.score(PAIRS))
    exact = np.concatenate(rmfast.load(folder / "one", chat_template=template).score(PAIRS))
    assert np.abs(ours - exact).max() < 0.1 * np.abs(exact).max()


def lose_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def change_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("\\n", " "))


def change_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    key, other = (next(token for token in vocabulary if token.strip("Ġ") == word) for word in ("one", "is"))
    vocabulary[key], vocabulary[other] = vocabulary[other], vocabulary[key]
    path.write_text(json.dumps(content), encoding="utf-8")


def pad_with_eos(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["pad_token_id"] = config["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))


TAMPERED: dict[str, Callable[[Path], None]] = {
    "a weight": lambda folder: spoil(folder, 0.5),
    "NaN": lambda folder: spoil(folder, math.nan),
    "pad is eos": pad_with_eos,
    "template lost": lose_template,
    "template changed": change_template,
    "tokens changed": change_tokens,
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_export_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """What the file system or a bug does between the model and the folder that transformers reads."""

    def write_and_spoil(out: Path, parts: Any) -> None:
        write_export(out, parts)
        TAMPERED[what](out)

    monkeypatch.setattr("rmfast.checkpoint.export.write_model", write_and_spoil)
    out = tmp_path / "exported"
    assert main(["export", str(folder / "one"), "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert "exported" not in printed.out
    assert one_line(printed.err).startswith(f"rmfast: {out.with_name('.exported.partial')}: ") and not out.exists()


def one_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_export_never_replaces_what_exists(
    folder: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    kept = out / "kept.txt" if kind == "folder" else out
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("precious")
    assert main(["export", str(folder / "one"), "--out", str(out)]) == 2
    assert "exists already" in one_line(capsys.readouterr().err)
    assert kept.read_text() == "precious" and len(list(tmp_path.rglob("*"))) == (2 if kind == "folder" else 1)


# --- data report


def test_data_report(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "rows.jsonl", [*PAIRS, *BROKEN])
    assert main(["data", "report", str(data), str(folder / "pairs.jsonl")]) == 0
    in_bytes = capsys.readouterr().out
    assert "Lengths are in bytes" in in_bytes and f"{data}\n" in in_bytes and str(folder / "pairs.jsonl") in in_bytes
    assert "13 read, 10 kept" in in_bytes and "bad: wrong roles" in in_bytes and "in a source above" in in_bytes
    assert main(["data", "report", str(data), "--model", str(folder / "one"), "--max-length", "9"]) == 0
    in_tokens = capsys.readouterr().out
    assert "Lengths are in bytes" not in in_tokens and "over 9 tokens" in in_tokens
    for text in (in_bytes, in_tokens):
        assert "longer wins" in text and "identical pairs" in text


@pytest.mark.parametrize("words", [("--chat-template", "x.jinja"), ("--template-date", "2025-01-01")])
def test_a_template_of_no_model_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, str]
) -> None:
    assert main(["data", "report", str(folder / "pairs.jsonl"), *words]) == 2
    assert f"{words[0]} is for the tokenizer of --model, and there is none" in capsys.readouterr().err


# --- errors: one line, exit code 2, before any work


def commands(folder: Path, tmp_path: Path) -> dict[str, list[str]]:
    """Commands with one wrong path each."""
    one, data, absent = str(folder / "one"), str(folder / "pairs.jsonl"), str(tmp_path / "absent")
    out = ["--out", str(tmp_path / "out")]
    nowhere, a_folder = ["--out", f"{absent}/out"], ["--out", str(folder)]
    found: dict[str, list[str]] = {
        "report, data": ["data", "report", absent],
        "report, model": ["data", "report", data, "--model", absent],
        "export, model": ["export", absent, *out],
        "export, base": ["export", str(folder / "base"), *out],
        "export, no parent": ["export", one, *nowhere],
        "export, template": ["export", one, *out, "--chat-template", absent],
        "score, second model": ["score", one, absent, "--data", data, *out],
    }
    for name in ("eval", "score"):
        found |= {
            f"{name}, model": [name, absent, "--data", data, *out],
            f"{name}, no model in it": [name, str(tmp_path), "--data", data, *out],
            f"{name}, data": [name, one, "--data", absent, *out],
            f"{name}, no parent": [name, one, "--data", data, *nowhere],
            f"{name}, a folder": [name, one, "--data", data, *a_folder],
            f"{name}, template": [name, one, "--data", data, *out, "--chat-template", absent],
            f"{name}, device": [name, one, "--data", data, *out, "--device", "toaster"],
            f"{name}, base": [name, str(folder / "base"), "--data", data, *out],
        }
    return found


@pytest.mark.parametrize("wrong", commands(Path(), Path()))
def test_a_wrong_path_is_one_line_and_nothing_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    before = sorted(folder.rglob("*"))
    command = commands(folder, tmp_path)[wrong]
    if not wrong.endswith((", data", ", base")):  # all but these are known before any row is

        def read_too_early(*_: object, **__: object) -> None:
            raise AssertionError("data was read before the paths were checked")

        monkeypatch.setattr("rmfast.commands.score.read_file", read_too_early)
        monkeypatch.setattr("rmfast.commands.data.build_store", read_too_early)
    assert main(command) == 2
    printed = capsys.readouterr()
    line = one_line(printed.err)
    assert line.startswith("rmfast: ") and not printed.out
    named = {"a folder": str(folder), "base": "no reward head", "device": "--device toaster"}
    assert named.get(wrong.split(", ")[1], str(tmp_path)) in line
    assert not list(tmp_path.iterdir()) and sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["eval", "score"])
def test_no_usable_row_is_an_error_that_keeps_an_older_file(
    folder: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write(tmp_path / "rows.jsonl", BROKEN), tmp_path / "out"
    older = '{"format": 1, "suite": "pairwise", "items": [], "rewards": null}'  # a result of either command
    out.write_text(older)
    assert main([command, str(folder / "one"), "--data", str(data), "--out", str(out)]) == 2
    line = one_line(capsys.readouterr().err)
    assert "no row can be used, of 3" in line and f"{data}:1: empty" in line
    assert out.read_text() == older and sorted(p.name for p in tmp_path.iterdir()) == ["out", "rows.jsonl"]


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["nonsense"],
        ["data"],
        ["score", "x", "--data", "y"],
        ["eval", "x"],
        ["eval", "x", "--data", "y", "--tokens-per-pack", "0"],
        ["export", str(DECODER), "--out", "x", "--dtype", "int8"],
    ],
)
def test_wrong_options_end_with_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "usage: rmfast" in capsys.readouterr().err
