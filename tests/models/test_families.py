"""Scores from packs equal those of transformers, which runs each sequence alone, for every family that works."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from rmfast.data.loader import rank_packs
from rmfast.models.hf import load_network
from rmfast.models.network import Network
from tests.models.conftest import Saved
from tests.tiny import CONFIGS, Group, group_of, hf_scores, odd_groups, pack_of, table_of

FAMILIES = sorted(CONFIGS)


@torch.no_grad()
def our_scores(network: Network, groups: list[Group]) -> Tensor:
    return network.eval().score(pack_of(groups))


@torch.no_grad()
def assert_scores(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Within a fraction of the scores' scale, which is that of their spread too."""
    scale = theirs.abs().mean()
    assert ours.dtype == torch.float32 and ours.shape == theirs.shape
    assert scale > 0.1, "scores of a tiny scale prove nothing"
    error = ((ours - theirs).abs().max() / scale).item()
    assert error <= tolerance, f"largest error is {error:.1e} of the scores' scale"


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_scores(saved: Saved, name: str) -> None:
    model, folder = saved(name)
    network, _ = load_network(folder)
    groups = odd_groups()
    theirs = hf_scores(model, [s for g in groups for s in g.sequences])
    assert_scores(our_scores(network, groups), theirs)
    # Training mode without dropout is the same computation.
    assert_scores(network.train().score(pack_of(groups)), theirs)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_company_and_order_change_nothing(saved: Saved, name: str) -> None:
    network, _ = load_network(saved(name)[1])
    groups = odd_groups(seed=1)
    together = our_scores(network, groups).split([len(g.sequences) for g in groups])
    for group, scores in zip(groups, together, strict=True):
        torch.testing.assert_close(our_scores(network, [group]), scores, rtol=1e-5, atol=1e-5)
        swapped = Group(group.sequences[::-1])
        torch.testing.assert_close(our_scores(network, [swapped]), scores.flip(0), rtol=1e-5, atol=1e-5)
    backward = torch.cat(our_scores(network, groups[::-1]).split([len(g.sequences) for g in groups[::-1]])[::-1])
    torch.testing.assert_close(backward, torch.cat(together), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "llama-yarn", "mistral-window", "qwen2-windows", "qwen3"])
@torch.no_grad()
def test_long_sequences(saved: Saved, name: str) -> None:
    model, folder = saved(name)
    generator = np.random.default_rng(3)
    groups = [
        group_of(generator, 2400, [600, 1, 350]),
        group_of(generator, 0, [1]),
        group_of(generator, 1, [2999, 1]),
    ]
    network, _ = load_network(folder)
    theirs = hf_scores(model, [s for g in groups for s in g.sequences])
    # Angles of far positions carry the rounding of fp32 in both.
    assert_scores(our_scores(network, groups), theirs)


@torch.no_grad()
def test_last_layer_computes_all_rows_or_the_scored_ones(saved: Saved) -> None:
    """Two paths through the last layer: which one runs depends on how many rows are read."""
    for name in ("llama-biases", "qwen2-windows", "qwen3"):
        model, folder = saved(name)
        network, _ = load_network(folder)
        generator = np.random.default_rng(4)
        few, many = group_of(generator, 20, [5, 5]), group_of(generator, 2, [1] * 9)
        for group, trimmed in ((few, True), (many, False)):
            pack = pack_of([group])
            assert (2 * len(pack.scored) <= len(pack.tokens)) == trimmed
            seen = []
            hook = network.decoder.layers[-1].down.register_forward_pre_hook(lambda _, x, s=seen: s.append(len(x[0])))
            assert_scores(network.score(pack), hf_scores(model, group.sequences))
            hook.remove()
            assert seen == [len(pack.scored) if trimmed else len(pack.tokens)]


@torch.no_grad()
def test_several_heads(saved: Saved) -> None:
    model, folder = saved("llama", num_labels=3)
    network, _ = load_network(folder, label="ensemble")
    groups = odd_groups()
    ours = our_scores(network, groups)
    assert ours.shape[1] == 3
    assert_scores(ours, hf_scores(model, [s for g in groups for s in g.sequences]))


@torch.no_grad()
def test_bf16(saved: Saved) -> None:
    """The error against fp32 is about that of transformers in bf16."""
    model, folder = saved("llama")
    groups = odd_groups()
    sequences = [s for g in groups for s in g.sequences]
    truth = hf_scores(model, sequences)
    theirs = hf_scores(copy.deepcopy(model).to(torch.bfloat16), sequences).float()
    reference = (theirs - truth).square().mean().sqrt()
    for weights_dtype in (torch.float32, None):
        network, _ = load_network(folder, dtype=torch.bfloat16, weights_dtype=weights_dtype)
        assert {p.dtype for p in network.parameters()} == {weights_dtype or torch.bfloat16}
        ours = our_scores(network, groups)
        assert ours.dtype == torch.float32
        error = (ours - truth).square().mean().sqrt()
        assert 1e-4 * truth.std() < error <= 1.5 * reference


@torch.no_grad()
def test_packs_of_any_budget_score_alike(saved: Saved) -> None:
    model, folder = saved("qwen2")
    network, _ = load_network(folder)
    network.eval()
    table = table_of(odd_groups())
    truth = hf_scores(model, [s for g in range(len(table)) for s in table.sequences_of(g)])
    for budget, ranks in [(96, 1), (200, 3), (10_000, 2)]:
        out = torch.full((int(table.first_response[-1]), 1), torch.nan)
        for rank in range(ranks):
            packs, _ = rank_packs(table, np.arange(len(table)), ranks=ranks, rank=rank, budget=budget)
            for pack in packs:
                assert len(pack.tokens) <= budget
                if len(pack.responses):
                    out[torch.from_numpy(pack.responses)] = network.score(pack)
        assert_scores(out, truth)


def test_dropout_is_drawn_in_training_only(saved: Saved) -> None:
    network, _ = load_network(saved("llama")[1], dropout=0.5)
    pack = pack_of(odd_groups())
    network.train()
    first, second = network.score(pack), network.score(pack)
    assert (first != second).any()
    network.eval()
    assert torch.equal(network.score(pack), network.score(pack))
