"""A minute of 200 clients at `rmfast serve`, some of which stall, go, send garbage or 100 MB: no wrong score, no leak.

    python -m benchmarks.serve.load --json OUT [--model models/SmolLM2-135M-Instruct] [--seconds 60]

Two servers one after another: the model's weights with a random head, where the model is what clients wait for; and a
tiny model with the same tokenizer, where the server is. Each client asks again as soon as it is answered; of every 5
one misbehaves, in turns by each of `MISBEHAVIOURS`. A text's reward under load is compared with that from when nothing
else was asked. Memory is read every `--seconds` / 6, after a first load of a third of it.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import aiohttp
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from benchmarks.origin import origin, write_json
from benchmarks.serve.servers import Running, Text, rmfast_server, running, texts, write_reward

STALL = 3.0
LARGE = 100 * 10**6
HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@dataclass(eq=False)
class Tally:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    odd: Counter[str] = field(default_factory=Counter)


async def ask(session: aiohttp.ClientSession, url: str, text: Text, way: int) -> float:
    """The reward of a text, by one of the protocols."""
    path, body = [
        ("/get_reward", {"query": [text.query], "prompts": [text.prompt], "labels": [None]}),
        ("/classify", {"input": text.query, "add_special_tokens": False, "use_activation": False}),
        ("/score", {"prompt": text.prompt, "responses": [text.response]}),
    ][way % 3]
    async with session.post(url + path, json=body) as answer:
        found = await answer.json()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status}: {found}")
        return float(found["data"][0]["probs"][0] if way % 3 == 1 else found["rewards"][0])


async def status_of(reader: asyncio.StreamReader) -> str:
    """The status of an answer; "closed" where there is none."""
    line = await reader.readline()
    return line.split()[1].decode() if len(line.split()) > 1 else "closed"


async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(HEAD % 1000 + b'{"prompt": "a')
    return await status_of(reader)


async def stalls_at_the_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(b"POST /score HT")
    return await status_of(reader)


async def goes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    body = json.dumps({"prompt": "a" * 2000, "responses": ["b", "c"]}).encode()
    writer.write(HEAD % len(body) + body)
    await writer.drain()
    await asyncio.sleep(0.05)
    return "gone"


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(random.randbytes(300) + b"\r\n\r\n")
    return await status_of(reader)


async def no_json(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(HEAD % 300 + random.randbytes(300))
    return await status_of(reader)


async def large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(HEAD % LARGE)
    return await _pour(reader, writer, b"x" * 65536)


async def large_in_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    return await _pour(reader, writer, b"10000\r\n" + b"x" * 65536 + b"\r\n")


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, block: bytes) -> str:
    """Send 100 MB, or as much as is taken before the answer."""
    answer = asyncio.create_task(status_of(reader))
    for _ in range(LARGE // 65536):
        if answer.done():
            break
        writer.write(block)
        await writer.drain()
    return await answer


Misbehaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[str]]
MISBEHAVIOURS: tuple[tuple[Misbehaviour, str], ...] = (
    (stalls, "408"),
    (stalls_at_the_head, "closed"),
    (goes, "gone"),
    (garbage, "400"),
    (no_json, "400"),
    (large, "413"),
    (large_in_chunks, "413"),
)
"""Each with how it ends."""


async def misbehave(url: str, kind: int, tally: Tally) -> None:
    host, port = url.removeprefix("http://").split(":")
    run, expected = MISBEHAVIOURS[kind % len(MISBEHAVIOURS)]
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        ended = await asyncio.wait_for(run(reader, writer), STALL + 30)
    except (OSError, TimeoutError) as error:
        ended = type(error).__name__
    finally:
        writer.close()
    tally.odd[f"{run.__name__}: {ended}"] += 1
    if ended != expected and not (expected == "413" and ended.startswith("Connection")):
        tally.failed.append(f"{run.__name__}: {ended}, not {expected}")


async def load(url: str, asked: list[Text], alone: list[float], *, clients: int, seconds: float) -> Tally:
    """Ask for so long."""
    tally, end = Tally(), time.monotonic() + seconds
    timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def client(number: int) -> None:
            draw = random.Random(number)
            turn = number
            while time.monotonic() < end:
                turn += 1
                if number % 5 == 0:
                    await misbehave(url, number // 5 + turn, tally)
                    continue
                place, begun = draw.randrange(len(asked)), time.monotonic()
                try:
                    reward = await ask(session, url, asked[place], turn)
                except (aiohttp.ClientError, RuntimeError) as error:
                    tally.failed.append(str(error)[:300])
                    continue
                tally.seconds.append(time.monotonic() - begun)
                tally.differences.append(abs(reward - alone[place]))

        await asyncio.gather(*(client(number) for number in range(clients)))
    return tally


async def measure(server: Running, asked: list[Text], clients: int, seconds: float) -> dict[str, Any]:
    """A load, and what is left of it."""
    async with aiohttp.ClientSession() as session:
        alone = [await ask(session, server.url, text, way) for way, text in enumerate(asked)]
    await load(server.url, asked, alone, clients=clients, seconds=seconds / 3)
    memory = [server.memory()]

    async def watch() -> None:
        while True:
            await asyncio.sleep(seconds / 6)
            memory.append(server.memory())

    watching, before, begun = asyncio.create_task(watch()), server.cpu_seconds(), time.monotonic()
    tally = await load(server.url, asked, alone, clients=clients, seconds=seconds)
    wall = time.monotonic() - begun
    watching.cancel()
    await asyncio.sleep(2 * STALL)
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/metrics") as answer:
        lines = [line for line in (await answer.text()).splitlines() if line.startswith("rmfast_") and "{" not in line]
    held = {name: float(value) for name, value in (line.split() for line in lines)}
    cuts = quantiles(tally.seconds, n=100)
    return {
        "clients": clients,
        "seconds": round(wall, 1),
        "answers": len(tally.seconds),
        "wrong": sum(difference > 1e-5 for difference in tally.differences),
        "largest_difference": max(tally.differences),
        "largest_reward": max(map(abs, alone)),
        "failed": tally.failed[:20],
        "latency_seconds": {"p50": round(cuts[49], 3), "p99": round(cuts[98], 3), "max": round(max(tally.seconds), 3)},
        "misbehaved": dict(sorted(tally.odd.items())),
        "memory_mb": [round(one / 2**20, 1) for one in memory],
        "open_files_after": server.process.num_fds(),
        "requests_held_after": held["rmfast_requests_held"],
        "rows_waiting_after": held["rmfast_rows_waiting"],
        "server_cpu_seconds": round(server.cpu_seconds() - before, 1),
    }


def write_tiny(model: str, folder: Path) -> str:
    """A reward model of 2 layers with a model's tokenizer."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_labels=1, initializer_range=0.2, max_position_embeddings=8192,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="models/SmolLM2-135M-Instruct", help="a Hugging Face folder")
    add("--clients", type=int, default=200, help="at once (%(default)s)")
    add("--seconds", type=float, default=60.0, help="of each load (%(default)s)")
    add("--only", choices=["tiny", "model"], help="one of the servers")
    add("--port", type=int, default=5720)
    add("--json", type=Path, required=True, help="write the result to this file")
    args = parser.parse_args()
    result: dict[str, Any] = {"origin": origin()}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for side in [args.only] if args.only else ["tiny", "model"]:
            model = (write_tiny if side == "tiny" else write_reward)(args.model, scratch / side)
            asked = texts(model, prompts=20, answers=2)
            command = rmfast_server(model, args.port, "--stall", str(STALL))
            with running(command, args.port, scratch / "log") as server:
                result[side] = asyncio.run(measure(server, asked, args.clients, args.seconds))
            print(side, result[side], flush=True)
            if "Traceback" in (log := (scratch / "log").read_text()):
                raise RuntimeError(log[-2000:])
            write_json(args.json, result)


if __name__ == "__main__":
    main()
