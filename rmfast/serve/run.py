"""A server from its first line to its last: it listens, is told to stop, and answers what it has taken."""

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web

from rmfast.console import say
from rmfast.errors import UserError
from rmfast.serve.app import Server

BACKLOG = 1024
LINGER = 5.0
"""Seconds in which what a client still sends after its answer is read and dropped, so that it reads the answer."""
STOPS = (signal.SIGTERM, signal.SIGINT)


def listen(host: str, port: int, stall: float) -> socket.socket:
    """A socket that listens.

    Args:
        stall: seconds after which the system drops a client that takes nothing of what is sent to it.

    Raises:
        UserError: it cannot.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        made = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}, port {port} (--host, --port): {reason}") from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # of Linux; accepted connections inherit it
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall * 1000))
    return made


async def run(server: Server, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; then answer what was taken, and end. A second signal ends at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    limits = server.limits

    def asked(number: signal.Signals) -> None:
        for one in STOPS:
            loop.remove_signal_handler(one)
        server.stopping = True
        say(f"{number.name}: {server.room.requests} requests are answered, no others taken; a second one ends at once")
        stop.set()

    runner = web.AppRunner(
        server.app(),
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=limits.stall,
        lingering_time=LINGER,
        shutdown_timeout=limits.timeout + limits.stall,
    )
    await runner.setup()
    await web.SockSite(runner, listening, backlog=BACKLOG).start()
    for one in STOPS:
        with suppress(RuntimeError):  # not the main thread, as in tests
            loop.add_signal_handler(one, asked, one)
    ready()
    try:
        await stop.wait()
    finally:
        server.stopping = True
        await runner.cleanup()
        server.close()
