"""An HTTP server on loopback that speaks /v1/chat/completions and misbehaves on demand; items and answers for it."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rmfast.data.rows import parse_row
from rmfast.evaluation.suites.base import Item


@dataclass
class Reply:
    """What the server sends; a text becomes a chat completion."""

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    """In place of a completion: JSON, or bytes as they are."""
    wait: float = 0.0
    drop: bool = False
    trickle: bool = False
    """Blank bytes for ever, as some servers keep a connection alive."""


@dataclass
class Call:
    """What the server received."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    """Seconds since the start."""

    @property
    def prompt(self) -> str:
        return self.body["messages"][0]["content"]


class Server:
    """`behave` gives the reply to the n-th call, from 0."""

    def __init__(self, behave: Callable[[Call, int], Reply]) -> None:
        self.behave, self.calls, self.busy, self.most = behave, [], 0, 0
        self.models = ["judge-1", "judge-2"]
        self.lock, self.start = threading.Lock(), time.monotonic()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                known = self.path == "/v1/models"
                listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in server.models]}
                self.send(Reply(status=200 if known else 404, body=listed if known else {"error": "?"}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                headers = {k.lower(): v for k, v in self.headers.items()}
                with server.lock:
                    number = len(server.calls)
                    call = Call(self.path, body, headers, time.monotonic() - server.start)
                    server.calls.append(call)
                    server.busy += 1
                    server.most = max(server.most, server.busy)
                try:
                    if self.path == "/v1/chat/completions":
                        self.send(server.behave(call, number))
                    else:
                        self.send(Reply(status=404, body={"detail": "Not Found"}))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with server.lock:
                        server.busy -= 1

            def send(self, reply: Reply) -> None:
                time.sleep(reply.wait)
                if reply.drop:
                    self.close_connection = True
                    return
                body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body or completion(reply.text))
                body = body.encode() if isinstance(body, str) else body
                self.send_response(reply.status)
                kind = "text/html" if isinstance(reply.body, bytes) else "application/json"
                for name, value in {"content-type": kind, **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body) + (10_000 if reply.trickle else 0)))
                self.end_headers()
                for _ in range(300 if reply.trickle else 0):
                    self.wfile.write(b"\n")
                    self.wfile.flush()
                    time.sleep(0.02)
                self.wfile.write(body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        """Stop listening: the next connection is refused."""
        self.http.shutdown()
        self.http.server_close()


@contextmanager
def serving(behave: Callable[[Call, int], Reply]) -> Iterator[Server]:
    """A server until the block ends."""
    server = Server(behave)
    try:
        yield server
    finally:
        server.close()


def completion(text: str | None) -> dict[str, Any]:
    """A chat completion of the API, 100 tokens read and 7 written."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    base = {"id": "x", "object": "chat.completion", "created": 0, "model": "judge-1"}
    return {**base, "choices": [choice], "usage": usage}


def quality(answer: str) -> int:
    """Answers of the tests say how good they are."""
    found = re.search(r"quality (\d+)", answer)
    assert found, answer
    return int(found[1])


def shown(prompt: str) -> tuple[str, str]:
    """Both answers in a judge's prompt, as they stand there."""
    found = re.search(r"<answer_a>\n(.*)\n</answer_a>\n\n<answer_b>\n(.*)\n</answer_b>", prompt, re.S)
    assert found, prompt
    return found[1], found[2]


def best(prompt: str) -> str:
    """The right verdict."""
    first, second = map(quality, shown(prompt))
    return "[[A]]" if first > second else "[[B]]"


def right(call: Call, number: int) -> Reply:
    """A server that is always right."""
    return Reply(f"Both were read.\n{best(call.prompt)}")


def item(prompt: Any, *qualities: int, part: str = "pairwise", path: tuple[str, ...] = (), number: int = 0) -> Item:
    """An item whose responses, best first, are as good as this."""
    responses = [f"an answer of quality {q}" for q in qualities]
    edges = [[0, loser] for loser in range(1, len(qualities))]
    example = parse_row({"prompt": prompt, "responses": responses, "edges": edges})
    return Item(f"row{number}", f"rows.jsonl:{number}", part, path, example)


def items(count: int) -> list[Item]:
    """Pairs with a prompt each, whose better answer sorts after and before the worse one in turn."""
    return [item(f"Question {n}?", 8 if n % 2 else 10, 3, number=n) for n in range(count)]
