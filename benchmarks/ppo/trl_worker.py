"""Iterations of TRL's PPOTrainer, for `benchmarks.ppo.compare`: `python trl_worker.py JOB.json`, with TRL 1.12.

Needs no rmfast. An iteration begins when a line comes on stdin; what it took goes to stdout as a line of JSON.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer


def peak() -> int:
    """The most bytes that this process had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Turns(TrainerCallback):
    """Waits before each iteration, and tells what each took."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}
        self.began = 0.0

    def wait(self) -> None:
        print("ready", flush=True)
        sys.stdin.readline()
        self.began = time.process_time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.wait()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.metrics |= logs or {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = time.process_time() - self.began
        kept = {key: self.metrics[key] for key in ("objective/kl", "loss/policy_avg", "loss/value_avg")}
        print(json.dumps({"cpu_seconds": seconds, "peak_bytes": peak()} | kept), flush=True)
        if state.global_step < state.max_steps:
            self.wait()


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    imported = peak()
    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32) for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(job["reward"], dtype=torch.float32) for _ in range(2)
    )
    rows = len(job["prompts"]) * job["samples"]
    config = PPOConfig(
        output_dir=job["folder"], total_episodes=rows * job["iterations"], learning_rate=job["rate"],
        per_device_train_batch_size=job["batch"], gradient_accumulation_steps=rows // job["batch"],
        local_rollout_forward_batch_size=job["batch"], num_ppo_epochs=1, num_mini_batches=1,
        response_length=job["tokens"], stop_token="eos", temperature=1.0, kl_coef=0.05, num_sample_generations=0,
        gradient_checkpointing=job["checkpointing"], bf16=False, use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=1, disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    turns = Turns()
    repeated = [{"input_ids": ids} for ids in job["prompts"] for _ in range(job["samples"])]
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
        value_model=value, train_dataset=Dataset.from_list(repeated), callbacks=[turns],
    )  # fmt: skip
    trained = sum(p.numel() for model in (policy, value) for p in model.parameters())
    frozen = sum(p.numel() for model in (reference, reward) for p in model.parameters())
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    facts = {"state_bytes": 16 * trained + 4 * frozen, "imported_bytes": imported, "versions": versions}
    print(json.dumps(facts), flush=True)
    trainer.train()


if __name__ == "__main__":
    main()
