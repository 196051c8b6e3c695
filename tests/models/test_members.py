"""Members over one trunk give the scores and gradients of separate networks, for every family and division of rows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rmfast.data.pack import Pack
from rmfast.models.hf import load_network
from rmfast.models.members import MemberPacks, Members, SharedNetwork, trunk_of
from rmfast.models.network import Network
from tests.tiny import CONFIGS, Group, group_of, pack_of, save_hf_model

TOP = 2


def groups_of(seed: int, prompts: int, length: int) -> list[Group]:
    draw = np.random.default_rng(seed)
    return [group_of(draw, length + i, (3 + i, 5), [(0, 1)]) for i in range(prompts)]


def networks(name: str, folder: Path, count: int = 3) -> list[Network]:
    """Models with one trunk: every other one's lower layers are the first one's."""
    found: list[Network] = []
    for seed in range(count):
        save_hf_model(name, folder / str(seed), seed)
        network, _ = load_network(folder / str(seed))
        network.freeze(TOP)
        if found:
            first = dict(found[0].named_parameters())
            for key, parameter in network.named_parameters():
                if key.startswith(("decoder.embed", "decoder.layers.0.")):
                    parameter.data.copy_(first[key])
        found.append(network)
    return found


def members_of(found: list[Network]) -> Members:
    members = Members(found[0].config, len(found), TOP)
    for number, network in enumerate(found):
        members.begin(number, network)
    return members


@pytest.mark.parametrize("name", CONFIGS)
def test_members_are_separate_networks(name: str, tmp_path: Path) -> None:
    found = networks(name, tmp_path)
    members, trunk = members_of(found), trunk_of(found[0], TOP)
    divisions: list[list[Pack | None]] = [
        [pack_of(groups_of(seed, 2, 20)) for seed in range(3)],  # as many rows each: batched products
        [pack_of(groups_of(0, 1, 9)), None, pack_of(groups_of(2, 3, 12))],
    ]
    normed: list[torch.Tensor] = []
    lowest = next(iter(members.decoder.layers)).attention_norm
    if lowest is not None:  # it is in a layer that normalises what it adds
        lowest.register_forward_hook(lambda *found: normed.append(found[2]))
    for packs in divisions:
        some = [pack for pack in packs if pack is not None]
        with torch.no_grad():
            before = torch.cat([trunk(p.tokens, p.positions, p.layout, p.scored) for p in some])
        scores = members(MemberPacks.of(packs), before)
        members.zero_grad()
        torch.cat(scores).square().sum().backward()
        for number, (network, pack) in enumerate(zip(found, packs, strict=True)):
            if pack is None:
                assert scores[number].shape == (0, 1)
                assert not any(p.grad[number].any() for p in members.parameters() if p.grad is not None)
                continue
            alone = network.score(pack)
            assert torch.allclose(scores[number], alone, atol=1e-5)
            network.zero_grad()
            alone.square().sum().backward()
            trained = {key: p for key, p in network.named_parameters() if p.requires_grad}
            assert trained.keys() == dict(members.named_parameters()).keys()
            for key, parameter in members.named_parameters():
                theirs = trained[key].grad
                assert theirs is not None and parameter.grad is not None
                assert torch.allclose(parameter.grad[number], theirs, atol=1e-5 * float(theirs.abs().max() + 1)), key
    assert not any(each.requires_grad for each in normed)  # no gradient goes below what is trained


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_layers_that_are_computed_again_give_the_same_gradients(recompute: str, tmp_path: Path) -> None:
    found = networks("qwen3-bias", tmp_path, 2)
    pack = pack_of(groups_of(3, 2, 12))
    before = trunk_of(found[0], TOP)(pack.tokens, pack.positions, pack.layout, pack.scored).repeat(2, 1)
    grads = []
    for mode in ("none", recompute):
        members = Members(found[0].config, 2, TOP, recompute=mode)
        for number, network in enumerate(found):
            members.begin(number, network)
        torch.cat(members(MemberPacks.of([pack, pack]), before)).square().sum().backward()
        grads.append([p.grad for p in members.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert ours is not None and theirs is not None and torch.equal(ours, theirs)


def test_a_shared_network_scores_as_each_model_and_runs_the_trunk_once(tmp_path: Path) -> None:
    found = networks("qwen3-bias", tmp_path)
    trunk = trunk_of(found[0], TOP)
    calls: list[int] = []
    trunk.register_forward_hook(lambda *_: calls.append(1))
    pack = pack_of(groups_of(5, 3, 14))
    with torch.no_grad():
        scores = SharedNetwork(trunk, members_of(found)).score(pack)
        alone = torch.cat([network.score(pack) for network in found], dim=1)
    assert torch.allclose(scores, alone, atol=1e-5) and scores.shape == (len(pack.scored), 3) and len(calls) == 1


def test_members_need_a_trunk_below_them(tmp_path: Path) -> None:
    config = networks("llama", tmp_path, 1)[0].config
    for top_layers in (0, config.layers):
        with pytest.raises(ValueError, match="within 1 and 2"):
            Members(config, 2, top_layers)
