"""rmfast serve: from its words to its answers and its end."""

import os
import runpy
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rmfast
from rmfast.cli import main
from tests.evaluation.test_shared import write_members
from tests.scoring import CLOSE

EXAMPLE = Path(__file__).parents[2] / "docs" / "serve_grpo.py"
CHAT = [{"role": "user", "content": "Who sat?"}]


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
    yield number


def test_members_of_one_trunk_serve_the_example(
    tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = write_members(tmp_path)
    (tmp_path / "token").write_text("s3cret\n")
    reward = runpy.run_path(str(EXAMPLE))["reward_function"](f"http://127.0.0.1:{port}", "s3cret")
    prompts = ["the cat", "the cat", CHAT, "a dog"]
    completions: list[Any] = [" sat", " ran", [{"role": "assistant", "content": "The cat."}], " sat"]
    found: list[Any] = []

    def client() -> None:
        try:
            found.append(reward(prompts=prompts, completions=completions, label=["x"] * 4))
            try:
                reward(prompts=["a"], completions=[3])
            except RuntimeError as error:
                found.append(str(error))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=client)
    words = ["serve", *map(str, members), "--combine", "worst", "--port", str(port)]
    thread.start()
    assert main([*words, "--token-file", str(tmp_path / "token")]) == 0
    thread.join()
    rows = [{"prompt": p, "responses": [c]} for p, c in zip(prompts, completions, strict=True)]
    each = [[scores[0] for scores in rmfast.load(path).score(rows)] for path in members]
    assert np.allclose(found[0], np.min(each, axis=0), atol=CLOSE)
    assert "not all text" in found[1] and found[1].isprintable()
    said = capsys.readouterr().out
    assert "3 models share a trunk, which is computed once" in said and "serving 3 members by worst at http" in said
    assert said.endswith("stopped; all that was taken is answered\n")


def test_what_cannot_be_served_is_said_in_a_line(
    tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(write_members(tmp_path, 1)[0])
    (tmp_path / "words").write_text("two words\n")

    def line(*words: str) -> str:
        assert main(["serve", model, *words]) == 2
        return capsys.readouterr().err

    assert "--k belongs to --combine mean-k-std" in line("--k", "2")
    assert "one word of ASCII characters" in line("--token-file", str(tmp_path / "words"))
    (tmp_path / "words").write_text("\n")
    assert "one word of ASCII characters" in line("--token-file", str(tmp_path / "words"))
    assert "No such file or directory" in line("--token-file", str(tmp_path / "none"))
    assert "nothing to combine" in line("--combine", "worst", "--port", "0")
    assert "cannot listen on no.such.host.invalid" in line("--host", "no.such.host.invalid")
    with socket.create_server(("127.0.0.1", port)):
        assert f"cannot listen on 127.0.0.1, port {port} (--host, --port): Address already in use" in line(
            "--port", str(port)
        )
    monkeypatch.setattr("rmfast.commands.serve.find_spec", lambda name: None)
    assert "rmfast serve needs aiohttp and prometheus_client: pip install 'rmfast[serve]'" in line()
