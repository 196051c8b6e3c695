"""What `vs_trl.py` gives both trainers: a model folder and rows in TRL's format."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig
from transformers.utils import logging

from rmfast.checkpoint.export import choose_pad_token, write_tokenizer
from rmfast.data.example import BadRow, Example
from rmfast.data.rows import parse_row
from rmfast.data.sources import read_rows
from rmfast.data.store import TokenStore, build_store
from rmfast.data.table import GroupTable, build_table
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.models.config import decoder_config
from rmfast.models.hf import read_config

TOKENIZER = Path(__file__).resolve().parents[1] / "configs" / "quickstart" / "decoder"
SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
}


def prepare_model(source: str | None, folder: Path, seed: int) -> str:
    """Write the weights that all modes start from, with a reward head and a pad token that is not the eos.

    TRL would pad with the eos where the tokenizer does, and transformers then scores the token before it.

    Returns:
        What the model is, for the report.
    """
    logging.set_verbosity_error()  # a head that is drawn again is no news here
    logging.disable_progress_bar()
    if source is not None:
        decoder_config(read_config(source), source)  # refuses what rmfast cannot run
    tokenizer = load_tokenizer(source or TOKENIZER)
    config = AutoConfig.from_pretrained(source) if source else LlamaConfig(**SMOLLM2)
    config.num_labels = 1
    config.pad_token_id = choose_pad_token(tokenizer, config.vocab_size)
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
    torch.manual_seed(seed)  # of the head, or of everything
    if source:
        model = AutoModelForSequenceClassification.from_pretrained(source, config=config, dtype=torch.float32)
    else:
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    write_tokenizer(tokenizer, folder, config.pad_token_id)
    return Path(source).name if source else "SmolLM2-135M's shape, random weights, quickstart tokenizer"


def trl_row(example: Example, *, margin: bool) -> dict[str, Any]:
    """A pair in one of TRL's formats; a string answer to messages becomes an assistant turn. Other columns than the
    margin are left out, for both trainers."""
    edge = example.edges[0]
    answers = [example.responses[edge.better], example.responses[edge.worse]]
    if isinstance(example.prompt, list):
        answers = [[{"role": "assistant", "content": a}] if isinstance(a, str) else a for a in answers]
    suffix = "_ids" if isinstance(answers[0], list) and isinstance(answers[0][0], int) else ""
    row: dict[str, Any] = {} if example.prompt is None else {"prompt": example.prompt}
    row |= {f"chosen{suffix}": answers[0], f"rejected{suffix}": answers[1]}
    return row | ({"margin": edge.margin} if margin else {})


def prepare_rows(
    source: str, model: Path, out: Path, *, count: int, limits: dict[str, int], seed: int
) -> dict[str, Any]:
    """Draw `count` usable pairs and write them to `out`; statistics of their tokens.

    Args:
        limits: `max_length` and `tokens_per_pack` of `build_table`.

    Raises:
        UserError: there are not that many.
    """
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
    pairs = [row for row, kind in zip(pairs, kinds, strict=True) if kind == kinds[0]]  # TRL takes one format at a time
    random.Random(seed).shuffle(pairs)
    lines = [json.dumps(row) for row in pairs[: 4 * count + 64]]
    if not lines:
        raise UserError(f"{source}: no preference pair in it; rows need chosen and rejected (see benchmarks/README.md)")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    store, table = open_table(out, model, limits)
    if len(table) < count:
        raise UserError(
            f"{source}: {len(table)} usable pairs of at most {limits['max_length']} tokens, but {count} are asked for; "
            "lower --steps or --pairs-per-step, or raise --max-length"
        )
    rows = store.row[table.index[:count]]
    out.write_text("".join(f"{lines[row - 1]}\n" for row in rows), encoding="utf-8")
    store, table = open_table(out, model, limits)
    lengths = store.lengths()
    return {
        "pairs_in_source": len(pairs),
        "rows": len(table),
        "mean_prefix": float(store.prefix_length.mean()),
        "mean_chosen": float(lengths[0::2].mean()),
        "mean_rejected": float(lengths[1::2].mean()),
        "longest": int(lengths.max()),
        "sequence_tokens": int(table.sequences.sum()),
        "stored_tokens": int(table.stored.sum()),
    }


def open_table(rows: Path, model: Path, limits: dict[str, int]) -> tuple[TokenStore, GroupTable]:
    """The rows as rmfast reads them: tokenised, and the groups that it can train on."""
    store = build_store(str(rows), load_tokenizer(model), rows.parent / "cache", workers=1)
    return store, build_table([store], **limits)[0]  # type: ignore[arg-type]
