"""RMB's best-of-n lists: rmfast's evaluation against transformers in padded batches, in CPU seconds of one thread.

Usage: `python benchmarks/rmb_throughput.py --data RMB_dataset [--model FOLDER] [--lists N] [--out FILE.json]`

Both score the same answers to the same chat prompts in fp32: transformers every list's answers in batches of 32 in file
order, padded on the right to the longest; rmfast each prompt and each distinct answer once. They take turns, a file of
the benchmark at a time; tokenising counts on both sides. Without --model: SmolLM2-135M's shape with random weights and
the quickstart tokenizer.
"""

import argparse
import json
import statistics
import tempfile
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from part2_cost import cpu
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from vs_trl import commit
from vs_trl_inputs import SMOLLM2, prepare_model

import rmfast
from rmfast.evaluation.scoring.score import score_table
from rmfast.evaluation.suites.base import Item, Result
from rmfast.evaluation.suites.find import find_suite
from rmfast.evaluation.suites.shared import results_of, share

BATCH = 32


@torch.no_grad()
def by_transformers(
    items: list[Item], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[np.ndarray], dict[str, int]]:
    """Rewards of each item, and the tokens that were there and computed."""
    sequences = [
        tokenizer.apply_chat_template(item.example.conversation(answer), tokenize=False)
        for item in items
        for answer in item.example.responses
    ]
    scores: list[float] = []
    tokens = {"real": 0, "computed": 0}
    for begin in range(0, len(sequences), BATCH):
        texts = sequences[begin : begin + BATCH]
        batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        scores += model(**batch).logits[:, 0].tolist()
        tokens["real"] += int(batch["attention_mask"].sum())
        tokens["computed"] += batch["input_ids"].numel()
    sizes = np.cumsum([len(item.example.responses) for item in items])
    return np.split(np.array(scores), sizes[:-1]), tokens


def by_rmfast(items: list[Item], model: rmfast.RewardModel) -> tuple[list[Result], int]:
    """Results of each item, and the tokens computed."""
    shared = share(items)
    table = model.table(shared.examples)
    scores = score_table(model.score_packs, table, budget=model.tokens_per_pack).mean(1)
    return results_of(items, shared, np.split(scores, table.first_response[1:-1])), int(table.stored.sum())


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and tokens of both sides on each file, and how far their scores differ."""
    torch.set_num_threads(1)
    SMOLLM2["num_hidden_layers"] = args.layers
    name = prepare_model(args.model, folder / "model", seed=0)
    ours = rmfast.load(folder / "model", tokens_per_pack=args.tokens_per_pack)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    lists = [item for item in find_suite("rmb").read(args.data).items if item.part == "best-of-n"]
    files = [list(own)[: args.lists] for _, own in groupby(lists, key=lambda item: item.path)]
    files = files[:: max(1, len(files) // args.files)][: args.files]
    rows = []
    by_transformers(files[0][:4], theirs, tokenizer)  # warms up
    by_rmfast(files[0][:4], ours)
    for items in files:
        begin = time.process_time()
        wanted, tokens = by_transformers(items, theirs, tokenizer)
        middle = time.process_time()
        found, computed = by_rmfast(items, ours)
        end = time.process_time()
        difference = max(float(np.abs(f.rewards - w).max()) for f, w in zip(found, wanted, strict=True))
        right = [bool((w[0] > w[1:]).all()) for w in wanted]
        rows.append(
            {
                "file": "/".join(items[0].path), "lists": len(items),
                "sequences": sum(len(item.example.responses) for item in items),
                "tokens": tokens | {"rmfast": computed},
                "transformers": middle - begin, "rmfast": end - middle, "difference": difference,
                "verdicts_differ": sum(r != f.won for r, f in zip(right, found, strict=True)),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    total = {side: sum(row[side] for row in rows) for side in ("transformers", "rmfast")}
    return {
        "model": name, "layers": args.layers, "batch": BATCH, "files": rows, "seconds": total,
        "ratio": total["transformers"] / total["rmfast"],
        "median_ratio_by_file": statistics.median(row["transformers"] / row["rmfast"] for row in rows),
        "machine": {"device": cpu(), "threads": 1, "torch": torch.__version__, "commit": commit()},
    }  # fmt: skip


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the benchmark's folder RMB_dataset")
    parser.add_argument("--model", help="Hugging Face folder; default: SmolLM2-135M's shape")
    for name, default in (("files", 6), ("lists", 12), ("layers", 30), ("tokens-per-pack", 16384)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['ratio']:.2f} x: {result['seconds']}; median of the files {result['median_ratio_by_file']:.2f} x")


if __name__ == "__main__":
    main()
