"""Folders in and out: what is refused and how it is said; what is written loads in transformers and scores the same."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GPT2Config

from rmfast.errors import UserError
from rmfast.models.config import decoder_config
from rmfast.models.hf import load_network
from rmfast.models.network import Network
from rmfast.models.save import save_hf
from tests.models.conftest import Saved
from tests.tiny import hf_config, odd_groups, pack_of

WEIGHTS = "model.safetensors"
Q_PROJ, K_PROJ = (f"model.layers.1.self_attn.{x}_proj.weight" for x in "qk")
State = dict[str, Tensor]


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    """A tiny Llama reward model that a test may spoil."""
    shutil.copytree(saved("llama")[1], tmp_path / "model")
    return tmp_path / "model"


@torch.no_grad()
def scores(network: Network) -> Tensor:
    return network.eval().score(pack_of(odd_groups()))


def refused(path: Path, *parts: str, **options: object) -> None:
    """Loading ends with one line that holds the path and these parts."""
    with pytest.raises(UserError) as error:
        load_network(path, **options)  # type: ignore[arg-type]
    message = str(error.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message, message


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_weights(folder: Path, change: Callable[[State], State]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


# What is refused


def test_no_folder_and_no_config(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "is not a folder or .gguf file")
    refused(tmp_path, "holds no config.json")


@pytest.mark.parametrize("kind", ["gpt2", "cohere", "not-in-transformers"])
def test_unknown_architecture(folder: Path, kind: str) -> None:
    if kind == "gpt2":
        GPT2Config().save_pretrained(folder)
    else:
        edit_config(folder, model_type=kind, architectures=["X"])
    refused(folder, repr(kind), "not supported", "llama (Llama 2/3", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "olmoe", "granitemoe", "gpt_oss", "deepseek_v3"])
def test_experts_and_images_are_refused_by_name(folder: Path, kind: str) -> None:
    """And what a mixture of experts would need is said."""
    config = CONFIG_MAPPING[kind]()
    config.save_pretrained(folder)
    refused(folder, repr(kind), "is a mixture of", "experts", "would need a router")
    CONFIG_MAPPING["gemma3"]().save_pretrained(folder)
    refused(folder, "'gemma3' takes more than text")


@pytest.mark.parametrize("text", ["{", "", "[]", "{}"])
def test_broken_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "config cannot be read")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "RoPE scaling 'dynamic' is not supported; these are: default, linear, llama3, yarn",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial rotary",
        ),
    ],
    ids=["activation", "rope", "partial"],
)
def test_variants_that_are_computed_in_another_way(folder: Path, changes: dict, part: str) -> None:
    edit_config(folder, **changes)
    refused(folder, part)


def test_missing_and_unexpected_weights(folder: Path) -> None:
    edit_weights(folder, lambda s: {n: t for n, t in s.items() if n != K_PROJ})
    refused(folder, f"weight {K_PROJ} is missing")
    edit_config(folder, num_hidden_layers=1)
    refused(folder, "model.layers.1.input_layernorm.weight (and 16 more) is not part of a llama model")
    (folder / WEIGHTS).unlink()
    refused(folder, "no weights (*.safetensors)")


def test_biases_that_the_config_does_not_announce(folder: Path) -> None:
    edit_weights(folder, lambda s: s | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)})
    refused(folder, "weight model.layers.0.self_attn.q_proj.bias is not part of a llama model")


@pytest.mark.parametrize(
    "shapes",
    [
        {"model.embed_tokens.weight": (95, 32)},
        {"model.norm.weight": (31,)},
        {"score.weight": (1, 31)},
        {"model.layers.0.mlp.down_proj.weight": (32, 47)},
        {Q_PROJ: (30, 32)},
        {K_PROJ: (16, 31)},  # cannot even be joined with the others
        {Q_PROJ: (31, 32), K_PROJ: (17, 32)},  # joined, their shape would be right
    ],
    ids=str,
)
def test_wrong_shapes(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    edit_weights(folder, lambda s: s | {name: torch.zeros(shape) for name, shape in shapes.items()})
    name, shape = next(iter(shapes.items()))
    refused(folder, name, f"has shape {shape} where config.json says")


def test_heads(folder: Path) -> None:
    refused(folder, "model has 1 reward heads, 2 are asked for", heads=2)
    edit_weights(folder, lambda s: {n: t for n, t in s.items() if n != "score.weight"})
    refused(folder, "no reward head (score.weight)")
    first, second, other = (load_network(folder, heads=2, new_heads=True, seed=s)[0] for s in (3, 3, 4))
    assert first.head.weight.shape == (2, 32)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    scratch, _ = load_network(folder, heads=2, seed=3, from_scratch=True)
    assert torch.equal(first.head.weight, scratch.head.weight)  # as documented for initialise


def test_lm_head_that_is_not_there(folder: Path) -> None:
    refused(folder, "no lm_head.weight", "objective.lm", lm=True)


@pytest.mark.parametrize("spoil", [lambda b: b[:-100], lambda b: b[:4], lambda b: b"", lambda b: b"\xff" * len(b)])
def test_truncated_safetensors(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    file = folder / WEIGHTS
    file.write_bytes(spoil(file.read_bytes()))
    refused(folder, WEIGHTS, "cannot be read as safetensors")


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (open, (str(self.mark), "w"))


def pickle_weights(folder: Path) -> State:
    """Replace the safetensors of a folder by a pickled file."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return state


def test_pickled_weights_are_read_without_running_anything(folder: Path, tmp_path: Path) -> None:
    before = scores(load_network(folder)[0])
    state = pickle_weights(folder)
    assert torch.equal(scores(load_network(folder)[0]), before)
    file, mark = folder / "pytorch_model.bin", tmp_path / "mark"
    torch.save(state | {"x": Bomb(mark)}, file)
    refused(folder, "pytorch_model.bin", "safetensors")
    file.write_bytes(pickle.dumps(Bomb(mark)))
    refused(folder, "pytorch_model.bin", "safetensors")
    file.write_bytes(b"PK\x03\x04 not really")
    refused(folder, "pytorch_model.bin", "safetensors")
    assert not mark.exists()


# What is read


def shard(folder: Path) -> None:
    """Two shards with an index, as large models come, and a stray file that the index does not name."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(state)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({key: state[key] for key in keys}, folder / file)
    save_file({"stray": torch.zeros(1)}, folder / "consolidated.safetensors")
    weight_map = {key: file for file, keys in halves.items() for key in keys}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_sharded_weights(folder: Path) -> None:
    before = scores(load_network(folder)[0])
    shard(folder)
    assert torch.equal(scores(load_network(folder)[0]), before)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "model-00002-of-00002.safetensors", "cannot be read")
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map"')
    refused(folder, f"{WEIGHTS}.index.json", "cannot be read")


def test_weights_do_not_follow_their_file(folder: Path) -> None:
    """A file is mapped while it is read; a newer one copied over it must not reach a model that runs."""
    network, _ = load_network(folder)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    file = folder / WEIGHTS
    with file.open("r+b") as opened:
        opened.write(b"\x01" * file.stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_bare_trunk_and_base_model(folder: Path, tmp_path: Path) -> None:
    """LlamaModel's names have no "model."; a base model brings an unused lm_head and no reward head."""
    network, _ = load_network(folder)
    head = load_file(folder / WEIGHTS)["score.weight"]
    edit_weights(folder, lambda s: {n.removeprefix("model."): t for n, t in s.items()})
    assert torch.equal(scores(load_network(folder)[0]), scores(network))
    edit_weights(folder, lambda s: {n: t for n, t in s.items() if n != "score.weight"})
    bare, _ = load_network(folder, new_heads=True)
    base = AutoModelForCausalLM.from_config(hf_config("llama"))
    base.model.load_state_dict(load_file(folder / WEIGHTS))
    base.save_pretrained(tmp_path / "base")
    causal, _ = load_network(tmp_path / "base", new_heads=True)
    for made in (bare, causal):
        with torch.no_grad():
            made.head.weight.copy_(head)
        assert torch.equal(scores(made), scores(network))
    with_lm, _ = load_network(tmp_path / "base", new_heads=True, lm=True)
    assert with_lm.lm_head is not None and torch.equal(with_lm.lm_head.weight, base.lm_head.weight)


def test_random_weights(folder: Path) -> None:
    network, _ = load_network(folder, from_scratch=True, seed=1)
    again, _ = load_network(folder, from_scratch=True, seed=1)
    other, _ = load_network(folder, from_scratch=True, seed=2)
    for (name, p), q, r in zip(network.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        if p.dim() == 1:
            assert (p == 1).all(), name
        else:
            assert not torch.equal(p, r), name
            assert p.std().item() == pytest.approx(0.02, rel=0.35), name
    values = torch.cat([p.flatten() for p in network.parameters() if p.dim() > 1])
    assert values.std().item() == pytest.approx(0.02, rel=0.02) and abs(values.mean().item()) < 1e-3


# What is written: see also test_save.py


def test_language_model_head_is_not_written(saved: Saved, folder: Path, tmp_path: Path) -> None:
    edit_weights(folder, lambda s: s | {"lm_head.weight": torch.zeros(96, 32)})
    network, config = load_network(folder, lm=True)
    assert "lm_head.weight" in network.state_dict()
    save_hf(tmp_path, config, network.config, network.state_dict(), dtype=torch.float32, pad_token_id=0)
    assert load_file(tmp_path / WEIGHTS).keys() == load_file(saved("llama")[1] / WEIGHTS).keys()


def test_shape_of_the_decoder() -> None:
    config = decoder_config(hf_config("qwen2-windows"))
    assert config.windows == (None, 5, 5) and config.qkv_bias and not config.out_bias and not config.qk_norm
    assert decoder_config(hf_config("mistral-window")).windows == (7, 7, 7)
    assert decoder_config(hf_config("qwen2")).windows == (None,) * 3
    config = decoder_config(hf_config("qwen3"))
    assert (config.head_dim, config.kv_heads, config.qk_norm, config.tied) == (16, 1, "head", False)
    assert config.layer_parameters == 32 * 16 * (2 * 4 + 2 * 1) + 3 * 32 * 48
    assert decoder_config(hf_config("llama-yarn")).ropes[0].scale > 1


def test_quantized_weights_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "quantized weights are not supported")
