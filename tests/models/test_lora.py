"""Adapters beside a trunk: what is trained, several of them over one trunk, recomputation, dropout, the op."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmfast.models.hf import load_network
from rmfast.models.lora import adapt, merged
from rmfast.models.low_rank import LoraOptions, LowRank, adapted_linear
from rmfast.models.network import Network, Outputs, Reads
from tests.models.adapters import SETUPS, adapted, add_adapter, state_of
from tests.tiny import gradients, odd_groups, pack_of, save_hf_model

ALL, SOME = SETUPS["all targets"], SETUPS["some targets"]
PACK = pack_of(odd_groups()[2:6], lm=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_hf_model("llama-tied-llama3", folder)
    return folder


def everything(network: Network) -> Outputs:
    targets = PACK.targets
    out: Outputs = network(PACK, Reads(scores=PACK.scored, log_prob=(targets.rows, targets.ids)))
    return out


def loss_of(outputs: Outputs) -> Tensor:
    assert outputs.log_prob is not None
    return outputs.scores.square().sum() + outputs.log_prob.sum()


def test_a_new_adapter_changes_nothing_and_trains_itself_and_the_head_alone(folder: Path) -> None:
    plain, _ = load_network(folder, dtype=torch.bfloat16)
    network, _ = load_network(folder, dtype=torch.bfloat16)
    expected = plain.score(PACK)
    adapt(network, ALL, seed=0)
    assert torch.equal(network.score(PACK), expected)
    parameters = dict(network.named_parameters())
    trained = {name for name, p in parameters.items() if p.requires_grad}
    assert trained == {name for name in parameters if ".adapters." in name} | {"head.weight"}
    wide = {name for name, p in parameters.items() if p.dtype == torch.float32}
    assert wide == trained | {name for name in parameters if "norm" in name}
    a = parameters["decoder.layers.0.qkv.adapters.default.a"]
    assert (
        a.shape == (12, 32)
        and 0.15 < a.abs().max() <= 32**-0.5
        and float(a.detach().std()) == pytest.approx(1 / 96**0.5, rel=0.1)
    )
    # Its own stream for each layer of Hugging Face's: the same whatever else is adapted.
    other, _ = load_network(folder)
    adapt(other, LoraOptions(rank=4, targets=("v_proj",)), seed=0)
    assert torch.equal(other.get_parameter("decoder.layers.0.qkv.adapters.default.a"), a[8:])


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_adapters_over_one_trunk_are_separate_models(folder: Path, recompute: str) -> None:
    shared, _ = load_network(folder, lm=True, recompute=recompute)
    plain, _ = load_network(folder, lm=True)
    for seed, (name, options) in enumerate({"policy": ALL, "critic": SOME}.items()):
        add_adapter(shared, options, name=name, seed=seed)
    assert shared.adapter == "critic"
    for seed, (name, options) in enumerate({"policy": ALL, "critic": SOME}.items()):
        alone = adapted(folder, options, name=name, seed=seed, lm=True)
        shared.adapter = name
        ours = everything(shared)
        shared.adapter = None  # what a backward computes again is computed with the same adapter
        theirs = everything(alone)
        assert torch.equal(ours.scores, theirs.scores) and torch.equal(ours.log_prob, theirs.log_prob)
        loss_of(ours).backward()
        loss_of(theirs).backward()
        found, expected = gradients(shared), gradients(alone)
        assert found.keys() == expected.keys() and any(f".{name}." in key for key in found)
        assert all(torch.equal(grad, found[key]) for key, grad in expected.items())
        shared.zero_grad()
    with torch.no_grad():
        assert torch.equal(everything(shared).log_prob, everything(plain).log_prob)
    with pytest.raises(ValueError, match="has an adapter 'critic' already"):
        adapt(shared, ALL, seed=0, name="critic")


def test_networks_share_a_decoder_each_with_its_adapter_and_heads(folder: Path) -> None:
    critic = adapted(folder, SOME, name="critic")
    policy = Network(critic.decoder, heads=0, lm=True)
    policy.norm = critic.norm
    add_adapter(policy, ALL, name="policy", seed=5)
    alone = adapted(folder, ALL, name="policy", seed=5, lm=True)
    assert torch.equal(everything(policy).log_prob, everything(alone).log_prob)
    assert torch.equal(critic.score(PACK), adapted(folder, SOME, name="critic").score(PACK))


@pytest.mark.parametrize("name", ["qwen3", "llama-biases", "mistral-window"])
def test_merged_weights_give_what_the_adapter_gives(tmp_path: Path, name: str) -> None:
    """Also at all rows, which the last layer computes where an LM loss reads them."""
    save_hf_model(name, tmp_path)
    network = adapted(tmp_path, ALL)
    plain, _ = load_network(tmp_path)
    plain.load_state_dict(merged(network, state_of(network)))
    many = torch.arange(len(PACK.tokens))
    for rows in (PACK.scored, many):
        torch.testing.assert_close(
            network(PACK, Reads(scores=rows)).scores, plain(PACK, Reads(scores=rows)).scores, rtol=1e-5, atol=1e-5
        )
    assert not torch.allclose(network.score(PACK), load_network(tmp_path)[0].score(PACK), atol=1e-2)


def test_dropout_acts_on_what_a_reads_in_training_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    layer = LowRank(6, [(0, 3), (5, 8)], LoraOptions(rank=2, alpha=3.0, dropout=0.5))
    weight, x = torch.randn(8, 6, generator=draw), torch.randn(20, 6, generator=draw)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=draw)

    def expected(read: Tensor) -> Tensor:
        out = x @ weight.T
        out[:, :3] += 1.5 * read @ layer.a[:2].T @ layer.b[:3].T
        out[:, 5:] += 1.5 * read @ layer.a[2:].T @ layer.b[3:].T
        return out

    torch.testing.assert_close(layer.eval()(x, weight, None), expected(x))
    torch.manual_seed(3)
    found = layer.train()(x, weight, None)
    torch.manual_seed(3)
    torch.testing.assert_close(found, expected(F.dropout(x, 0.5)))
    # A part of the outputs alone: with an adapted part in it, and without.
    torch.testing.assert_close(layer.eval()(x, weight[3:], None, 3), expected(x)[:, 3:])
    torch.testing.assert_close(layer(x, weight[3:5], None, 3), x @ weight[3:5].T)


def test_the_op_is_one_that_torch_can_trust() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"x": (7, 6), "weight": (8, 6), "bias": (8,), "low": (7, 4), "up": (6, 2)}
    made = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    for name in ("x", "low", "up"):
        made[name].requires_grad_(True)
    arguments = (*made.values(), (0, 3, 5, 8), 0.7)
    torch.library.opcheck(adapted_linear.custom, arguments)
    assert torch.autograd.gradcheck(adapted_linear, arguments)
