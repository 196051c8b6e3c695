"""Gradients of packs equal those of transformers run on each sequence alone, with every option that changes them."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from rmfast.data.loader import rank_packs, totals_of
from rmfast.data.pack import Pack, Predicts, empty_pack
from rmfast.data.table import GroupTable
from rmfast.models.hf import load_network
from rmfast.models.network import Network, Reads
from rmfast.models.recompute import Recompute
from rmfast.models.weights import LM_HEAD
from rmfast.objectives.reward import RewardObjective
from tests.figures import maxima, sums
from tests.models.conftest import Saved
from tests.tiny import (
    CONFIGS,
    VOCABULARY,
    Group,
    Results,
    Seen,
    assert_close_by_norm,
    gradients,
    group_of,
    hf_gradients,
    odd_groups,
    table_of,
)

EXACT = 1e-5  # relative, in fp32


def ranked_groups() -> list[Group]:
    """Odd groups, and edges with margins, soft labels and weights of their own."""
    g = np.random.default_rng(5)
    edges = ((0, 1), (0, 2), (2, 1), (3, 1))
    rich = group_of(g, 12, [5, 9, 1, 4], edges)
    options: dict[str, Any] = {"margin": [0.3, -1.0, 0.0, 2.0], "target": [1.0, 0.9, 0.2, 0.5]}
    options["weight"] = [1.0, 0.25, 0.0, 3.0]
    return [*odd_groups(2), Group(rich.sequences, edges, **options)]


def lm_groups() -> list[Group]:
    """Answers that begin at the common prefix's end, inside it, after it, at the very start, and nowhere."""
    g = np.random.default_rng(6)
    pairs = [group_of(g, 9, [7, 4], [(0, 1)]) for _ in range(4)]
    answers = [None, [4, 4], [9, 9], [0, 0]]
    late = group_of(g, 8, [6, 6], [(0, 1)])
    empty = group_of(g, 5, [0, 3], [(0, 1)])  # the chosen response is the shared prefix itself
    ranked = group_of(g, 6, [3, 5, 2, 4], [(0, 1), (2, 1), (3, 1), (2, 3)])
    return [
        *(Group(p.sequences, p.edges, answer) for p, answer in zip(pairs, answers, strict=True)),
        Group(late.sequences, late.edges, [10, 8]),
        empty,
        Group(empty.sequences, empty.edges, [3, 3]),
        ranked,
        group_of(g, 4, [3, 3]),
    ]


def hf_loss(
    model: PreTrainedModel, groups: Sequence[Group], center: float = 0.0, lm: float = 0.0, table: Tensor | None = None
) -> Tensor:
    """The global batch's loss, written out: each sequence alone, each edge alone, plain cross-entropy."""
    ranking, weights = torch.zeros(model.config.num_labels), 0.0
    nll, tokens = torch.zeros(()), 0
    for group in groups:
        hidden = [model.model(torch.tensor([s])).last_hidden_state[0] for s in group.sequences]
        scores = [model.score(h[-1]) for h in hidden]
        for (b, w), margin, target, weight in zip(group.edges, *group.edge_values(), strict=True):
            d = scores[b] - scores[w] - margin
            loss = -target * F.logsigmoid(d) - (1 - target) * F.logsigmoid(-d)
            ranking = ranking + weight * (loss + center * (scores[b] + scores[w]) ** 2)
            weights += weight
        for r in group.chosen():
            answer, sequence = max(group.answers[r], 1), torch.tensor(group.sequences[r])
            if table is not None and answer < len(sequence):
                logits = hidden[r][answer - 1 : -1] @ table.T
                nll = nll + F.cross_entropy(logits, sequence[answer:], reduction="sum")
                tokens += len(sequence) - answer
    return (ranking / weights).mean() + lm * nll / max(tokens, 1)


def packs_of(table: GroupTable, budget: int = 10_000, lm: bool = False) -> list[Pack]:
    predicts: Predicts | None = "chosen" if lm else None
    return rank_packs(table, np.arange(len(table)), ranks=1, rank=0, budget=budget, predicts=predicts)[0]


def step(network: Network, groups: Sequence[Group], budget: int = 10_000, **options: float) -> float:
    """Forward and backward of all groups, in packs of a budget; the sum of the packs' losses."""
    table = table_of(groups)
    totals, objective = totals_of(table, np.arange(len(table))), RewardObjective(**options)
    network.train()
    network.zero_grad()
    total = 0.0
    for pack in packs_of(table, budget, lm=objective.lm > 0):
        loss, _ = objective(network(pack, objective.reads(pack)), pack, totals)
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_gradients_of_every_family(saved: Saved, name: str) -> None:
    model, folder = saved(name)
    network, _ = load_network(folder)
    groups = ranked_groups()
    loss = hf_loss(model, groups)
    loss.backward()
    assert step(network, groups) == pytest.approx(loss.item(), rel=1e-5)
    theirs = hf_gradients(model, network)
    assert len(theirs) == len(list(network.parameters()))
    assert_close_by_norm(gradients(network), theirs, EXACT)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_tables_of_rope_are_made_once_a_pack(saved: Saved, name: str, recompute: Recompute) -> None:
    """Not in each layer, nor again in its backward."""
    network, _ = load_network(saved(name)[1], recompute=recompute)
    with Seen() as seen:
        step(network, ranked_groups())
    assert seen.ops["aten.cos.default"] == seen.ops["aten.sin.default"] == len(packs_of(table_of(ranked_groups())))


def test_gradients_of_long_sequences(saved: Saved) -> None:
    model, folder = saved("llama")
    network, _ = load_network(folder)
    g = np.random.default_rng(7)
    groups = [group_of(g, 900, [100, 300], [(0, 1)]), group_of(g, 3, [2, 1], [(0, 1)])]
    hf_loss(model, groups).backward()
    step(network, groups)
    assert_close_by_norm(gradients(network), hf_gradients(model, network), EXACT)


def test_gradients_with_centering_and_several_heads(saved: Saved) -> None:
    model, folder = saved("qwen3", num_labels=3)
    network, _ = load_network(folder, label="ensemble")
    groups = ranked_groups()
    loss = hf_loss(model, groups, center=0.05)
    loss.backward()
    assert step(network, groups, center=0.05) == pytest.approx(loss.item(), rel=1e-5)
    assert_close_by_norm(gradients(network), hf_gradients(model, network), EXACT)


def add_lm_head(source: Path, folder: Path) -> Tensor:
    """A copy of a reward model's folder that has a language-model head too, as a fine-tuned base model's would."""
    head = 0.25 * torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(11))
    save_file(load_file(source / "model.safetensors") | {LM_HEAD: head}, folder / "model.safetensors")
    (folder / "config.json").write_text((source / "config.json").read_text())
    return head.requires_grad_()


@pytest.mark.parametrize("name", ["llama", "llama-tied-llama3", "qwen2"])
@pytest.mark.parametrize("budget", [10_000, 60])
@pytest.mark.parametrize("groups", [lm_groups(), odd_groups()], ids=["answers", "odd"])
def test_gradients_with_lm_loss(saved: Saved, tmp_path: Path, name: str, budget: int, groups: list[Group]) -> None:
    model, folder = saved(name)
    tied = model.config.tie_word_embeddings
    table = model.model.embed_tokens.weight if tied else add_lm_head(folder, tmp_path)
    network, _ = load_network(folder if tied else tmp_path, lm=True)
    budget = max(budget, int(table_of(groups).stored.max()))
    loss = hf_loss(model, groups, lm=0.7, table=table)
    loss.backward()
    assert step(network, groups, budget, lm=0.7) == pytest.approx(loss.item(), rel=1e-5)
    theirs = hf_gradients(model, network)
    if not tied:
        assert table.grad is not None
        theirs[LM_HEAD] = table.grad
    assert_close_by_norm(gradients(network), theirs, EXACT)


def test_a_network_gives_what_is_read_and_no_more(saved: Saved, tmp_path: Path) -> None:
    add_lm_head(saved("qwen3")[1], tmp_path)
    network, _ = load_network(tmp_path, lm=True)
    pack = packs_of(table_of(lm_groups()), lm=True)[0]
    scores = Reads(scores=pack.scored)
    everything = replace(scores, log_prob=(pack.targets.rows, pack.targets.ids), features=True)
    whole, rows, alone = (network(pack, reads) for reads in (everything, everything.without_targets(), scores))
    assert whole.log_prob.shape == pack.targets.ids.shape
    assert whole.features.shape == (len(pack.scored), network.config.width)
    assert rows.log_prob is None and torch.equal(rows.features, whole.features)
    assert alone.log_prob is None and alone.features is None
    torch.testing.assert_close(alone.scores, whole.scores)
    torch.testing.assert_close(whole.features @ network.head.weight.T, whole.scores)
    assert [id(w) for w in network.unread(scores)] == [id(network.lm_head.weight)] and not network.unread(everything)


@pytest.mark.parametrize("budget", [96, 150, 400])
def test_packs_of_a_step_add_up(saved: Saved, budget: int) -> None:
    model, folder = saved("qwen2-windows")
    network, _ = load_network(folder)
    groups = ranked_groups()
    assert len(packs_of(table_of(groups), budget)) > 1
    loss = hf_loss(model, groups, center=0.01)
    loss.backward()
    assert step(network, groups, budget, center=0.01) == pytest.approx(loss.item(), rel=1e-5)
    assert_close_by_norm(gradients(network), hf_gradients(model, network), EXACT)


def test_a_pack_without_work_adds_zeros_for_every_weight(saved: Saved, tmp_path: Path) -> None:
    add_lm_head(saved("llama")[1], tmp_path)
    network, _ = load_network(tmp_path, lm=True)
    totals = totals_of(table_of(lm_groups()), np.arange(3))
    pack = empty_pack()
    objective = RewardObjective(center=0.1, lm=1.0)
    loss, statistics = objective(network.train()(pack, objective.reads(pack)), pack, totals)
    loss.backward()
    assert loss.item() == 0 and not sums(statistics).any() and maxima(statistics).tolist() == [-torch.inf, -torch.inf]
    # Other ranks wait for a gradient of each.
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("top_layers", [0, 1, 3])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_frozen_weights(saved: Saved, top_layers: int, recompute: Recompute) -> None:
    _, folder = saved("llama")
    network, _ = load_network(folder, recompute=recompute)
    step(network, odd_groups())
    whole = gradients(network)
    network.freeze(top_layers)
    step(network, odd_groups())
    tops = tuple(f"decoder.layers.{i}." for i in range(3 - top_layers, 3))
    trained = {n for n in whole if n.startswith(tops) or n == "head.weight" or (n == "norm.weight" and top_layers)}
    assert {n for n, p in network.named_parameters() if p.requires_grad} == trained
    assert_close_by_norm(gradients(network), {n: whole[n] for n in trained}, 1e-6)


def test_freeze_refuses_layers_that_are_not_there(saved: Saved) -> None:
    network, _ = load_network(saved("llama")[1])
    for count in (-1, 4):
        with pytest.raises(ValueError, match=f"top_layers must be within 0 and the model's 3 layers, got {count}"):
            network.freeze(count)


def held_for_backward(network: Network, pack: Pack) -> int:
    """Bytes that a forward leaves alive while its result lives."""
    with Results() as results:
        scores = network.train().score(pack)
    assert scores.requires_grad
    return results.alive(besides=[*network.parameters(), *network.buffers()])


def test_a_frozen_trunk_keeps_nothing_for_a_backward(saved: Saved) -> None:
    network, _ = load_network(saved("llama")[1])
    g = np.random.default_rng(8)
    pack = packs_of(table_of([group_of(g, 150, [25, 25], [(0, 1)])]))[0]
    held = {}
    for top_layers in (3, 1, 0):
        network.freeze(top_layers)
        held[top_layers] = held_for_backward(network, pack)
    hidden = len(pack.tokens) * 32 * 4
    assert held[0] < hidden / 2, held  # not even one layer's input
    # The last of the layers works at two rows only; it keeps its input, keys and values.
    assert held[0] + hidden < held[1] < held[3] / 3


@pytest.mark.parametrize("name", ["llama-biases", "mistral-window", "qwen3"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputed_gradients_are_the_same(saved: Saved, name: str, dropout: float) -> None:
    results = {}
    for recompute in ("none", "selective", "full"):
        network, _ = load_network(saved(name)[1], recompute=recompute, dropout=dropout)
        torch.manual_seed(1)
        loss = step(network, ranked_groups(), 150)
        results[recompute] = loss, gradients(network)
    for recompute in ("selective", "full"):
        assert results[recompute][0] == results["none"][0]
        assert_close_by_norm(results[recompute][1], results["none"][1], 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recomputation_keeps_less(saved: Saved, dtype: torch.dtype) -> None:
    """Counted as what stays alive: what selective recomputation keeps does not pass through autograd's hooks."""
    g = np.random.default_rng(9)
    pack = packs_of(table_of([group_of(g, 100, [50, 50], [(0, 1)]), group_of(g, 0, [40, 30], [(0, 1)])]))[0]
    held = {}
    for recompute in ("none", "selective", "full"):
        network, _ = load_network(saved("llama")[1], recompute=recompute, dtype=dtype, weights_dtype=None)
        held[recompute] = held_for_backward(network, pack)
    layer_input = len(pack.tokens) * 32 * dtype.itemsize
    assert held["selective"] < 0.75 * held["none"]
    assert held["full"] < 0.5 * held["selective"]
    assert held["full"] < 3 * 2.1 * layer_input, held  # branch and residual of each of three layers, and crumbs


def test_bf16_compute_with_fp32_weights(saved: Saved) -> None:
    model, folder = saved("llama")
    groups = [group for group in ranked_groups() if group.edges]
    hf_loss(model, groups).backward()
    network, _ = load_network(folder, dtype=torch.bfloat16)
    truth = hf_gradients(model, network)
    step(network, groups)
    ours = gradients(network)
    assert {g.dtype for g in ours.values()} == {torch.float32}
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    rounded.zero_grad()
    hf_loss(rounded, groups).backward()
    theirs = hf_gradients(rounded, network)
    for name, grad in truth.items():
        error, reference = (ours[name] - grad).norm(), (theirs[name].float() - grad).norm()
        # Ours rounds no weights, theirs does; a floor for what is small in both.
        assert error <= 1.5 * reference + 2e-2 * grad.norm(), name
        assert error >= 1e-4 * grad.norm(), f"{name} is too exact for bf16"
