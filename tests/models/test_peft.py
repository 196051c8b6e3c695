"""Adapters beside PEFT's on the same weights: scores, gradients, merged weights, and folders both ways."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from rmfast.checkpoint.adapter import publish_adapter
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.models.hf import load_network
from rmfast.models.lora import merged, to_peft
from rmfast.models.low_rank import LoraOptions
from rmfast.models.network import Reads
from rmfast.models.weights import to_hf
from tests.models.adapters import SETUPS, adapted, peft_model, state_of
from tests.runs import DECODER
from tests.tiny import (
    CONFIGS,
    Group,
    assert_close_by_norm,
    gradients,
    hf_config,
    hf_scores,
    odd_groups,
    pack_of,
    randomised,
    save_hf_model,
)

peft = pytest.importorskip("peft")

GROUPS = [*odd_groups()[2:4], odd_groups()[-4]]  # with and without a long prompt, and one response begins the other
SEQUENCES = [sequence for group in GROUPS for sequence in group.sequences]


def scores_of(model: Any) -> Tensor:
    return hf_scores(model.base_model.model, SEQUENCES)


@pytest.mark.parametrize(
    ("name", "setup"),
    [(name, list(SETUPS)[i % 2]) for i, name in enumerate(CONFIGS) if name != "phi3-longrope"]
    + [("qwen2", "all targets"), ("qwen3", "one target"), ("phi3-longrope", "all targets")],
)
def test_scores_gradients_and_merged_weights_are_those_of_peft(name: str, setup: str, tmp_path: Path) -> None:
    options = SETUPS[setup]
    base = save_hf_model(name, tmp_path / "base")
    network = adapted(tmp_path / "base", options)
    theirs = peft_model(base, network, options)

    scores, expected = network.score(pack_of(GROUPS)), scores_of(theirs)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, hf_scores(save_hf_model(name, tmp_path / "again"), SEQUENCES), atol=1e-2)

    factors = torch.linspace(-1, 1, len(SEQUENCES))[:, None]
    (scores * factors).sum().backward()
    (expected * factors).sum().backward()
    ours = to_peft(network, gradients(network))
    grads = {key: p.grad for key, p in theirs.named_parameters() if p.grad is not None}
    grads = {key.replace(".default", "").replace(".modules_to_save", ""): grad for key, grad in grads.items()}
    assert_close_by_norm(ours, grads, 1e-5)
    assert len(gradients(network)) == sum(p.requires_grad for p in network.parameters())

    state = dict(to_hf(network.config, merged(network, state_of(network))))
    whole = theirs.merge_and_unload().state_dict()
    for key, weight in state.items():
        torch.testing.assert_close(weight, whole[key], rtol=1e-5, atol=1e-6)


def made_by_peft(folder: Path, **more: Any) -> Any:
    """An adapter that PEFT wrote into folder/adapter over folder/base, with weights that do something; its model."""
    base = save_hf_model("qwen3", folder / "base")
    config = peft.LoraConfig(**{"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | more)
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key or "modules_to_save" in key:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(key)))
    model.save_pretrained(folder / "adapter")
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "../base"
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    return model


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"use_rslora": True, "init_lora_weights": "gaussian"},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 3}, "alpha_pattern": {"v_proj": 1}},
        {"target_modules": ["q_proj", "k_proj", "up_proj"], "layers_to_transform": [1]},
    ],
)
def test_an_adapter_that_peft_wrote_scores_as_it_does_there(tmp_path: Path, more: dict[str, Any]) -> None:
    model = made_by_peft(tmp_path, **more)
    network, hf = load_network(tmp_path / "adapter")
    assert hf.model_type == "qwen3"
    torch.testing.assert_close(network.score(pack_of(GROUPS)), scores_of(model), rtol=1e-5, atol=1e-5)
    # The same from a pickle, and under the names that older versions wrote.
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    older = {key.replace("model.score.", "model.score.modules_to_save."): value for key, value in weights.items()}
    torch.save(older, tmp_path / "adapter" / "adapter_model.bin")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    again, _ = load_network(tmp_path / "adapter")
    assert torch.equal(again.score(pack_of(GROUPS)), network.score(pack_of(GROUPS)))


def test_an_adapter_over_an_adapter_adds_to_it(tmp_path: Path) -> None:
    made_by_peft(tmp_path)
    second = tmp_path / "second"
    second.mkdir()
    for file in (tmp_path / "adapter").iterdir():
        (second / file.name).write_bytes(file.read_bytes())
    settings = json.loads((second / "adapter_config.json").read_text()) | {"base_model_name_or_path": "../adapter"}
    (second / "adapter_config.json").write_text(json.dumps(settings))
    file = second / "adapter_model.safetensors"
    save_file({key: 2 * value if "lora_B" in key else value for key, value in load_file(file).items()}, file)
    folders = (tmp_path / "base", tmp_path / "adapter", second)
    base, once, thrice = (dict(load_network(folder)[0].named_parameters()) for folder in folders)
    for key in base:
        if key != "head.weight":
            torch.testing.assert_close(thrice[key] - base[key], 3 * (once[key] - base[key]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("setup", SETUPS)
def test_peft_reads_an_adapter_of_ours(tmp_path: Path, setup: str) -> None:
    options: LoraOptions = SETUPS[setup]
    base = save_hf_model("llama", tmp_path / "base")
    network = adapted(tmp_path / "base", options, seed=3)
    with torch.no_grad():
        network.get_parameter("head.weight").mul_(1.5)
    expected = network.score(pack_of(GROUPS))
    tokenizer = load_tokenizer(DECODER)
    state = to_peft(network, state_of(network))
    publish_adapter(tmp_path / "adapter", state, options, tmp_path / "base", tokenizer, pad=0)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(scores_of(model), expected, rtol=1e-5, atol=1e-5)
    again, _ = load_network(tmp_path / "adapter")
    torch.testing.assert_close(again.score(pack_of(GROUPS)), expected, rtol=1e-5, atol=1e-5)


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        load_network(folder)
    line = str(error.value)
    assert "\n" not in line and str(folder) in line and all(part in line for part in parts), line


def changed(folder: Path, **settings: Any) -> Path:
    """A copy of an adapter with other settings."""
    copy = Path(shutil.copytree(folder, folder.with_name(f"changed-{len(list(folder.parent.iterdir()))}")))
    found = json.loads((folder / "adapter_config.json").read_text()) | settings
    (copy / "adapter_config.json").write_text(json.dumps(found))
    return copy


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    """Another base, a base that is not there, a missing head, half of a pair, and what rmfast does not compute."""
    made_by_peft(tmp_path)
    adapter = tmp_path / "adapter"
    save_hf_model("qwen3", tmp_path / "wide", hidden_size=64)
    save_hf_model("qwen3", tmp_path / "short", num_hidden_layers=2)
    refused(changed(adapter, base_model_name_or_path="../wide"), "as (32, 48) by ranks 4 and 4", "it is (64, 48)")
    refused(changed(adapter, base_model_name_or_path="../short"), "adapts model.layers.2.", "does not hold")
    refused(changed(adapter, base_model_name_or_path="org/base"), "LORA of org/base", "that base is not here")
    refused(changed(adapter, base_model_name_or_path=None), "does not name its base")
    looped = changed(adapter)
    (looped / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(looped)})
    )
    refused(looped, "an adapter whose base", "is an adapter of it")
    for settings, word in (
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights (pissa_niter_4)"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"a_setting_of_tomorrow": 1}, "a_setting_of_tomorrow"),
    ):
        refused(changed(adapter, **settings), f"with {word}, which rmfast does not compute")
    refused(changed(adapter, peft_type="IA3"), "rmfast reads those of peft_type LORA")
    refused(changed(adapter, base_model_name_or_path=["../base"]), "does not name its base")
    for settings in ({"lora_alpha": None}, {"alpha_pattern": {"(": 1}}, {"alpha_pattern": ["q_proj"]}):
        refused(changed(adapter, **settings), "adapter_config.json: lora_alpha or alpha_pattern cannot be read")

    weights = load_file(adapter / "adapter_model.safetensors")
    q_proj = "base_model.model.model.layers.0.self_attn.q_proj"

    def with_weights(kept: dict[str, Tensor]) -> Path:
        copy = changed(adapter)
        save_file(kept, copy / "adapter_model.safetensors")
        return copy

    for half, other in (("A", "B"), ("B", "A")):
        rest = {key: value for key, value in weights.items() if key != f"{q_proj}.lora_{half}.weight"}
        refused(with_weights(rest), f"lora_{other}.weight has no", "not whole")
    refused(with_weights({key.removeprefix("base_model."): v for key, v in weights.items()}), "has not PEFT's prefix")
    embedding = {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(2, 96)}
    refused(with_weights(weights | embedding), "lora_embedding_A is no part of LoRA on linear layers")
    flat = {f"{q_proj}.lora_B.weight": torch.zeros(2)}
    refused(with_weights(weights | flat), "lora_A.weight is no part of LoRA on linear layers")
    resized = {"base_model.model.model.embed_tokens.weight": torch.zeros(98, 32)}
    refused(with_weights(weights | resized), "(98, 32) where config.json says (96, 32)")
    (copy := changed(adapter)).joinpath("adapter_model.safetensors").unlink()
    refused(copy, "a PEFT adapter without weights")
    # Over a language model it has no head, unless the adapter brings one.
    base = tmp_path / "base"
    stored = load_file(base / "model.safetensors")
    save_file({key: value for key, value in stored.items() if key != "score.weight"}, base / "model.safetensors")
    load_network(adapter)
    refused(with_weights({key: value for key, value in weights.items() if "score" not in key}), "no reward head")


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_policy_s_saved_head_or_embedding_is_its_own_unless_its_base_ties_them(tmp_path: Path, tied: bool) -> None:
    """PEFT leaves the one what it was; the two then differ, which one tied weight cannot."""
    config = hf_config("llama", tie_word_embeddings=tied)
    randomised(AutoModelForCausalLM.from_config(config, dtype=torch.float32), 0).save_pretrained(tmp_path / "base")
    tokens = torch.tensor([SEQUENCES[0]])
    for saved in (["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]):
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        settings = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", modules_to_save=saved)
        model = peft.get_peft_model(base, settings).eval()
        for key, parameter in model.named_parameters():
            if "lora_B" in key or "modules_to_save" in key:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(key)))
        model.save_pretrained(folder := tmp_path / "-".join(saved))
        if tied:
            with pytest.raises(UserError, match=r"lm_head.weight is not the embedding, to which config.json ties it"):
                load_network(folder, heads=0, lm=True)
            load_network(folder, heads=1, new_heads=True)  # a reward model reads no such head
            continue
        network, _ = load_network(folder, heads=0, lm=True)
        reads = Reads(scores=tokens[0, :0], log_prob=(torch.arange(tokens.shape[1] - 1), tokens[0, 1:]))
        found = network(pack_of([Group([SEQUENCES[0]])]), reads).log_prob
        expected = model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_alphas_go_by_the_adapter_s_names_also_where_its_base_is_a_bare_trunk(tmp_path: Path) -> None:
    model = made_by_peft(tmp_path, alpha_pattern={"model.layers.1.mlp.down_proj": 30})
    file = tmp_path / "base" / "model.safetensors"
    save_file({key.removeprefix("model."): value for key, value in load_file(file).items()}, file)
    network, _ = load_network(tmp_path / "adapter")
    torch.testing.assert_close(network.score(pack_of(GROUPS)), scores_of(model), rtol=1e-5, atol=1e-5)
