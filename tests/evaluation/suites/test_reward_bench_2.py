"""RewardBench 2: best of four, and the score of Ties against one written plainly."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmfast.evaluation.suites.base import Result, cells
from rmfast.evaluation.suites.reward_bench_2 import SUBSETS, SUITE
from tests.evaluation.suites.judged import causes, judged, numbers, write_json


def row(subset: str, uid: str, chosen: list[str], rejected: list[str], **more: Any) -> dict[str, Any]:
    counts = {"num_correct": len(chosen), "num_incorrect": len(rejected), "total_completions": len(chosen + rejected)}
    return {"id": uid, "prompt": f"{subset} {uid}", "chosen": chosen, "rejected": rejected, "subset": subset,
            "models": ["m"] * len(chosen + rejected), "additional_metadata": None, **counts} | more  # fmt: skip


def best_of_four(seed: int = 0) -> list[dict[str, Any]]:
    digit = numbers(seed)
    return [
        row(name, f"{k}{i}", [digit()], [digit() for _ in range(3)])
        for k, name in enumerate(SUBSETS)
        for i in range(9 + k)
    ]


def ties(seed: int = 0, prompts: int = 12) -> list[dict[str, Any]]:
    draw = random.Random(seed)

    def texts(count: int, low: float) -> list[str]:
        return [str(round(draw.gauss(low, 1), 2)) for _ in range(count)]

    ref = [row("Ties", f"ref:{i}", texts(1, 3), texts(4, 0)) for i in range(prompts)]
    tied = [row("Ties", f"tied:{i}", texts(draw.randint(2, 6), 3), texts(4, 0)) for i in range(prompts)]
    equal = [row("Ties", "ref:90", ["4"], ["1"]), row("Ties", "tied:90", ["4", "4"], ["1", "0"])]  # no spread
    zero = [row("Ties", "ref:91", ["4"], ["4"]), row("Ties", "tied:91", ["4", "4"], ["4"])]  # 0 / 0
    return [*ref, *tied, *equal, *zero]


def plain_ties_score(data: list[dict[str, Any]]) -> float:
    """Line by line, over numbers that the texts are."""
    right = {"ref": {}, "tied": {}}  # type: dict[str, dict[str, bool]]
    for item in data:
        kind, number = item["id"].split(":")
        right[kind][number] = all(float(a) > float(b) for a in item["chosen"] for b in item["rejected"])
    by_id = {item["id"]: item for item in data}
    hard, easy, tanh = [], [], []
    for number in right["ref"].keys() & right["tied"].keys():
        gap = {}
        for kind in ("ref", "tied"):
            item = by_id[f"{kind}:{number}"]
            gap[kind] = min(map(float, item["chosen"])) - max(map(float, item["rejected"]))
        correct = list(map(float, by_id[f"tied:{number}"]["chosen"]))
        spread = max(correct) - min(correct)
        easy.append(gap["tied"] > spread)
        smaller = min(gap.values())
        hard.append(smaller > spread)
        ratio = smaller / spread if spread else math.copysign(math.inf, smaller) if smaller else math.nan
        tanh.append(0.0 if math.isnan(ratio) else math.tanh(ratio - 1))

    def mean(values: Any) -> float:
        values = list(values)
        return sum(values) / len(values)

    accuracy = 0.3 * mean(right["tied"].values()) + 0.3 * mean(right["ref"].values())
    return accuracy + 0.2 * mean(easy) + 0.2 * mean(hard) + 0.01 * mean(tanh)


def test_best_of_four_is_strict_in_cells_and_shares_ties_in_the_headline(tmp_path: Path) -> None:
    data = best_of_four()
    rows = SUITE.read(str(write_json(tmp_path / "rows.jsonl", [*data, *ties()])))
    assert not rows.unscored and not rows.notes
    _, found, headline = judged(SUITE, rows, float)
    some_tie = False
    for name in SUBSETS:
        strict, shared = [], []
        for item in data:
            if item["subset"] == name:
                best, others = float(item["chosen"][0]), [float(text) for text in item["rejected"]]
                strict.append(best > max(others))
                level = others.count(best)
                shared.append(1 / (1 + level) if best >= max(others) else 0)
        some_tie |= sum(strict) != sum(shared)
        assert found["best-of-n", (name,)].correct == sum(strict) and found["best-of-n", (name,)].rows == len(strict)
        assert headline[name] == pytest.approx(sum(shared) / len(shared))
    assert some_tie
    assert headline["overall"] == pytest.approx(sum(headline[name] for name in (*SUBSETS, "Ties")) / 6)


def test_all_answers_alike_give_a_quarter(tmp_path: Path) -> None:
    rows = SUITE.read(str(write_json(tmp_path / "rows.jsonl", best_of_four())))
    _, found, headline = judged(SUITE, rows, lambda text: 0.0)
    assert found["best-of-n", ()].correct == 0 and headline["Math"] == 0.25


@pytest.mark.parametrize("seed", range(5))
def test_the_score_of_ties(seed: int, tmp_path: Path) -> None:
    data = ties(seed)
    rows = SUITE.read(str(write_json(tmp_path / "rows.jsonl", data)))
    _, found, headline = judged(SUITE, rows, float)
    assert headline["Ties"] == pytest.approx(plain_ties_score(data), abs=1e-12) and 0 < headline["Ties"] < 1.01
    for kind in ("ref", "tied"):
        own = [item for item in data if item["id"].startswith(kind)]
        won = [all(float(a) > float(b) for a in x["chosen"] for b in x["rejected"]) for x in own]
        cell = found["ties", (kind,)]
        assert (cell.correct, cell.rows) == (sum(won), len(own))


def test_known_scores_of_ties(tmp_path: Path) -> None:
    """By hand: right 4 against 1, two right 5 and 4 against 2: all won, 2 > 1, min(3, 2) > 1, tanh(2 / 1 - 1)."""
    data = [row("Ties", "ref:1", ["4"], ["1", "0"]), row("Ties", "tied:1", ["5", "4"], ["2"])]
    rows = SUITE.read(str(write_json(tmp_path / "rows.jsonl", data)))
    headline = judged(SUITE, rows, float)[2]
    assert headline["Ties"] == pytest.approx(1 + 0.01 * math.tanh(1))
    reverse = judged(SUITE, rows, lambda text: -float(text))[2]
    assert reverse["Ties"] == pytest.approx(0.01 * math.tanh(-4 - 1))  # m = min(-4, -3), spread 1


def test_half_a_pair_counts_in_accuracy_only_and_is_noted(tmp_path: Path) -> None:
    data = [*ties(), row("Ties", "ref:300", ["0"], ["9"])]
    rows = SUITE.read(str(write_json(tmp_path / "rows.jsonl", data)))
    assert any("Ties: 1 prompts lack their ref or tied one: 300" in note for note in rows.notes)
    assert judged(SUITE, rows, float)[2]["Ties"] == pytest.approx(plain_ties_score(data))


def test_missing_subsets_are_nan_and_a_judge_has_no_score_of_ties(tmp_path: Path) -> None:
    kept = [item for item in best_of_four() if item["subset"] != "Focus"]
    rows = SUITE.read(str(write_json(tmp_path / "rows.jsonl", kept)))
    assert rows.notes == ("2 of 6 subsets have no rows: Focus, Ties",)
    headline = judged(SUITE, rows, float)[2]
    assert math.isnan(headline["overall"]) and math.isnan(headline["Focus"]) and math.isnan(headline["Ties"])
    assert headline["Safety"] > 0
    rows = SUITE.read(str(write_json(tmp_path / "rows.jsonl", ties())))
    votes = [Result(item, np.ones(len(item.example.edges))) for item in rows.items]
    assert math.isnan(SUITE.headline(cells(SUITE, votes), votes)["Ties"])
    lost = [Result(item, np.full(len(item.example.edges), np.nan)) for item in rows.items]
    assert cells(SUITE, lost)[0].correct == 0


def test_bad_rows_are_counted_and_duplicates_noted(tmp_path: Path) -> None:
    data = [
        row("Math", "7", [""], ["1", "2", "3"]),  # empty, and judged
        row("Math", "7", ["5"], ["1", "2", "3"]),
        row("Math", "8", ["1", "2"], ["3"]),
        row("Math", "9", ["1"], []),
        row("Math", "10", ["1"], ["2"], num_correct=3),
        row("Math", "11", ["1"], ["2"]) | {"chosen": "1"},
        row("Ties", "tied:1", ["1"], ["2"]),
        row("Ties", "12", ["1"], ["2"]),
        {"id": "13"},
    ]
    rows = SUITE.read(str(write_json(tmp_path / "rows.jsonl", data)))
    assert causes(rows) == ["wrong type", "no edge", *["wrong type"] * 4, "wrong columns"]
    assert [r.part for r in rows.unscored] == ["best-of-n"] * 4 + ["ties"] * 2 + ["unknown"]
    assert any("best-of-n: 1 ids are in several rows (Math/7)" in note for note in rows.notes)
    found = judged(SUITE, rows, lambda text: float(text or -1))[1]
    assert (found["best-of-n", ("Math",)].rows, found["best-of-n", ("Math",)].correct) == (2, 1)
