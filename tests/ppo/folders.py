"""Tiny models on disk whose optimum is known: a policy of a few tokens, and a reward model of any table of scores.

Token 0 is the padding token, which is a letter of answers as any other, token 1 the eos, then come letters a, b, ...
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from tests.ppo.exact import Answers, head_steps, read_hidden

PAD, EOS = 0, 1
APART = "</s>"
"""A prompt of a token that no history of an answer holds."""


def answers_of(letters: str, longest: int = 4) -> Answers:
    """All answers with the tokenizer of these letters."""
    return Answers(len(letters) + 2, EOS, longest)


def tokenizer_of(letters: str) -> PreTrainedTokenizerFast:
    """A token for each letter, the eos and padding; nothing is added to a text."""
    vocabulary = {token: i for i, token in enumerate(("<pad>", "</s>", *letters))}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")


def write_policy(
    folder: Path,
    letters: str,
    prompts: Sequence[str],
    *,
    spread: float = 0.0,
    cut_share: float | None = None,
    longest: int = 4,
    width: int = 128,
    layers: int = 2,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A policy to begin with, which is its reference too.

    Args:
        prompts: one to be trained on should be APART. Attention has no other way to count: texts of one letter alone,
            "a" and "aa", have the same hidden state, whatever the weights.
        spread: standard deviation of its logits; with 0 all letters are equally likely.
        cut_share: the share of its answers to the prompts that are cut, the mean over prompts; None: the eos is drawn
            as a letter is.
    """
    generator = torch.Generator().manual_seed(seed)
    model = LlamaForCausalLM(_config(letters, width, layers)).eval()
    _draw_trunk(model, generator)
    head = model.lm_head.weight.data
    head.normal_(0, spread / width**0.5, generator=generator)  # hidden states have the norm sqrt(width)
    if cut_share is not None:
        tokenizer, answers = tokenizer_of(letters), answers_of(letters, longest)
        hidden = [read_hidden(model, tokenizer(prompt)["input_ids"], answers) for prompt in prompts]
        head[EOS] += _eos_bias(hidden, head, answers, cut_share)
    return _save(model, folder, letters)


def _eos_bias(hidden: Sequence[Sequence[Tensor]], head: Tensor, answers: Answers, cut_share: float) -> Tensor:
    """[width]: what to add to the head's row of the eos, by bisection; nearly the same logit after every history."""
    states = torch.cat([level for levels in hidden for level in levels]).double()
    ones = torch.ones(len(states), 1, dtype=torch.float64)
    # Without rcond nearly equal states would make the row so large that a step of training saturates the policy.
    one = torch.linalg.lstsq(states, ones, rcond=1e-2, driver="gelsd").solution[:, 0]
    low, high = -20.0, 20.0  # the more, the fewer answers are cut
    for _ in range(60):
        middle = (low + high) / 2
        tried = head.double()
        tried[answers.eos] += middle * one
        cut = [answers.log_prob(head_steps(levels, tried))[answers.cut].exp().sum() for levels in hidden]
        low, high = (middle, high) if sum(cut) > cut_share * len(cut) else (low, middle)
    return low * one.float()


def write_reward_model(
    folder: Path, letters: str, tables: Mapping[str, Tensor], *, longest: int = 4, seed: int = 1
) -> LlamaForSequenceClassification:
    """A reward model that gives each answer to each prompt its score, to 1e-5 of the largest.

    Its trunk is random and wider than there are answers. The head is solved for.

    Args:
        tables: for each prompt the scores [A] of all answers, in the order of `Answers.ids`.
    """
    answers, tokenizer = answers_of(letters, longest), tokenizer_of(letters)
    width = 64 * math.ceil(1.5 * len(answers.ids) * len(tables) / 64)
    model = LlamaForSequenceClassification(_config(letters, width, 2, num_labels=1)).eval()
    _draw_trunk(model, torch.Generator().manual_seed(seed))
    hidden = torch.cat([read_last(model, tokenizer(prompt)["input_ids"], answers.ids) for prompt in tables])
    scores = torch.cat(list(tables.values())).double()
    model.score.weight.data.copy_(torch.linalg.lstsq(hidden.double(), scores[:, None], driver="gelsd").solution.T)
    return _save(model, folder, letters)


@torch.no_grad()
def read_last(model: torch.nn.Module, prompt: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
    """[A, width]: hidden states of the last tokens of answers to a prompt, which the reward head reads."""
    found = torch.empty(len(ids), model.config.hidden_size)
    for length in {len(answer) for answer in ids}:
        places = [i for i, answer in enumerate(ids) if len(answer) == length]
        whole = torch.tensor([[*prompt, *ids[i]] for i in places])
        found[places] = model.model(whole).last_hidden_state[:, -1]
    return found


def _draw_trunk(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Random weights with sharp attention and small embeddings, so that hidden states of different texts are far from
    each other: any table of scores can be solved for, and a policy soon learns to tell histories apart."""
    width = model.config.hidden_size
    gains = {"embed": 0.05 * width**0.5, "q_proj": 4.0, "k_proj": 4.0, "gate_proj": 4.0, "up_proj": 4.0}
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            gain = next((gain for part, gain in gains.items() if part in name), 1.0)
            weight.data.normal_(0, gain / width**0.5, generator=generator)


def _config(letters: str, width: int, layers: int, **more: Any) -> LlamaConfig:
    sizes = {"hidden_size": width, "intermediate_size": width // 2, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 8, "num_key_value_heads": width // 8}
    return LlamaConfig(**sizes, **heads, **_tokens(letters), **more)


def _tokens(letters: str) -> dict[str, Any]:
    special = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    return {"vocab_size": len(letters) + 2, "max_position_embeddings": 64, "tie_word_embeddings": False} | special


def _save(model: Any, folder: Path, letters: str) -> Any:
    model.save_pretrained(folder)
    tokenizer_of(letters).save_pretrained(folder)
    return model
