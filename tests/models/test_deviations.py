"""What families differ in, beyond scores and their gradients: log-probabilities, adapters, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rmfast.errors import UserError
from rmfast.models.config import context_window, decoder_config
from rmfast.models.hf import load_network
from rmfast.models.lora import ADAPTER, PREFIX, adapt, merged, to_peft
from rmfast.models.low_rank import LoraOptions
from rmfast.models.network import Reads
from rmfast.models.save import save_hf
from tests.models.conftest import Saved
from tests.rollout.tiny_policies import language_model
from tests.tiny import Group, assert_close_by_norm, gradients, hf_config, hf_gradients, odd_groups, pack_of

POLICIES = ["smollm3", "granite", "olmo3", "gemma2", "gemma3", "phi3-longrope"]
SEQUENCES = [[5, 9, 30, 17, 2, 8, 8, 11], [40, 41, 7, 43, 44, 3, 46, 47, 50, 51, 52, 53]]


@pytest.mark.parametrize("name", POLICIES)
def test_log_probabilities_gradients_and_export_of_a_policy(tmp_path: Path, name: str) -> None:
    """With soft caps and divisors on logits; at a temperature of 0.7."""
    model = language_model(name, final_logit_softcapping=2.0) if name == "gemma3" else language_model(name)
    model.save_pretrained(tmp_path / "source")
    network, hf = load_network(tmp_path / "source", heads=0, lm=True)
    pack = pack_of([Group([sequence]) for sequence in SEQUENCES])
    ends = torch.tensor([len(SEQUENCES[0]) - 1, len(pack.tokens) - 1])
    rows = torch.tensor([i for i in range(len(pack.tokens)) if i not in ends])
    reads = Reads(scores=rows[:0], log_prob=(rows, pack.tokens[rows + 1]), temperature=0.7, entropy=True)
    out = network(pack, reads)
    log_p = torch.cat([(model(torch.tensor([s])).logits[0, :-1] / 0.7).log_softmax(-1) for s in SEQUENCES])
    theirs = log_p.gather(1, pack.tokens[rows + 1, None])[:, 0]
    torch.testing.assert_close(out.log_prob, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.entropy, -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=1e-5)
    (theirs * torch.arange(len(rows))).sum().backward()
    (out.log_prob * torch.arange(len(rows))).sum().backward()
    assert_close_by_norm(gradients(network), hf_gradients(model, network), 1e-5)
    (tmp_path / "out").mkdir()
    state = {name: weight.detach() for name, weight in network.named_parameters()}
    save_hf(tmp_path / "out", hf, network.config, state, dtype=torch.float32, pad_token_id=0)
    back, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and type(back) is type(model)
    ids = torch.tensor(SEQUENCES[:1])
    assert torch.equal(back(ids).logits, model(ids).logits)


def test_adapters_of_fused_matrices(saved: Saved) -> None:
    """Phi-3's q, k and v are one matrix, and an adapter's targets all of them or none."""
    network, _ = load_network(saved("phi3")[1])
    with pytest.raises(UserError, match="q_proj is part of one matrix \\(qkv_proj\\)"):
        adapt(network, LoraOptions(rank=2, targets=("q_proj", "o_proj")), seed=0)
    adapt(network, LoraOptions(rank=2), seed=0)
    torch.manual_seed(0)
    torch.nn.init.normal_(network.get_parameter(f"decoder.layers.1.qkv.adapters.{ADAPTER}.b"))
    state = dict(network.state_dict())
    names = {name.removeprefix(f"{PREFIX}model.layers.0.") for name in to_peft(network, state) if ".layers.0." in name}
    assert {name.split(".")[1] for name in names} == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    plain, _ = load_network(saved("phi3")[1])
    before = plain.score(pack_of(odd_groups()))
    plain.load_state_dict(merged(network, state))
    with torch.no_grad():
        ours, theirs = network.score(pack_of(odd_groups())), plain.score(pack_of(odd_groups()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, before, rtol=1e-2, atol=1e-2)


def test_longrope_is_computed_up_to_where_its_angles_switch() -> None:
    config = hf_config("phi3-longrope")
    assert context_window(config) == 3100 and context_window(config, switches=True) == 4096
    assert decoder_config(config).ropes[0].frequencies[1] == pytest.approx(1 / (1.1 * 1e4 ** (2 / 6)))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma3", {"use_bidirectional_attention": True}, "attends in both directions"),
        ("qwen3", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "'chunked_attention'"),
        ("qwen3", {"layer_types": ["full_attention"]}, "3 layers, and 1 kinds"),
        ("granite", {"logits_scaling": 0.0}, "logits_scaling in config.json is 0.0, not a number above 0"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "RoPE of 2"),
    ],
)
def test_variants_that_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    config = hf_config(name)
    for key, value in changes.items():
        setattr(config, key, value)
    with pytest.raises(UserError, match=message) as error:
        decoder_config(config)
    assert "\n" not in str(error.value)
