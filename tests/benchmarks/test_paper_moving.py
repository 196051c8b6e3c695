"""benchmarks/paper/moving.py at a tiny size: from a decoder to plots, and what it measures is what it says."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper import moving
from benchmarks.paper.common import auc
from benchmarks.paper.moving_data import answer_groups, turned, with_strengths
from rmfast.data.table import select, table_edges
from tests.runs import text, write_model, write_rows
from tests.tiny import group_of, table_of


def test_auc_by_hand() -> None:
    assert auc(np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False])) == pytest.approx(0.875)


def test_labels_turn_and_strengths_land_on_their_pairs() -> None:
    g = np.random.default_rng(0)
    table = select(table_of([group_of(g, 4, [2, 3], [(0, 1)]) for _ in range(6)]), np.array([1, 2, 4, 5]))
    flipped = np.array([True, False, False, True])
    before, after = table_edges(table), table_edges(turned(table, flipped))
    assert (after.better == np.where(flipped, before.worse, before.better)).all()
    assert (after.worse == np.where(flipped, before.better, before.worse)).all()
    strong = with_strengths(table, np.arange(4.0)).store_edges[0].strength
    assert strong[[1, 2, 4, 5]].tolist() == [0, 1, 2, 3] and np.isnan(strong[[0, 3]]).all()


def write_answers(path: Path, prompts: int, seed: int) -> Path:
    """Seven models' answers to each instruction, each set against one baseline's."""
    draw = random.Random(seed)
    rows = []
    for p in range(prompts):
        base, prompt = text(draw, 3, 9), [{"role": "user", "content": f"{text(draw, 2, 6)} {p}"}]
        for m in range(7):
            answer, wins = f"{text(draw, 3, 9)} {m}", draw.random() < 0.5
            sides = (answer, base) if wins else (base, answer)
            names = (f"model {m}", "base") if wins else ("base", f"model {m}")
            meta = dict(zip(("chosen_model", "rejected_model"), names, strict=True))
            rows.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1], "meta": meta})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_answers_of_many_models_become_groups_with_the_rows_own_labels(tmp_path: Path) -> None:
    source = write_answers(tmp_path / "answers.jsonl", 6, 0)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    labels = {(row["chosen"], row["rejected"]) for row in rows}
    bases = {row["chosen"] if row["meta"]["chosen_model"] == "base" else row["rejected"] for row in rows}
    groups = answer_groups(str(source), 4, edges=True)
    assert len(groups) == 4
    for group in groups:
        assert len(group.edges) == 5 and not bases & set(group.responses[:5]) and bases >= set(group.responses[5:])
        assert {(group.responses[e.better], group.responses[e.worse]) for e in group.edges} <= labels
    free = answer_groups(str(source), 4, edges=False)
    assert all(len(group.responses) == 5 and not group.edges for group in free)


def test_from_a_decoder_to_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "DECILE_EPOCHS", 1)
    monkeypatch.setattr(moving, "STRONGEST_READ", (1, 2))
    monkeypatch.setattr(moving, "READ", (1, 2))
    monkeypatch.setattr(moving, "PRESET_READ", (1, 4))
    write_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", 80)
    arguments = [
        "--model", str(tmp_path / "model"), "--data", str(tmp_path / "rows.jsonl"), "--limit", "72",
        "--other", str(write_answers(tmp_path / "other.jsonl", 5, 1)), "--prompts", "4", "--noises", "0.3",
        "--samples", str(write_answers(tmp_path / "samples.jsonl", 5, 2)), "--seeds", "0", "1", "--lr", "0.01",
        "--keep", str(tmp_path / "kept"), "--json", str(tmp_path / "out.json"), "--plots", str(tmp_path / "plots"),
    ]  # fmt: skip
    moving.main(arguments)
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["pairs"] == 72 and result["other_pairs"] == 20
    assert {row["decile"] for row in result["deciles"]} == set(range(1, 11))
    assert {row["term"] for row in result["contrastive"]} == set(moving.CONTRASTIVE)
    # The tiny model learns what tells these pairs apart, and an ascent raises J.
    assert max(row["clean"] for row in result["presets"]) > 0.6
    assert all(row["rise"] > 0 for row in result["meta"] if row["ascent"].startswith("rho"))
    assert len(list((tmp_path / "plots").glob("moving_*.png"))) == 6
    assert "seed 1 done" in capsys.readouterr().out
    moving.main(arguments)  # all is kept
    assert "done" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text()) == result
