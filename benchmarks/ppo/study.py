"""PPO against a reward model, as seen by a gold one: PPO-max, plain PPO, and PPO-max against an ensemble's worst case.

    python -m benchmarks.ppo.study --folder runs/ppo_study --json OUT [--workers 2] [--seeds 3] [--steps 40]

Supervised fine-tuning of a small decoder; reward models, LoRA adapters of it, on half of the preferences; a gold reward
model on the other half, which only watches; then the policies, adapters of the same trunk, each with several seeds. All
are runs of rmfast/train.py in `--folder`: the same command goes on where it was stopped. The curves are written to
`--json`: by step, mean and 95 % interval over held-out prompts of gold, proxy and KL, for each run.
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
from pathlib import Path
from typing import Any

from benchmarks.origin import ROOT, origin, write_json
from tests.runs import arguments, read_lines

TRAIN, HELD_OUT = (ROOT / "configs" / "quickstart" / f"{name}.jsonl.gz" for name in ("train", "test"))
PROMPTS, SAMPLES, TOKENS, LONGEST = 16, 4, 24, 48
MEMBERS = 3
LORA: dict[str, Any] = {"model__adapter": "lora", "model__lora_rank": 16}
METHODS: dict[str, dict[str, Any]] = {
    "PPO-max": {"ppo__preset": "ppo_max", "ppo__critic_warmup": 5},
    "plain PPO": {"ppo__preset": "ppo", "ppo__critic": "policy"},
    "PPO-max, worst of an ensemble": {"ppo__preset": "ppo_max", "ppo__critic_warmup": 5, "ppo__reward_rule": "worst"},
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
        return self.run("sft", task="sft", model__path=self.model, data__train=TRAIN, data__max_length=256,
                        data__pairs_per_step=16, data__tokens_per_pack=2048, optim__lr=2e-4, optim__warmup=0.1,
                        run__epochs=1, **LORA)  # fmt: skip

    def reward(self, name: str, data: Path, seed: int) -> list[str]:
        return self.run(name, task="reward", model__path=self.folder / "sft" / "model", data__train=data,
                        data__eval=HELD_OUT, data__max_length=256, data__pairs_per_step=16, data__tokens_per_pack=2048,
                        optim__lr=2e-4, optim__warmup=0.1, run__epochs=1, run__seed=seed, **LORA)  # fmt: skip

    def rewards(self) -> dict[str, list[str]]:
        """The proxies and gold, which nothing trains on each other's preferences."""
        proxy, gold = self.halves()
        found = {f"proxy-{seed}": self.reward(f"proxy-{seed}", proxy, seed) for seed in range(MEMBERS)}
        return found | {"gold": self.reward("gold", gold, MEMBERS)}

    def policies(self) -> dict[str, list[str]]:
        """The runs of PPO by name: method and seed."""
        found = {}
        for seed in range(self.seeds):
            for number, (method, keys) in enumerate(METHODS.items()):
                proxies = [self.folder / f"proxy-{n}" / "adapter" for n in range(MEMBERS)]
                rewards = proxies if "ppo__reward_rule" in keys else proxies[:1]
                found[f"{method}, seed {seed}"] = self.run(
                    f"ppo-{number}-{seed}", task="ppo", model__path=self.folder / "sft" / "model",
                    ppo__reward=tuple(map(str, rewards)), ppo__gold=self.folder / "gold" / "adapter",
                    ppo__prompts=TRAIN, ppo__eval_prompts=HELD_OUT, ppo__prompts_per_step=PROMPTS,
                    ppo__samples=SAMPLES, ppo__max_new_tokens=TOKENS, ppo__truncated="zero",
                    data__max_length=LONGEST + TOKENS, data__tokens_per_pack=2048, optim__lr=1e-4,
                    optim__schedule="constant", run__max_steps=self.steps, run__seed=seed, eval__every=5,
                    **LORA | keys,
                )  # fmt: skip
        return found


def finished(folder: Path) -> bool:
    """Whether a run ended."""
    return (folder / "summary.json").is_file()


def train(command: Sequence[str], folder: Path) -> None:
    """Run it to its end, if it is not there yet; what it says is in the folder's log.

    Raises:
        RuntimeError: it failed.
    """
    run = Path(command[command.index("--run.dir") + 1])
    if finished(run):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/ppo_study"), help="of all runs")
    add("--model", default="models/SmolLM2-135M-Instruct", help="the decoder that all begins with")
    add("--steps", type=int, default=40, help="iterations of each policy")
    add("--seeds", type=int, default=3, help="of each method")
    add("--workers", type=int, default=2, help="runs at a time, each on a thread")
    add("--json", type=Path, required=True, help="write the curves to this file")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    study = Study(args.folder.resolve(), str(Path(args.model).resolve()), args.steps, args.seeds)
    train(study.sft(), study.folder)
    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(lambda command: train(command, study.folder), study.rewards().values()))
        policies = study.policies()
        for name, _ in zip(policies, pool.map(lambda c: train(c, study.folder), policies.values()), strict=True):
            print(name, flush=True)
    runs = {name: study.folder / f"ppo-{list(METHODS).index(name.rpartition(', ')[0])}-{name.rpartition(' ')[2]}"
            for name in policies}  # fmt: skip
    accuracy = {name: read_lines(study.folder / name / "eval.jsonl")[-1] for name in study.rewards()}
    result = {
        "origin": origin(),
        "size": {"prompts": PROMPTS, "samples": SAMPLES, "tokens": TOKENS, "steps": args.steps, "seeds": args.seeds},
        "accuracy": {name: line.get("accuracy", line.get("eval_accuracy")) for name, line in accuracy.items()},
        "runs": {name: curve(run) for name, run in runs.items()},
    }
    write_json(args.json, result)


if __name__ == "__main__":
    main()
