"""What a folder holds: the files that are its weights, and a line that helps where they are something else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmfast.errors import UserError
from rmfast.models.hf import load_network, read_config
from tests.models.conftest import Saved

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    """A tiny Llama reward model whose files a test may change."""
    config, weights = (saved("llama")[1] / name for name in ("config.json", WEIGHTS))
    (tmp_path / "model").mkdir()
    for file in (config, weights):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model"


def state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / WEIGHTS)


def same_weights(folder: Path, truth: dict[str, Tensor]) -> None:
    head = load_network(folder)[0].head.weight
    assert torch.equal(head, truth["score.weight"])


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        load_network(path)
    message = str(error.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message, message


def shards(folder: Path, stem: str = "model", ending: str = "safetensors", index: bool = True) -> dict[str, Tensor]:
    """The folder's weights as two shards."""
    truth = state(folder)
    (folder / WEIGHTS).unlink()
    names = sorted(truth)
    files = {f"{stem}-{i + 1:05d}-of-00002.{ending}": names[i::2] for i in range(2)}
    for file, keys in files.items():
        part = {key: truth[key] for key in keys}
        save_file(part, folder / file) if ending == "safetensors" else torch.save(part, folder / file)
    if index:
        weight_map = {key: file for file, keys in files.items() for key in keys}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return truth


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(("stem", "ending"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_shards_are_read_with_and_without_their_index(folder: Path, stem: str, ending: str, index: bool) -> None:
    same_weights(folder, shards(folder, stem, ending, index))
    (folder / f"{stem}-00002-of-00002.{ending}").unlink()
    refused(folder, "1 of the 2 files" if index else "which is not all of one model's")


def test_other_formats_beside_the_weights_are_not_mixed_with_them(folder: Path) -> None:
    """Mistral's repositories hold consolidated.safetensors beside Hugging Face's files; trainers leave their state."""
    truth = shards(folder, index=False)
    save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2), "score.weight": torch.zeros(1, 32)},
              folder / "consolidated.safetensors")  # fmt: skip
    save_file({"score.weight": torch.zeros(1, 32)}, folder / "optimizer.safetensors")
    (folder / "onnx").mkdir()
    same_weights(folder, truth)


def test_one_file_and_shards_may_be_two_models(folder: Path) -> None:
    one = (folder / WEIGHTS).read_bytes()
    shards(folder)
    (folder / WEIGHTS).write_bytes(one)
    refused(folder, "both model.safetensors and model.safetensors.index.json")
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "both model.safetensors and model-00001-of-00002.safetensors")


def test_an_index_may_name_the_one_file(folder: Path) -> None:
    truth = state(folder)
    weight_map = dict.fromkeys(truth, WEIGHTS)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    same_weights(folder, truth)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("global_step100/mp_rank_00_model_states.pt", "DeepSpeed's shards: its zero_to_fp32.py"),
        ("pytorch_model_fsdp_0/__0_0.distcp", "accelerate merge-weights"),
        ("__0_0.distcp", "accelerate merge-weights"),
        ("consolidated.00.pth", "Meta's or Mistral's format"),
        ("consolidated.safetensors", "Meta's or Mistral's format"),
        ("tf_model.h5", "weights of another framework"),
        ("flax_model.msgpack", "weights of another framework"),
        ("model.onnx", "weights of another framework"),
        ("checkpoint-500/config.json", "checkpoint-500, a trainer's checkpoints"),
        ("optimizer.pt", "a trainer's state without the model's weights"),
        ("training_args.bin", "a trainer's state without the model's weights"),
        ("rank-00000.safetensors", "rmfast export"),
        ("model_weights.safetensors", "call it model.safetensors"),
        ("pytorch_model.pt", "call it model.safetensors"),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_a_folder_without_weights_says_what_it_holds(folder: Path, name: str, words: str, config: bool) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    if not config:
        (folder / "config.json").unlink()
    refused(folder, "no weights" if config else "holds no config.json", words)


def test_weights_without_a_config_are_not_asked_for_another_name(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "holds no config.json", f"it holds {WEIGHTS}, weights whose config.json is missing")


def test_files_that_are_not_there_yet(folder: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (folder / WEIGHTS).write_bytes(pointer)
    refused(folder, "git lfs pull")
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pointer)
    refused(folder, "git lfs pull")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x80\x02", b"PK\x03\x04"])
@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
def test_a_file_that_is_no_weights_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(content)
    refused(folder, name, "safetensors")


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s}, lambda s: s | {"step": 3}, lambda s: [s]])
def test_a_pickle_of_more_than_weights_is_named(folder: Path, wrap: Callable[[dict], object]) -> None:
    torch.save(wrap(state(folder)), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    refused(folder, "is no tensor")


def test_an_adapter_beside_full_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "some/base"}')
    refused(folder, "adapter_config.json, LORA of some/base", "beside full weights")
    with pytest.raises(UserError, match="beside full weights"):
        read_config(folder)


def test_a_model_that_was_not_merged_is_named(folder: Path) -> None:
    weights = {f"base_model.model.{name}": tensor for name, tensor in state(folder).items()}
    q_proj = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(weights | {f"{q_proj}.lora_A.default.weight": torch.zeros(2, 32)}, folder / WEIGHTS)
    refused(folder, "lora_A", "merge_and_unload")


def test_a_head_beside_the_embedding_that_it_is_tied_to_must_be_the_same(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    weights = state(folder)
    embedding = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": embedding.clone()}, folder / WEIGHTS)
    load_network(folder, lm=True)
    save_file(weights | {"lm_head.weight": embedding + 1}, folder / WEIGHTS)
    load_network(folder)  # no head is read
    with pytest.raises(UserError, match=r"model: lm_head.weight is not the embedding, to which config.json ties it"):
        load_network(folder, lm=True)
