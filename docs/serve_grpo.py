"""GRPO of TRL with the rewards of a server: one file, nothing of rmfast in it.

    rmfast serve runs/quickstart
    python docs/serve_grpo.py --model models/SmolLM2-135M-Instruct --data configs/quickstart/train.jsonl.gz

In a script of your own, `reward_funcs=reward_function("http://127.0.0.1:5000")` is all.
"""

import argparse
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any


def reward_function(url: str, token: str | None = None, patience: float = 300.0) -> Callable[..., list[float]]:
    """What TRL takes as one of `reward_funcs`: prompts and completions, texts or messages, to rewards.

    Args:
        patience: seconds for which a server that is full or not there yet is asked again.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})

    def server_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        rows: list[dict[str, Any]] = []
        for prompt, completion in zip(prompts, completions, strict=True):  # a prompt's completions follow each other
            if not rows or rows[-1]["prompt"] != prompt:
                rows.append({"prompt": prompt, "responses": []})
            rows[-1]["responses"].append(completion)
        answer = post(json.dumps({"rows": rows}).encode())
        return [reward for row in answer["rows"] for reward in row["rewards"]]

    def post(body: bytes) -> Any:
        end = time.monotonic() + patience
        while True:
            try:
                with urllib.request.urlopen(urllib.request.Request(f"{url}/score", body, headers)) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503) or time.monotonic() > end:
                    raise RuntimeError(f"{url}: {json.load(error)['error']['message']}") from None
            except OSError:
                if time.monotonic() > end:
                    raise
            time.sleep(1)

    return server_reward


def main() -> None:
    """Train a few steps."""
    import torch
    from datasets import load_dataset
    from trl import GRPOConfig, GRPOTrainer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the policy")
    parser.add_argument("--data", required=True, help="rows with a prompt")
    parser.add_argument("--url", default="http://127.0.0.1:5000", help="the server (%(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps (%(default)s)")
    args = parser.parse_args()
    rows = load_dataset("json", data_files=args.data, split="train").select_columns("prompt")
    config = GRPOConfig(
        output_dir="runs/grpo",
        max_steps=args.steps,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=32,
        logging_steps=1,
        report_to="none",
        bf16=torch.cuda.is_available(),
    )
    GRPOTrainer(args.model, reward_funcs=reward_function(args.url), args=config, train_dataset=rows).train()


if __name__ == "__main__":
    main()
