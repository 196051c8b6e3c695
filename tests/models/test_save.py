"""What is written loads in transformers, of version 4 too, and scores the same; nobody squashes the scores."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from rmfast.checkpoint.export import classifier_class
from rmfast.models import save
from rmfast.models.config import decoder_config
from rmfast.models.hf import build_network, load_network
from rmfast.models.network import Network
from rmfast.models.save import save_hf
from tests.models.conftest import Saved
from tests.tiny import CONFIGS, LLAMA3_ROPE, YARN_ROPE, hf_config, hf_scores, odd_groups, pack_of

WEIGHTS = "model.safetensors"
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
    "llama3": LLAMA3_ROPE,
    "yarn": YARN_ROPE,
}


@torch.no_grad()
def scores(network: Network) -> Tensor:
    return network.eval().score(pack_of(odd_groups()))


def exported(folder: Path, config: PreTrainedConfig, heads: int = 1) -> dict[str, Any]:
    """What config.json says of a model with random weights."""
    network = build_network(config, where="", heads=heads)
    state = {name: torch.zeros(p.shape) for name, p in network.named_parameters()}
    folder.mkdir(exist_ok=True)
    save_hf(folder, config, network.config, state, dtype=torch.float32, pad_token_id=0)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", sorted(CONFIGS))
@torch.no_grad()
def test_saved_model_scores_the_same_in_transformers(saved: Saved, tmp_path: Path, name: str) -> None:
    _, source = saved(name, num_labels=3) if name == "qwen3" else saved(name)
    network, config = load_network(source, label="ensemble")
    for parameter in network.parameters():  # as training would
        parameter.mul_(1.1)
    state = dict(network.state_dict())
    save_hf(tmp_path, config, network.config, state, dtype=torch.float32, pad_token_id=5)
    model, info = classifier_class(tmp_path).from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values()), info
    assert type(model).__name__ == json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    assert model.config.pad_token_id == 5 and model.config.num_labels == (3 if name == "qwen3" else 1)
    sequences = [s for g in odd_groups() for s in g.sequences]
    ours = scores(network)
    torch.testing.assert_close(hf_scores(model.eval(), sequences), ours, rtol=1e-5, atol=1e-5)
    # transformers' own forward, padded: it finds the scored token by the pad id.
    inner = [[t if t != 5 else 6 for t in s] for s in sequences[:8]]
    longest = max(map(len, inner))
    padded = torch.tensor([s + [5] * (longest - len(s)) for s in inner])
    logits = model(padded, attention_mask=(padded != 5).long()).logits
    torch.testing.assert_close(logits, hf_scores(model, inner), rtol=1e-5, atol=1e-5)
    # And back again.
    back, _ = load_network(tmp_path)
    for key, tensor in back.state_dict().items():
        assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("rope", [*ROPES, "divisors"])
def test_transformers_4_reads_the_same_rope_from_its_own_keys(tmp_path: Path, rope: str) -> None:
    """It knows no rope_parameters, and without the older keys takes theta 10,000 and no scaling."""
    parameters = ROPES.get(rope) or {
        "rope_type": "longrope",
        "rope_theta": 5e5,
        "short_factor": [1.0, 2.0, 3.0, 4.0],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
        "attention_factor": 1.0,
        "original_max_position_embeddings": 4096,
    }
    for name in ("llama", "mistral-window", "qwen2-windows", "qwen3"):
        divisors = {"head_dim": 8} if rope == "divisors" else {}
        settings = exported(tmp_path / name, hf_config(name, rope_parameters=dict(parameters), **divisors))
        assert settings["rope_theta"] == parameters["rope_theta"]
        scaling = settings["rope_scaling"]
        if rope == "default":
            assert scaling is None
        else:
            assert scaling == {key: value for key, value in parameters.items() if key != "rope_theta"}
        expected = decoder_config(hf_config(name, rope_parameters=dict(parameters), **divisors))
        older = {key: value for key, value in settings.items() if key != "rope_parameters"}
        for read in (settings, older):
            got = decoder_config(CONFIGS[name][0].from_dict(read))
            assert (got.ropes, got.windows) == (expected.ropes, expected.windows)


@pytest.mark.parametrize("heads", [1, 3])
def test_nobody_squashes_exported_scores(tmp_path: Path, heads: int) -> None:
    left_over = {
        "id2label": {0: "bad", 1: "good"},
        "problem_type": "single_label_classification",
        "auto_map": {"AutoModel": "modeling.Mine"},
        "sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid",
    }
    settings = exported(tmp_path, hf_config("llama", num_labels=2, **left_over), heads)
    assert settings["problem_type"] == "regression"
    assert settings["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    assert not {"auto_map", "sbert_ce_default_activation_function"} & settings.keys()
    assert settings["id2label"] == {str(i): f"LABEL_{i}" for i in range(heads)}
    assert settings["architectures"] == ["LlamaForSequenceClassification"]


@torch.no_grad()
def test_saved_in_shards_and_in_bf16(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = save.split_torch_state_dict_into_shards
    monkeypatch.setattr(
        save, "split_torch_state_dict_into_shards", lambda t, **options: split(t, max_shard_size=20_000, **options)
    )
    network, config = load_network(saved("qwen2")[1])
    save_hf(tmp_path, config, network.config, network.state_dict(), dtype=torch.bfloat16, pad_token_id=0)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1 and not (tmp_path / WEIGHTS).exists()
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype="auto")
    assert model.dtype == torch.bfloat16
    back, _ = load_network(tmp_path)
    expected = {n: t.to(torch.bfloat16).float() for n, t in network.state_dict().items()}
    assert all(torch.equal(t, expected[n]) for n, t in back.state_dict().items())
