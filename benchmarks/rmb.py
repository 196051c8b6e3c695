"""RMB: rmfast's evaluation against transformers in padded batches, in CPU seconds of one thread and answer by answer.

    python -m benchmarks.rmb --data RMB_dataset [--model FOLDER] [--files 6] [--lists 12] [--out FILE.json]

transformers' side reads the benchmark's files itself and scores every row's answers in batches of 32 in file order,
padded on the right to the longest; rmfast computes each prompt and each distinct answer once. They take turns, a file
at a time, in fp32; tokenising counts on both sides. `--files 0 --lists 0` takes everything, pairs and best-of-n lists.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rmfast
from benchmarks.origin import origin, write_json
from benchmarks.steps.inputs import prepare_model
from rmfast.evaluation.scoring.score import score_table
from rmfast.evaluation.suites.base import Item, Result
from rmfast.evaluation.suites.find import find_suite
from rmfast.evaluation.suites.shared import results_of, share

BATCH = 32


@torch.no_grad()
def by_transformers(rows: Sequence[dict[str, Any]], model: Any, tokenizer: Any) -> tuple[list[np.ndarray], int, int]:
    """Rewards of each row's answers, the best first; tokens of the sequences, and those computed."""
    texts, sizes = [], []
    for row in rows:
        sides = [row["chosen"], row["reject"]] if "chosen" in row else [row["bon_best"], *row["loser_list"]]
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["conversation_input"]]
        chats = [[*turns, {"role": "assistant", "content": side["answer"]}] for side in sides]
        texts += [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        sizes.append(len(sides))
    scores: list[float] = []
    real = computed = 0
    for begin in range(0, len(texts), BATCH):
        given = {"padding": True, "add_special_tokens": False, "return_tensors": "pt"}
        batch = tokenizer(texts[begin : begin + BATCH], **given)
        scores += model(**batch).logits[:, 0].tolist()
        real += int(batch["attention_mask"].sum())
        computed += batch["input_ids"].numel()
    return np.split(np.array(scores), np.cumsum(sizes)[:-1]), real, computed


def by_rmfast(items: list[Item], model: rmfast.RewardModel) -> tuple[list[Result], int]:
    """Results of each item, and the tokens computed."""
    shared = share(items)
    table = model.table(shared.examples)
    scores = score_table(model.score_packs, table, budget=model.tokens_per_pack).mean(1)
    return results_of(items, shared, np.split(scores, table.first_response[1:-1])), int(table.stored.sum())


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and tokens of both sides on each file, and how far their rewards and verdicts differ."""
    torch.set_num_threads(1)
    name = prepare_model(args.model, folder / "model", 0, num_hidden_layers=args.layers)
    ours = rmfast.load(folder / "model", tokens_per_pack=args.tokens_per_pack)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    items = {item.label: item for item in find_suite("rmb").read(args.data).items}
    files = sorted(Path(args.data).rglob("*.json" if args.files == 0 else "BoN_set/**/*.json"))
    files = files[:: max(1, len(files) // (args.files or len(files)))][: args.files or None]
    found: list[dict[str, Any]] = []
    for file in [files[0], *files]:  # the first warms up
        rows = json.loads(file.read_text(encoding="utf-8"))[: args.lists or None]
        begin = time.process_time()
        wanted, real, padded = by_transformers(rows, theirs, tokenizer)
        middle = time.process_time()
        results, computed = by_rmfast([items[f"{file}:{number}"] for number in range(1, len(rows) + 1)], ours)
        end = time.process_time()
        rewards = [result.rewards for result in results if result.rewards is not None]
        right = [bool((reward[0] > reward[1:]).all()) for reward in wanted]
        found.append({
            "file": str(file.relative_to(args.data).with_suffix("")), "lists": len(rows),
            "sequences": sum(map(len, wanted)), "tokens": {"real": real, "computed": padded, "rmfast": computed},
            "transformers": middle - begin, "rmfast": end - middle,
            "difference": max(float(np.abs(a - b).max()) for a, b in zip(rewards, wanted, strict=True)),
            "verdicts_differ": sum(a != b.won for a, b in zip(right, results, strict=True)),
        })  # fmt: skip
        print(found[-1], flush=True)
    del found[0]
    total = {side: sum(row[side] for row in found) for side in ("transformers", "rmfast")}
    return origin() | {
        "model": name, "layers": args.layers, "batch": BATCH, "files": found, "seconds": total,
        "ratio": total["transformers"] / total["rmfast"],
        "median_ratio_by_file": median(row["transformers"] / row["rmfast"] for row in found),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the benchmark's folder RMB_dataset")
    parser.add_argument("--model", default="smollm2-135m", help="a shape or Hugging Face folder (default: %(default)s)")
    for name, default in (("files", 6), ("lists", 12), ("layers", 30), ("tokens-per-pack", 16384)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args)
    if args.out:
        write_json(args.out, result)
    verdicts = sum(row["verdicts_differ"] for row in result["files"])
    print(f"{result['ratio']:.2f} x: {result['seconds']}; median of the files {result['median_ratio_by_file']:.2f} x")
    print(f"{verdicts} verdicts differ, rewards by {max(row['difference'] for row in result['files']):.1e} at most")


if __name__ == "__main__":
    main()
