"""One process of `benchmarks.prepare`: makes a file ready for training with the code that it finds, and says its cost.

    python prepare_worker.py rmfast|trl FILE MODEL WORKERS

It prints a line of JSON: CPU seconds of imports, of loading the tokenizer, and of the data (read, rendered, tokenised,
kept on disk; processes that were started count), and a hash of all token ids in the rows' order.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable

import numpy as np


def spent() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def hashed(sequences: Iterable[object]) -> str:
    """Of the ids of sequences, one after another."""
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(np.asarray(ids, dtype=np.int32).tobytes() + b"|")
    return digest.hexdigest()


def rmfast(file: str, model: str, workers: int) -> dict[str, object]:
    """What `rmfast` takes: a token store in a new cache."""
    begin = spent()
    from rmfast.data.store import build_store
    from rmfast.data.tokenizer import load_tokenizer

    imported = spent()
    tokenizer = load_tokenizer(model)
    loaded = spent()
    with tempfile.TemporaryDirectory() as cache:
        store = build_store(file, tokenizer, cache, workers=workers)
        prepared = spent()
        ids = hashed(store.sequence(g, r) for g in range(len(store)) for r in range(2))
    return took(begin, imported, loaded, prepared) | {"rows": len(store), "ids": ids}


def trl(file: str, model: str, workers: int) -> dict[str, object]:
    """What TRL's `RewardTrainer` takes for the same rows; without its limit of length, so that it keeps all."""
    begin = spent()
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    imported = spent()
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = spent()
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("json", data_files=file, split="train", cache_dir=cache)
        options = {"output_dir": cache, "max_length": None, "report_to": [], "use_cpu": True}
        config = RewardConfig(**options, dataset_num_proc=None if workers == 1 else workers)
        made = RewardTrainer._prepare_dataset(None, rows, tokenizer, config, "train")
        prepared = spent()
        ids = hashed(row[side] for row in made for side in ("chosen_ids", "rejected_ids"))
    return took(begin, imported, loaded, prepared) | {"rows": len(made), "ids": ids}


def took(begin: float, imported: float, loaded: float, prepared: float) -> dict[str, object]:
    """CPU seconds of the parts."""
    return {"imports": imported - begin, "tokenizer": loaded - imported, "data": prepared - loaded}


if __name__ == "__main__":
    side, file, model, workers = sys.argv[1:]
    print(json.dumps({"rmfast": rmfast, "trl": trl}[side](file, model, int(workers))))
