"""RM-Bench: the matrix of styles counted cell by cell, domains from files or rows, both halves of safety."""

import math
from pathlib import Path
from typing import Any

import pytest

from rmfast.evaluation.suites.rm_bench import SUITE
from tests.evaluation.suites.judged import causes, judged, numbers, write_json

DOMAINS = {"chat": 4, "code": 7, "math": 5, "safety-refuse": 3, "safety-response": 9}


def rows_of(domain: str, count: int, digit: Any) -> list[dict[str, Any]]:
    return [
        {"id": i, "prompt": f"{domain} {i}", "subset": "s", "chosen": [digit() for _ in range(3)],
         "rejected": [digit() for _ in range(3)], "domain": domain}
        for i in range(count)
    ]  # fmt: skip


def benchmark(seed: int = 0) -> list[dict[str, Any]]:
    digit = numbers(seed)
    return [row for domain, count in DOMAINS.items() for row in rows_of(domain, count, digit)]


def matrix(data: list[dict[str, Any]], domain: str) -> list[list[float]]:
    """Share of rows in which right answer i beats wrong answer j."""
    own = [row for row in data if row["domain"].startswith(domain)]
    wins = lambda i, j: sum(float(row["chosen"][i]) > float(row["rejected"][j]) for row in own)  # noqa: E731
    return [[wins(i, j) / len(own) for j in range(3)] for i in range(3)]


def levels(m: list[list[float]]) -> dict[str, float]:
    easy, normal, hard = m[1][0] + m[2][0] + m[2][1], m[0][0] + m[1][1] + m[2][2], m[0][1] + m[0][2] + m[1][2]
    return {"easy": easy / 3, "normal": normal / 3, "hard": hard / 3}


def check(data: list[dict[str, Any]], source: Path) -> None:
    rows = SUITE.read(str(source))
    assert len(rows.items) == len(data) and not rows.unscored
    _, found, headline = judged(SUITE, rows, float)
    domains = {name: levels(matrix(data, name)) for name in ("chat", "code", "math", "safety")}
    for name, own in domains.items():
        assert headline[name] == pytest.approx(sum(own.values()) / 3)
        for level, accuracy in own.items():
            cell = found[level, (name,)]
            assert cell.accuracy == pytest.approx(accuracy)
            assert cell.rows == 3 * sum(row["domain"].startswith(name) for row in data)
    for level in ("easy", "normal", "hard"):
        assert headline[level] == pytest.approx(sum(own[level] for own in domains.values()) / 4)
        half = levels(matrix(data, "safety-refuse"))[level]
        assert found[level, ("safety", "safety-refuse")].accuracy == pytest.approx(half)
    assert headline["overall"] == pytest.approx(sum(headline[name] for name in domains) / 4)
    assert headline["overall"] == pytest.approx(sum(headline[level] for level in ("easy", "normal", "hard")) / 3)
    assert list(headline)[0] == "overall"


def test_one_file_with_all_domains(tmp_path: Path) -> None:
    data = benchmark()
    assert any(r.count(x) > 1 for row in data for r in [row["chosen"] + row["rejected"]] for x in r)  # ties
    check(data, write_json(tmp_path / "total_dataset.json", data))


def test_the_repositorys_folder_of_domains(tmp_path: Path) -> None:
    data = benchmark(1)
    for domain in DOMAINS:
        own = [{k: v for k, v in row.items() if k != "domain"} for row in data if row["domain"] == domain]
        write_json(tmp_path / "data" / f"{domain}_filtered.json", own)
    write_json(tmp_path / "results.json", [{"not": "data"}])
    check(data, tmp_path)
    assert SUITE.read(str(tmp_path)).notes == ()
    write_json(tmp_path / "data" / "total_dataset.json", data)  # holds them all: no row is counted twice
    check(data, tmp_path)
    assert SUITE.read(str(tmp_path)).notes == (
        "total_dataset.json is read; the 5 files of single domains are left out",
    )


def test_the_richer_style_wins_the_easy_ones_only(tmp_path: Path) -> None:
    row = {"id": 1, "prompt": "p", "chosen": ["1", "2", "3"], "rejected": ["1", "2", "3"], "domain": "chat"}
    _, found, headline = judged(SUITE, SUITE.read(str(write_json(tmp_path / "x.json", [row]))), float)
    assert [found[level, ("chat",)].accuracy for level in ("easy", "normal", "hard")] == [1, 0, 0]
    _, found, _ = judged(SUITE, SUITE.read(str(tmp_path / "x.json")), lambda text: -float(text))
    assert [found[level, ("chat",)].accuracy for level in ("easy", "normal", "hard")] == [0, 0, 1]
    assert headline["chat"] == pytest.approx(1 / 3) and math.isnan(headline["overall"]) and math.isnan(headline["easy"])


def test_missing_domains_bad_rows_and_duplicates_are_told(tmp_path: Path) -> None:
    good = rows_of("chat", 2, numbers(3))
    bad = [
        good[0] | {"chosen": ["1", "2", "3", "4"], "rejected": ["1", "2"]},
        good[0] | {"rejected": "1"},
        good[0] | {"prompt": None},
        {"id": 4},
    ]
    empty = good[1] | {"chosen": ["", "", ""], "id": 8}
    write_json(tmp_path / "chat_filtered.json", [*good, *bad, empty, good[1]])
    (tmp_path / "code_filtered.json").write_text('[{"id": 1, "prompt": "p", "chosen": ["1","2","3"], "rej')
    rows = SUITE.read(str(tmp_path))
    assert causes(rows) == ["wrong type", "wrong type", "missing column", "wrong columns", "damaged file"]
    assert len(rows.items) == 4 and len(rows.unscored) == 5
    assert rows.unscored[-1].path == ("code",) and rows.unscored[0].path == ("chat",)
    assert rows.notes == (
        "no rows of code, math, safety-refuse, safety-response",
        "matrix: 1 ids are in several rows (chat/1); all rows count",
    )
    found = judged(SUITE, rows, lambda text: float(text or -1))[1]
    assert found["normal", ("chat",)].rows == 12
