"""Iterations of PPO by rmfast and by TRL's PPOTrainer, side by side: CPU time of one thread, and memory.

    python -m benchmarks.ppo.compare --trl PYTHON --json OUT [--model models/SmolLM2-135M-Instruct] [--rounds 3]

PYTHON is an interpreter with TRL 1.12, the last release with a PPOTrainer:

    python3 -m venv trl && trl/bin/pip install torch==2.13.0 trl==1.12.0 transformers==5.17.0

The first 16 prompts of HH-RLHF that have at most `--longest` tokens, 4 answers to each of at most 64 tokens, full
weights in fp32 for policy, critic, reference and reward model, plain PPO of one epoch and one minibatch. TRL gets each
prompt four times and works in batches of 16 rows (mind the memory: it needs tens of GB);
`trl` is without recomputation, `trl, its defaults` with it. `--distinct`: 64 prompts with one answer each. Modes take
turns, an iteration each, all in their processes, until each has `--rounds`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.origin import ROOT, origin, write_json
from benchmarks.sampling.compare import prompts

DATA = ROOT / "configs" / "quickstart" / "test.jsonl.gz"
PROMPTS, SAMPLES, TOKENS = 16, 4, 64
BATCH, PACK, RATE = 16, 1024, 1e-6
WITHOUT, DEFAULTS = "trl", "trl, its defaults"


@dataclass(eq=False)
class Side:
    """A process that waits before each iteration."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]
    done: list[dict[str, Any]]

    @classmethod
    def start(cls, command: list[str], job: dict[str, Any], folder: Path) -> "Side":
        folder.mkdir()
        file = folder / "job.json"
        file.write_text(json.dumps(job | {"folder": str(folder)}))
        process = subprocess.Popen(
            [*command, str(file)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        side = cls(process, {}, [])
        side.facts = side._wait()
        return side

    def iterate(self) -> None:
        """Let it take an iteration."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.done.append(self._wait())

    def _wait(self) -> dict[str, Any]:
        """What it says until it waits or ends."""
        assert self.process.stdout is not None
        found: dict[str, Any] = {}
        for line in self.process.stdout:
            if line.strip() == "ready":
                return found
            if line.startswith('{"'):  # TRL prints its logs too
                found = json.loads(line)
        if self.process.wait():
            raise RuntimeError(f"{self.process.args}: ended with {self.process.returncode}")
        return found

    def result(self) -> dict[str, Any]:
        """All that was measured; memory is what an iteration took above libraries and models."""
        facts = self.facts
        above = max(one["peak_bytes"] for one in self.done) - facts["imported_bytes"] - facts["state_bytes"]
        return facts | {
            "iterations": self.done,
            "cpu_seconds": median(one["cpu_seconds"] for one in self.done),
            "working_bytes": above,
        }


def write_reward(policy: str, folder: Path) -> str:
    """A reward model of the policy's weights with a random head."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(policy, num_labels=1)
    config.pad_token_id = AutoTokenizer.from_pretrained(policy).pad_token_id
    model = AutoModelForSequenceClassification.from_pretrained(policy, config=config, dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trl", required=True, help="an interpreter with TRL 1.12")
    add("--model", default="models/SmolLM2-135M-Instruct", help="a Hugging Face folder")
    add("--data", default=str(DATA), help="a file with prompts")
    add("--longest", type=int, default=256, help="tokens of a prompt, at most (default: %(default)s)")
    add("--rounds", type=int, default=3, help="iterations of each")
    add("--only", nargs="+", default=["rmfast", WITHOUT, DEFAULTS], help="modes")
    add("--distinct", action="store_true", help="64 prompts with one answer each")
    add("--json", type=Path, required=True, help="write everything that was found to this file")
    args = parser.parse_args()
    count, samples = (PROMPTS * SAMPLES, 1) if args.distinct else (PROMPTS, SAMPLES)
    found = prompts(args.data, args.model, longest=args.longest, count=count)
    result: dict[str, Any] = {"origin": origin(), "prompt_tokens": [len(ids) for ids in found], "samples": samples}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        job = {
            "policy": str(Path(args.model).resolve()), "reward": write_reward(args.model, scratch / "reward"),
            "prompts": found, "samples": samples, "tokens": TOKENS, "iterations": args.rounds, "rate": RATE,
            "batch": BATCH, "pack": PACK, "checkpointing": False,
        }  # fmt: skip
        trl = [args.trl, str(Path(__file__).with_name("trl_worker.py"))]
        commands = {"rmfast": [sys.executable, "-m", "benchmarks.ppo.worker"], WITHOUT: trl, DEFAULTS: trl}
        sides = {
            mode: Side.start(commands[mode], job | {"checkpointing": mode == DEFAULTS}, scratch / f"side {number}")
            for number, mode in enumerate(args.only)
        }
        for _ in range(args.rounds):
            for mode, side in sides.items():
                side.iterate()
                print(mode, side.done[-1], flush=True)
                result["modes"] = {one: other.result() for one, other in sides.items() if other.done}
                write_json(args.json, result)


if __name__ == "__main__":
    main()
