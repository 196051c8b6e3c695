"""Reward servers in processes of their own, and texts to ask them for."""

import itertools
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.origin import ROOT
from rmfast.data.sources import read_rows

DATA = ROOT / "configs" / "quickstart" / "train.jsonl.gz"
LONGEST = 512  # tokens of a text


@dataclass(frozen=True)
class Text:
    """A prompt and a response, and the whole as it is asked for."""

    prompt: str
    response: str

    @property
    def query(self) -> str:
        return self.prompt + self.response


@dataclass(frozen=True, eq=False)
class Running:
    """A server's process and where it listens."""

    process: psutil.Process
    url: str

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def memory(self) -> int:
        """Resident bytes."""
        return int(self.process.memory_info().rss)


@contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[Running]:
    """A server of one thread, from its first answer on, until the block ends."""
    with log.open("w") as out:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{command}: {log.read_text()[-500:]}")
            try:
                body = json.dumps({"query": ["a"]}).encode()
                urllib.request.urlopen(urllib.request.Request(f"{url}/get_reward", body)).read()
                break
            except OSError:
                time.sleep(0.5)
        yield Running(psutil.Process(process.pid), url)
    finally:
        process.terminate()
        process.wait()


def rmfast_server(model: str, port: int, *more: str) -> list[str]:
    """The command of rmfast's server."""
    return [sys.executable, "-m", "rmfast.cli", "serve", model, "--port", str(port), "--timeout", "3600", *more]


def padded_server(model: str, port: int) -> list[str]:
    """The command of the one to compare with."""
    return [sys.executable, "-m", "benchmarks.serve.padded", model, str(port)]


def write_reward(model: str, folder: Path, pad: str = "<|endoftext|>") -> str:
    """A reward model of a decoder's weights with a random head, in fp32.

    Its pad token ends no sequence, or transformers would score the token before the last where rmfast scores the last.
    """
    torch.manual_seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(model, pad_token=pad)
    options: dict[str, Any] = {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id, "dtype": torch.float32}
    AutoModelForSequenceClassification.from_pretrained(model, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def texts(model: str, *, prompts: int, answers: int, seed: int = 0) -> list[Text]:
    """So many answers to each of some prompts of human preferences, in random order, as a policy's tokens are decoded.

    A row has two answers; what more is asked for are other rows', whose lengths are as real.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    rows = [row for _, _, row in read_rows(str(DATA), "train") if isinstance(row, dict) and "chosen" in row]
    draw = random.Random(seed)
    draw.shuffle(rows)
    others = itertools.cycle([row["chosen"] for row in reversed(rows)])
    found: list[Text] = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        many = [row["chosen"], row["rejected"], *itertools.islice(others, max(0, answers - 2))][:answers]
        whole = [Text(prompt, answer + tokenizer.eos_token) for answer in many]
        if max(len(tokenizer(text.query)["input_ids"]) for text in whole) <= LONGEST:
            found += whole
        if len(found) == prompts * answers:
            break
    draw.shuffle(found)
    return found
