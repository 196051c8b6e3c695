"""A request's body: read within bounds of size and time, then JSON."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from aiohttp import web

from rmfast.serve.refusal import Refused

MEGABYTE = 2**20
BODIES = 32
"""Largest bodies whose bytes may be held at once."""


@dataclass(eq=False)
class Body:
    """A request's bytes, and how many of them count as held: also after they are read, as tokens are made of them."""

    data: bytearray = field(default_factory=bytearray)
    counted: int = 0


class Room:
    """What is held at once: requests, and bytes of their bodies.

    Args:
        requests: at most. body: bytes of a body, at most; of all, `BODIES` times as many.
    """

    def __init__(self, requests: int, body: int) -> None:
        self.most, self.body = requests, body
        self.requests = self.bytes = 0

    @contextmanager
    def request(self) -> Iterator[Body]:
        """Hold a request, whose body `grow` fills.

        Raises:
            Refused: there is no room.
        """
        if self.requests >= self.most:
            raise Refused(429, f"{self.most} requests are being answered; try again later", closes=True)
        self.requests += 1
        body = Body()
        try:
            yield body
        finally:
            self.requests -= 1
            self.bytes -= body.counted

    def grow(self, body: Body, more: bytes) -> None:
        """Add to a body that is held.

        Raises:
            Refused: it is too large, or there is no room.
        """
        if body.counted + len(more) > self.body:
            raise too_large(self.body)
        if self.bytes + len(more) > self.body * BODIES:
            raise Refused(429, "the bodies of other requests fill the memory that they may have", closes=True)
        self.bytes += len(more)
        body.counted += len(more)
        body.data += more


async def read_body(request: web.Request, body: Body, room: Room, *, stall: float) -> None:
    """Read a request's body into `body`, which `room` holds.

    Args:
        stall: seconds without a byte after which the client is dropped.

    Raises:
        Refused: it is too large, or the client stalls.
    """
    if (request.content_length or 0) > room.body:
        raise too_large(room.body)
    while True:
        try:
            async with asyncio.timeout(stall):
                more = await request.content.readany()
        except TimeoutError:
            raise Refused(408, f"no byte of the body for {stall:g} s", closes=True) from None
        except web.RequestPayloadError:
            raise Refused(400, "the body is not encoded as its header says", closes=True) from None
        if not more:
            return
        room.grow(body, more)


def too_large(most: int) -> Refused:
    """Of a body that has more bytes than it may."""
    return Refused(413, f"the body has more than {most / MEGABYTE:g} MB (--max-body)", closes=True)


def parse(body: bytearray) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        Refused: it is none.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        data = json.loads(body.decode("utf-8-sig"), parse_constant=refuse)
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deep") from None
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise Refused(400, f"the body is no JSON object but {type(data).__name__}")
    return data
