"""benchmarks/paper/moving.py at a tiny size: training from kept states is training the whole network."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.paper import moving
from benchmarks.paper.common import auc
from benchmarks.paper.moving_data import answer_groups
from benchmarks.paper.top_layers import Kept, join, keep, numbered, split, turned, with_strengths
from rmfast.data.loader import rank_packs, totals_of
from rmfast.data.table import GroupTable, table_edges
from rmfast.models.hf import load_network
from rmfast.objectives.contrastive import ContrastiveObjective
from rmfast.objectives.meta import DifferenceObjective
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.tasks.folds import select
from tests.runs import text, write_model, write_rows
from tests.tiny import assert_close_by_norm, gradients, group_of, odd_groups, save_hf_model, table_of


def cut_table() -> GroupTable:
    """Odd groups, some of them cut behind a BOS."""
    g = np.random.default_rng(3)
    groups = [*odd_groups(), *(group_of(g, n, [5, 7], [(0, 1)]) for n in (30, 9, 41))]
    for group in groups:
        for sequence in group.sequences:
            sequence.insert(0, 1)
    table = table_of(groups, bos_id=1, max_length=24, over_long="truncate")
    assert (table.cut > 0).any() and (table.cut == 0).any()
    return table


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["reward", "meta", "contrastive"])
def test_a_step_from_kept_states_is_the_whole_network_s(tmp_path: Path, layers: int, kind: str) -> None:
    save_hf_model("llama", tmp_path / "model", num_hidden_layers=3)
    table = cut_table()
    whole, _ = load_network(tmp_path / "model")
    whole.freeze(layers)
    lower, top = split(load_network(tmp_path / "model")[0], layers)
    both = [select(table, np.flatnonzero(np.arange(len(table)) % 2 == rest)) for rest in (0, 1)]
    kept = [keep(lambda: lower, part, tmp_path / f"{i}.npy", whole.config.width) for i, part in enumerate(both)]
    states, tables = join(kept)
    assert len(states) == table.stored.sum()
    small = top.network(states, seed=0)
    small.head.load_state_dict(whole.head.state_dict())
    objective = DifferenceObjective() if kind == "meta" else RewardObjective()
    term = ContrastiveObjective(kind="simcse", on="pair", beta=1.0, temperature=0.05) if kind == "contrastive" else None
    found = []
    for network, part in ((whole, both[1]), (small, tables[1])):
        engine = NativeEngine(network, world=World(), options=AdamWOptions(), contrastive=term)
        rows, views = np.arange(len(part)), "pass" if term else None
        packs, _ = rank_packs(part, rows, ranks=1, rank=0, budget=10_000, views=views)  # type: ignore[arg-type]
        scores = engine.score(packs)[0]
        engine.forward_backward(packs, objective, totals_of(part, rows, views))  # type: ignore[arg-type]
        found.append((scores, gradients(network)))
    (scores, grads), (kept_scores, kept_grads) = found
    torch.testing.assert_close(kept_scores, scores, rtol=1e-5, atol=1e-5)
    renamed = grads
    for i in range(layers):
        renamed = {name.replace(f"layers.{3 - layers + i}.", f"layers.{i}."): g for name, g in renamed.items()}
    assert_close_by_norm(kept_grads, renamed, 1e-4)


def test_states_are_kept_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_hf_model("llama", tmp_path / "model")
    table = cut_table()
    lower = split(load_network(tmp_path / "model")[0], 1)[0]
    made = keep(lambda: lower, table, tmp_path / "a.npy", 32)
    assert "prompts" in capsys.readouterr().out

    def refuse() -> None:
        raise AssertionError("nothing is left to do")

    again = keep(refuse, table, tmp_path / "a.npy", 32)  # type: ignore[arg-type]
    assert torch.equal(made.states, again.states) and made.states.abs().sum(1).min() > 0


def test_auc_by_hand() -> None:
    assert auc(np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False])) == pytest.approx(0.875)


def test_numbers_stand_for_every_stored_token_once() -> None:
    table = cut_table()
    packs, _ = rank_packs(numbered(table), np.arange(len(table)), ranks=1, rank=0, budget=100)
    tokens = torch.cat([pack.tokens for pack in packs])
    assert tokens.sort().values.tolist() == list(range(int(table.stored.sum())))
    _, (first, second) = join([Kept(numbered(table), torch.zeros(len(tokens), 2))] * 2)
    shifted, _ = rank_packs(second, np.arange(len(table)), ranks=1, rank=0, budget=100)
    assert torch.equal(torch.cat([pack.tokens for pack in shifted]), tokens + len(tokens))
    assert (first.stores[0].tokens == numbered(table).stores[0].tokens).all()


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
    """Seven models' answers to each instruction, each set against the baseline's."""
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
