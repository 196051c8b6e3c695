"""Suites during training: at the steps asked for, and equal to rmfast eval of the exported model."""

import json
from pathlib import Path
from typing import Any

import pytest

from rmfast.cli import main as cli
from rmfast.report.html import report_page
from rmfast.report.run_folder import read_run
from rmfast.train import main
from tests.runs import Case, arguments, launch, read_lines, write_model, write_rows

pytestmark = pytest.mark.usefixtures("no_plots")


def rmb(folder: Path) -> Path:
    """Two scenarios in the benchmark's layout: three pairs and two lists, of two prompts."""

    def answer(text: str) -> dict[str, str]:
        return {"llm_name": "writer", "answer": text}

    def row(prompt: str, **more: Any) -> dict[str, Any]:
        return {"conversation_input": [{"role": "user", "content": prompt, "language": "English"}], **more}

    pairs = [
        row(p, pair_uid=str(i), chosen=answer(f"the cat {p}"), reject=answer(f"a dog {i}"))
        for i, p in enumerate(("sat on", "sat on", "by sea"))
    ]
    lists = [
        row(p, bon_uid=p, bon_best=answer(f"the cat {p}"), loser_list=[answer("a dog 0"), answer("red birds")])
        for p in ("sat on", "by sea")
    ]
    for part, rows in (("Pairwise_set", pairs), ("BoN_set", lists)):
        for place in ("Harmlessness/S1", "Helpfulness/Chat/Discussion"):
            file = folder / part / f"{place}.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suites")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", 16)
    rmb(folder / "RMB_dataset")
    return folder


def command(folder: Path, run: str, **more: object) -> list[str]:
    keys: dict[str, object] = {
        "model__path": folder / "model",
        "data__train": folder / "rows.jsonl",
        "data__cache": folder / "cache",
        "data__pairs_per_step": 4,
        "data__tokens_per_pack": 96,
        "run__dir": folder / run,
        "run__tensorboard": False,
        "optim__lr": 1e-2,
        "eval__suites": f"rmb={folder / 'RMB_dataset'}",
        "parallel__timeout_minutes": 1,
    }
    return arguments(**(keys | more))


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    for key in ("headline", "cells", "rows", "rows_not_scored", "notes", "edges", "ties"):
        assert a[key] == b[key], key
    assert a["accuracy"] == b["accuracy"] and a["margin"] == pytest.approx(b["margin"], abs=1e-4)
    for one, other in zip(a["items"], b["items"], strict=True):
        assert one["rewards"] == pytest.approx(other["rewards"], abs=1e-4)
        assert {k: v for k, v in one.items() if k not in ("rewards", "gaps")} == {
            k: v for k, v in other.items() if k not in ("rewards", "gaps")
        }


def test_suites_run_at_their_steps_and_as_rmfast_eval_does(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, "run", eval__suites_every=2)) == 0
    printed = capsys.readouterr().out
    lines = read_lines(folder / "run" / "eval.jsonl")
    assert [(line["step"], line["name"]) for line in lines] == [(0, "rmb"), (2, "rmb"), (4, "rmb")]
    assert "suite rmb: 10 rows, 2 prompts" in printed and "47 of 49 files are missing" in printed
    assert printed.count("rmb after step") == 3
    final = json.loads((folder / "run" / "eval" / "rmb-4.json").read_text())
    out = tmp_path / "rmb.json"
    command_line = ["eval", str(folder / "run"), "--suite", "rmb", "--data", str(folder / "RMB_dataset")]
    assert cli([*command_line, "--out", str(out)]) == 0
    same(final, json.loads(out.read_text()))
    start = json.loads((folder / "run" / "eval" / "rmb-0.json").read_text())
    assert start["items"][0]["rewards"] != final["items"][0]["rewards"]
    last = lines[-1]
    goals, parts = ("helpfulness", "harmlessness"), ("pairwise", "best_of_n")
    four = [last[f"eval_{goal}_{part}"] for goal in goals for part in parts]
    assert last["eval_overall"] == pytest.approx(sum(four) / 4) and last["eval_overall"] == final["headline"]["overall"]
    assert json.loads((folder / "run" / "summary.json").read_text())["eval_rmb_overall"] == last["eval_overall"]


def test_only_after_training_unless_asked_and_under_labels(folder: Path) -> None:
    both = (f"rmb={folder / 'RMB_dataset'}", f"again:rmb={folder / 'RMB_dataset'}", f"pairwise={folder / 'rows.jsonl'}")
    assert main(command(folder, "after", run__max_steps=2, eval__suites=both)) == 0
    lines = read_lines(folder / "after" / "eval.jsonl")
    assert [(line["step"], line["name"]) for line in lines] == [(2, "rmb"), (2, "again"), (2, "pairwise")]
    assert lines[0]["eval_overall"] == lines[1]["eval_overall"] and "eval_step" not in lines[0]
    assert (folder / "after" / "eval" / "again-2.json").is_file()
    page = report_page(read_run(folder / "after"), [])
    assert "rmb: overall, step 2" in page and f"{100 * lines[0]['eval_overall']:.1f} %" in page


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"eval__suites": "rmb"}, "eval.suites"),
        ({"eval__suites": "nothing=rows"}, "eval.suites: nothing: suite nothing"),
        ({"eval__suites": "rmb=/nowhere"}, "eval.suites: rmb: /nowhere"),
        ({"eval__suites": ("rmb={folder}/RMB_dataset", "rmb={folder}/RMB_dataset")}, "two are called rmb; give one"),
        ({"eval__suites": "[]", "eval__suites_every": 2}, "eval.suites is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_the_run(
    folder: Path, keys: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(keys["eval__suites"], tuple):
        keys = keys | {"eval__suites": tuple(one.format(folder=folder) for one in keys["eval__suites"])}
    assert main(command(folder, "refused", **keys)) == 2
    assert words in capsys.readouterr().err and not (folder / "refused").exists()


@pytest.mark.slow
def test_two_ranks_share_the_work(folder: Path) -> None:
    for run, ranks in (("one", 1), ("both", 2)):
        assert set(sum(launch(folder / "logs", [Case(run, command(folder, run))], ranks=ranks).values(), [])) == {0}
    one, two = (json.loads((folder / run / "eval" / "rmb-4.json").read_text()) for run in ("one", "both"))
    same(one, two)
