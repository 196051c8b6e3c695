"""Flags make the judge that they ask for, or one line."""

import argparse
import sys

import pytest

from rmfast.cli import judge_flags
from rmfast.commands.judge import make_judge, wants_judge
from rmfast.errors import UserError
from rmfast.evaluation.judge.endpoint import Endpoint
from rmfast.evaluation.judge.local import Local
from rmfast.evaluation.judge.plan import JudgeOptions
from tests.evaluation.judge.server import items, right, serving
from tests.evaluation.judge.test_local import folder  # noqa: F401 a fixture

SERVED = ["--endpoint", "http://localhost:8000/v1/", "--judge-model", "m"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("RMFAST_JUDGE_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def options(*flags):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    for name, default in (("device", "cpu"), ("dtype", "float32"), ("chat-template", None), ("template-date", None)):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--tokens-per-pack", type=int, default=2048)
    judge_flags(parser)
    return parser.parse_args(flags)


def test_defaults():
    judge = make_judge(options(*SERVED))
    backend = judge.backend
    assert isinstance(backend, Endpoint) and judge.options == JudgeOptions() and judge.log is None
    assert (backend.url, backend.model, backend.key) == ("http://localhost:8000/v1", "m", "none")
    assert (backend.sampling.temperature, backend.sampling.max_tokens) == (0.0, 1024)
    assert (backend.concurrency, backend.timeout, backend.retries, backend.requests_per_minute) == (8, 120.0, 5, None)
    assert not wants_judge(options()) and wants_judge(options("--judge", "x"))


def test_every_flag_arrives(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text(" - rhymes\n", encoding="utf-8")
    flags = [
        *("--criteria", str(tmp_path / "mine.txt"), "--no-reasoning", "--orders", "one", "--votes", "5"),
        *("--allow-ties", "--concurrency", "3", "--timeout", "7.5", "--retries", "0", "--requests-per-minute", "90"),
        *("--judge-log", str(tmp_path / "log.jsonl"), "--seed", "4"),
    ]
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    judge = make_judge(options(*SERVED, *flags))
    backend = judge.backend
    assert judge.options == JudgeOptions("- rhymes", False, "one", 5, True, 4)
    assert judge.log == tmp_path / "log.jsonl" and isinstance(backend, Endpoint)
    assert (backend.concurrency, backend.timeout, backend.retries, backend.requests_per_minute) == (3, 7.5, 0, 90.0)
    assert (backend.sampling.temperature, backend.sampling.max_tokens, backend.key) == (1.0, 64, "second")
    monkeypatch.setenv("RMFAST_JUDGE_KEY", " first\n")
    backend = make_judge(options(*SERVED, "--temperature", "0.3", "--max-tokens", "9", "--criteria", "builtin")).backend
    assert isinstance(backend, Endpoint) and backend.key == "first"
    assert (backend.sampling.temperature, backend.sampling.max_tokens) == (0.3, 9)


def test_the_log_lies_beside_the_results(tmp_path):
    assert make_judge(options(*SERVED, "--out", str(tmp_path / "r.json"))).log == tmp_path / "r.judge.jsonl"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "name one judge"),
        (["--judge", "x", *SERVED], "name one judge"),
        (["--endpoint", "http://h/v1"], "go together"),
        (["--judge", "x", "--judge-model", "m"], "go together"),
        ([*SERVED, "--votes", "3", "--temperature", "0"], "--votes 3 at --temperature 0"),
        ([*SERVED, "--criteria", "no/such"], "--criteria no/such: neither none, builtin nor a file"),
        ([*SERVED, "--judge-log", "/no/such/place"], "--judge-log /no/such/place"),
        (["--endpoint", "localhost:8000", "--judge-model", "m"], "want http://HOST"),
        (["--endpoint", "http://", "--judge-model", "m"], "want http://HOST"),
        (["--endpoint", "http://h:99999/v1", "--judge-model", "m"], "want http://HOST"),
        (["--endpoint", "http://me:secret@h/v1", "--judge-model", "m"], "want http://HOST"),
        (["--endpoint", "http://h/v1?key=secret", "--judge-model", "m"], "want http://HOST"),
    ],
)
def test_flags_that_do_not_fit(flags, text):
    with pytest.raises(UserError, match=text) as error:
        make_judge(options(*flags))
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("flag", ["--votes=0", "--timeout=0", "--temperature=-1", "--retries=-1", "--concurrency=x"])
def test_numbers_out_of_range(flag, capsys):
    with pytest.raises(SystemExit):
        options(*SERVED, flag)
    assert flag.split("=")[0] in capsys.readouterr().err


def test_a_key_that_no_header_carries_is_not_shown(monkeypatch):
    for key in ("sk-ü-secret", "two words-secret", "line\nbreak-secret"):
        monkeypatch.setenv("RMFAST_JUDGE_KEY", key)
        with pytest.raises(UserError, match="RMFAST_JUDGE_KEY holds characters") as error:
            make_judge(options(*SERVED))
        assert "secret" not in str(error.value)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "rmfast.evaluation.judge.endpoint")
    monkeypatch.delitem(sys.modules, "rmfast.evaluation.judge.problem")
    with pytest.raises(UserError, match=r"pip install 'rmfast\[judge\]'"):
        make_judge(options(*SERVED))


def test_from_flags_to_results(monkeypatch):
    monkeypatch.setenv("RMFAST_JUDGE_KEY", "sk-1")
    with serving(right) as server:
        url = f"{server.url}/chat/completions"
        judged = make_judge(options("--endpoint", url, "--judge-model", "m"))(items(3), print)
        assert server.calls[0].headers["authorization"] == "Bearer sk-1"
    assert all(result.won for result in judged.results)


def test_a_local_judge(folder):  # noqa: F811
    judge = make_judge(options("--judge", str(folder), "--votes", "2", "--seed", "3", "--max-tokens", "5"))
    backend = judge.backend
    assert isinstance(backend, Local) and backend.identity["seed"] == 3 and backend.tokens_per_batch == 2048
    assert backend.identity["temperature"] == 1.0
