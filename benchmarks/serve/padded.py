"""A reward server as it is usually written, to compare with: batches of 16 texts, padded, through transformers.

python -m benchmarks.serve.padded MODEL PORT
"""

import asyncio
import queue
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

import torch
from aiohttp import web
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH, WAIT = 16, 0.003

Waiting = queue.Queue[tuple[str, Future[float]]]


def compute(model: Any, tokenizer: Any, waiting: Waiting) -> None:
    """Score what waits, up to 16 texts at a time."""
    while True:
        batch = [waiting.get()]
        end = time.monotonic() + WAIT
        while len(batch) < BATCH:
            try:
                batch.append(waiting.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                break
        inputs = tokenizer([text for text, _ in batch], add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.no_grad():
            scores = model(**inputs).logits[:, 0].tolist()
        for (_, future), score in zip(batch, scores, strict=True):
            future.set_result(score)


def main() -> None:
    folder, port = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    waiting: Waiting = queue.Queue()
    threading.Thread(target=compute, args=(model, tokenizer, waiting), daemon=True).start()

    async def get_reward(request: web.Request) -> web.Response:
        futures: list[Future[float]] = []
        for text in (await request.json())["query"]:
            futures.append(Future())
            waiting.put((text, futures[-1]))
        rewards = await asyncio.gather(*map(asyncio.wrap_future, futures))
        return web.json_response({"rewards": rewards})

    app = web.Application(client_max_size=2**30)
    app.router.add_post("/get_reward", get_reward)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main()
