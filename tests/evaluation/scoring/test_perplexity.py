"""Held-out demonstrations: loss, perplexity and token accuracy as transformers gives them, and their intervals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rmfast.data.row_kinds import demonstrations
from rmfast.data.table import GroupTable, build_table
from rmfast.evaluation.scoring.perplexity import evaluate_demonstrations, ratio_interval
from rmfast.models.hf import load_network
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from tests.rollout.tiny_policies import language_model
from tests.tiny import Group, ids, store_of


def table_of(rows: int) -> tuple[GroupTable, list[tuple[list[int], list[bool]]]]:
    """Random ids, some of which are targets."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(rows):
        length = int(rng.integers(4, 20))
        mask = [False, *(rng.random(length - 2) < 0.5).tolist(), True]
        made.append((ids(rng, length), mask))
    store = store_of([Group([tokens], answer=[mask.index(True)]) for tokens, mask in made])
    store = replace(store, trained=np.array([one for _, mask in made for one in mask]))
    return build_table([store], kind=demonstrations())[0], made


def test_figures_are_those_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmfast.evaluation.scoring.score.CHUNK", 4)  # several rounds
    model = language_model("llama")
    model.save_pretrained(tmp_path)
    network = load_network(tmp_path, heads=0, lm=True)[0]
    engine = NativeEngine(network, world=World(), options=AdamWOptions())
    table, rows = table_of(9)
    found = evaluate_demonstrations(engine.read, table, budget=40)
    losses, right, counts = [], [], []
    for tokens, mask in rows:
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, :-1].double()
        learnt, targets = torch.tensor(mask[1:]), torch.tensor(tokens[1:])
        losses.append(float(-logits.log_softmax(-1).gather(1, targets[:, None])[:, 0][learnt].sum()))
        right.append(int((logits.argmax(-1) == targets)[learnt].sum()))
        counts.append(int(learnt.sum()))
    assert (found["rows"], found["tokens"]) == (9, sum(counts))
    assert found["loss"] == pytest.approx(sum(losses) / sum(counts), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(sum(losses) / sum(counts)), rel=1e-5)
    assert found["mean_token_accuracy"] == pytest.approx(sum(right) / sum(counts), abs=1e-12)
    assert found["perplexity_low"] == pytest.approx(np.exp(found["loss_low"]))
    assert found["loss_low"] < found["loss"] < found["loss_high"]


def test_the_likeliest_tokens_are_all_right(tmp_path: Path) -> None:
    """Targets that are the model's own choices, one after another."""
    model = language_model("llama")
    model.save_pretrained(tmp_path)
    tokens = [5]
    for _ in range(12):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    mask = [False] + [True] * 12
    store = replace(store_of([Group([tokens], answer=[1])]), trained=np.array(mask))
    table = build_table([store], kind=demonstrations())[0]
    engine = NativeEngine(load_network(tmp_path, heads=0, lm=True)[0], world=World(), options=AdamWOptions())
    assert evaluate_demonstrations(engine.read, table, budget=40)["mean_token_accuracy"] == 1.0


def test_an_interval_draws_whole_rows() -> None:
    """Of rows of equal length it is the t-free interval of their means; of one row there is none."""
    values = np.array([1.0, 2.0, 4.0, 5.0])
    mean, low, high = ratio_interval(3 * values, np.full(4, 3))
    half = 1.959964 * values.std(ddof=1) / 2
    assert mean == pytest.approx(3.0) and (low, high) == pytest.approx((3 - half, 3 + half))
    once = ratio_interval(np.array([3.0]), np.array([2]))
    assert once[0] == 1.5 and np.isnan(once[1:]).all()


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        counts = rng.integers(1, 40, 80)
        level = rng.normal(2.0, 0.5, 80)  # rows differ, and their tokens are alike
        _, low, high = ratio_interval(counts * level, counts)
        held += low <= 2.0 <= high
    assert 0.91 <= held / 400 <= 0.98
