"""The endpoint's client against a real server that is slow, busy, broken, gone or strict."""

import socket
import threading
import time
from collections import Counter
from email.utils import formatdate

import pytest

from rmfast.errors import RunError, UserError
from rmfast.evaluation.judge.backend import Answer, Failure, Request, Sampling
from rmfast.evaluation.judge.endpoint import Endpoint
from rmfast.evaluation.judge.pace import retry_after
from tests.evaluation.judge.server import Reply, Server, completion, serving

KEY = "sk-very-secret-0123456789"


def endpoint(url, **options):
    defaults = {"key": KEY, "concurrency": 4, "timeout": 2.0, "retries": 3, "first_wait": 0.01}
    return Endpoint(url, "judge-1", options.pop("sampling", Sampling()), **{**defaults, **options})


def requests(count):
    return [Request(f"k{n}", f"prompt {n}") for n in range(count)]


def ask(url, count, **options):
    """Answers and failures by key; each request comes back once."""
    pairs = list(endpoint(url, **options).ask(requests(count)))
    assert Counter(request.key for request, _ in pairs) == Counter(f"k{n}" for n in range(count))
    return {request.key: answer for request, answer in pairs}


def echo(call, number):
    return Reply(f"to {call.prompt}")


def test_every_request_gets_its_own_answer():
    five = threading.Barrier(5)  # after the first one, five at a time and no more

    def behave(call, number):
        if number:
            five.wait(timeout=10)
        return echo(call, number)

    with serving(behave) as server:
        answers = ask(server.url, 41, concurrency=5, sampling=Sampling(0.5, 77), timeout=20)
        assert answers == {f"k{n}": Answer(f"to prompt {n}", "stop", 100, 7) for n in range(41)}
        assert server.most == 5
        body = server.calls[0].body
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0.5, 77)
        assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"


def test_nothing_to_ask():
    assert ask("http://127.0.0.1:9/v1", 0) == {}


@pytest.mark.parametrize(
    ("first", "cause"),
    [
        (Reply(status=500, body={"error": {"message": "oops"}}), "HTTP 500"),
        (Reply(status=503, body=b"<html>busy</html>"), "HTTP 503"),
        (Reply(status=429, body={"error": {"message": "slow down"}}), "HTTP 429"),
        (Reply(drop=True), "connection"),
        (Reply("late", wait=2.0), "time-out"),
        (Reply("late", trickle=True), "time-out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_may_pass_is_asked_again(first, cause):
    # An answer that comes at once must not time out on a busy machine.
    start, timeout = time.monotonic(), 0.5 if cause == "time-out" else 20.0
    with serving(lambda call, n: first if n < 2 else echo(call, n)) as server:
        answers = ask(server.url, 1, timeout=timeout)
        assert time.monotonic() - start < 5  # a trickle, which would last 6 s a time, is no answer in time
        assert answers["k0"] == Answer("to prompt 0", "stop", 100, 7, tries=3)
    with serving(lambda call, n: echo(call, n) if n < 1 else first) as server:
        answers = ask(server.url, 2, timeout=timeout, retries=2)
        failure = answers["k1"]
        assert isinstance(failure, Failure) and failure.cause == cause and failure.tries == 3
        assert len(server.calls) == 4


def test_garbage_after_an_answer_is_a_failure_and_not_an_answer():
    garbage = [{"choices": []}, {"hello": 1}, b"<html>", [1], completion("x") | {"choices": [{"index": 0}]}]
    with serving(lambda call, n: echo(call, n) if n == 0 else Reply(body=garbage[n - 1])) as server:
        answers = ask(server.url, 6, retries=0, concurrency=6)
    assert isinstance(answers.pop("k0"), Answer)
    assert {a.cause for a in answers.values()} == {"not a chat completion"}


def test_an_answer_without_text_or_usage_is_an_answer():
    body = completion(None) | {"usage": None}
    with serving(lambda call, n: Reply(body=body)) as server:
        assert ask(server.url, 1)["k0"] == Answer("", "stop", None, None)


@pytest.mark.parametrize("header", [{"retry-after": "0.5"}, {"retry-after-ms": "500"}])
def test_retry_after_holds_for_all_requests(header):
    with serving(lambda call, n: Reply(status=429, headers=header) if n == 2 else echo(call, n)) as server:
        ask(server.url, 12, concurrency=2)
        times = [call.at for call in server.calls]
    assert len(times) == 13
    # Some of the other nine may go out before the server's word arrives.
    assert max(late - early for early, late in zip(times[2:], times[3:], strict=False)) > 0.45
    assert len([t for t in times[3:] if t < times[2] + 0.45]) < 5


def test_reading_retry_after():
    assert retry_after({"retry-after": "7"}) == 7.0 and retry_after({"retry-after-ms": "1500"}) == 1.5
    assert 8 < retry_after({"retry-after": formatdate(time.time() + 10, usegmt=True)}) <= 10
    assert retry_after({"retry-after": formatdate(time.time() - 10, usegmt=True)}) == 0.0
    assert retry_after({}) is None and retry_after({"retry-after": "soon"}) is None


def test_a_server_that_wants_hours_is_not_waited_for():
    busy = Reply(status=429, headers={"retry-after": "7200"})
    with serving(lambda call, n: busy if n == 1 else echo(call, n)) as server:
        answers = ask(server.url, 3)
        causes = [getattr(answer, "cause", None) for answer in answers.values()]  # whichever came first was refused
        assert sorted(causes, key=str) == ["HTTP 429", None, None] and len(server.calls) == 3


def test_requests_per_minute_hold_for_retries_too():
    with serving(lambda call, n: Reply(status=500) if n == 1 else echo(call, n)) as server:
        ask(server.url, 5, requests_per_minute=600)  # one in 0.1 s
        times = [call.at for call in server.calls]
    assert len(times) == 6 and times[-1] - times[0] > 0.45


def test_refusals_cost_their_question_alone():
    def strict(call, number):
        if number and number % 2:
            return Reply(status=400, body={"error": {"message": "too long", "code": "context_length_exceeded"}})
        return Reply(status=403, body={"error": {"message": "flagged"}}) if number == 2 else echo(call, number)

    with serving(strict) as server:
        answers = ask(server.url, 20, concurrency=1)
        assert len(server.calls) == 20  # none is asked again
    causes = Counter(a.cause for a in answers.values() if isinstance(a, Failure))
    assert causes == {"HTTP 400": 10, "HTTP 403": 1}
    assert answers["k1"].detail.count("too long")


def test_models_that_know_the_limit_by_its_newer_name():
    def strict(call, number):
        if "max_tokens" in call.body:
            return Reply(status=400, body={"error": {"message": "use 'max_completion_tokens' instead"}})
        return Reply(str(call.body["max_completion_tokens"]))

    with serving(strict) as server:
        answers = ask(server.url, 6, sampling=Sampling(0, 55), retries=0)
        assert {a.text for a in answers.values()} == {"55"} and len(server.calls) == 7


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (
            Reply(status=401, body={"error": {"message": f"Incorrect key {KEY}"}}),
            "refuses the key .*HTTP 401: .*set RMFAST",
        ),
        (Reply(status=403, body={"error": {"message": "no"}}), "refuses the key"),
        (
            Reply(status=404, body={"error": {"message": "no such model"}}),
            "judge-1.*not serve.*it serves judge-1, judge-2",
        ),
        (Reply(status=405), "no chat completions there"),
        (Reply(body=b"<html>a web page</html>"), "no chat completions there"),
        (Reply(status=429, body={"error": {"message": "pay", "code": "insufficient_quota"}}), "will not answer.*pay"),
    ],
)
def test_what_is_wrong_at_the_start_ends_with_one_line(reply, text):
    with serving(lambda call, n: reply) as server:
        with pytest.raises(UserError, match=text) as error:
            ask(server.url, 50)
        assert len(server.calls) == 1
    assert KEY not in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_path():
    with serving(echo) as server, pytest.raises(UserError, match="no chat completions there .*HTTP 404.*/v1"):
        ask(server.url.removesuffix("/v1"), 3)


def test_nothing_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    start = time.monotonic()
    with pytest.raises(UserError, match="nothing answers there .*is the server up"):
        ask(url, 3, first_wait=10.0)
    assert time.monotonic() - start < 5


def test_a_server_that_never_answers_is_left_after_three_questions():
    with serving(lambda call, n: Reply(wait=3)) as server:
        with pytest.raises(UserError, match="first 3 questions got no answer .time-out: no answer in 0.5 s"):
            ask(server.url, 50, timeout=0.5, retries=1)
        assert len(server.calls) == 6


def test_a_server_that_dies_half_way():
    server = Server(lambda call, n: Reply(f"to {call.prompt}") if n < 20 else Reply(drop=True))
    got = []
    with pytest.raises(RunError, match="judge-1 at .* no longer answers: 4 questions in a row"):
        for request, answer in endpoint(server.url, retries=1).ask(requests(60)):
            got.append((request, answer))
            if len(got) == 20:
                server.close()
    assert 17 <= sum(isinstance(answer, Answer) for _, answer in got) <= 20  # three may be under way at the end
    assert 3 <= sum(isinstance(answer, Failure) for _, answer in got) <= 8


def test_a_key_that_is_withdrawn_half_way():
    with serving(lambda call, n: echo(call, n) if n < 5 else Reply(status=401)) as server:
        with pytest.raises(RunError, match="no longer answers: HTTP 401"):
            ask(server.url, 60)
        assert len(server.calls) < 15


def test_leaving_early_leaves_nothing_running():
    with serving(lambda call, n: Reply("x", wait=0.02)) as server:
        asking = endpoint(server.url).ask(requests(100))
        next(asking)
        asking.close()
        time.sleep(0.2)
        calls = len(server.calls)
        time.sleep(0.2)
        assert len(server.calls) == calls < 20
