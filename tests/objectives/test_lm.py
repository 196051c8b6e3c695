"""The loss on demonstrations: what transformers gives where labels are masked by hand, packed or one by one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rmfast.data.loader import Totals, totals_of
from rmfast.data.pack import Pack, build_pack, empty_pack
from rmfast.data.pad import pad_pack
from rmfast.data.row_kinds import Turns, demonstrations
from rmfast.data.store import build_store
from rmfast.data.table import GroupTable, build_table
from rmfast.jsonio import json_line
from rmfast.models.hf import load_network
from rmfast.models.network import Network
from rmfast.objectives.lm import SFTObjective
from tests.data.conftest import CHATML, make_tokenizer  # noqa: F401
from tests.data.templates import CHATML_MARKED, GEMMA, LLAMA3, QWEN3, QWEN3_MARKED, ZEPHYR
from tests.tiny import assert_close_by_norm, gradients, hf_gradients, randomised

Make = Callable[..., PreTrainedTokenizerFast]
Turn = dict[str, Any]
ANSWER = "assistant"


def turns(*texts: str, **last: str) -> list[Turn]:
    """A conversation in which the user and the assistant take turns."""
    talk = [{"role": "user" if i % 2 == 0 else ANSWER, "content": text} for i, text in enumerate(texts)]
    return [*talk[:-1], talk[-1] | last]


# Answers that stand in questions and in each other.
TALKS = [
    turns("say Paris", "Paris", "Paris? Paris", "the cat\n\nsat on the mat", "and", "Paris"),
    turns("hello world", "hello"),
    turns("how are you", "the dog ran", "a", "b"),
]
THOUGHT = [turns("say Paris", "Paris", "again", "hello", reasoning_content="hm, the cat"), *TALKS[1:]]

Written = Callable[[list[Turn], int], tuple[str, str, str]]
"""What stands before an answer or question, what is learnt of an answer, and what stands after it."""


def chatml(talk: list[Turn], at: int) -> tuple[str, str, str]:
    return f"<|im_start|>{talk[at]['role']}\n", f"{talk[at]['content']}<|im_end|>\n", ""


def chatml_marked(talk: list[Turn], at: int) -> tuple[str, str, str]:
    return f"<|im_start|>{talk[at]['role']}\n", f"{talk[at]['content']}<|im_end|>", "\n"


def llama3(talk: list[Turn], at: int) -> tuple[str, str, str]:
    return f"<|start_header_id|>{talk[at]['role']}<|end_header_id|>\n\n", f"{talk[at]['content']}<|eot_id|>", ""


def gemma(talk: list[Turn], at: int) -> tuple[str, str, str]:
    who = "model" if talk[at]["role"] == ANSWER else "user"
    return f"<start_of_turn>{who}\n", f"{talk[at]['content']}<end_of_turn>\n", ""


def zephyr(talk: list[Turn], at: int) -> tuple[str, str, str]:
    return f"<|{talk[at]['role']}|>\n", f"{talk[at]['content']}<|im_end|>\n", ""


def qwen3(talk: list[Turn], at: int) -> tuple[str, str, str]:
    head, said, _ = chatml(talk, at)
    if at == len(talk) - 1:  # the generation prompt opens the reasoning
        return f"{head}<think>\n", f"{talk[at].get('reasoning_content', '')}\n</think>\n\n{said}", ""
    return head, said, ""


def qwen3_marked(talk: list[Turn], at: int) -> tuple[str, str, str]:
    head, said, after = chatml_marked(talk, at)
    if at == len(talk) - 1:
        return head, f"<think>\n{talk[at].get('reasoning_content', '')}\n</think>\n\n{said}", after
    return head, said, after


TEMPLATES: dict[str, tuple[str, Written, list[list[Turn]], Turns]] = {
    "chatml": (CHATML, chatml, TALKS, "all"),
    "llama 3": (LLAMA3, llama3, TALKS, "all"),
    "zephyr": (ZEPHYR, zephyr, TALKS, "all"),
    "gemma": (GEMMA, gemma, TALKS, "all"),
    "marked": (CHATML_MARKED, chatml_marked, TALKS, "all"),
    "marked thinking": (QWEN3_MARKED, qwen3_marked, THOUGHT, "all"),
    "marked, last": (QWEN3_MARKED, qwen3_marked, THOUGHT, "last"),
    "rewritten, last": (QWEN3, qwen3, THOUGHT, "last"),
}


def by_hand(
    tokenizer: PreTrainedTokenizerFast, talk: list[Turn], written: Written, which: Turns
) -> tuple[list[int], list[int]]:
    """Token ids, and labels in which all but the answers is -100."""
    text, spans = "", []
    for at, turn in enumerate(talk):
        before, said, after = written(talk, at)
        text += before
        if turn["role"] == ANSWER and (which == "all" or at == len(talk) - 1):
            spans.append((len(text), len(text) + len(said)))
        text += said + after
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places = zip(made["input_ids"], made["offset_mapping"], strict=True)
    labels = [token if any(a <= begin < b for a, b in spans) else -100 for token, (begin, _) in places]
    return made["input_ids"], labels


def model_of(tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[PreTrainedModel, Network]:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = randomised(LlamaForCausalLM(config), 0)
    model.save_pretrained(folder)
    return model, load_network(folder, heads=0, lm=True)[0]


def table_of(tokenizer: PreTrainedTokenizerFast, talks: list[list[Turn]], which: Turns, folder: Path) -> GroupTable:
    (folder / "rows.jsonl").write_text("".join(f"{json_line({'messages': talk})}\n" for talk in talks))
    kind = demonstrations(which)
    return build_table([build_store(str(folder / "rows.jsonl"), tokenizer, folder / "cache", kind=kind)], kind=kind)[0]


def run(network: Network, packs: list[Pack], totals: Totals) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss and summed entropy over some packs, and the gradients."""
    network.zero_grad()
    objective, loss, entropy = SFTObjective(), torch.zeros(()), torch.zeros(())
    for pack in packs:
        share, statistics = objective(network(pack, objective.reads(pack)), pack, totals)
        share.backward()
        loss, entropy = loss + statistics.loss, entropy + statistics.sums["entropy"]
    return loss, entropy, gradients(network)


@pytest.mark.parametrize("name", TEMPLATES)
def test_loss_and_gradients_are_those_of_transformers_with_labels_masked_by_hand(
    make_tokenizer: Make,  # noqa: F811
    tmp_path: Path,
    name: str,
) -> None:
    template, written, talks, which = TEMPLATES[name]
    tokenizer = make_tokenizer(template=template)
    model, network = model_of(tokenizer, tmp_path / "model")
    total, spread, theirs = 0, torch.zeros(()), torch.zeros(())
    for talk in talks:
        ids, labels = by_hand(tokenizer, talk, written, which)
        assert ids == tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"]
        out = model(torch.tensor([ids]), labels=torch.tensor([labels]))
        learnt = torch.tensor(labels[1:]) != -100
        total += int(learnt.sum())
        theirs = theirs + out.loss * learnt.sum()
        log_probs = out.logits[0, :-1][learnt].log_softmax(-1)
        spread = spread - (log_probs.exp() * log_probs).sum().detach()
    (theirs / total).backward()
    table = table_of(tokenizer, talks, which, tmp_path)
    groups = np.arange(len(table))
    totals = totals_of(table, groups)
    assert totals.lm_tokens == total
    loss, entropy, grads = run(network, [build_pack(table, groups, predicts="targets")], totals)
    assert abs(float(loss) - float(theirs.detach() / total)) <= 1e-5 * float(loss)
    assert abs(float(entropy) - float(spread)) <= 1e-5 * float(spread)
    assert_close_by_norm(grads, hf_gradients(model, network), 1e-5)
    alone, _, apart = run(network, [build_pack(table, groups[g : g + 1], predicts="targets") for g in groups], totals)
    assert abs(float(alone) - float(loss)) <= 1e-5 * float(loss)
    assert_close_by_norm(apart, grads, 1e-5)


def test_padding_and_packs_without_work_change_nothing(make_tokenizer: Make, tmp_path: Path) -> None:  # noqa: F811
    tokenizer = make_tokenizer()
    _, network = model_of(tokenizer, tmp_path / "model")
    table = table_of(tokenizer, TALKS, "all", tmp_path)
    groups = np.arange(len(table))
    totals = totals_of(table, groups)
    pack = build_pack(table, groups, predicts="targets")
    loss, entropy, grads = run(network, [pack], totals)
    padded = run(network, [pad_pack(pack, 256), empty_pack()], totals)
    torch.testing.assert_close(padded[0], loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(padded[1], entropy, rtol=1e-6, atol=0)
    assert_close_by_norm(padded[2], grads, 1e-6)


def test_what_is_logged() -> None:
    totals = Totals(
        groups=2, edges=0, responses=2, weight=0, lm_tokens=4, sequence_tokens=9, stored_tokens=9, visible=9
    )
    metrics = SFTObjective().metrics({"loss": 1.5, "entropy": 6.0}, totals)
    assert metrics == {"loss": 1.5, "entropy": 1.5, "trained_tokens": 4}
