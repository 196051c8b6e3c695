"""What a network reads under a temperature, a language model without heads, and weights stored as they are read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rmfast.data.pack import Pack, build_pack, empty_pack
from rmfast.models.hf import load_network
from rmfast.models.network import Network, Outputs, Reads
from tests.rollout.tiny_policies import language_model
from tests.tiny import VOCABULARY, group_of, save_hf_model, table_of


def answers() -> Pack:
    """Every response's tokens are predicted; samples of a prompt share more than the prompt."""
    g = np.random.default_rng(4)
    groups = [group_of(g, 6, [3, 5, 2]), group_of(g, 9, [1, 4])]
    shared = replace(groups[0], answer=[4, 4, 4])
    return build_pack(table_of([shared, groups[1]]), np.arange(2), predicts="all")


def reads(pack: Pack, **options: object) -> Reads:
    targets = pack.targets
    return replace(Reads(scores=targets.rows[:0], log_prob=(targets.rows, targets.ids), entropy=True), **options)


def policy(folder: Path, name: str, **options: torch.dtype) -> Network:
    language_model(name).save_pretrained(folder)
    return load_network(folder, heads=0, lm=True, **options)[0].eval()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("known", [None, 90])
def test_log_probabilities_and_entropies_under_a_temperature(
    tmp_path: Path, temperature: float, known: int | None
) -> None:
    network, pack = policy(tmp_path, "qwen3", dtype=torch.float64, weights_dtype=torch.float64), answers()
    ids = pack.targets.ids.clamp(max=VOCABULARY if known is None else known - 1)
    pack = replace(pack, targets=replace(pack.targets, ids=ids))
    found = network(pack, reads(pack, temperature=temperature, ids=known))
    hidden = network.decoder(pack.tokens, pack.positions, pack.layout, pack.targets.rows)
    normed = hidden * (hidden.square().mean(-1, keepdim=True) + network.config.norm_eps).rsqrt() * network.norm.weight
    logits = normed @ network.get_parameter("lm_head.weight").T
    truth = (logits[:, :known] / temperature).log_softmax(-1)
    torch.testing.assert_close(found.log_prob, truth.gather(1, ids[:, None])[:, 0])
    torch.testing.assert_close(found.entropy, -(truth.exp() * truth).sum(-1))
    assert network(pack, reads(pack, entropy=False)).entropy is None


def test_a_language_model_has_no_head(tmp_path: Path) -> None:
    network, pack = policy(tmp_path, "llama"), answers()
    assert network.head is None and all(p.numel() for p in network.parameters())
    assert not [name for name in network.state_dict() if "head" in name and name != "lm_head.weight"]
    for one in (pack, empty_pack()):
        found = network(one, reads(one))
        assert found.scores.shape == (0, 0) and found.log_prob.shape == one.targets.ids.shape
    assert network.score(pack).shape == (len(pack.scored), 0)
    network.freeze(1)
    assert not network.lm_head.weight.requires_grad and network.norm.weight.requires_grad


def results(outputs: Outputs) -> list[Tensor]:
    return [field for field in outputs if field is not None]


@pytest.mark.parametrize("name", ["llama-biases", "llama-tied-llama3", "qwen3-bias", "mistral-window"])
@pytest.mark.parametrize("heads", [0, 2], ids=["policy", "reward"])
def test_narrow_weights_keep_every_bit(tmp_path: Path, name: str, heads: int) -> None:
    """In bf16: of the decoder's weights and tables the products read no more than it has."""
    if heads:
        save_hf_model(name, tmp_path, num_labels=heads)
        wide = load_network(tmp_path, heads=heads, dtype=torch.bfloat16)[0].eval()
    else:
        wide = policy(tmp_path, name, dtype=torch.bfloat16)
    pack, before = answers(), sum(p.nbytes for p in wide.parameters())
    asked = Reads(scores=pack.scored, features=True) if heads else reads(pack, temperature=0.7)
    truth = [tensor.detach() for tensor in results(wide(pack, asked))]
    narrow = wide.narrow()
    assert all(torch.equal(a, b) for a, b in zip(results(narrow(pack, asked)), truth, strict=True))
    assert not any(p.requires_grad for p in narrow.parameters())
    kept = {n for n, p in narrow.named_parameters() if p.dtype == torch.float32}
    assert kept == {n for n, _ in narrow.named_parameters() if "norm" in n or n == "head.weight"}
    assert sum(p.nbytes for p in narrow.parameters()) < 0.52 * before
