"""rmfast eval by a judge behind a server: from the flags to the result file."""

import json
from pathlib import Path

import pytest

from rmfast.cli import main
from tests.evaluation.judge.server import Call, Reply, serving, shown
from tests.tasks.test_suites import rmb


def cat(call: Call, number: int) -> Reply:
    """Prefers the answer with a cat in it, wherever it is shown."""
    first, _ = shown(call.prompt)
    return Reply(f"They differ. [[{'A' if 'cat' in first else 'B'}]]")


def command(folder: Path, url: str, out: Path, *more: str) -> list[str]:
    keys = ["--suite", "rmb", "--data", str(folder), "--endpoint", url, "--judge-model", "judge-1"]
    return ["eval", *keys, "--out", str(out), "--retries", "0", *more]


def test_a_judge_answers_for_the_suite_and_goes_on_from_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = rmb(tmp_path / "RMB_dataset"), tmp_path / "judge.json"
    with serving(cat) as server:
        assert main(command(folder, server.url, out)) == 0
        asked = len(server.calls)
        printed = capsys.readouterr().out
        result = json.loads(out.read_text())
        assert main(command(folder, server.url, out)) == 0
        assert len(server.calls) == asked  # all answers were in the log
        again = json.loads(out.read_text())
    assert (result["kind"], result["name"], result["suite"]) == ("judge", "judge-1", "rmb")
    assert asked == result["figures"]["questions"] and result["figures"]["no_answers"] == 0
    assert again["headline"] == result["headline"] and again["figures"]["from_log"] == asked
    assert result["rows"] == 10 and len(result["items"]) == 10 and result["length_unit"] == "characters"
    assert all(item["rewards"] is None for item in result["items"])
    assert "loss" not in result and result["nonfinite"] == 0
    assert f"{asked:,} questions" in printed and "overall" in printed


def test_a_judge_that_says_nothing_loses_all_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = rmb(tmp_path / "RMB_dataset"), tmp_path / "judge.json"
    with serving(lambda call, number: Reply("Hm.")) as server:
        assert main(command(folder, server.url, out)) == 0
    result = json.loads(out.read_text())
    assert result["accuracy"] == 0 and result["figures"]["parse_failures"] == result["figures"]["answers"] > 0
    assert "without a verdict" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ([], "name what is evaluated"),
        (["x", "--judge", "y"], "name what is evaluated"),
        (["--judge", "y", "--combine", "mean"], "--votes"),
        (["--endpoint", "http://localhost:1/v1"], "--judge-model"),
    ],
)
def test_what_does_not_fit_together_is_one_line(
    tmp_path: Path, words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *words, "--suite", "rmb", "--data", str(rmb(tmp_path / "RMB_dataset"))]) == 2
    assert hint in capsys.readouterr().err.splitlines()[-1]
