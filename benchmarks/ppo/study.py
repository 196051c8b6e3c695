"""PPO against a reward model, as seen by a gold one: PPO-max, plain PPO, and PPO-max against an ensemble's worst case.

    python -m benchmarks.ppo.study --folder runs/ppo_study --json OUT [--workers 2] [--seeds 3] [--steps 40]

Supervised fine-tuning of a small decoder; an ensemble of reward models, top layers over its trunk, on half of the
preferences; a gold reward model on the other half, which only watches; then the policies, adapters of the decoder, each
with several seeds. All are runs of rmfast/train.py in `--folder`: the same command goes on where it was stopped. The
curves are added to `--json` as runs end: by step, mean and 95 % interval over held-out prompts of gold, reward and KL. A
run that the file has from the same models is not run again, on another machine either.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.origin import ROOT, origin, write_json
from tests.runs import arguments, read_lines

TRAIN, HELD_OUT = (ROOT / "configs" / "quickstart" / f"{name}.jsonl.gz" for name in ("train", "test"))
PROMPTS, SAMPLES, TOKENS, LONGEST = 16, 4, 24, 48
MEMBERS, LAYERS = 3, 4
LORA: dict[str, Any] = {"model__adapter": "lora", "model__lora_rank": 16}
STEP: dict[str, Any] = {"data__pairs_per_step": 16, "data__tokens_per_pack": 2048, "optim__warmup": 0.1, "run__epochs": 1}
MAX: dict[str, Any] = {"ppo__preset": "ppo_max", "ppo__critic_warmup": 5}
METHODS: dict[str, dict[str, Any]] = {
    "PPO-max": MAX,
    "plain PPO": {"ppo__preset": "ppo"},
    "PPO-max, worst of an ensemble": MAX | {"ppo__reward_rule": "worst"},
}


@dataclass(frozen=True)
class Study:
    """Where a study is, and its size."""

    folder: Path
    model: str
    steps: int
    seeds: int

    def halves(self) -> tuple[Path, Path]:
        """The preferences in two files, by their prompts: the proxies' and gold's."""
        files = self.folder / "proxy.jsonl", self.folder / "gold.jsonl"
        parts: tuple[list[str], list[str]] = ([], [])
        with gzip.open(TRAIN, "rt", encoding="utf-8") as lines:
            for line in lines:
                prompt = json.dumps(json.loads(line)["prompt"])
                parts[zlib.crc32(prompt.encode()) % 2].append(line)
        for file, part in zip(files, parts, strict=True):
            file.write_text("".join(part), encoding="utf-8")
        return files

    def run(self, name: str, **keys: Any) -> list[str]:
        """Arguments of a run in `folder/name`."""
        common = {
            "run__dir": self.folder / name, "run__threads": 1, "run__tensorboard": False, "run__log_every": 10,
            "data__cache": self.folder / "cache", "checkpoint__every": 10, "checkpoint__keep": 1,
        }  # fmt: skip
        return arguments(**common | keys)

    def sft(self) -> list[str]:
        return self.run("sft", task="sft", model__path=self.model, data__train=TRAIN, data__max_length=128,
                        optim__lr=2e-4, **STEP, **LORA)  # fmt: skip

    def rewards(self) -> dict[str, list[str]]:
        """The proxies and gold, which nothing trains on each other's preferences."""
        proxy, gold = self.halves()
        common = {"model__path": self.folder / "sft" / "model", "data__eval": HELD_OUT, "data__max_length": 256} | STEP
        return {
            "members": self.run("members", task="ensemble", ensemble__members=MEMBERS, ensemble__mode="top_layers",
                                model__top_layers=LAYERS, data__train=proxy, optim__lr=5e-5, **common),
            "gold": self.run("gold", task="reward", data__train=gold, optim__lr=2e-4, **common, **LORA),
        }  # fmt: skip

    def policies(self) -> dict[str, list[str]]:
        """The runs of PPO by name: method and seed."""
        found = {}
        proxies = [str(self.folder / "members" / "members" / f"{n:02}" / "model") for n in range(MEMBERS)]
        for seed in range(self.seeds):
            for number, (method, keys) in enumerate(METHODS.items()):
                found[f"{method}, seed {seed}"] = self.run(
                    f"ppo-{number}-{seed}", task="ppo", model__path=self.folder / "sft" / "model",
                    ppo__reward=tuple(proxies if "ppo__reward_rule" in keys else proxies[:1]),
                    ppo__gold=self.folder / "gold" / "adapter", ppo__critic="policy",
                    ppo__prompts=TRAIN, ppo__eval_prompts=HELD_OUT, ppo__prompts_per_step=PROMPTS,
                    ppo__samples=SAMPLES, ppo__max_new_tokens=TOKENS, ppo__truncated="zero",
                    data__max_length=LONGEST + TOKENS, data__tokens_per_pack=2048, optim__lr=1e-4,
                    optim__schedule="constant", run__max_steps=self.steps, run__seed=seed, eval__every=10,
                    **LORA | keys,
                )  # fmt: skip
        return found

    def models(self) -> str:
        """Of the weights that every policy begins with and learns from."""
        folders = [self.folder / "sft" / "model", self.folder / "gold" / "model"]
        folders += [self.folder / "members" / "members" / f"{n:02}" / "model" for n in range(MEMBERS)]
        digest = blake2b(digest_size=8)
        for file in (file for folder in folders for file in sorted(folder.glob("*.safetensors"))):
            digest.update(file.read_bytes())
        return digest.hexdigest()


def folder_of(command: Sequence[str]) -> Path:
    return Path(command[command.index("--run.dir") + 1])


def train(command: Sequence[str], folder: Path) -> None:
    """Run it to its end, if it is not there yet; what it says is in the folder's log.

    Raises:
        RuntimeError: it failed.
    """
    run = folder_of(command)
    if (run / "summary.json").is_file():
        return
    log = folder / f"{run.name}.log"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("a") as out:
        words = [sys.executable, str(ROOT / "rmfast" / "train.py"), *command]
        code = subprocess.run(words, cwd=ROOT, env=environment, stdout=out, stderr=out).returncode
    if code:
        raise RuntimeError(f"{run}: ended with {code}; see {log}")
    print(f"{run}: done", flush=True)


def curve(run: Path) -> list[dict[str, Any]]:
    """A run's evaluations: by step gold, proxy, KL, length and cut answers, with their intervals."""
    names = ("reward", "gold", "kl", "length", "entropy")
    keys = ["step", "cut_share", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))]
    return [{key: line[key] for key in keys if key in line} for line in read_lines(run / "eval.jsonl")]


def accuracy(study: Study) -> dict[str, float]:
    """Of gold and of each proxy on held-out preferences."""
    members = [study.folder / "members" / "members" / f"{n:02}" for n in range(MEMBERS)]
    return {folder.name: read_lines(folder / "eval.jsonl")[-1]["accuracy"] for folder in (study.folder / "gold", *members)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/ppo_study"), help="of all runs")
    add("--model", default="models/SmolLM2-135M-Instruct", help="the decoder that all begins with")
    add("--steps", type=int, default=40, help="iterations of each policy")
    add("--seeds", type=int, default=3, help="of each method")
    add("--workers", type=int, default=2, help="runs at a time, each on a thread")
    add("--json", type=Path, required=True, help="the file that curves are added to")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    study = Study(args.folder.resolve(), str(Path(args.model).resolve()), args.steps, args.seeds)
    train(study.sft(), study.folder)
    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(lambda command: train(command, study.folder), study.rewards().values()))
        size = {"prompts": PROMPTS, "samples": SAMPLES, "tokens": TOKENS, "longest": LONGEST, "steps": args.steps}
        facts = {"models": study.models(), **size}
        runs = json.loads(args.json.read_text())["runs"] if args.json.is_file() else {}
        writing = Lock()

        def follow(name: str, command: Sequence[str]) -> None:
            if {key: runs.get(name, {}).get(key) for key in facts} == facts:
                return
            train(command, study.folder)
            with writing:
                runs[name] = {"origin": origin(), **facts, "curve": curve(folder_of(command))}
                ordered = {name: runs[name] for name in study.policies() if name in runs}
                write_json(args.json, {"accuracy": accuracy(study), "runs": ordered})

        list(pool.map(follow, *zip(*study.policies().items(), strict=True)))


if __name__ == "__main__":
    main()
