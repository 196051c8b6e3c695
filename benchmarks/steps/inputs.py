"""What all modes train on: a model of a named shape or of a folder, and pairs of random tokens or of a file."""

import json
import random
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig
from transformers.utils import logging

from benchmarks.lengths import draw_lengths
from benchmarks.origin import ROOT
from rmfast.checkpoint.export import choose_pad_token, write_tokenizer
from rmfast.data.example import BadRow, Example
from rmfast.data.loader import totals_of
from rmfast.data.rows import parse_row
from rmfast.data.sources import read_rows
from rmfast.data.store import TokenStore, build_store
from rmfast.data.table import GroupTable, build_table
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.models.config import decoder_config
from rmfast.models.hf import read_config
from rmfast.trainer.flops import step_flops

TOKENIZER = ROOT / "configs" / "quickstart" / "decoder"
SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": SMOLLM2 | {
        "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1,
    },
    "smollm2-135m": SMOLLM2,
    "llama-1b": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "tie_word_embeddings": True,
    },
}  # fmt: skip


def prepare_model(source: str, folder: Path, seed: int, **sizes: int) -> str:
    """Write the weights that all modes start from, with a reward head and a pad token that is not the eos: TRL would
    pad with the eos where the tokenizer does, and transformers then scores the token before it.

    Args:
        source: a name in SHAPES (random weights, the quickstart's tokenizer) or a Hugging Face folder.
        sizes: in place of the shape's.

    Returns:
        What the model is, for the report.
    """
    logging.set_verbosity_error()  # a head that is initialised is no news here
    logging.disable_progress_bar()
    shape = SHAPES.get(source)
    if shape is None:
        decoder_config(read_config(source), source)  # refuses what rmfast cannot run
    tokenizer = load_tokenizer(TOKENIZER if shape else source)
    config = LlamaConfig(**shape | sizes) if shape else AutoConfig.from_pretrained(source)
    config.num_labels = 1
    config.pad_token_id = choose_pad_token(tokenizer, config.vocab_size)
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
    torch.manual_seed(seed)  # of the head, or of everything
    kind = AutoModelForSequenceClassification
    if shape:
        model = kind.from_config(config, dtype=torch.float32)
    else:
        model = kind.from_pretrained(source, config=config, dtype=torch.float32)
    model.save_pretrained(folder)
    write_tokenizer(tokenizer, folder, config.pad_token_id)
    return f"{source} shape, random weights" if shape else Path(source).name


def trl_row(example: Example, *, margin: bool) -> dict[str, Any]:
    """A pair in one of TRL's formats; a string answer to messages becomes an assistant turn. Other columns than the
    margin are left out, for all modes."""
    edge = example.edges[0]
    answers = [example.responses[edge.better], example.responses[edge.worse]]
    if isinstance(example.prompt, list):
        answers = [[{"role": "assistant", "content": a}] if isinstance(a, str) else a for a in answers]
    suffix = "_ids" if isinstance(answers[0], list) and isinstance(answers[0][0], int) else ""
    row: dict[str, Any] = {} if example.prompt is None else {"prompt": example.prompt}
    row |= {f"chosen{suffix}": answers[0], f"rejected{suffix}": answers[1]}
    return row | ({"margin": edge.margin} if margin else {})


def read_pairs(source: str) -> list[dict[str, Any]]:
    """The pairs of a source as TRL's rows, those in the format of the first: TRL takes one at a time."""
    pairs = []
    for _, _, row in read_rows(source):
        if isinstance(row, BadRow):
            continue
        try:
            example = parse_row(row)
        except BadRow:
            continue
        if len(example.responses) == 2 and len(example.edges) == 1:
            pairs.append(trl_row(example, margin=row.get("margin") is not None))
    kinds = [{name: type(value) for name, value in row.items()} for row in pairs]
    return [row for row, kind in zip(pairs, kinds, strict=True) if kind == kinds[0]]


def draw_rows(source: str, model: Path, out: Path, *, count: int, limits: dict[str, int], seed: int) -> int:
    """Draw `count` usable pairs and write them to `out`; how many the source has.

    Args:
        limits: `max_length` and `tokens_per_pack` of `build_table`.

    Raises:
        UserError: there are not that many.
    """
    pairs = read_pairs(source)
    random.Random(seed).shuffle(pairs)
    lines = [json.dumps(row) + "\n" for row in pairs[: 4 * count + 64]]
    if not lines:
        raise UserError(f"{source}: no preference pair in it; rows need chosen and rejected (see benchmarks/README.md)")
    out.write_text("".join(lines), encoding="utf-8")
    store, table = open_table(out, model, limits)
    if len(table) < count:
        raise UserError(
            f"{source}: {len(table)} usable pairs of at most {limits['max_length']} tokens, but {count} are asked for; "
            "lower --steps or --pairs-per-step, or raise --max-length"
        )
    out.write_text("".join(lines[row - 1] for row in store.row[table.index[:count]]), encoding="utf-8")
    return len(pairs)


def open_table(rows: Path, model: Path, limits: dict[str, int]) -> tuple[TokenStore, GroupTable]:
    """The rows as rmfast reads them: tokenised, and the groups that it can train on."""
    store = build_store(str(rows), load_tokenizer(model), rows.parent / "cache", workers=1)
    return store, build_table([store], **limits)[0]  # type: ignore[arg-type]


def write_rows(path: Path, lengths: np.ndarray, vocabulary: int, seed: int, pad: int | None = None) -> None:
    """Prompts with responses of random token ids and these lengths [rows, 1 + responses]; the first is the chosen one.

    It takes even ids and the others odd: there is something to learn, and the prompt is all that they share.
    """
    draw = np.random.default_rng(seed)
    ids = np.setdiff1d(np.arange(16, vocabulary), [] if pad is None else [pad])
    even, odd = ids[ids % 2 == 0], ids[ids % 2 == 1]
    with path.open("w", encoding="utf-8") as file:
        for prompt, chosen, *rejected in lengths.tolist():
            shared = draw.choice(ids, prompt).tolist()
            row = {"chosen_ids": shared + draw.choice(even, chosen).tolist()}
            others = [shared + draw.choice(odd, size).tolist() for size in rejected]
            row["rejected_ids"] = others if len(others) > 1 else others[0]
            file.write(json.dumps(row) + "\n")


def sort_within_steps(rows: Path, out: Path, longest: np.ndarray, pairs: int) -> None:
    """The same rows with each step's pairs in descending order of their longer sequence."""
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    order = [first + i for first in range(0, len(lines), pairs)
             for i in np.argsort(-longest[first : first + pairs], kind="stable").tolist()]  # fmt: skip
    out.write_text("".join(lines[i] for i in order), encoding="utf-8")


def prepare(args: Any, scratch: Path, *, warm_up: int, extra: int) -> tuple[str, dict[str, Any], dict[str, float]]:
    """model, rows.jsonl and sorted.jsonl in `scratch`, for `args.steps` steps and `extra` that are not timed.

    Returns:
        What the model and the data are, and of the timed steps: the median FLOPs and tokens of sequences (prompts
        repeated), which belong to the median seconds, and `sequence_tokens`, their mean.
    """
    model, rows = scratch / "model", scratch / "rows.jsonl"
    name = prepare_model(args.model, model, args.seed)
    config = json.loads((model / "config.json").read_text())
    count, source = (args.steps + extra) * args.pairs_per_step, args.data
    if source is None:
        source = str(scratch / "drawn.jsonl")
        drawn = draw_lengths(args.lengths, count + 64, args.seed)
        write_rows(Path(source), drawn, config["vocab_size"], args.seed, config["pad_token_id"])
    limits = {"max_length": args.max_length, "tokens_per_pack": args.tokens_per_pack}
    found = draw_rows(source, model, rows, count=count, limits=limits, seed=args.seed)
    store, table = open_table(rows, model, limits)
    lengths = store.lengths()
    data = {
        "pairs_in_source": found, "rows": len(table), "mean_prefix": float(store.prefix_length.mean()),
        "mean_chosen": float(lengths[0::2].mean()), "mean_rejected": float(lengths[1::2].mean()),
        "longest": int(lengths.max()),
    }  # fmt: skip
    longest = np.array([max(map(len, table.sequences_of(group))) for group in range(len(table))])
    sort_within_steps(rows, scratch / "sorted.jsonl", longest, args.pairs_per_step)
    shape = decoder_config(read_config(model))
    steps = np.arange(count).reshape(-1, args.pairs_per_step)[warm_up : args.steps]
    totals = [totals_of(table, step) for step in steps]
    tokens = [total.sequence_tokens for total in totals]
    flops = median(step_flops(shape, total) for total in totals)
    return name, data, {"flops": flops, "tokens": median(tokens), "sequence_tokens": fmean(tokens)}
