"""Weights under other names: the same model, or a line that names what is odd."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmfast.errors import UserError
from rmfast.models.hf import load_network
from rmfast.models.save import save_hf
from tests.models.conftest import Saved
from tests.tiny import hf_scores, odd_groups, pack_of

State = dict[str, Tensor]
Change = Callable[[State], State]


def moved(source: Path, folder: Path, change: Change, **config: object) -> Path:
    """A model's folder whose weights, and some keys of its config, are changed."""
    folder.mkdir(parents=True)
    raw = json.loads((source / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    save_file(change(load_file(source / "model.safetensors")), folder / "model.safetensors")
    return folder


def renamed(rule: Callable[[str], str]) -> Change:
    return lambda state: {rule(name): tensor for name, tensor in state.items()}


def head_as(name: str, **more: Tensor) -> Change:
    return lambda state: {name if key == "score.weight" else key: value for key, value in state.items()} | more


def refused(folder: Path, *parts: str, **options: object) -> None:
    with pytest.raises(UserError) as error:
        load_network(folder, **options)  # type: ignore[arg-type]
    message = str(error.value)
    assert "\n" not in message
    for part in (str(folder), *parts):
        assert part in message, message


@torch.no_grad()
def same_scores(saved: Saved, name: str, folder: Path, **options: object) -> None:
    """transformers' scores of the model as it was before its names changed."""
    network, _ = load_network(folder, **options)  # type: ignore[arg-type]
    truth = hf_scores(saved(name)[0], [s for g in odd_groups() for s in g.sequences])
    torch.testing.assert_close(network.eval().score(pack_of(odd_groups())), truth, rtol=1e-5, atol=1e-5)


# Wrappers


@pytest.mark.parametrize("name", ["llama", "mistral-full", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "rule",
    [
        lambda n: f"module.{n}",
        lambda n: f"_orig_mod.{n}",
        lambda n: f"_orig_mod.module.{n}",
        lambda n: f"base_model.model.{n}",
        lambda n: f"model.{n}",
        lambda n: f"language_model.{n}",
        lambda n: f"_fsdp_wrapped_module.{n.replace('layers.1.', 'layers.1._checkpoint_wrapped_module._orig_mod.')}",
        lambda n: f"module.{n.removeprefix('model.')}",  # a bare trunk in DDP
        lambda n: n if n == "score.weight" else f"pretrained_model.{n}",  # a wrapper of a trunk and a head
    ],
    ids=["ddp", "compile", "both", "peft", "doubled", "language", "inner", "bare", "trunk"],
)
def test_a_wrappers_prefix_changes_nothing(saved: Saved, tmp_path: Path, name: str, rule: Callable[[str], str]) -> None:
    same_scores(saved, name, moved(saved(name)[1], tmp_path / "m", renamed(rule)))


def test_a_prefix_that_some_names_lack_is_named(saved: Saved, tmp_path: Path) -> None:
    source = saved("llama")[1]
    rule = renamed(lambda n: n if "embed" in n else f"module.{n}")
    refused(moved(source, tmp_path / "m", rule), "prefix 'module.'", "model.embed_tokens.weight has not")
    both = moved(source, tmp_path / "twice", lambda s: s | {f"_orig_mod.{n}": t.clone() for n, t in s.items()})
    refused(both, "weights twice")


# Heads


@pytest.mark.parametrize("name", ["llama", "mistral-full", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "head", ["value_head", "v_head", "v_head.summary", "reward_head", "regression_head", "rm_head", "score_head"]
)
def test_a_row_without_bias_is_the_head_whatever_its_name(saved: Saved, tmp_path: Path, name: str, head: str) -> None:
    zero = {f"{head}.bias": torch.zeros(1)} if "summary" in head else {}
    same_scores(saved, name, moved(saved(name)[1], tmp_path / "m", head_as(f"{head}.weight", **zero)))


def test_a_heads_name_may_be_in_the_config(saved: Saved, tmp_path: Path) -> None:
    """OpenRLHF's value_head_prefix."""
    folder = moved(saved("llama")[1], tmp_path / "m", head_as("my_reward.weight"), value_head_prefix="my_reward")
    same_scores(saved, "llama", folder)
    unnamed = moved(saved("llama")[1], tmp_path / "n", head_as("my_reward.weight"))
    refused(unnamed, "no reward head (score.weight)", "may be its head: my_reward.weight (1, 32)")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("key", ["v_head.summary", "value_head", ""])
def test_a_head_in_a_file_beside_the_weights(saved: Saved, tmp_path: Path, kind: str, key: str) -> None:
    """As LLaMA-Factory's value_head.safetensors; the model beside it is a causal one."""

    def without(state: State) -> State:
        return {n: t for n, t in state.items() if n != "score.weight"} | {"lm_head.weight": torch.zeros(96, 32)}

    source = saved("llama")[1]
    folder = moved(source, tmp_path / "m", without, architectures=["LlamaForCausalLM"])
    head = load_file(source / "model.safetensors")["score.weight"]
    names = [f"{key}.{part}" if key else part for part in ("weight", "bias")]
    file = folder / f"value_head.{kind}"

    def write(bias: float) -> None:
        state = dict(zip(names, (head, torch.full((1,), bias)), strict=True))
        save_file(state, file) if kind == "safetensors" else torch.save(state, file)

    write(0.0)
    same_scores(saved, "llama", folder)
    write(0.25)
    refused(folder, "bias adds 0.25 to every score", "has no bias")


@pytest.mark.parametrize("file", ["my_head.safetensors", "reward_layer.pt", "regression.pth", "Score.bin"])
def test_a_file_that_may_be_a_head_is_refused_by_name(saved: Saved, tmp_path: Path, file: str) -> None:
    folder = moved(saved("llama")[1], tmp_path / "m", dict)
    for harmless in ("medusa_lm_head.pt", "training_args.bin", "rng_state_0.pth"):
        (folder / harmless).touch()
    same_scores(saved, "llama", folder)
    (folder / file).touch()
    refused(folder, f"{file} may be its reward head", f"call it value_head{(folder / file).suffix}")
    refused(folder, f"{file} may be its reward head", new_heads=True)


@pytest.mark.parametrize("kind", ["sentence_transformers.models.Dense", None])
def test_a_dense_layer_of_sentence_transformers_is_refused(saved: Saved, tmp_path: Path, kind: str | None) -> None:
    folder = moved(saved("llama")[1], tmp_path / "m", dict)
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    same_scores(saved, "llama", folder)
    if kind:
        (folder / "modules.json").write_text(json.dumps([*modules, {"path": "2_Dense", "type": kind}]))
    else:
        (folder / "2_Dense").mkdir()
        (folder / "2_Dense" / "config.json").write_text("{}")
    refused(folder, "2_Dense is a Dense layer of sentence-transformers", "value_head.safetensors")


def test_heads_that_would_be_read_wrongly_are_named(saved: Saved, tmp_path: Path) -> None:
    source, row = saved("llama")[1], torch.ones(1, 32)
    with_bias = moved(source, tmp_path / "bias", lambda s: s | {"score.bias": torch.tensor([1.5])})
    refused(with_bias, "score.bias adds 1.5 to every score")
    two = moved(source, tmp_path / "two", lambda s: s | {"v_head.summary.weight": row})
    refused(two, "two reward heads, score.weight and v_head.summary.weight")
    deep = {"score.0.weight": torch.ones(32, 32), "score.2.weight": row}
    layers = moved(source, tmp_path / "layers", lambda s: {n: t for n, t in s.items() if n != "score.weight"} | deep)
    refused(layers, "score.0.weight is part of a reward head of more than one layer")
    flat = moved(source, tmp_path / "flat", lambda s: s | {"score.weight": torch.ones(32)})
    refused(flat, "score.weight has shape (32,), and a reward head has rows: (1, d)")
    save_file({"score.weight": row}, (folder := moved(source, tmp_path / "both", dict)) / "value_head.safetensors")
    refused(folder, "score.weight is in the weights and in a file beside them")


# Labels

LABELS = {"0": "helpfulness", "1": "correctness", "2": "verbosity"}


def test_labels_are_no_ensemble(saved: Saved, tmp_path: Path) -> None:
    model, source = saved("qwen2", num_labels=3)
    named = moved(source, tmp_path / "m", dict, id2label=LABELS, label2id={v: int(k) for k, v in LABELS.items()})
    ways = ("classifier of 3 labels", "--label", '"ensemble"', "model.heads: 3")
    refused(named, "(helpfulness, correctness, verbosity)", *ways)
    refused(source, "(LABEL_0, LABEL_1, LABEL_2)", *ways)
    refused(named, *ways, new_heads=True)  # in training too
    refused(named, "no label 'humour'", "helpfulness, correctness, verbosity, or the numbers 0 to 2", label="humour")
    refused(named, "no label 3", label=3)
    sequences = [s for g in odd_groups() for s in g.sequences]
    with torch.no_grad():
        truth = hf_scores(model, sequences)
        for label, row in (("helpfulness", 0), ("verbosity", 2), (1, 1), ("1", 1)):
            scores = load_network(named, label=label)[0].eval().score(pack_of(odd_groups()))
            torch.testing.assert_close(scores, truth[:, row : row + 1], rtol=1e-5, atol=1e-5)
    for options in ({"label": "ensemble"}, {"heads": 3}):
        assert load_network(named, **options)[0].head.weight.shape == (3, 32)  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [1, 2])
def test_rows_that_the_config_does_not_tell_of(saved: Saved, tmp_path: Path, labels: int) -> None:
    """Of one row the config may say anything; 2 is what it says by default."""
    source = saved("llama", num_labels=3)[1]
    names = {str(i): f"LABEL_{i}" for i in range(labels)}
    folder = moved(source, tmp_path / "m", dict, id2label=names, label2id={v: int(k) for k, v in names.items()})
    refused(folder, f"classifier of 3 labels, where config.json says {labels}")
    assert load_network(folder, label=2)[0].head.weight.shape == (1, 32)
    one = moved(saved("llama")[1], tmp_path / "one", dict, id2label=None, label2id=None, num_labels=None)
    same_scores(saved, "llama", one)


def test_what_rmfast_writes_says_that_it_is_an_ensemble(saved: Saved, tmp_path: Path) -> None:
    for heads in (3, 1):
        network, config = load_network(saved("llama", num_labels=heads)[1], label="ensemble")
        (folder := tmp_path / str(heads)).mkdir()
        save_hf(folder, config, network.config, network.state_dict(), dtype=torch.float32, pad_token_id=5)
        raw = json.loads((folder / "config.json").read_text())
        assert raw.get("rmfast") == ({"heads": "ensemble"} if heads > 1 else None)
        assert torch.equal(load_network(folder)[0].head.weight, network.head.weight)


def test_models_that_score_each_step_are_refused_and_code_in_a_folder_is_told_of(
    saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = moved(saved("qwen2")[1], tmp_path / "copy", lambda state: state)
    raw = json.loads((folder / "config.json").read_text())
    for architecture in ("Qwen2ForTokenClassification", "Qwen2ForProcessRewardModel"):
        (folder / "config.json").write_text(json.dumps(raw | {"architectures": [architecture]}))
        refused(folder, architecture, "scores each token or step")
    assert not caplog.records
    code = {"architectures": ["Qwen2ForSomeReward"], "auto_map": {"AutoModel": "modeling_some.Qwen2ForSomeReward"}}
    (folder / "config.json").write_text(json.dumps(raw | code))
    load_network(folder)
    assert [record.message.count("never run") for record in caplog.records] == [1]
