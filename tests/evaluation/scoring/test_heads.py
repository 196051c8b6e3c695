"""Heads of other architectures and the token that is scored: what transformers gives, or what the option says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    PreTrainedConfig,
    RobertaConfig,
)

import rmfast
from rmfast.data.example import Example
from rmfast.errors import UserError
from rmfast.evaluation.scoring.foreign import is_foreign, load_any
from tests.runs import DECODER
from tests.scoring import TEXT_VOCABULARY, save_reward_model, token_ids

SIZES: dict[str, Any] = {
    "vocab_size": TEXT_VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "gemma": (GemmaConfig, {"num_key_value_heads": 2, "head_dim": 8}),
    "gpt_neox": (GPTNeoXConfig, {}),
    "bert": (BertConfig, {}),
    "roberta": (RobertaConfig, {"pad_token_id": 1}),
}
EOS = 2  # <|im_end|> of the quickstart's tokenizer
LABELS = ("helpfulness", "correctness", "verbosity")
EXAMPLES = [
    Example("the cat sat", (" on a mat", " on", "", " on a mat<|im_end|>")),
    Example([{"role": "user", "content": "Who sat on the mat?"}], ("the cat", "two red birds ran home", "")),
]


def save(folder: Path, name: str, labels: int = 1) -> Any:
    """A random classifier in a folder with the quickstart's tokenizer, and as transformers' model."""
    kind, options = CONFIGS[name]
    torch.manual_seed(0)
    config = kind(**SIZES | options, num_labels=labels)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + (parameter.dim() == 1))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DECODER).save_pretrained(folder)
    return model


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of a folder's config; None takes one away."""
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def rename(folder: Path, rule: Any) -> None:
    file = folder / "model.safetensors"
    save_file({rule(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


@torch.no_grad()
def logits(model: Any, folder: Path) -> list[np.ndarray]:
    """transformers' logits [N, M] of each example's texts, one at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        np.concatenate([model(torch.tensor([token_ids(tokenizer, e.prompt, r)])).logits for r in e.responses])
        for e in EXAMPLES
    ]


def assert_scores(folder: Path, truth: list[np.ndarray], **options: Any) -> None:
    scores = load_any(folder, **options).score_examples(EXAMPLES)
    for ours, theirs in zip(scores, truth, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_heads_rows_decide_where_the_config_says_the_default(name: str, tmp_path: Path) -> None:
    model = save(tmp_path / "m", name)
    edit(tmp_path / "m", id2label=None, label2id=None, num_labels=None)
    assert is_foreign(tmp_path / "m")
    assert_scores(tmp_path / "m", logits(model, tmp_path / "m"))


@pytest.mark.parametrize("name", CONFIGS)
def test_one_of_several_labels_is_chosen_by_name_or_number(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    truth = logits(save(folder, name, labels=3), folder)
    edit(folder, id2label=dict(enumerate(LABELS)), label2id={v: i for i, v in enumerate(LABELS)})
    with pytest.raises(UserError, match=r"a classifier of 3 labels \(helpfulness, correctness, verbosity\).*--label"):
        load_any(folder)
    assert_scores(folder, [values[:, 1:2] for values in truth], label="correctness")
    assert_scores(folder, [values[:, 2:] for values in truth], label=2)
    assert_scores(folder, truth, label="ensemble")
    edit(folder, id2label={0: "reward"}, label2id={"reward": 0})
    with pytest.raises(UserError, match="a classifier of 3 labels, where config.json says 1"):
        load_any(folder)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model_wrapped."])
def test_a_wrappers_prefix_changes_nothing(name: str, prefix: str, tmp_path: Path) -> None:
    truth = logits(save(tmp_path / "m", name), tmp_path / "m")
    rename(tmp_path / "m", lambda n: prefix + n)
    assert_scores(tmp_path / "m", truth)


@pytest.mark.parametrize("beside", [True, False])
def test_a_value_head_over_a_causal_model(beside: bool, tmp_path: Path) -> None:
    """OpenRLHF's value_head in the weights, LLaMA-Factory's in a file beside those of a *ForCausalLM."""
    folder = tmp_path / "m"
    truth = logits(save(folder, "gemma"), folder)
    edit(folder, architectures=["GemmaForCausalLM"], id2label=None, label2id=None)
    state = load_file(folder / "model.safetensors")
    head = state.pop("score.weight")
    if beside:
        bias = {"v_head.summary.bias": torch.zeros(1)}
        save_file({"v_head.summary.weight": head} | bias, folder / "value_head.safetensors")
    save_file(state if beside else state | {"value_head.weight": head}, folder / "model.safetensors")
    assert_scores(folder, truth)


def test_a_bias_that_transformers_would_drop_is_named(tmp_path: Path) -> None:
    save(tmp_path / "m", "gemma")
    state = load_file(tmp_path / "m" / "model.safetensors") | {"score.bias": torch.tensor([0.5])}
    save_file(state, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="score.bias adds 0.5 to every score"):
        load_any(tmp_path / "m")


def test_a_causal_model_has_no_head(tmp_path: Path) -> None:
    kind, options = CONFIGS["gemma"]
    GemmaForCausalLM(kind(**SIZES | options)).save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=r"no reward head \(GemmaForCausalLM\).*--judge"):
        is_foreign(tmp_path / "m")


# The scored token


@torch.no_grad()
def padded(folder: Path, model: Any, side: str) -> list[np.ndarray]:
    """transformers' own scores [N, 1], each example's texts in one padded batch."""
    tokenizer, out = AutoTokenizer.from_pretrained(folder), []
    for example in EXAMPLES:
        rows = [token_ids(tokenizer, example.prompt, r) for r in example.responses]
        width = max(map(len, rows))
        fill = [[EOS] * (width - len(row)) for row in rows]
        pairs = list(zip(rows, fill, strict=True))
        ids = torch.tensor([row + f if side == "right" else f + row for row, f in pairs])
        mask = torch.tensor([[1] * len(r) + [0] * len(f) if side == "right" else [0] * len(f) + [1] * len(r)
                             for r, f in pairs])  # fmt: skip
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out.append(model(input_ids=ids, attention_mask=mask, position_ids=positions).logits.numpy())
    return out


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["llama-tied-llama3", "mistral-full", "qwen2", "qwen3", "gemma", "gpt_neox"])
def test_both_ways_of_choosing_the_scored_token(
    name: str, side: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A pad token that is the eos: transformers scores the token before it, rmfast the eos unless asked."""
    folder = tmp_path / "m"
    if name in CONFIGS:
        save(folder, name)
    else:
        save_reward_model(folder, name)
    edit(folder, pad_token_id=0)
    other = load_any(folder).score_examples(EXAMPLES)
    assert not caplog.messages
    edit(folder, pad_token_id=EOS)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    truth = padded(folder, model, side)
    assert_scores(folder, truth, scored_token="transformers")
    assert_scores(folder, other, scored_token="last")
    assert not caplog.messages  # it was chosen
    assert_scores(folder, other)
    assert len(caplog.messages) == 1 and "'<|im_end|>', ends sequences" in caplog.messages[0]
    assert all(words in caplog.messages[0] for words in ("--scored-token last", '"transformers"', str(folder)))
    assert max(np.abs(a - b).max() for a, b in zip(truth, other, strict=True)) > 1e-2


def test_a_model_without_pad_token_scores_the_last_in_both_ways(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "m", pad_token_id=None)
    rows = [{"prompt": "the cat", "responses": [" sat", " ran home"]}]
    last = rmfast.load(folder, scored_token="last").score(rows)
    assert rmfast.load(folder, scored_token="transformers").score(rows) == last


def test_a_sequence_of_pad_tokens_alone_keeps_its_first(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "m", pad_token_id=EOS)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        truth = float(model(torch.tensor([[EOS, EOS]])).logits)
    ours = rmfast.load(folder, scored_token="transformers").score(
        [{"prompt": "<|im_end|>", "responses": ["<|im_end|>"]}]
    )
    assert ours[0][0] == pytest.approx(truth, abs=1e-5)


def test_an_encoder_has_no_scored_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "m", "roberta")
    edit(tmp_path / "m", pad_token_id=EOS)
    load_any(tmp_path / "m")
    assert not caplog.messages
