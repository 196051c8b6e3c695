"""rmfast eval: figures against transformers, bad rows, suites of one's own."""

import json
import math
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from rmfast.cli import main
from tests.commands.rows import (
    BROKEN,
    PAIRS,
    pairs_of,
    spoiled_copy,
    strict_json,
    write,
    write_models,
)
from tests.runs import ROOT
from tests.scoring import transformers_scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("commands"))


def test_eval_against_hand_computed_figures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    command = ["eval", str(folder / "one"), "--suite", "pairwise", "--data", str(folder / "pairs.jsonl")]
    assert main([*command, "--out", str(out), "--tokens-per-pack", "64"]) == 0
    rewards = transformers_scores(folder / "one", PAIRS)
    gaps = np.array([r[b] - r[w] for r, row in zip(rewards, PAIRS, strict=True) for b, w in pairs_of(row)])
    flat = np.array([value for row in rewards for value in row])
    scale = np.abs(flat).max()
    result = json.loads(out.read_text(encoding="utf-8"))
    assert gaps.size == 12 and 0 < (gaps > 0).sum() < 12
    assert result["accuracy"] == pytest.approx((gaps > 0).mean(), abs=1e-12)
    exact = {"suite": "pairwise", "model": str(folder / "one"), "data": str(folder / "pairs.jsonl"), "edges": 12}
    exact |= {"rows": 10, "rows_not_scored": 0, "not_scored_by_cause": {}, "responses": flat.size, "nonfinite": 0}
    exact |= {"ties": 0}
    assert {key: result[key] for key in exact} == exact
    weight = np.array([1.0] * 7 + [1 / 3] * 3 + [1.0, 1.0])  # groups weigh 1: three edges share it
    near = {"margin": gaps.mean(), "loss": (np.log1p(np.exp(-gaps)) * weight).sum() / weight.sum()}
    near |= {"mean_reward": flat.mean(), "std_reward": flat.std(), "min_reward": flat.min(), "max_reward": flat.max()}
    assert {key: result[key] for key in near} == pytest.approx(near, abs=1e-5 * scale)
    assert 0 <= result["accuracy_low"] <= result["accuracy"] <= result["accuracy_high"] <= 1
    assert 0 <= result["calibration_error"] <= 1 and -1 <= result["length_correlation"] <= 1
    assert result["baseline"] in ("longer wins", "shorter wins")
    assert result["baseline_accuracy"] == max(result["longer_wins"], result["shorter_wins"])
    assert {"mean_better", "mean_worse", "baseline_low", "baseline_high"} <= result.keys()
    printed = capsys.readouterr().out
    assert f"{100 * result['accuracy']:.1f} %" in printed and "12 pairs, 0 ties" in printed and str(out) in printed


def test_identical_responses_tie_and_weigh_nothing(folder: Path, tmp_path: Path) -> None:
    """Else half of them would count as won, by rounding."""
    twins = [{"prompt": f"{'p' * i} a", "responses": [" yes"] * (2 + i % 3)} for i in range(20)]
    edges = sum(math.comb(len(row["responses"]), 2) for row in twins)
    chains = [{"prompt": f"chain {i}", "responses": [" yes"] * 3, "edges": [[1, 2], [0, 1]]} for i in range(20)]
    edges, twins = edges + 2 * len(chains), twins + chains
    data, out = write(tmp_path / "twins.jsonl", [*twins, PAIRS[0]]), tmp_path / "figures.json"
    assert main(["eval", str(folder / "one"), "--data", str(data), "--out", str(out), "--tokens-per-pack", "64"]) == 0
    result = json.loads(out.read_text())
    ((better, worse),) = transformers_scores(folder / "one", PAIRS[:1])
    gap = better - worse
    assert result["loss"] == pytest.approx(np.log1p(np.exp(-gap)), abs=1e-4)
    assert (result["edges"], result["ties"]) == (1 + edges, edges)
    assert result["accuracy"] == (gap > 0) / (1 + edges)


def test_eval_counts_bad_rows_and_rows_without_edges(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lone = {"prompt": "x", "responses": [" a"]}
    data = write(tmp_path / "mixed.jsonl", [PAIRS[0], lone, *BROKEN, "{not json", *PAIRS[1:]])
    out = tmp_path / "figures.json"
    assert main(["eval", str(folder / "one"), "--data", str(data), "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert main(["eval", str(folder / "one"), "--data", str(folder / "pairs.jsonl"), "--out", str(out)]) == 0
    clean = json.loads(out.read_text())
    causes = {"no edge": 1, "empty": 1, "wrong type": 1, "wrong roles": 1, "not JSON": 1}
    assert (result["rows"], result["rows_not_scored"], result["not_scored_by_cause"]) == (15, 5, causes)
    assert result["accuracy"] == clean["accuracy"] and result["loss"] == pytest.approx(clean["loss"], abs=1e-4)
    printed = capsys.readouterr().out
    assert "5 of 15 rows could not be scored" in printed and f"{data}:2: no edge" in printed


@pytest.mark.parametrize("suite", ["z", "none.py"])
def test_an_unknown_suite_is_named(folder: Path, suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(folder / "one"), "--data", str(folder / "pairs.jsonl"), "--suite", suite]) == 2
    assert f"suite {suite}: " in capsys.readouterr().err


def test_a_suite_of_ones_own_as_the_docs_have_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    begin, end = page.index("    from rmfast.data.sources"), page.index('SUITE = Suite("mine"')
    (tmp_path / "mine.py").write_text(textwrap.dedent(page[begin : page.index("\n", end)]))
    rows = [
        {"topic": topic, "question": f"{topic}?", "good": " yes it is", "bad": " no"} for topic in (3, "a\u00b2", 10, 3)
    ]
    data, out = write(tmp_path / "rows.jsonl", [*rows, {"topic": 3, "question": "?"}]), tmp_path / "out.json"
    command = [
        "eval",
        str(folder / "one"),
        "--suite",
        str(tmp_path / "mine.py"),
        "--data",
        str(data),
        "--out",
        str(out),
    ]
    assert main(command) == 0
    result = json.loads(out.read_text())
    groups = {tuple(cell["path"]): (cell["rows"], cell["not_scored"]) for cell in result["cells"]}
    assert groups == {(): (4, 1), ("3",): (2, 1), ("a\u00b2",): (1, 0), ("10",): (1, 0)}
    assert [row["cause"] for row in result["not_scored"]] == ["wrong columns"]
    assert "1 of 5 rows could not be scored" in capsys.readouterr().out


def test_the_result_is_there_before_anything_is_printed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("rmfast.commands.evaluate.say", broken)
    out = tmp_path / "out.json"
    with pytest.raises(BrokenPipeError):
        main(["eval", str(folder / "one"), "--data", str(folder / "pairs.jsonl"), "--out", str(out)])
    assert json.loads(out.read_text())["edges"] == 12


def test_eval_without_out_writes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", str(folder / "one"), "--data", str(folder / "pairs.jsonl")]) == 0
    assert "Accuracy" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_eval_of_a_broken_model_says_so_in_valid_json(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = spoiled_copy(folder / "one", tmp_path / "broken", torch.nan)
    out = tmp_path / "figures.json"
    assert main(["eval", str(broken), "--data", str(folder / "pairs.jsonl"), "--out", str(out)]) == 0
    result = strict_json(out.read_text())
    assert result["nonfinite"] == result["responses"] and result["accuracy"] == 0.0
    assert result["loss"] is None and result["mean_reward"] is None
    assert "broken" in capsys.readouterr().out
