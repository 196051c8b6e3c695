"""RMB in its own folders: every cell against a plain count, and what is missing, twice, empty or damaged."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from rmfast.errors import UserError
from rmfast.evaluation.suites.rmb import FILES, SCENARIOS, SUITE
from tests.evaluation.suites.judged import causes, judged, numbers, write_json

SMALL = ("Helpfulness/Code/Documentation", "Helpfulness/Chat/Discussion", "Harmlessness/S1", "Harmlessness/multi")


def answer(text: str) -> dict[str, str]:
    return {"llm_name": f"model-{text}", "answer": text}


def turns(number: int) -> list[dict[str, str]]:
    first = {"role": "user", "content": f"question {number}", "language": "English"}
    more = [{"role": "assistant", "content": "yes?", "language": "English"}, first | {"content": "go on"}]
    return [first, *(more if number % 3 == 0 else [])]


def pair(uid: str, number: int, chosen: str, reject: str) -> dict[str, Any]:
    return {"pair_uid": uid, "conversation_input": turns(number), "chosen": answer(chosen), "reject": answer(reject),
            "category_path": "x"}  # fmt: skip


def best(uid: str, number: int, winner: str, losers: list[str]) -> dict[str, Any]:
    return {"bon_uid": uid, "conversation_input": turns(number), "bon_best": answer(winner),
            "loser_list": [answer(text) for text in losers], "category_path": "x"}  # fmt: skip


def write_benchmark(root: Path, seed: int = 0, names: tuple[str, ...] = SMALL) -> Path:
    """Lists, and in the pairwise set each list's pairs, as in the benchmark."""
    draw, digit = random.Random(seed), numbers(seed)
    for name in names:
        lists = [
            best(f"{name}{i}", i, digit(), [digit() for _ in range(draw.randint(2, 4))]) for i in range(8 + len(name))
        ]
        pairs = [
            pair(f"{row['bon_uid']}-{k}", i, row["bon_best"]["answer"], loser["answer"])
            for i, row in enumerate(lists)
            for k, loser in enumerate(row["loser_list"])
        ]
        write_json(root / "BoN_set" / f"{name}.json", lists)
        write_json(root / "Pairwise_set" / f"{name}.json", pairs)
    return root


def plain_count(root: Path) -> dict[Any, list[int]]:
    """[rows, correct] of each set and each level of its folders, from the files and nothing else."""
    counts: dict[Any, list[int]] = {}
    for part, folder in (("pairwise", "Pairwise_set"), ("best-of-n", "BoN_set")):
        for file in (root / folder).rglob("*.json"):
            names = str(file.relative_to(root / folder))[: -len(".json")].split("/")
            for row in json.loads(file.read_text()):
                top = float((row["chosen"] if part == "pairwise" else row["bon_best"])["answer"])
                losers = [row["reject"]] if part == "pairwise" else row["loser_list"]
                won = all(top > float(loser["answer"]) for loser in losers)
                for depth in range(len(names) + 1):
                    cell = counts.setdefault((part, tuple(names[:depth])), [0, 0])
                    cell[0] += 1
                    cell[1] += won
    return counts


def test_the_benchmark_has_49_scenarios() -> None:
    assert len(SCENARIOS) == 12 and sum(map(len, SCENARIOS.values())) == 37
    assert len(FILES) == len(set(FILES)) == 49


@pytest.mark.parametrize("inside", [False, True])
def test_every_cell_to_the_row(inside: bool, tmp_path: Path) -> None:
    root = write_benchmark(tmp_path / "RMB_dataset")
    rows = SUITE.read(str(tmp_path if inside else root))
    results, found, headline = judged(SUITE, rows, float)
    counts = plain_count(root)
    assert {key: [cell.rows, cell.correct] for key, cell in found.items()} == counts
    four = [
        counts[part, (goal,)][1] / counts[part, (goal,)][0]
        for goal in ("Helpfulness", "Harmlessness")
        for part in ("best-of-n", "pairwise")
    ]
    assert headline["overall"] == pytest.approx(sum(four) / 4)
    assert list(headline.values())[1:] == pytest.approx(four)
    assert any((result.gaps == 0).any() and not result.won for result in results)  # ties lose
    item = rows.items[0]
    assert item.writers == tuple(f"model-{text}" for text in item.example.responses)
    assert item.example.prompt == [{k: turn[k] for k in ("role", "content")} for turn in turns(0)]


@pytest.mark.parametrize("seed", range(4))
def test_a_list_is_never_won_more_often_than_its_pairs(seed: int, tmp_path: Path) -> None:
    """A won list has all its pairs won: the share of lists is at most the mean share of their pairs."""
    rows = SUITE.read(str(write_benchmark(tmp_path, seed)))
    results, found, _ = judged(SUITE, rows, float)
    lists = [result for result in results if result.item.part == "best-of-n"]
    shares = [float((result.gaps > 0).mean()) for result in lists]
    assert found["best-of-n", ()].accuracy <= sum(shares) / len(shares)
    pairs: dict[str, list[bool]] = {}
    for result in results:
        if result.item.part == "pairwise":
            pairs.setdefault(result.item.uid.rsplit("-", 1)[0], []).append(result.won)
    assert [result.won for result in lists] == [all(pairs[result.item.uid]) for result in lists]


def test_a_constant_wins_nothing(tmp_path: Path) -> None:
    headline = judged(SUITE, SUITE.read(str(write_benchmark(tmp_path))), lambda text: 1.0)[2]
    assert set(headline.values()) == {0.0}


def test_missing_files_are_named_and_their_cells_nan(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path, names=tuple(name for name in FILES if not name.startswith("Harmlessness")))
    (root / "Pairwise_set" / "Helpfulness/Code/Documentation.json").unlink()
    rows = SUITE.read(str(root))
    gone = [name for name in FILES if name.startswith("Harmlessness")]
    assert rows.notes == (
        f"pairwise: 13 of 49 files are missing: Helpfulness/Code/Documentation, {', '.join(gone)}",
        f"best-of-n: 12 of 49 files are missing: {', '.join(gone)}",
    )
    headline = judged(SUITE, rows, float)[2]
    assert math.isnan(headline["overall"]) and math.isnan(headline["Harmlessness pairwise"])
    assert headline["Helpfulness best-of-n"] > 0


def test_a_complete_benchmark_has_no_notes(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path, names=tuple(FILES))
    assert SUITE.read(str(root)).notes == ()
    write_json(root / "BoN_set" / "Helpfulness/Own/Mine.json", [best("u", 0, "2", ["1"])])
    assert SUITE.read(str(root)).notes == ("best-of-n: 1 files are not of the benchmark: Helpfulness/Own/Mine",)


def test_files_without_rows_are_named(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path, names=tuple(FILES))
    write_json(root / "Pairwise_set" / "Harmlessness/S6.json", [])
    (root / "BoN_set" / "Harmlessness/S7.json").write_text("")
    rows = SUITE.read(str(root))
    assert rows.notes == (
        "pairwise: 1 files hold no rows: Harmlessness/S6",
        "best-of-n: 1 files hold no rows: Harmlessness/S7",
    )


def test_a_pair_without_writers_is_judged(tmp_path: Path) -> None:
    row = pair("a", 0, "2", "1")
    for side in ("chosen", "reject"):
        del row[side]["llm_name"]
    write_json(tmp_path / "Pairwise_set" / "Harmlessness/S1.json", [row])
    (item,) = SUITE.read(str(tmp_path)).items
    assert item.writers == ("unknown", "unknown")


def test_one_set_alone_is_judged(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path, names=tuple(FILES))
    for file in (root / "Pairwise_set").rglob("*.json"):
        file.unlink()
    rows = SUITE.read(str(root))
    assert {item.part for item in rows.items} == {"best-of-n"}
    assert rows.notes[0].startswith("pairwise: 49 of 49 files are missing")


def test_nothing_is_left_out_in_silence(tmp_path: Path) -> None:
    root, name = tmp_path, "Harmlessness/S1"
    pairs = [
        pair("a", 0, "", "3"),
        pair("b", 1, "3", ""),
        pair("b", 2, "4", "4"),
        pair("c", 3, "1", "2") | {"chosen": "text alone"},
        {key: value for key, value in pair("d", 4, "1", "2").items() if key != "reject"},
        pair("e", 5, "1", "2") | {"conversation_input": []},
        pair("f", 6, "1", "2") | {"conversation_input": [{"role": "user", "content": None}]},
        "no object",
    ]
    write_json(root / "Pairwise_set" / f"{name}.json", pairs)
    whole = json.dumps([best("g", 0, "3", ["1", "2"]), best("h", 0, "3", []), best("i", 1, "1", ["2", "0"])])
    file = write_json(root / "BoN_set" / f"{name}.json", [])
    file.write_text(whole[:-40])  # ends inside the third list
    rows = SUITE.read(str(root))
    assert causes(rows) == ["wrong columns", "wrong columns", "wrong roles", "wrong roles", "not an object",
                            "no edge", "damaged file"]  # fmt: skip
    assert {row.path for row in rows.unscored} == {("Harmlessness", "S1")}
    assert rows.unscored[-1].part == "best-of-n" and rows.unscored[-1].label.endswith("S1.json:3")
    assert rows.unscored[3].label.endswith("Pairwise_set/Harmlessness/S1.json:7")
    assert rows.notes[-1] == "pairwise: 1 ids are in several rows (Harmlessness/S1/b); all rows count"
    found = judged(SUITE, rows, lambda text: float(text or 0.5))[1]
    assert (found["pairwise", ()].rows, found["pairwise", ()].correct) == (3, 1)  # empty answers are judged
    assert (found["best-of-n", ()].rows, found["best-of-n", ()].correct) == (1, 1)


def test_a_file_that_is_not_json_costs_its_own_rows(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path)
    (root / "BoN_set" / "Harmlessness/S1.json").write_bytes(b"\xff\xfe not json")
    rows = SUITE.read(str(root))
    assert rows.unscored and {row.part for row in rows.unscored} == {"best-of-n"}
    assert len(rows.items) == sum(cell[0] for (_, path), cell in _good(root).items() if not path)


def _good(root: Path) -> dict[Any, list[int]]:
    (root / "BoN_set" / "Harmlessness/S1.json").unlink()
    return plain_count(root)


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_the_benchmark_is_refused(make: bool, tmp_path: Path) -> None:
    if make:
        (tmp_path / "BoN_set").mkdir()
    with pytest.raises(UserError, match=r"no \.json file in" if make else "give the benchmark's folder RMB_dataset"):
        SUITE.read(str(tmp_path))
