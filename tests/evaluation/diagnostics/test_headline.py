import time
from dataclasses import replace

import numpy as np
import pytest

from rmfast.evaluation.diagnostics.headline import resample_suite
from rmfast.evaluation.suites.base import Suite
from rmfast.evaluation.suites.find import find_suite
from tests.evaluation.diagnostics.made import RNG, made


def _rmb(rows: int, accuracy: float = 0.7):
    rng = RNG(0)
    goals = np.array([("Helpfulness", "Chat", "Discussion"), ("Harmlessness", "S1")], dtype=object)
    return made(
        [[1.0 if rng.random() < accuracy else -1.0, *[0.0] * (1 + i % 2)] for i in range(rows)],
        suite=find_suite("rmb"),
        parts=["pairwise" if i % 2 == 0 else "best-of-n" for i in range(rows)],
        paths=[tuple(goals[i // 2 % 2]) for i in range(rows)],
    )


def test_headline_of_cells():
    result = _rmb(4000)
    found = resample_suite(result)
    assert found.note is None and found.headline.keys() == result.headline.keys()
    figures = found.figures()
    for name, value in result.headline.items():
        assert figures[name].value == pytest.approx(value)
    cell = figures["Helpfulness pairwise"]
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert cell.high - cell.low == pytest.approx(2 * half, rel=0.12)
    overall = figures["overall"]
    assert overall.high - overall.low == pytest.approx(half, rel=0.12)  # the mean of four as good ones
    assert found.drawn.shape == (1000, len(found.cells)) and len(found.cells) == len(result.cells)
    for cell, (key, accuracy) in zip(result.cells, found.cells.items(), strict=True):
        assert key == (cell.part, cell.path) and accuracy == pytest.approx(cell.accuracy)


def test_prompts_hold_their_rows_together():
    won = np.repeat(RNG(2).random(100) < 0.7, 10)  # the ten rows of a prompt share one fate
    result = made([[1.0 if w else -1.0, 0.0] for w in won], prompts=[i // 10 for i in range(1000)])
    own = resample_suite(result).figures()["pairwise"]
    half = 1.96 * np.sqrt(won.mean() * (1 - won.mean()) / 100)
    assert own.high - own.low == pytest.approx(2 * half, rel=0.12)


def test_headline_of_rows():
    rng = RNG(1)
    subsets = ["Factuality", "Precise IF", "Math", "Safety", "Focus"]
    rewards = [[1.0 if rng.random() < 0.6 else -1.0, 0.0, 0.0, 0.0] for _ in range(300)]
    parts, paths = ["best-of-n"] * 300, [(subsets[i % 5],) for i in range(300)]
    uids, right = [str(i) for i in range(300)], [1] * 300
    for n in range(40):
        for kind, k in (("ref", 1), ("tied", 3)):
            rewards.append([*rng.normal(2, 0.5, k), *rng.normal(0, 1, 3)])
            parts.append("ties"), paths.append((kind,)), uids.append(f"{kind}:{n}"), right.append(k)
    result = made(rewards, suite=find_suite("reward-bench-2"), parts=parts, paths=paths, uids=uids, right=right)
    found = resample_suite(result)
    assert found.note is None
    figures = found.figures()
    for name in ("overall", "Ties", "Math"):
        assert figures[name].low < result.headline[name] < figures[name].high, name
    half = 1.96 * np.sqrt(0.6 * 0.4 / 60)
    assert figures["Math"].high - figures["Math"].low == pytest.approx(2 * half, rel=0.25)
    assert np.median(found.headline_drawn["Ties"]) == pytest.approx(result.headline["Ties"], abs=0.06)


def test_a_suite_that_is_not_known():
    own = Suite("mine", "", lambda _: None, headline=lambda cells, results: {"half": cells[0].accuracy / 2})
    result = made([[1.0, 0.0]] * 9 + [[0.0, 1.0]], suite=own)
    found = resample_suite(result)
    assert "give --suite" in found.note and found.figures()["half"].value == 0.45
    assert np.isnan(found.figures()["half"].low) and found.cells[("pairwise", ())] == 0.9
    known = resample_suite(result, own)
    assert known.note is None and known.figures()["half"].low < 0.45 < known.figures()["half"].high
    other = Suite("mine", "", lambda _: None)
    assert "another than in the file" in resample_suite(result, other).note


def test_thousand_draws_of_many_rows_are_quick():
    result = _rmb(6000)
    began = time.process_time()
    resample_suite(result)
    assert time.process_time() - began < 5


def test_a_row_drawn_again_is_a_row_of_its_own():
    own = Suite(
        "own", "", lambda _: None, headline=lambda _, rows: {"ids": len({r.item.uid for r in rows}) / len(rows)}
    )
    found = resample_suite(made([[1.0, 0.0]] * 30, suite=own), own)
    assert found.note is None and (found.headline_drawn["ids"] == 1).all()


def test_a_figure_that_is_a_cell_has_the_cells_interval():
    rng = RNG(3)
    paths = [("Helpfulness", "Chat", "Discussion")] * 36 + [("Harmlessness", "S1")] * 4
    result = made(
        [[rng.normal(0.3), *[0.0] * (1 + i % 2)] for i in range(40)],
        suite=find_suite("rmb"),
        parts=["pairwise" if i % 2 == 0 else "best-of-n" for i in range(40)],
        paths=paths,
        prompts=[i // 4 for i in range(40)],
    )
    found = resample_suite(result)
    figures = found.figures()
    cells = {f"{cell.path[0]} {cell.part}": cell for cell in result.cells if len(cell.path) == 1}
    for name, cell in cells.items():
        assert (figures[name].low, figures[name].high) == (cell.low, cell.high), name
    assert set(found.cell) == set(cells) and len(cells) == 4
    drawn = np.nanquantile(found.headline_drawn["overall"], [0.025, 0.975])
    assert [figures["overall"].low, figures["overall"].high] == pytest.approx(drawn)
    result = replace(result, suite="another")  # of whose headline no draw is known
    figures = resample_suite(result).figures()
    assert (
        np.isnan(figures["overall"].low) and figures["Harmlessness pairwise"].low == cells["Harmlessness pairwise"].low
    )
