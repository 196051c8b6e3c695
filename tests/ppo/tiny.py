"""Tiny runs of PPO for tests: a policy and a reward model over sixteen words, prompts, and what a run left behind."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rmfast.checkpoint.store import list_checkpoints, open_checkpoint
from tests.runs import arguments, final_weights, read_lines

WORDS = ["<eos>", "<pad>", *"abcdefghijklmn"]
STEPS = 3

TIMES = {"step_seconds", "tokens_per_second", "answers_per_second", "sampling_share"}
TIMES |= {"memory_gib", "memory_reserved_gib", "alloc_retries"}
TIMES |= {f"memory_{phase}_gib" for phase in ("sampling", "scoring", "reading", "updating")}
COMPANY = {"sampler_gap", "sampler_gap_max", "kept_mass"}
"""Figures of the sampler's log-probabilities, which depend by rounding on the rows that were drawn beside: those of a
run that was killed there are drawn beside others."""


def write_inputs(folder: Path, *, layers: int = 2, more_words: int = 0) -> Path:
    """Folders policy, reward and other (another reward model), 24 prompts, and 6 others that are held out."""
    words = [*WORDS, *(f"w{i}" for i in range(more_words))]
    letters = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<eos>", pad_token="<pad>")
    for seed, (name, kind) in enumerate(
        {"policy": LlamaForCausalLM, "reward": LlamaForSequenceClassification, "other": LlamaForSequenceClassification}
        .items()
    ):  # fmt: skip
        torch.manual_seed(seed)
        model = kind(
            LlamaConfig(
                vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
                num_attention_heads=4, num_key_value_heads=2, eos_token_id=0, pad_token_id=1, bos_token_id=None,
                tie_word_embeddings=False, initializer_range=0.1, num_labels=1,
            )
        )  # fmt: skip
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    if more_words:  # some of which end answers, as the eos alone is rarely drawn
        ends = json.dumps({"eos_token_id": list(range(0, len(words), 8))})
        (folder / "policy" / "generation_config.json").write_text(ends)
    for name, count, start in (("prompts", 24, 0), ("held_out", 6, 5)):
        rows = [
            {"prompt": " ".join(WORDS[2 + (i * 7 + j * 3 + start) % 14] for j in range(1 + i % 4))}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(folder: Path, run: str, **more: object) -> list[str]:
    """Three steps of 4 prompts with 3 answers of up to 6 tokens, in packs of 64, the first one the critic's alone."""
    keys: dict[str, object] = {
        "task": "ppo",
        "model__path": folder / "policy",
        "ppo__reward": folder / "reward",
        "ppo__prompts": folder / "prompts.jsonl",
        "ppo__eval_prompts": folder / "held_out.jsonl",
        "ppo__prompts_per_step": 4,
        "ppo__samples": 3,
        "ppo__minibatches": 2,
        "ppo__epochs": 2,
        "ppo__max_new_tokens": 6,
        "ppo__critic_warmup": 1,
        "data__max_length": 32,
        "data__tokens_per_pack": 64,
        "data__cache": folder / "cache",
        "optim__lr": 1e-2,
        "run__dir": folder / run,
        "run__max_steps": STEPS,
        "run__tensorboard": False,
        "checkpoint__every": 2,
        "eval__every": 2,
        "parallel__timeout_minutes": 1,
    }
    return arguments(**(keys | more))


def steps_of(run: Path, but: set[str] = TIMES) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without some figures."""
    return [{key: value for key, value in line.items() if key not in but} for line in read_lines(run / "metrics.jsonl")]


def drawn_of(run: Path) -> dict[str, list[list[list[int]]]]:
    """The answers of each rollout as token ids: by file, prompt and answer."""
    files = sorted((run / "rollouts").glob("*.jsonl"))
    return {f.name: [[sample["ids"] for sample in line["samples"]] for line in read_lines(f)] for f in files}


def state_of(run: Path) -> dict[str, Any]:
    """All tensors of the newest checkpoint, and what else it goes on from."""
    newest = list_checkpoints(run / "checkpoints")[-1]
    with open_checkpoint(newest) as (read, shapes):
        tensors = {name: read(name, 0, shape[0]) for name, shape in shapes.items()}
    return {**tensors, "progress": json.loads((newest / "manifest.json").read_text())["progress"]}


def assert_same_run(run: Path, other: Path) -> None:
    """Two runs did the same to the bit, but for times and what depends on the company in which tokens were drawn."""
    assert drawn_of(run) == drawn_of(other)
    assert steps_of(run, TIMES | COMPANY) == steps_of(other, TIMES | COMPANY)
    for ours, theirs in zip(read_lines(run / "metrics.jsonl"), read_lines(other / "metrics.jsonl"), strict=True):
        assert all(abs(ours[key] - theirs[key]) < 1e-5 for key in COMPANY)
    assert read_lines(run / "eval.jsonl") == read_lines(other / "eval.jsonl")
    state, truth = state_of(run), state_of(other)
    assert state.keys() == truth.keys() and {"critic/model/head.weight", "ppo/moments", "ppo/kl"} <= state.keys()
    for name, value in state.items():
        assert torch.equal(value, truth[name]) if isinstance(value, torch.Tensor) else value == truth[name], name
    for weights, expected in ((final_weights(run), final_weights(other)), (critic_of(run), critic_of(other))):
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())


def critic_of(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "critic" / "model.safetensors")
