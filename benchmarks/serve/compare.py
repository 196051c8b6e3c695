"""Rewards per CPU second of `rmfast serve` beside a padded transformers server: one thread each, in turns.

    python -m benchmarks.serve.compare --json OUT [--model models/SmolLM2-135M-Instruct] [--rounds 3]

Both have a reward model of the model's weights with a random head, fp32, aiohttp, and OpenRLHF's protocol: each request
is one text, `--clients` ask at once, so that the queue is never empty. `samples`: 4 answers to each prompt, in random
order, as a policy's samples come; `pairs`: 2; `single`: as many prompts with one answer each. CPU time is the server's
process's, requests and tokenising included. A workload that the file has is not measured again.
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from benchmarks.origin import origin, write_json
from benchmarks.serve.servers import Running, Text, padded_server, rmfast_server, running, texts, write_reward

WORKLOADS = {"samples": 4, "pairs": 2, "single": 1}


async def ask(url: str, asked: list[Text], clients: int) -> list[float]:
    """The rewards of texts, each by a request, of so many clients."""
    rewards = [0.0] * len(asked)
    left = iter(range(len(asked)))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def client() -> None:
            for number in left:
                text = asked[number]
                body = {"query": [text.query], "prompts": [text.prompt], "labels": [None]}
                async with session.post(f"{url}/get_reward", json=body) as answer:
                    rewards[number] = (await answer.json())["rewards"][0]

        await asyncio.gather(*(client() for _ in range(clients)))
    return rewards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="models/SmolLM2-135M-Instruct", help="a Hugging Face folder")
    add("--requests", type=int, default=128, help="of each workload (%(default)s)")
    add("--clients", type=int, default=64, help="at once (%(default)s)")
    add("--rounds", type=int, default=3, help="of each server (%(default)s)")
    add("--port", type=int, default=5710, help="and the next one (%(default)s)")
    add("--json", type=Path, required=True, help="write the result to this file")
    args = parser.parse_args()
    result: dict[str, Any] = {"origin": origin(), "throughput": {}}
    if args.json.is_file():
        result = json.loads(args.json.read_text())
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = write_reward(args.model, scratch / "reward")
        ours = running(rmfast_server(model, args.port), args.port, scratch / "rmfast.log")
        theirs = running(padded_server(model, args.port + 1), args.port + 1, scratch / "padded.log")
        with ours as rmfast, theirs as padded:
            servers: dict[str, Running] = {"rmfast": rmfast, "padded": padded}
            for workload, answers in WORKLOADS.items():
                if workload in result["throughput"]:
                    continue
                asked = texts(model, prompts=args.requests // answers, answers=answers)
                seconds: dict[str, list[float]] = {side: [] for side in servers}
                rewards: dict[str, list[float]] = {}
                for _ in range(args.rounds):
                    for side, server in servers.items():
                        before = server.cpu_seconds()
                        rewards[side] = asyncio.run(ask(server.url, asked, args.clients))
                        seconds[side].append(round(server.cpu_seconds() - before, 2))
                        print(workload, side, seconds[side][-1], flush=True)
                gaps = [abs(a - b) for a, b in zip(rewards["rmfast"], rewards["padded"], strict=True)]
                per = {side: round(len(asked) / median(seconds[side]), 2) for side in servers}
                result["throughput"][workload] = {
                    "texts": len(asked),
                    "clients": args.clients,
                    "cpu_seconds": seconds,
                    "rewards_per_cpu_second": per,
                    "ratio": round(per["rmfast"] / per["padded"], 2),
                    "largest_difference": max(gaps),
                    "largest_reward": max(map(abs, rewards["padded"])),
                }
                write_json(args.json, result)
                print(workload, result["throughput"][workload], flush=True)


if __name__ == "__main__":
    main()
