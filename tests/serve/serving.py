"""A server in this process, and clients that ask it."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from rmfast.serve.app import Limits, Server
from rmfast.serve.asked import Floats, Served
from rmfast.serve.panel import Panel, Row
from rmfast.serve.run import listen, run

NAME = "tiny"


@dataclass(frozen=True)
class Client:
    """What asks a server."""

    url: str
    session: aiohttp.ClientSession
    server: Server
    task: "asyncio.Task[None]"

    async def post(self, path: str, body: Any = None, **options: Any) -> tuple[int, dict[str, Any]]:
        """The status and the JSON of an answer."""
        given = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.session.post(self.url + path, **given, **options) as answer:
            return answer.status, await answer.json()

    async def rewards(self, prompt: Any, responses: Sequence[str]) -> list[float]:
        """By /score."""
        status, answer = await self.post("/score", {"prompt": prompt, "responses": responses})
        assert status == 200, answer
        rewards: list[float] = answer["rewards"]
        return rewards


class Slow:
    """A panel's scores, that wait for `go`; `seen` holds the rows of each batch. Rows of `fails` tokens raise."""

    def __init__(self, panel: Panel, fails: int = 0) -> None:
        self.panel, self.fails = panel, fails
        self.seen: list[list[Row]] = []
        self.go = threading.Event()

    def score(self, rows: Sequence[Row]) -> list[Floats]:
        self.seen.append(list(rows))
        assert self.go.wait(20)
        if any(row.tokens == self.fails for row in rows):
            raise RuntimeError("the device is on fire\nand more")
        return [np.zeros((1, len(row))) for row in rows]


@asynccontextmanager
async def serving(
    panel: Panel,
    *,
    slow: Slow | None = None,
    activated: bool = True,
    budget: int = 512,
    wait: float = 0.002,
    token: str | None = None,
    **limits: Any,
) -> AsyncIterator[Client]:
    """A server until the block ends, which SIGTERM ends as it does a command."""
    served = Served((NAME, "by/path"), "LABEL_0", activated, panel.rule, panel.members)
    server = Server(panel, served, Limits(**limits), budget=budget, wait=wait, token=token)
    if slow is not None:
        server.gatherer._compute = slow.score
    listening = listen("127.0.0.1", 0, 5.0)
    ready = asyncio.Event()
    task = asyncio.create_task(run(server, listening, ready.set))
    await ready.wait()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        try:
            yield Client(url, session, server, task)
        finally:
            if slow is not None:
                slow.go.set()
            if not task.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(task, 20)
