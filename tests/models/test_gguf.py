"""A GGUF file is the model that it was made from: each tensor and key of it is used or refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import rmfast
from rmfast.data.gguf_tokenizer import READS_GGUF
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.models.config import decoder_config
from rmfast.models.gguf import READ, gguf_file, load_gguf_language_model
from rmfast.models.hf import load_network, open_weights, read_config
from rmfast.models.save import save_hf
from rmfast.tasks.build.model import stored_heads
from tests.models.conftest import Saved
from tests.models.gguf_files import round_weights, write_gguf
from tests.runs import DECODER
from tests.tiny import CONFIGS, hf_config, hf_model, hf_scores, odd_groups, pack_of

WINDOWS = {"mistral-window", "qwen2-windows", "qwen3-windows"}  # llama.cpp's converter writes no windows for these
GIVEN = sorted(name for name in set(CONFIGS) - WINDOWS if name.split("-")[0] in (*READ, "mistral"))
reads_tokenizers = pytest.mark.skipif(not READS_GGUF, reason="transformers reads GGUF tokenizers from 5.18")
SEQUENCES = [s for group in odd_groups() for s in group.sequences]
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@torch.no_grad()
def scores(path: Path) -> torch.Tensor:
    return load_network(path)[0].eval().score(pack_of(odd_groups()))


def same_scores(model: torch.nn.Module, path: Path) -> None:
    with torch.no_grad():
        torch.testing.assert_close(scores(path), hf_scores(model, SEQUENCES), rtol=1e-5, atol=1e-5)


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        load_network(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    for part in parts:
        assert part in message, message


# What is read


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("name", GIVEN)
def test_a_file_scores_as_the_model_it_was_made_from(tmp_path: Path, name: str, kind: str) -> None:
    model = hf_model(name)
    round_weights(model, kind)
    same_scores(model, write_gguf(model, tmp_path / "m.gguf", kind=kind))


@pytest.mark.parametrize(
    "rope",
    [
        LLAMA31,
        LLAMA31 | {"factor": 32.0},  # Llama 3.2
        LLAMA31 | {"rope_theta": 10_000.0, "original_max_position_embeddings": 100},
        LLAMA31 | {"low_freq_factor": 1.5, "high_freq_factor": 3.0, "original_max_position_embeddings": 300},
        LLAMA31 | {"original_max_position_embeddings": 10**7},  # no frequency is divided by the whole factor
        YARN | {"beta_fast": 16.0, "attention_factor": 1.3},
    ],
    ids=["3.1", "3.2", "short", "other-limits", "long", "yarn"],
)
def test_rope_scaling_is_the_files(tmp_path: Path, rope: dict[str, Any]) -> None:
    model = hf_model("llama", rope_parameters=rope, head_dim=32)
    path = write_gguf(model, tmp_path / "m.gguf")
    ours, theirs = decoder_config(read_config(path)), decoder_config(model.config)
    np.testing.assert_allclose(ours.ropes[0].frequencies, theirs.ropes[0].frequencies, rtol=1e-5)
    assert ours.ropes[0].scale == pytest.approx(theirs.ropes[0].scale, rel=1e-6)
    same_scores(model, path)


def test_llama_3_scaling_is_recognised_so_that_other_programs_know_it(tmp_path: Path) -> None:
    model = hf_model("llama", rope_parameters=LLAMA31, head_dim=32)
    assert read_config(write_gguf(model, tmp_path / "m.gguf")).rope_parameters == LLAMA31


def test_divisors_of_no_known_scaling_are_kept_and_exported(tmp_path: Path) -> None:
    model = hf_model("llama")
    path = write_gguf(model, tmp_path / "m.gguf", tensors={"rope_freqs.weight": torch.tensor([1.0, 1.5, 3.0, 2.0])})
    network, config = load_network(path)
    plain = torch.tensor(decoder_config(model.config).ropes[0].frequencies)
    torch.testing.assert_close(
        torch.tensor(network.config.ropes[0].frequencies), plain / torch.tensor([1.0, 1.5, 3.0, 2.0])
    )
    (tmp_path / "out").mkdir()
    state = dict(network.state_dict())
    save_hf(tmp_path / "out", config, network.config, state, dtype=torch.float32, pad_token_id=0)
    with torch.no_grad():
        exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        torch.testing.assert_close(scores(path), hf_scores(exported, SEQUENCES), rtol=1e-5, atol=1e-5)


def test_a_scaling_factor_of_one_and_divisors_of_one_change_nothing(tmp_path: Path) -> None:
    model = hf_model("llama")
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}
    same_scores(model, write_gguf(model, tmp_path / "a.gguf", keys=keys))
    same_scores(model, write_gguf(model, tmp_path / "b.gguf", tensors={"rope_freqs.weight": torch.ones(4)}))


def test_defaults_of_llama_cpp(tmp_path: Path) -> None:
    """theta 10,000; as many key-value heads as heads; the old name of the linear factor; YaRN from the context."""
    model = hf_model("mistral-full")
    left_out = {"rope.freq_base": None, "attention.head_count_kv": None, "rope.dimension_count": None}
    same_scores(model, write_gguf(model, tmp_path / "a.gguf", keys=left_out))
    model = hf_model("llama-linear")
    keys = {"rope.scaling.type": None, "rope.scaling.factor": None, "rope.scale_linear": 2.0}
    same_scores(model, write_gguf(model, tmp_path / "b.gguf", keys=keys))
    model = hf_model("llama", rope_parameters=YARN | {"original_max_position_embeddings": 4096})
    same_scores(model, write_gguf(model, tmp_path / "c.gguf", keys={"rope.scaling.original_context_length": None}))


def test_yarn_attn_factor_multiplies_the_usual_one(tmp_path: Path) -> None:
    path = write_gguf(hf_model("llama-yarn"), tmp_path / "m.gguf", keys={"rope.scaling.attn_factor": 0.5})
    usual = decoder_config(hf_config("llama-yarn")).ropes[0].scale
    assert decoder_config(read_config(path)).ropes[0].scale == pytest.approx(0.5 * usual)


def test_a_sliding_window_of_the_file_is_every_layers(tmp_path: Path) -> None:
    model = hf_model("mistral-window")
    same_scores(model, write_gguf(model, tmp_path / "m.gguf", keys={"attention.sliding_window": 7}))


def test_values_are_those_that_were_written(tmp_path: Path) -> None:
    """fp32 in the file: 1e-5 must not become 9.99999974e-06 in what is exported."""
    model = hf_model("llama", rms_norm_eps=1e-5)
    assert read_config(write_gguf(model, tmp_path / "m.gguf")).rms_norm_eps == 1e-5


@pytest.mark.parametrize("name", ["m.gguf", "Model.v1.0.GGUF", "my model (1).gguf", "sha256-0a1b2c"])
def test_any_name_of_a_file_will_do(tmp_path: Path, name: str) -> None:
    model = hf_model("llama")
    same_scores(model, write_gguf(model, tmp_path / name))


def test_a_split_file_is_read_from_all_its_parts(tmp_path: Path) -> None:
    model = hf_model("llama")
    first = write_gguf(model, tmp_path / "m.gguf", parts=3)
    for path in (first, tmp_path / "m-00003-of-00003.gguf", tmp_path):
        same_scores(model, path)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    for path in (first, tmp_path / "m-00003-of-00003.gguf", tmp_path):
        with pytest.raises(UserError, match="m-00002-of-00003.gguf: no such file; a split model is read from all its"):
            load_network(path)


@reads_tokenizers
def test_a_file_with_a_head_and_a_tokenizer_is_a_whole_reward_model(tmp_path: Path) -> None:
    """By any name, split or not: the same scores as the folder that it was made from."""
    folder, files = tmp_path / "folder", tmp_path / "files"
    shutil.copytree(DECODER, folder)
    model = hf_model("llama-tied-llama3", vocab_size=4096)
    model.save_pretrained(folder)
    files.mkdir()
    examples = [{"prompt": [{"role": "user", "content": "Two in 2024?"}], "responses": ["It's 12.", " no\n"]}]
    expected = rmfast.load(folder).score(examples)
    for path in (files / "Some Name.v1.GGUF", files / "part.gguf"):
        path = write_gguf(model, path, tokenizer=DECODER, parts=2 if path.stem == "part" else 1)
        assert rmfast.load(path).score(examples)[0] == pytest.approx(expected[0], rel=1e-5)
    assert stored_heads(str(path)) == 1
    assert rmfast.load(files / "part-00002-of-00002.gguf").score(examples)[0] == pytest.approx(expected[0], rel=1e-5)


SPLIT_JSON = {
    "gpt-2": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "smollm": {  # of SmolLM2's tokenizer.json, as the next ones of Llama 3's and Qwen2's
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
} | {
    name: {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    for name, regex in {
        "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    }.items()
}
TEXT = "In 2024, I'LL pay $1,234.50 --\n\n  (it's THE cat's)\r\n 12345.\t"


def with_splits(folder: Path, pre: str) -> Path:
    """The tokenizer of the tests with another way to split texts."""
    shutil.copytree(DECODER, folder)
    backend = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    backend["pre_tokenizer"] = SPLIT_JSON[pre]
    (folder / "tokenizer.json").write_text(json.dumps(backend), encoding="utf-8")
    return folder


@reads_tokenizers
@pytest.mark.parametrize("pre", SPLIT_JSON)
def test_texts_are_split_as_the_file_says(tmp_path: Path, pre: str) -> None:
    folder = with_splits(tmp_path / "folder", pre)
    path = write_gguf(hf_model("llama-tied-llama3", vocab_size=4096), tmp_path / "m.gguf", tokenizer=folder, pre=pre)
    assert load_tokenizer(path)(TEXT)["input_ids"] == load_tokenizer(folder)(TEXT)["input_ids"]


@reads_tokenizers
@pytest.mark.parametrize("pre", ["deepseek-llm", "default", None])
def test_a_way_to_split_texts_that_is_not_known_is_refused_by_name(tmp_path: Path, pre: str | None) -> None:
    model = hf_model("llama-tied-llama3", vocab_size=4096)
    (tmp_path / "files").mkdir()
    path = write_gguf(model, tmp_path / "files" / "m.gguf", tokenizer=DECODER, pre=pre)
    with pytest.raises(UserError, match=f"m.gguf: its tokenizer splits .*tokenizer.ggml.pre = {pre!r}.*tokenizer.json"):
        load_tokenizer(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DECODER / name, tmp_path / "files")
    assert load_tokenizer(tmp_path / "files")(TEXT) == load_tokenizer(DECODER)(TEXT)
    same_scores(model, tmp_path / "files")


def test_renamed_parts_are_refused(tmp_path: Path) -> None:
    first = write_gguf(hf_model("llama"), tmp_path / "m.gguf", parts=2)
    refused(first.rename(tmp_path / "first.gguf"), "is one of 2 parts", "NAME-00001-of-00002.gguf")


def test_a_file_without_a_head_gets_a_new_one_or_is_no_reward_model(tmp_path: Path) -> None:
    path = write_gguf(hf_model("llama"), tmp_path / "m.gguf", head=False)
    refused(path, "no reward head (cls.output.weight)")
    assert load_network(path, new_heads=True, heads=2)[0].head.weight.shape == (2, 32)


def test_parts_of_a_weight_are_what_the_whole_is(tmp_path: Path) -> None:
    """As the ranks of a tensor-parallel run read them."""
    path = write_gguf(hf_model("llama-biases"), tmp_path / "m.gguf", kind="Q8_0")
    with open_weights(path) as reader:
        for stored in reader.values():
            whole = stored()
            assert stored.shape == tuple(whole.shape)
            assert torch.equal(stored.view()[1:3], whole[1:3])


@pytest.mark.parametrize("name", ["llama-tied-llama3", "llama-biases", "qwen3"])
def test_language_model_of_a_file(tmp_path: Path, name: str) -> None:
    """As a judge runs it."""
    torch.manual_seed(0)
    config = hf_config(name, initializer_range=0.2)
    model = AutoModelForCausalLM.from_config(config).eval()
    path = write_gguf(model, tmp_path / "m.gguf")
    ids = torch.randint(3, 90, (1, 40))
    with torch.no_grad():
        ours = load_gguf_language_model(path, torch.float32).eval()(ids).logits
        torch.testing.assert_close(ours, model(ids).logits, rtol=1e-4, atol=1e-5)
    for tensors in ({"blk.0.ffn_up.weight": None}, {"cls.output.weight": torch.zeros(1, 32)}):
        with pytest.raises(UserError, match=f"tensor {next(iter(tensors))} is missing, or is not"):
            load_gguf_language_model(write_gguf(model, tmp_path / "n.gguf", tensors=tensors), torch.float32)


# What is refused


def with_tensor(name: str, **more: torch.Tensor) -> Callable[[Path], Path]:
    return lambda path: write_gguf(hf_model("llama"), path, tensors={name: torch.ones(32)} | more)


def with_keys(model: str = "llama", **keys: Any) -> Callable[[Path], Path]:
    return lambda path: write_gguf(
        hf_model(model), path, keys={k.replace("__", "."): value for k, value in keys.items()}
    )


ODD_SHAPE = {"blk.0.ffn_up.weight": torch.ones(3, 32)}
ODD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "tensor": (with_tensor("blk.0.attn_sinks.weight"), "does not know what tensor blk.0.attn_sinks.weight is for"),
    "top tensor": (with_tensor("position_embd.weight"), "does not know what tensor position_embd.weight is for"),
    "classifier": (with_tensor("cls.weight"), "does not know what tensor cls.weight is for"),
    "bias of a reward head": (
        with_tensor("cls.output.bias", **{"cls.output.weight": torch.ones(1, 32)}),
        "cls.output.bias adds 1, 1, 1 to every score",
    ),
    "bias": (with_tensor("blk.1.attn_q.bias"), "weight blk.1.attn_q.bias is not part of"),
    "norm": (with_tensor("blk.1.attn_q_norm.weight"), "weight blk.1.attn_q_norm.weight is not part of"),
    "missing": (
        lambda path: write_gguf(hf_model("llama"), path, tensors={"blk.0.ffn_up.weight": None}),
        "weight blk.0.ffn_up.weight is missing: the file does not match its keys",
    ),
    "shape": (
        lambda path: write_gguf(hf_model("llama"), path, tensors=ODD_SHAPE),
        "blk.0.ffn_up.weight has shape (3, 32) where its keys say (48, 32)",
    ),
    "rope": (with_keys(rope__scaling__type="longrope"), "RoPE scaling 'longrope' is not supported"),
    "rope twice": (
        with_keys("llama-tied-llama3", rope__scaling__type="linear", rope__scaling__factor=2.0),
        "RoPE scaling 'linear' with rope_freqs.weight",
    ),
    "factor alone": (with_keys(rope__scaling__attn_factor=1.2), "or an attn_factor is not supported"),
    "ext": (with_keys("llama-yarn", rope__scaling__yarn_ext_factor=0.5), "yarn_ext_factor is not supported"),
    "partial rotary": (with_keys(rope__dimension_count=4), "llama.rope.dimension_count is not the heads' dimension 8"),
    "experts": (with_keys(expert_count=4), "does not know what llama.expert_count = 4 changes"),
    "scale": (with_keys(attention__scale=0.5), "does not know what llama.attention.scale = 0.5 changes"),
    "both ways": (with_keys(attention__causal=False), "llama.attention.causal = False is not supported"),
    "window": (with_keys("qwen3", attention__sliding_window=7), "qwen3.attention.sliding_window does not say which"),
    "layers differ": (with_keys(feed_forward_length=[48, 48, 32]), "feed_forward_length differs between layers"),
    "no heads": (with_keys(attention__head_count=None), "llama.attention.head_count is missing"),
    "vocabulary only": (
        lambda path: write_gguf(hf_model("llama"), path, tensors={"token_embd.weight": None}),
        "holds no weights",
    ),
    "two labels": (
        lambda path: write_gguf(hf_model("qwen3", num_labels=2), path),
        "cls.output.weight is a classifier of 2 labels, no reward head",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_what_rmfast_would_not_use_is_refused_by_name(tmp_path: Path, case: str) -> None:
    write, part = ODD[case]
    refused(write(tmp_path / "m.gguf"), part)


def test_keys_that_change_nothing_do_not_matter(tmp_path: Path) -> None:
    model = hf_model("llama")
    keys = {"tensor_data_layout": "Meta AI original pth", "expert_count": 0, "attention.sliding_window": 4096}
    same_scores(model, write_gguf(model, tmp_path / "m.gguf", keys=keys))


@pytest.mark.parametrize(
    ("family", "kind", "part"),
    [
        ("gemma2", "model", "architecture 'gemma2' is not supported as GGUF; these are: llama"),
        ("mamba", "model", "architecture 'mamba' is not supported"),
        ("llama", "adapter", "holds a GGUF adapter"),
        ("clip", "mmproj", "holds a GGUF mmproj"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, family: str, kind: str, part: str) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", family)
    writer.add_type(kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "m.gguf", part)


@pytest.mark.parametrize("size", [0, 3, 8, 30, 200, 1500, -100])
def test_a_file_that_was_cut_off(tmp_path: Path, size: int) -> None:
    path = write_gguf(hf_model("llama"), tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:size])
    refused(path, "is no whole GGUF file")


def test_garbage(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)) * 20)
    refused(path, "is no whole GGUF file")
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(path, "is no whole GGUF file: GGUF magic invalid")


def test_which_file_of_a_folder(tmp_path: Path, saved: Saved) -> None:
    assert gguf_file(saved("llama")[1]) is None
    assert gguf_file(saved("llama")[1] / "config.json") is None
    path = write_gguf(hf_model("llama"), tmp_path / "m.gguf")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    assert gguf_file(tmp_path) == path
    write_gguf(hf_model("llama"), tmp_path / "n.gguf")
    with pytest.raises(UserError, match="holds 2 .gguf files; name one of them"):
        gguf_file(tmp_path)
