"""benchmarks/paper at a tiny size: it runs from pairs to plots, and what it measures is what it says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.paper import denoise
from benchmarks.paper.frozen import Pairs, accuracies, auc, edges_of, strengths, treated
from rmfast.data.denoise import Denoise
from tests.runs import write_model, write_rows


def linear(count: int = 1200, width: int = 12) -> Pairs:
    """Pairs whose features tell the better one by one direction, with some noise."""
    g = np.random.default_rng(0)
    gap = g.normal(size=(count, width)).astype(np.float32)
    gap[:, 0] = 8 * (np.abs(gap[:, 0]) + 0.3)
    features = np.zeros((2 * count, width), np.float32)
    features[0::2], features[1::2] = gap, -gap
    return Pairs(features, np.arange(count) % 4 == 0)


def test_strengths_find_planted_flips_and_flipping_them_back_helps() -> None:
    pairs = linear()
    features = pairs.features.reshape(-1, 2, 12)[~pairs.test].reshape(-1, 12)
    flipped = denoise.planted(len(features) // 2, 0.3, 0)
    assert flipped.sum() == round(0.3 * len(flipped))
    for folds in (None, 3):
        strength = strengths(features, edges_of(flipped), 3, folds, 0)
        assert auc(-strength, flipped) > 0.85 and auc(strength, flipped) < 0.15
    edges, left = treated(edges_of(flipped), strength, Denoise(flip=0.3))
    assert len(left) == len(flipped)
    assert (edges.better % 2).mean() < flipped.mean() / 2  # odd: the worse side is labelled better


def test_auc_and_accuracies_by_hand() -> None:
    assert auc(np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False])) == pytest.approx(0.875)
    heads = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert accuracies(heads, np.array([[1.0, 5.0], [2.0, 0.0], [-1.0, 0.0]])).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_from_a_decoder_to_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", 60)
    arguments = [
        "--model", str(tmp_path / "model"), "--data", str(tmp_path / "rows.jsonl"), "--limit", "48", "--seeds", "2",
        "--features", str(tmp_path / "kept" / "features.npz"), "--json", str(tmp_path / "out.json"),
        "--plots", str(tmp_path / "plots"),
    ]  # fmt: skip
    denoise.main(arguments)
    assert "features of 48 of 48 pairs" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["pairs"] == 48 and 0 < result["test_pairs"] < 48
    assert {row["preset"] for row in result["presets"]} == {"baseline", "margin", "flip", "flip_margin", "soft_margin"}
    assert {row["decile"] for row in result["deciles"]} == set(range(1, 11))
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "deciles.png",
        "detection.png",
        "presets.png",
    ]
    denoise.main(arguments)  # the features are kept
    assert "features of" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text()) == result
