"""The whole network on Triton's kernels equals the network on plain torch: scores and the gradient of every weight."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rmfast.models.hf import load_network
from rmfast.models.recompute import Recompute
from rmfast.objectives.reward import RewardObjective
from tests.tiny import assert_close_by_norm, gradients, group_of, pack_of, save_hf_model


@pytest.mark.parametrize(
    ("family", "lm", "recompute"),
    [("llama", True, "none"), ("qwen3", False, "selective"), ("qwen2-windows", False, "none")],
)
def test_the_network_on_kernels(tmp_path: Path, family: str, lm: bool, recompute: Recompute) -> None:
    save_hf_model(family, tmp_path / "model", tie_word_embeddings=True)
    g = np.random.default_rng(3)
    pack = pack_of([group_of(g, 7, [4, 2], [(0, 1)]), group_of(g, 3, [5, 6, 1], [(2, 0)])], lm=lm)
    results: list[tuple[Tensor, dict[str, Tensor]]] = []
    for impl in ("triton", "reference"):
        network, _ = load_network(
            tmp_path / "model", lm=lm, recompute=recompute, impl=impl, dtype=torch.float64, weights_dtype=torch.float64
        )
        outputs = network(pack, RewardObjective(lm=float(lm)).reads(pack))
        scores, log_prob = outputs.scores, outputs.log_prob
        total = scores.square().sum() if log_prob is None else scores.square().sum() + log_prob.sum()
        total.backward()
        results.append((scores.detach(), gradients(network)))
    (scores, grads), (plain_scores, plain_grads) = results
    torch.testing.assert_close(scores, plain_scores)
    assert not torch.equal(scores, plain_scores), "both ran the same code"
    assert_close_by_norm(grads, plain_grads, 1e-9)
