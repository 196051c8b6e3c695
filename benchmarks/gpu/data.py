"""The data and the model of the real runs, made ready in scratch once on a machine."""

import gzip
import json
import random
import tarfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import ROOT, Call

HH = "hh-rlhf/harmless_base_test.jsonl.gz"
ALPACA = "alpaca_eval/v1_gpt4_vs_davinci003_balanced_{}.jsonl.gz"
RMB = "rmb_sample.tar.gz"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "home", "by", "sea", "with", "two", "red", "birds"]
_lock = threading.Lock()


@dataclass(frozen=True)
class Ready:
    """Files: pairs to train and to test on, answers of many models in two parts, the benchmark RMB (None at the tiny
    size), and the decoder."""

    hh_train: Path
    hh_test: Path
    alpaca_train: Path
    alpaca_test: Path
    rmb: Path | None
    model: Path


def prepare(call: Call) -> Ready:
    """All of it; what is there already is not made again."""
    settings = call.settings
    with _lock:
        folder = call.folder("data")
        hh = {split: folder / f"hh_{split}.jsonl" for split in ("train", "test")}
        if settings.tiny or settings.data is None:
            alpaca = {split: folder / f"answers_{split}.jsonl" for split in ("train", "test")}
            if not hh["train"].is_file():
                for split, path in hh.items():
                    with gzip.open(ROOT / "configs" / "quickstart" / f"{split}.jsonl.gz", "rt") as lines:
                        rows = [json.loads(line) for _, line in zip(range(400), lines, strict=False)]
                    short = [row for row in rows if len(json.dumps(row)) < 900][:72]
                    write(path, [row for row in short if isinstance(row["chosen"], str)])
                for seed, path in enumerate(alpaca.values()):
                    write(path, answers(5, seed))
            return Ready(hh["train"], hh["test"], alpaca["train"], alpaca["test"], None, tiny_model(call))
        if not hh["train"].is_file():
            with gzip.open(settings.data / HH, "rt", encoding="utf-8") as lines:
                rows = [json.loads(line) for line in lines]
            for split in ("test", "train"):
                write(hh[split], [row for row in rows if row["meta"]["split"] == split])
        rmb = folder / "rmb"
        if not rmb.is_dir():
            with tarfile.open(settings.data / RMB) as archive:
                archive.extractall(folder / "rmb.partial", filter="data")
            (folder / "rmb.partial").rename(rmb)
        assert settings.model is not None
        train, test = (settings.data / ALPACA.format(split) for split in ("train", "test"))
        (inside,) = rmb.iterdir()
        return Ready(hh["train"], hh["test"], train, test, inside, settings.model)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def answers(prompts: int, seed: int) -> list[dict[str, Any]]:
    """Six models' answers of random words to each instruction, set against a baseline's."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(3, 9)))

    rows = []
    for number in range(prompts):
        prompt, base = [{"role": "user", "content": f"{text()} {number}"}], text()
        for model in range(6):
            wins = draw.random() < 0.5
            sides = [(f"{text()} {model}", f"model {model}"), (base, "base")]
            (chosen, winner), (rejected, loser) = sides if wins else sides[::-1]
            meta = {"chosen_model": winner, "rejected_model": loser}
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "meta": meta})
    return rows


def tiny_model(call: Call) -> Path:
    """A random Llama of two layers with the quickstart's tokenizer."""
    folder = call.settings.scratch / "tiny_model"
    if not folder.is_dir():
        call.python("benchmarks.gpu.tiny_model", folder)
    return folder
