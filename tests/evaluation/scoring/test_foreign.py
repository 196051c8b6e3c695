"""Reward models of other architectures: the scores of a direct transformers forward, and clear refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from rmfast.data.example import Example
from rmfast.errors import UserError
from rmfast.evaluation.scoring.foreign import ForeignModel, is_foreign, load_any, longest_sequence
from rmfast.evaluation.scoring.reward_model import RewardModel
from tests.runs import DECODER, write_model
from tests.scoring import TEXT_VOCABULARY, save_reward_model, token_ids

SIZES: dict[str, Any] = {
    "vocab_size": TEXT_VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "num_labels": 1,
    "initializer_range": 0.5,
}
EOS = 2  # <|im_end|> of the quickstart's tokenizer
CAUSAL: dict[str, PreTrainedConfig] = {
    "gpt_neox": GPTNeoXConfig(**SIZES, pad_token_id=EOS, eos_token_id=EOS),
    "opt": OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, init_std=0.5, pad_token_id=EOS, eos_token_id=EOS),
    "gemma": GemmaConfig(**SIZES, num_key_value_heads=2, head_dim=8, pad_token_id=EOS, eos_token_id=EOS),
    "gpt2": GPT2Config(
        vocab_size=TEXT_VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, num_labels=1, pad_token_id=EOS
    ),
}  # fmt: skip
POOLED: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZES, pad_token_id=0),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1),
    "deberta-v2": DebertaV2Config(**SIZES, relative_attention=True, position_biased_input=False, pad_token_id=0),
}
PROMPT = [{"role": "user", "content": "Who sat on the mat?"}]
EXAMPLES = [
    Example("the cat sat", (" on a mat", " on", "", " on a mat<|im_end|>")),
    Example("", ("by the sea", "by the sea")),
    Example(PROMPT, ("the cat", "two red birds ran home", "")),
]


def build(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + (parameter.dim() == 1))
    return model


def save(config: PreTrainedConfig, folder: Path) -> Path:
    build(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DECODER).save_pretrained(folder)
    return folder


def bert_tokenizer(folder: Path) -> None:
    """Words between [CLS] and [SEP], and no eos."""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a"])}
    backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]", cls_token="[CLS]"
    ).save_pretrained(folder)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_scores_its_last_token_though_pad_is_eos(name: str, tmp_path: Path) -> None:
    folder = save(CAUSAL[name], tmp_path / name)
    model = load_any(folder)
    assert isinstance(model, ForeignModel) and name in type(model.model).__module__
    plain, tokenizer = build(CAUSAL[name]), AutoTokenizer.from_pretrained(folder)
    for example, scores in zip(EXAMPLES, model.score_examples(EXAMPLES), strict=True):
        assert scores.shape == (len(example.responses), 1) and scores.dtype == np.float64
        for answer, score in zip(example.responses, scores, strict=True):
            ids = torch.tensor([token_ids(tokenizer, example.prompt, answer)])
            with torch.no_grad():
                hidden = plain.base_model(ids).last_hidden_state
                truth = plain.score(hidden[:, -1])[0]
                before = plain.score(hidden[:, -2])[0]
                own = plain(ids).logits[0]
            np.testing.assert_allclose(score, truth.numpy(), rtol=0, atol=1e-5 * max(1, float(truth.abs())))
            if ids[0, -1] == EOS:  # what transformers itself would score
                assert abs(float(own - before)) < 1e-4 < abs(float(before - truth))


@pytest.mark.parametrize("name", ["roberta", "deberta-v2"])
def test_a_pooled_model_is_left_as_it_is(name: str, tmp_path: Path) -> None:
    folder = save(POOLED[name], tmp_path / name)
    model = load_any(folder)
    assert isinstance(model, ForeignModel) and model.hf.pad_token_id == POOLED[name].pad_token_id
    plain, tokenizer = build(POOLED[name]), AutoTokenizer.from_pretrained(folder)
    for example, scores in zip(EXAMPLES, model.score_examples(EXAMPLES), strict=True):
        for answer, score in zip(example.responses, scores, strict=True):
            with torch.no_grad():
                truth = plain(torch.tensor([token_ids(tokenizer, example.prompt, answer)])).logits
            assert float(score[0]) == pytest.approx(float(truth), abs=1e-5)


def test_bert_ends_a_text_in_sep_without_an_eos(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    build(POOLED["bert"]).save_pretrained(folder)
    bert_tokenizer(folder)
    model, plain = load_any(folder), build(POOLED["bert"])
    scores = model.score_examples([Example("the cat ", ("sat", "sat on a"))])[0]
    for score, ids in zip(scores, ([2, 4, 5, 6, 3], [2, 4, 5, 6, 7, 8, 3]), strict=True):
        with torch.no_grad():
            assert float(score[0]) == pytest.approx(float(plain(torch.tensor([ids])).logits), abs=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt_neox"])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_head_in_a_file_beside_the_weights_is_read(name: str, kind: str, tmp_path: Path) -> None:
    config = (CAUSAL | POOLED)[name]
    folder = save(config, tmp_path / name)
    expected = load_any(folder).score_examples(EXAMPLES)
    state = load_file(folder / "model.safetensors")
    stem = "score" if name == "gpt_neox" else "classifier"
    head = {key.removeprefix(f"{stem}."): state.pop(key) for key in [*state] if key.startswith(f"{stem}.")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"no reward head .without {stem}"):
        is_foreign(folder)
    write = save_file if kind == "safetensors" else torch.save
    write(head, folder / f"{stem}.{kind}")
    scores = load_any(folder).score_examples(EXAMPLES)
    np.testing.assert_allclose(np.concatenate(scores), np.concatenate(expected), rtol=0, atol=1e-5)
    write({**head, "more.weight": torch.ones(2, 2)}, folder / f"{stem}.{kind}")
    with pytest.raises(UserError, match=f"{stem}.more.weight(, in a file beside the weights, is no part|.* layer)"):
        is_foreign(folder)
    (folder / f"{stem}.{kind}").unlink()
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="2_Dense is a Dense layer of sentence-transformers"):
        is_foreign(folder)


def test_company_and_order_change_nothing_and_twins_tie(tmp_path: Path) -> None:
    model = load_any(save(CAUSAL["gpt_neox"], tmp_path / "m"))
    together = model.score_examples(EXAMPLES)
    for example, scores in zip(EXAMPLES, together, strict=True):
        assert (model.score_examples([example])[0] == scores).all()
    assert together[1][0] == together[1][1] and together[0][0] == together[0][3]  # with the eos and without
    assert len({float(score[0]) for scores in together for score in scores}) == 7
    assert model.score_examples([]) == []


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmfast.evaluation.scoring.foreign.CHUNK", 2)
    said: list[tuple[int, int]] = []
    load_any(save(CAUSAL["gpt_neox"], tmp_path / "m"), progress=lambda *n: said.append(n)).score_examples(EXAMPLES)
    assert said == [(2, 3), (3, 3)]


def test_a_sequence_beyond_the_window_is_named(tmp_path: Path) -> None:
    model = load_any(save(CAUSAL["opt"], tmp_path / "m"))
    ids = list(range(10, 138))
    assert isinstance(model, ForeignModel) and model.window == len(ids)
    assert np.isfinite(model.score_examples([Example(None, (ids,))])[0]).all()  # the longest that fits
    with pytest.raises(UserError, match=r"example 2: too long: 129 tokens, and the model takes 128 \(.*/m\)"):
        model.score_examples([EXAMPLES[0], Example(None, (ids, [*ids, 5]))])


def test_windows_are_those_that_do_not_crash() -> None:
    assert {name: longest_sequence(config) for name, config in (CAUSAL | POOLED).items()} == {
        "gpt_neox": 128,
        "opt": 128,
        "gemma": 128,
        "gpt2": 128,
        "bert": 128,
        "roberta": 126,  # positions begin behind the pad token's
        "deberta-v2": None,
    }
    plain = build(POOLED["roberta"])
    plain(torch.full((1, 126), 5))
    with pytest.raises((IndexError, RuntimeError)):
        plain(torch.full((1, 127), 5))


def test_an_example_that_cannot_be_tokenised_is_named(tmp_path: Path) -> None:
    model = load_any(save(CAUSAL["gpt_neox"], tmp_path / "m"))
    with pytest.raises(UserError, match="example 2: not UTF-8"):
        model.score_examples([EXAMPLES[0], Example("x", ("\ud800",))])
    small = save(GPTNeoXConfig(**SIZES | {"vocab_size": 40}), tmp_path / "small")
    with pytest.raises(UserError, match="token id 77 is beyond the vocabulary of .*small, 40"):
        load_any(small).score_examples([Example(None, ([3, 77],))])


def test_families_of_the_decoder_go_to_it(tmp_path: Path) -> None:
    assert isinstance(load_any(save_reward_model(tmp_path / "llama")), RewardModel)
    assert not is_foreign(tmp_path / "llama")


def test_a_variant_that_the_decoder_lacks_goes_to_transformers(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    model = load_any(save_reward_model(tmp_path / "llama", rope_parameters=rope))
    assert isinstance(model, ForeignModel) and "slower" in model.note


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        load_any(tmp_path / "nothing")
    with pytest.raises(UserError, match="no reward head.*--judge"):
        load_any(write_model(tmp_path / "llama"))  # a causal model of the decoder's family
    neox = tmp_path / "neox"
    GPTNeoXForCausalLM(CAUSAL["gpt_neox"]).save_pretrained(neox)
    with pytest.raises(UserError, match=r"no reward head \(GPTNeoXForCausalLM\).*--judge"):
        load_any(neox)
    claimed = save(CAUSAL["gpt_neox"], tmp_path / "claimed")  # says that it has a head and has none
    shutil.copy(neox / "model.safetensors", claimed)
    with pytest.raises(UserError, match=r"no reward head \(without score.weight\)"):
        load_any(claimed)
    state = load_file(neox / "model.safetensors") | {"my_reward.weight": torch.ones(1, 32)}
    save_file(state, claimed / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((claimed / "config.json").read_text())
    raw.pop("num_labels", None), raw.pop("id2label", None)  # transformers would fill in two labels
    (claimed / "config.json").write_text(json.dumps(raw))
    for act in (is_foreign, load_any):
        with pytest.raises(
            UserError, match=r"without score.weight\).*what may be its head: my_reward.weight \(1, 32\)"
        ):
            act(claimed)
    two = save(GPTNeoXConfig(**SIZES | {"num_labels": 2}), tmp_path / "two")
    with pytest.raises(UserError, match="a classifier of 2 labels"):
        load_any(two)


def test_a_models_own_code_is_never_run(tmp_path: Path) -> None:
    folder = save(CAUSAL["gpt_neox"], tmp_path / "own")
    raw = json.loads((folder / "config.json").read_text())
    trap = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(trap)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    raw |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"neither rmfast nor transformers has .*'own'; code in a model folder"):
        load_any(folder)
    assert not trap.exists()
