"""The HTTP application: paths, who may ask, and what each request ends in."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from rmfast.console import say
from rmfast.errors import first_line
from rmfast.serve.asked import Asked, Served
from rmfast.serve.body import MEGABYTE, Body, Room, parse, read_body
from rmfast.serve.gather import Gatherer
from rmfast.serve.metrics import Metrics
from rmfast.serve.panel import Panel, Row
from rmfast.serve.protocols import openrlhf, rows, vllm
from rmfast.serve.refusal import Refused, error_body

log = logging.getLogger(__name__)

Protocol = Callable[[Mapping[str, Any], Served], Asked]
PROTOCOLS: dict[str, Protocol] = {
    "/score": rows.read,
    "/get_reward": openrlhf.read,
    "/classify": vllm.classify,
    "/pooling": vllm.pooling,
}
OPEN = ("/health",)
"""Paths that need no token."""
KNOWN = (*PROTOCOLS, "/health", "/metrics")
QUIET = 1.0
"""Seconds between lines about requests that were refused."""


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Args:
        requests: held at once. body: bytes of each, at most. responses: of a request, at most.
        timeout: seconds until an answer. stall: seconds in which a client may send nothing.
    """

    requests: int = 1024
    body: int = 8 * MEGABYTE
    responses: int = 4096
    timeout: float = 120.0
    stall: float = 15.0


class Server:
    """Answers requests by a panel.

    Args:
        budget, wait: of batches, see `Gatherer`.
        token: that clients must bear; None for none.

    Attributes:
        stopping: new requests are refused.
    """

    def __init__(
        self, panel: Panel, served: Served, limits: Limits, *, budget: int, wait: float, token: str | None = None
    ) -> None:
        self.panel, self.served, self.limits = panel, served, limits
        self._token = None if token is None else token.encode()
        self.room = Room(limits.requests, limits.body)
        self.gatherer = Gatherer(panel.score, budget=budget, wait=wait, told=self._computed)
        self.metrics = Metrics(lambda: self.room.requests, lambda: self.gatherer.waiting)
        self.stopping = False
        self._reader = ThreadPoolExecutor(
            1, thread_name_prefix="rmfast.reader"
        )  # one, as tokenizers must not be shared
        self._said, self._unsaid = -QUIET, 0

    def app(self) -> web.Application:
        """The application."""
        app = web.Application(middlewares=[self._middleware], client_max_size=self.limits.body)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        for path, protocol in PROTOCOLS.items():
            app.router.add_post(path, self._scoring(protocol))
        return app

    def close(self) -> None:
        """End the threads, once all that was taken is computed."""
        self._reader.shutdown()
        self.gatherer.close()

    async def _health(self, request: web.Request) -> web.Response:
        if not self.gatherer.alive:
            raise Refused(503, "the thread that computes has died; start the server again")
        if self.stopping:
            raise Refused(503, "the server is stopping", closes=True)
        status = {"status": "ok", "model": self.served.names[0], "members": self.served.members}
        return web.json_response(status | {"rule": self.served.rule, "requests_held": self.room.requests})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    def _scoring(self, protocol: Protocol) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def score(request: web.Request) -> web.Response:
            if self.stopping:
                raise Refused(503, "the server is stopping", closes=True)
            with self.room.request() as body:
                try:
                    async with asyncio.timeout(self.limits.timeout):
                        answer = await self._score(request, body, protocol)
                        return web.Response(body=answer, content_type="application/json")
                except TimeoutError:
                    limit = f"{self.limits.timeout:g} s (--timeout)"
                    raise Refused(504, f"no answer within {limit}: {self.gatherer.waiting} rows wait") from None

        return score

    async def _score(self, request: web.Request, body: Body, protocol: Protocol) -> bytes:
        await read_body(request, body, self.room, stall=self.limits.stall)
        loop = asyncio.get_running_loop()
        asked, read = await loop.run_in_executor(self._reader, self._read, body, protocol)
        members = await asyncio.wrap_future(self.gatherer.put(read))
        return json.dumps(asked.answer(self.panel.combined(asked, read, members)), allow_nan=False).encode()

    def _read(self, body: Body, protocol: Protocol) -> tuple[Asked, list[Row]]:
        asked = protocol(parse(body.data), self.served)
        body.data = bytearray()
        count = sum(len(getattr(row, "responses", ())) or 1 for row in asked.rows)
        if count > self.limits.responses:
            raise Refused(413, f"{count:,} responses, and a request may have {self.limits.responses:,}; ask in parts")
        return asked, self.panel.read(asked)

    @web.middleware
    async def _middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Every answer is JSON, and counted."""
        begun = time.monotonic()
        path = request.path if request.path in KNOWN else "other"
        answer: web.StreamResponse
        try:
            self._check_token(request)
            answer = await handler(request)
        except Refused as refused:
            answer = self._refuse(request, refused)
        except web.HTTPException as error:  # the framework's: no such path, no such method
            known = ", ".join(KNOWN)
            words = f"no path {request.path} here; there are {known}" if error.status == 404 else error.reason
            answer = self._refuse(request, Refused(error.status, words))
            answer.headers.update({k: v for k, v in error.headers.items() if k == "Allow"})
        except asyncio.CancelledError:  # the client has gone
            self.metrics.gone()
            raise
        except Exception as error:  # a mistake of ours, of which the client gets a line and the log the rest
            log.exception("%s %s", request.method, request.path)
            answer = self._refuse(request, Refused(500, f"{type(error).__name__}: {first_line(error)}"))
        self.metrics.answered(path, answer.status, time.monotonic() - begun)
        return answer

    def _check_token(self, request: web.Request) -> None:
        if self._token is None or request.path in OPEN:
            return
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), self._token)
        if not same or kind.lower() != "bearer":
            raise Refused(
                401, "the header Authorization: Bearer TOKEN is missing, or its token is another", closes=True
            )

    def _refuse(self, request: web.Request, refused: Refused) -> web.Response:
        answer = web.json_response(error_body(refused.status, str(refused)), status=refused.status)
        if refused.status in (429, 503):
            answer.headers["Retry-After"] = "1"
        if refused.status == 401:
            answer.headers["WWW-Authenticate"] = "Bearer"
        if refused.closes:
            answer.force_close()
        now = time.monotonic()
        if now - self._said < QUIET:
            self._unsaid += 1
        else:
            more = f" (and {self._unsaid} more)" if self._unsaid else ""
            say(f"{request.method} {request.path}: {refused.status}: {refused}{more}")
            self._said, self._unsaid = now, 0
        return answer

    def _computed(self, batch: Any, seconds: float) -> None:
        self.metrics.computed(batch, seconds)
