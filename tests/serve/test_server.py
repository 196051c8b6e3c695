"""Limits, clients that misbehave, a stop: what is answered is right, and nothing is left behind."""

import asyncio
import json
import os
import random
import signal
from typing import Any

import aiohttp
import pytest
from torch import Tensor

from rmfast.evaluation.scoring.reward_model import RewardModel
from rmfast.serve.body import BODIES
from rmfast.serve.panel import Panel
from tests.runs import WORDS, text
from tests.scoring import CLOSE
from tests.serve.serving import Slow, serving

ASK = {"query": ["the cat sat"]}


async def until(true: Any) -> None:
    """Wait for something."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("alone", [False, True])
def test_the_same_score_whatever_else_is_in_flight(
    model: RewardModel, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside clients that send garbage, stall and go."""
    monkeypatch.setattr("rmfast.serve.run.LINGER", 0.2)
    draw = random.Random(3)
    prompts = [text(draw, 8, 40) for _ in range(6)]
    asked = [(draw.choice(prompts), [" " + text(draw, 1, 30) for _ in range(draw.randint(1, 3))]) for _ in range(60)]
    asked[7] = asked[3]
    computed: list[int] = []
    score = model.network.score

    def counted(pack: Any) -> Tensor:
        computed.append(len(pack.tokens))
        return score(pack)

    async def ask() -> None:
        async with serving(Panel([model], alone=alone), stall=0.3, body=10_000) as client:
            calm = [await client.rewards(*one) for one in asked]
            monkeypatch.setattr(model.network, "score", counted)
            odd = [asyncio.create_task(misbehave(client.url, kind % 5)) for kind in range(20)]
            busy = await asyncio.gather(*(client.rewards(*one) for one in asked))
            await asyncio.gather(*odd)
            await until(lambda: not client.server.room.requests)
            assert not client.server.room.bytes and not client.server.gatherer.waiting
        if alone:
            assert busy == calm  # bit for bit
        assert max(abs(a - b) for pair in zip(calm, busy, strict=True) for a, b in zip(*pair, strict=True)) < CLOSE

    asyncio.run(ask())
    stored = sum(len(model.tokenizer(prompt + answer)["input_ids"]) for prompt, many in asked for answer in many)
    assert (sum(computed) > 0.9 * stored) == alone  # elsewhere what several requests begin with is computed once


async def misbehave(url: str, kind: int) -> None:
    """Garbage that is no HTTP, a body that never ends, one that is too large, a head that never ends, or a client that
    goes."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    sent = {
        0: b"\x16\x03\x01 garbage\r\n\r\n",
        1: head % 500 + b'{"prompt"',
        2: head % 10**9 + b"{",
        3: head[:20],
        4: head % 500,
    }
    writer.write(sent[kind])
    if kind < 4:
        answer = await reader.read()
        assert {0: b"400", 1: b"408", 2: b"413", 3: b""}[kind] in answer.partition(b"\r\n")[0]
        assert b"Traceback" not in answer
    writer.close()


def test_limits_have_their_own_answers(model: RewardModel) -> None:
    slow = Slow(Panel([model]))

    async def ask() -> None:
        async with serving(slow.panel, slow=slow, requests=2, timeout=0.5, token="s3cret", body=1000) as client:
            bearer = {"Authorization": "Bearer s3cret"}
            for header in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"}):
                assert (await client.post("/get_reward", ASK, headers=header))[0] == 401
            async with client.session.get(client.url + "/health") as health:
                assert health.status == 200
            assert (await client.post("/get_reward", b"x" * 1001, headers=bearer))[0] == 413

            async def chunks() -> Any:
                for _ in range(11):
                    yield b"x" * 100

            async with client.session.post(client.url + "/get_reward", data=chunks(), headers=bearer) as answer:
                assert answer.status == 413
            first = [asyncio.create_task(client.post("/get_reward", ASK, headers=bearer)) for _ in range(2)]
            await until(lambda: client.server.room.requests == 2 and slow.seen)
            async with client.session.post(client.url + "/get_reward", json=ASK, headers=bearer) as answer:
                assert answer.status == 429 and answer.headers["Retry-After"] == "1"
            assert [(await one)[0] for one in first] == [504, 504]
            slow.go.set()
            assert (await client.post("/get_reward", ASK, headers=bearer))[0] == 200
            async with client.session.get(client.url + "/metrics", headers=bearer) as answer:
                lines = (await answer.text()).splitlines()
            for status, count in (("401", 3), ("413", 2), ("429", 1), ("504", 2), ("200", 1)):
                assert f'rmfast_requests_total{{path="/get_reward",status="{status}"}} {count}.0' in lines
            assert "rmfast_requests_held 0.0" in lines

    asyncio.run(ask())


def test_bodies_take_so_much_memory_until_they_are_answered(model: RewardModel) -> None:
    slow = Slow(Panel([model]))

    async def ask() -> None:
        async with serving(slow.panel, slow=slow, body=1000) as client:
            body = json.dumps({"prompt": "a", "responses": ["b"]}).encode().ljust(995)
            tasks = [asyncio.create_task(client.post("/score", body)) for _ in range(BODIES)]
            await until(lambda: slow.seen and client.server.gatherer.waiting + len(slow.seen[0]) == BODIES)
            assert client.server.room.bytes == 995 * BODIES
            status, answer = await client.post("/score", body)
            assert status == 429 and "the bodies of other requests fill the memory" in answer["error"]["message"]
            slow.go.set()
            assert {status for status, _ in await asyncio.gather(*tasks)} == {200}
            assert not client.server.room.bytes and (await client.post("/score", body))[0] == 200

    asyncio.run(ask())


def test_rows_gather_while_others_compute_and_those_of_clients_that_went_are_left_out(model: RewardModel) -> None:
    """Rows that begin as the oldest one does are taken with it, and their beginning counts once."""
    slow = Slow(Panel([model]))
    same = "the cat sat on a mat and the dog ran home"

    async def ask() -> None:
        async with serving(slow.panel, slow=slow, budget=40) as client:
            tasks = [asyncio.create_task(client.rewards("a", [" b"]))]
            await until(lambda: slow.seen)
            for number, word in enumerate(WORDS[:8], start=1):
                prompt = same if number % 2 else f"{word * 3} by the sea"
                tasks.append(asyncio.create_task(client.rewards(prompt, [f" {word}"])))
                await until(lambda: client.server.gatherer.waiting == number)  # noqa: B023
            tasks.pop(1).cancel()
            await until(lambda: client.server.room.requests == 8)
            slow.go.set()
            await asyncio.gather(*tasks)

    asyncio.run(ask())
    ends = [[model.tokenizer.decode(row.sequences[0][0][:-1]).split()[-1] for row in rows] for rows in slow.seen]
    assert ends == [["b"], ["cat", "sat", "a", "and"], ["on", "mat", "dog"]]


def test_a_model_that_fails_on_one_row_fails_its_request_alone(model: RewardModel) -> None:
    slow = Slow(Panel([model]), fails=len(model.tokenizer("the cat sat on")["input_ids"]))

    async def ask() -> None:
        async with serving(slow.panel, slow=slow) as client:
            tasks = [client.post("/get_reward", {"query": [q, "a"]}) for q in ("the cat sat on", "a", "the")]
            waiting = asyncio.gather(*tasks)
            await until(lambda: slow.seen)
            slow.go.set()
            statuses = [(status, answer.get("error", {}).get("message")) for status, answer in await waiting]
            assert statuses == [
                (500, "the model failed: RuntimeError: the device is on fire"),
                (200, None),
                (200, None),
            ]
            assert (await client.post("/get_reward", ASK))[0] == 200

    asyncio.run(ask())


def test_a_stop_answers_what_was_taken(model: RewardModel, capsys: pytest.CaptureFixture[str]) -> None:
    slow = Slow(Panel([model]))

    async def ask() -> None:
        async with serving(slow.panel, slow=slow) as client:
            taken = [asyncio.create_task(client.post("/get_reward", ASK)) for _ in range(5)]
            await until(lambda: client.server.room.requests == 5)
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: client.server.stopping)
            await asyncio.sleep(0.05)
            with pytest.raises(aiohttp.ClientConnectorError):
                await client.post("/get_reward", ASK)
            assert not client.task.done()
            slow.go.set()
            assert [(await one)[0] for one in taken] == [200] * 5
            await asyncio.wait_for(client.task, 10)

    asyncio.run(ask())
    assert "SIGTERM: 5 requests are answered, no others taken" in capsys.readouterr().out
