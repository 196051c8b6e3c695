"""An exported folder is scored by transformers as by us, in padded batches too; one that is not is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase, pipeline

from rmfast.checkpoint.export import (
    TOLERANCE,
    ModelParts,
    check_export,
    check_tokenizer,
    choose_pad_token,
    publish_model,
)
from rmfast.data.pack import build_pack
from rmfast.data.rows import parse_row
from rmfast.data.store import store_examples
from rmfast.data.table import GroupTable, build_table
from rmfast.errors import RunError, UserError
from rmfast.models.hf import load_network
from rmfast.models.network import Network
from rmfast.outputs.marks import mark_model
from tests.data.templates import NEEDS_MORE, NEEDS_TOOLS
from tests.runs import write_model as write_base

ROWS = [
    {"prompt": "the cat", "chosen": " sat on a mat", "rejected": " ran home by the sea with two red birds"},
    {"prompt": "two red birds sat", "chosen": " by the sea", "rejected": " on"},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("export") / "base")


@pytest.fixture
def tokenizer(base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base)


def export(
    base: Path,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype = torch.float32,
    heads: int = 1,
    shift: float = 0.0,
) -> tuple[Network, GroupTable]:
    network, hf = load_network(base, heads=heads, new_heads=True, dtype=dtype)
    state = {name: parameter.detach() for name, parameter in network.named_parameters()}
    table, _ = build_table([store_examples([parse_row(row) for row in ROWS], tokenizer)])
    sequences, scores = sequences_and_scores(network, table)
    difference = publish_model(
        folder,
        ModelParts(hf, network.config, state, tokenizer, dtype),
        sequences=sequences,
        scores=scores + shift,
    )
    assert not state and difference <= TOLERANCE[dtype]
    return network, table


def sequences_and_scores(network: Network, table: GroupTable) -> tuple[list[list[int]], Tensor]:
    rows = torch.arange(len(table)).numpy()
    with torch.no_grad():
        scores = network.eval().score(build_pack(table, rows)).float()
    return [s for row in rows for s in table.sequences_of(int(row))], scores


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_transformers_scores_the_export_alike(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, heads: int
) -> None:
    network, table = export(base, tmp_path / "model", tokenizer, dtype=dtype, heads=heads)
    sequences, scores = sequences_and_scores(network, table)
    assert len({len(s) for s in sequences}) > 1  # so that the batch is padded
    assert scores.shape == (4, heads)
    assert check_export(tmp_path / "model", sequences, scores, dtype) <= TOLERANCE[dtype]
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # nothing partial is left


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_a_padded_batch_of_plain_transformers_scores_the_last_token(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, pad_is_eos: bool
) -> None:
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    network, table = export(base, tmp_path / "model", tokenizer)
    sequences, scores = sequences_and_scores(network, table)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert theirs.pad_token_id == model.config.pad_token_id != theirs.eos_token_id
    assert all(ids[-1] == theirs.eos_token_id for ids in sequences)
    for side in ("right", "left"):
        theirs.padding_side = side
        batch = theirs.pad({"input_ids": sequences}, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(model(**batch).logits, scores, rtol=1e-4, atol=1e-5)
    # The user's tokenizer is as it was.
    assert (tokenizer.pad_token_id == tokenizer.eos_token_id) == pad_is_eos


def test_the_pad_token_never_ends_a_sequence(tokenizer: PreTrainedTokenizerBase) -> None:
    vocabulary = len(tokenizer)
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<|pad|>", "<|im_start|>", "<|im_end|>")}
    assert choose_pad_token(tokenizer, vocabulary) == special["<|pad|>"]
    tokenizer.pad_token = "<|im_start|>"
    assert choose_pad_token(tokenizer, vocabulary) == special["<|im_start|>"]
    tokenizer.pad_token = tokenizer.eos_token
    assert choose_pad_token(tokenizer, vocabulary) == special["<|pad|>"]  # found by its name
    # Where the template ends each conversation with a token, that one is no pad either.
    tokenizer.pad_token = "<|pad|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|pad|>{% endfor %}"
    assert choose_pad_token(tokenizer, vocabulary) == special["<|im_start|>"]


def test_a_pad_token_without_a_row_in_the_embedding_is_passed_over(tokenizer: PreTrainedTokenizerBase) -> None:
    known = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|new|>"})
    assert tokenizer.pad_token_id == known
    assert choose_pad_token(tokenizer, known) < known
    assert choose_pad_token(tokenizer, known + 1) == known


def test_no_token_to_pad_with_is_an_error_that_says_how_to_mend_it(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    ends = {tokenizer.eos_token_id}
    smallest = min(i for i in tokenizer.added_tokens_decoder if i not in ends)
    assert choose_pad_token(tokenizer, smallest + 1) == smallest
    with pytest.raises(UserError, match="add_special_tokens"):
        choose_pad_token(tokenizer, smallest)


@pytest.mark.parametrize("what", ["a weight", "NaN", "pad is eos"])
def test_a_broken_export_is_refused(base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    folder = tmp_path / "model"
    network, table = export(base, folder, tokenizer)
    sequences, scores = sequences_and_scores(network, table)
    assert check_export(folder, sequences, scores, torch.float32) < 1e-4
    if what == "pad is eos":
        config = (folder / "config.json").read_text()
        pad = choose_pad_token(tokenizer, len(tokenizer))
        (folder / "config.json").write_text(
            config.replace(f'"pad_token_id": {pad}', f'"pad_token_id": {tokenizer.eos_token_id}')
        )
        assert (folder / "config.json").read_text() != config
    else:
        state = load_file(folder / "model.safetensors")
        weight = state["model.layers.1.self_attn.o_proj.weight"]
        weight[0] += 0.05 if what == "a weight" else torch.nan
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match="scores the exported model differently"):
        check_export(folder, sequences, scores, torch.float32)


def test_an_older_export_is_replaced_whole(base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model-00001-of-00002.safetensors").write_text("of an earlier run")
    mark_model(folder)
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "left.by.a.crash").touch()
    export(base, folder, tokenizer)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["model.safetensors"]
    assert not (folder / "left.by.a.crash").exists()


def test_an_export_that_transformers_scores_otherwise_never_gets_its_name(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = tmp_path / "model"
    export(base, folder, tokenizer)
    before = (folder / "model.safetensors").stat().st_ino
    with pytest.raises(RunError, match=r"\.model\.partial: transformers scores the exported model differently"):
        export(base, folder, tokenizer, shift=0.5)
    assert (folder / "model.safetensors").stat().st_ino == before  # the older one is still there


def test_transformers_4_reads_the_tokenizer(base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """It knows no class TokenizersBackend and takes extra_special_tokens for a mapping; version 5 reads both names."""
    export(base, tmp_path / "model", tokenizer)
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in settings and "<|im_start|>" in settings["additional_special_tokens"]
    read = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert set(read.all_special_ids) == set(tokenizer.all_special_ids)


@pytest.mark.parametrize("heads", [1, 3])
def test_pipelines_give_the_score_itself(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, heads: int
) -> None:
    network, table = export(base, tmp_path / "model", tokenizer, heads=heads)
    _, scores = sequences_and_scores(network, table)
    classify = pipeline("text-classification", model=str(tmp_path / "model"), device="cpu", top_k=None)
    answer = classify([ROWS[0]["prompt"] + ROWS[0]["chosen"] + tokenizer.eos_token])[0]
    given = {entry["label"]: entry["score"] for entry in answer}
    assert given == pytest.approx({f"LABEL_{i}": float(scores[0, i]) for i in range(heads)}, rel=1e-4)


def test_the_pad_token_is_none_that_ends_the_data(tokenizer: PreTrainedTokenizerBase) -> None:
    pad, start = (tokenizer.convert_tokens_to_ids(token) for token in ("<|pad|>", "<|im_start|>"))
    assert choose_pad_token(tokenizer, len(tokenizer)) == pad
    assert choose_pad_token(tokenizer, len(tokenizer), {pad}) == start
    assert choose_pad_token(tokenizer, len(tokenizer), {start}) == pad


def test_a_template_that_needs_tools_is_probed_with_tools(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = NEEDS_TOOLS.replace("<|im_end|>\n", "<|pad|>")
    assert choose_pad_token(tokenizer, len(tokenizer)) == tokenizer.convert_tokens_to_ids("<|im_start|>")


@pytest.mark.parametrize("template", [NEEDS_TOOLS, NEEDS_MORE, "", "{{ 'the same' }}"], ids=str)
def test_an_export_with_an_odd_template_is_written_and_checked(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    tokenizer.chat_template = template
    export(base, tmp_path / "model", tokenizer)
    check_tokenizer(tmp_path / "model", tokenizer)


def test_a_changed_template_is_found_by_conversations_that_it_takes(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = NEEDS_TOOLS
    export(base, tmp_path / "model", tokenizer)
    tokenizer.chat_template = NEEDS_TOOLS.replace("assistant", "model").replace("m.content", "m.content | upper")
    with pytest.raises(RunError, match="gives other token ids"):
        check_tokenizer(tmp_path / "model", tokenizer)
