"""What `train_throughput.py` trains on: a model of a named shape, pairs of named lengths, and the work they need."""

import argparse
import json
from pathlib import Path
from statistics import fmean, median
from typing import Any
from unittest import mock

import numpy as np
import vs_trl_inputs
from lengths import draw_lengths
from vs_trl import WARM_UP
from vs_trl_inputs import SMOLLM2, open_table, prepare_model, prepare_rows

from rmfast.data.loader import totals_of
from rmfast.models.config import decoder_config
from rmfast.models.hf import read_config
from rmfast.trainer.flops import step_flops

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": SMOLLM2
    | {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.1,
    },
    "smollm2-135m": SMOLLM2,
    "llama-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": True,
    },
}


def write_pairs(path: Path, lengths: np.ndarray, vocabulary: int, forbidden: int, seed: int) -> None:
    """Pairs of random token ids with these lengths [pairs, 3]; chosen answers take even ids and rejected ones odd,
    so that there is something to learn. `forbidden` is the pad token."""
    draw = np.random.default_rng(seed)
    ids = np.delete(np.arange(16, vocabulary), np.flatnonzero(np.arange(16, vocabulary) == forbidden))
    even, odd = ids[ids % 2 == 0], ids[ids % 2 == 1]
    with path.open("w") as file:
        for prompt, chosen, rejected in lengths.tolist():
            shared = draw.choice(ids, prompt).tolist()
            answers = (draw.choice(even, chosen).tolist(), draw.choice(odd, rejected).tolist())
            row = {name: shared + answer for name, answer in zip(("chosen_ids", "rejected_ids"), answers, strict=True)}
            file.write(json.dumps(row) + "\n")


def sort_within_steps(rows: Path, out: Path, longest: np.ndarray, pairs: int) -> None:
    """The same rows with each step's pairs in descending order of their longer sequence."""
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    order = [first + i for first in range(0, len(lines), pairs)
             for i in np.argsort(-longest[first : first + pairs], kind="stable").tolist()]  # fmt: skip
    out.write_text("".join(lines[i] for i in order), encoding="utf-8")


def prepare(args: argparse.Namespace, scratch: Path, extra: int) -> tuple[str, dict[str, Any], dict[str, float]]:
    """Model, rows and sorted rows in `scratch`, for `extra` more steps than are timed.

    Returns:
        What the model and the data are, and of the timed steps: the median FLOPs and tokens of sequences (prompts
        repeated), which belong to the median seconds, and `sequence_tokens`, their mean.
    """
    model, rows = scratch / "model", scratch / "rows.jsonl"
    if args.model in SHAPES:
        with mock.patch.dict(vs_trl_inputs.SMOLLM2, SHAPES[args.model], clear=True):
            prepare_model(None, model, args.seed)
        name = f"{args.model} shape, random weights"
    else:
        name = prepare_model(args.model, model, args.seed)
    config = json.loads((model / "config.json").read_text())
    count, source = (args.steps + extra) * args.pairs_per_step, args.data
    if source is None:
        source = str(scratch / "drawn.jsonl")
        lengths = draw_lengths(args.lengths, count + 64, args.seed)
        write_pairs(Path(source), lengths, config["vocab_size"], config["pad_token_id"], args.seed)
    limits = {"max_length": args.max_length, "tokens_per_pack": args.tokens_per_pack}
    about = prepare_rows(source, model, rows, count=count, limits=limits, seed=args.seed)
    _, table = open_table(rows, model, limits)
    longest = np.array([max(map(len, table.sequences_of(group))) for group in range(len(table))])
    sort_within_steps(rows, scratch / "sorted.jsonl", longest, args.pairs_per_step)
    shape = decoder_config(read_config(model))
    timed = np.arange(count).reshape(-1, args.pairs_per_step)[WARM_UP : args.steps]
    totals = [totals_of(table, step) for step in timed]
    step = {
        "flops": median(step_flops(shape, t) for t in totals),
        "tokens": median(t.sequence_tokens for t in totals),
        "sequence_tokens": fmean(t.sequence_tokens for t in totals),
    }
    return name, about, step
