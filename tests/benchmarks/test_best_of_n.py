"""benchmarks/best_of_n.py at a tiny size: from answers and a decoder to curves and plots, and what it trains on."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaModel

from benchmarks import best_of_n
from benchmarks.best_of_n_data import Instruction, features_of, read_instructions
from tests.runs import text, write_model


def write_answers(path: Path, instructions: int, answers: int) -> Path:
    """Models' answers to each instruction, each set against a baseline's; one of them twice, and one too long."""
    draw, rows = random.Random(0), []
    for i in range(instructions):
        prompt, base = [{"role": "user", "content": f"{text(draw, 2, 6)} {i}"}], text(draw, 3, 9)
        for m in [*range(answers), 0, answers]:
            won = (i + m) % 3 == 0
            answer = ("yes " if won else "no ") + f"{m} " * (200 if m == answers else 1)
            sides = {"chosen": answer, "rejected": base} if won else {"chosen": base, "rejected": answer}
            names = (f"model {m}", "base") if won else ("base", f"model {m}")
            rows.append(
                {"prompt": prompt, **sides, "meta": dict(zip(("chosen_model", "rejected_model"), names, strict=True))}
            )
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_answers_are_grouped_with_the_judges_verdicts(tmp_path: Path) -> None:
    source = str(write_answers(tmp_path / "a.jsonl.gz", 4, 5))
    found = read_instructions([source], answers=(5, 9), letters=100)
    assert len(found) == 4 and all(len(set(one.answers)) == 5 == len(one.won) for one in found)
    assert all(
        won == answer.startswith("yes") for one in found for answer, won in zip(one.answers, one.won, strict=True)
    )
    assert read_instructions([source], answers=(6, 9), letters=100) == []
    assert [len(one.answers) for one in read_instructions([source], answers=(5, 3), letters=100)] == [3] * 4


def test_every_instruction_weighs_the_same_and_preferred_answers_are_above_the_others() -> None:
    part = [(np.zeros((3, 1)), Instruction([], ["a", "b", "c"], [True, False, True])),
            (np.zeros((2, 1)), Instruction([], ["d", "e"], [False, False])),
            (np.zeros((2, 1)), Instruction([], ["f", "g"], [False, True]))]  # fmt: skip
    better, worse, weight = best_of_n.edges_of(part)
    assert (better.tolist(), worse.tolist(), weight.tolist()) == ([0, 2, 6], [1, 1, 5], [0.5, 0.5, 1])


def test_a_head_learns_what_the_judge_likes() -> None:
    rng = np.random.default_rng(0)
    likes = rng.normal(size=8)
    features = rng.normal(size=(60, 12, 8)) * 3 + 7
    part = [(of, Instruction([], ["x"] * 12, list(of @ likes > np.median(of @ likes)))) for of in features]
    head = best_of_n.train(part[:40], 1e-3)
    assert best_of_n.accuracy(head, part[40:]) > 0.95
    assert np.linalg.norm(best_of_n.train(part[:40], 1.0).weight) < 0.3 * np.linalg.norm(head.weight)


def test_features_are_those_of_the_first_layers(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", layers=3)
    one = Instruction([{"role": "user", "content": "the cat"}], ["sat on a mat", "ran home"], [True, False])
    (found,) = features_of(folder, 2, [one], tmp_path / "kept")
    model, tokenizer = LlamaModel.from_pretrained(folder, num_hidden_layers=2), AutoTokenizer.from_pretrained(folder)
    for answer, features in zip(one.answers, found, strict=True):
        turns = [*one.prompt, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True).input_ids
        with torch.no_grad():
            want = model(ids).last_hidden_state[0, -1].numpy()
        assert features == pytest.approx(want, abs=0.06)  # bf16, of values up to 3
    assert np.abs(found[0] - found[1]).max() > 0.5
    (again,) = features_of(folder, 2, [one], tmp_path / "kept")
    assert (again == found).all() and len(list((tmp_path / "kept").iterdir())) == 1


def test_from_answers_to_curves_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LEAST": 8, "MOST": 10, "LETTERS": 100, "HELD_OUT": 6, "GOLD": 10}.items():
        monkeypatch.setattr(best_of_n, name, value)
    model, answers = write_model(tmp_path / "model"), write_answers(tmp_path / "a.jsonl.gz", 20, 9)
    best_of_n.main([
        "--model", str(model), "--data", str(answers), "--layers", "1",
        "--members", "2", "--instructions", "3", "4", "--keep", str(tmp_path / "kept"),
        "--json", str(tmp_path / "out.json"), "--plots", str(tmp_path / "plots"),
    ])  # fmt: skip
    result = json.loads((tmp_path / "out.json").read_text())
    assert [part["instructions"] for part in result["parts"].values()] == [6, 10, 4]
    assert [one["instructions"] for one in result["experiments"]] == [3, 4]
    for one in result["experiments"]:
        assert list(one["curves"]) == ["gold", "judge"] and len(one["accuracy"]) == 2
        for curves in one["curves"].values():
            assert curves["counts"] == [1, 2, 4, 8] and curves["rows"] == 6
            assert len(curves["members"]) == 2 and len(curves["rules"]) == 5
    # Of the judge's verdicts the gain of the best is known: where any answer of the 8 won, it takes one.
    ceiling = result["experiments"][0]["curves"]["judge"]["ceiling"][-1]["value"]
    assert ceiling == pytest.approx((1 - result["wins"]) / np.sqrt(result["wins"] * (1 - result["wins"])))
    assert "mean-k-std" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "plots").iterdir()} == {"members.png", "rules.png"}
