"""rmfast sample: answers to a file's prompts, drawn once whatever ends the command, and the best of them kept."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rmfast
from rmfast.cli import main
from rmfast.data.row_kinds import PAIRS, samples
from rmfast.data.rows import read_row
from rmfast.rollout.sample_file import claimed
from tests.rollout.tiny_policies import save_policy
from tests.runs import ROOT, environment, torchrun
from tests.scoring import save_reward_model

PROMPTS: list[Any] = [
    "The capital of France is",
    [{"role": "user", "content": "Name a fruit."}],
    "Once upon a time",
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
    "Once upon a time",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, two reward models and gold."""
    folder = tmp_path_factory.mktemp("models")
    save_policy(folder / "policy")
    for seed, name in enumerate(("first", "second", "gold"), 1):
        save_reward_model(folder / name, seed=seed)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": prompt, "source": "test"} for prompt in PROMPTS]
    rows.insert(2, {"prompt": ""})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def command(models: Path, data: Path, out: Path, *more: str, n: int = 3, tokens: int = 12) -> list[str]:
    flags = ["--data", str(data), "--out", str(out), "--n", str(n), "--max-new-tokens", str(tokens), "--seed", "3"]
    return ["sample", str(models / "policy"), *flags, *more]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_its_rows_are_the_policys_samples(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert main(command(models, data, out)) == 0
    said = capsys.readouterr().out
    assert "5 prompts, 3 samples each of at most 12 tokens; ends: '<|im_end|>'" in said
    assert f"1 of 6 rows could not be used: 1 empty; first: {data}:3: empty: the prompt has no text" in said
    assert "columns: prompt; ignored: source" in said and f"5 rows: {out}" in said
    assert f"15 samples of 5 prompts (length 15), with their token ids: {tmp_path / 'out.samples.jsonl'}" in said
    want = rmfast.load_policy(models / "policy").sample(PROMPTS, n=3, max_new_tokens=12, seed=3)
    rows = read(out)
    assert [row["prompt"] for row in rows] == PROMPTS
    for row, drawn in zip(rows, want, strict=True):
        assert row["responses"] == [sample.text for sample in drawn] and row["edges"] == []
        assert row["stop_reasons"] == [sample.stop_reason for sample in drawn]
        assert row["log_probs"] == pytest.approx([sum(sample.log_prob) for sample in drawn], abs=1e-4)
    kept = read(tmp_path / "out.samples.jsonl")
    assert [sample["token_ids"] for line in sorted(kept[1:], key=lambda line: line["number"])
            for sample in line["samples"]] == [sample.token_ids for drawn in want for sample in drawn]  # fmt: skip


def test_a_limit_takes_the_first_prompts(models: Path, data: Path, tmp_path: Path) -> None:
    """Of those that can be used, with the samples that they have in the whole file."""
    whole, first = tmp_path / "whole.jsonl", tmp_path / "first.jsonl"
    assert main(command(models, data, whole)) == 0
    assert main(command(models, data, first, "--limit", "3")) == 0
    assert [row["responses"] for row in read(first)] == [row["responses"] for row in read(whole)[:3]]


def test_its_rows_are_read_by_meta_data_and_by_score(models: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert main(command(models, data, out)) == 0
    for number, row in enumerate(read(out)):
        example = read_row(f"row {number}", row, kind=samples(2))
        assert list(example.responses) == row["responses"] and not example.edges
    scored = tmp_path / "scored.jsonl"
    assert main(["score", str(models / "first"), "--data", str(out), "--out", str(scored)]) == 0
    assert all(len(row["rewards"]) == 3 for row in read(scored))


def test_a_prompt_of_token_ids_becomes_text(models: Path, tmp_path: Path) -> None:
    """Beside answers that are texts: the one that the row has, or what the ids say."""
    tokenizer = rmfast.load_policy(models / "policy").tokenizer
    asked = tokenizer.apply_chat_template(PROMPTS[1], add_generation_prompt=True, tokenize=False)
    ids = [tokenizer(text)["input_ids"] for text in (asked, PROMPTS[0])]
    data, out, scored = (tmp_path / name for name in ("ids.jsonl", "out.jsonl", "scored.jsonl"))
    rows = [{"prompt": ids[0]}, {"prompt_ids": ids[1], "prompt": PROMPTS[0]}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(command(models, data, out)) == 0
    assert [row["prompt"] for row in read(out)] == [asked, PROMPTS[0]]
    assert main(["score", str(models / "first"), "--data", str(out), "--out", str(scored)]) == 0
    assert all(len(row["rewards"]) == 3 for row in read(scored))


def test_what_any_process_left_is_used(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A crash may have come after the file of process 1 was joined, and before that of process 2 was."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert main(command(models, data, whole)) == 0
    lines = (tmp_path / "whole.samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut.samples.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "cut.samples.2.jsonl").write_text(lines[0] + lines[3])
    capsys.readouterr()
    assert main(command(models, data, cut)) == 0
    assert "2 prompts have their samples in" in capsys.readouterr().out
    assert [row["responses"] for row in read(cut)] == [row["responses"] for row in read(whole)]
    assert not (tmp_path / "cut.samples.2.jsonl").exists()


KILLED = """
import os, signal, sys
from rmfast.cli import main
from rmfast.rollout.sample_file import SampleFile

add = SampleFile.add

def once(file, number, record):
    add(file, number, record)
    if len(file.found) == 4:
        os.kill(os.getpid(), signal.SIGKILL)

SampleFile.add = once
main(sys.argv[1:])
"""


def test_it_goes_on_where_it_was_stopped(models: Path, data: Path, tmp_path: Path) -> None:
    """Killed once four prompts have their samples: those are not drawn again, and all tokens are the same."""
    whole, cut, many = (tmp_path / name for name in ("whole.jsonl", "cut.jsonl", "many.jsonl"))
    many.write_text("".join(json.dumps({"prompt": f"Count to {number}:"}) + "\n" for number in range(12)))
    arguments = ("--rows", "6")
    assert main(command(models, many, whole, *arguments)) == 0
    started = [sys.executable, "-c", KILLED, *command(models, many, cut, *arguments)]
    done = subprocess.run(started, env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL and not cut.exists()
    file = tmp_path / "cut.samples.jsonl"
    before = file.read_bytes()
    assert before.count(b"\n") == 5
    assert main(command(models, many, cut, *arguments)) == 0
    assert file.read_bytes().startswith(before)
    kept, want = (
        {line["number"]: [s["token_ids"] for s in line["samples"]] for line in read(path)[1:]}
        for path in (file, tmp_path / "whole.samples.jsonl")
    )
    assert kept == want and [row["responses"] for row in read(cut)] == [row["responses"] for row in read(whole)]


def test_one_command_at_a_time_writes_a_file(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out.jsonl", tmp_path / "out.samples.jsonl"
    with claimed(file):
        assert main(command(models, data, out)) == 2
    says = f"rmfast: {file}: another process is writing it; wait until it ends, or give another --out\n"
    assert capsys.readouterr().err == says
    assert main(command(models, data, out)) == 0


def test_other_settings_are_named(models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    assert main(command(models, data, out)) == 0
    assert main(command(models, data, out, "--temperature", "0.5")) == 2
    file = tmp_path / "out.samples.jsonl"
    assert capsys.readouterr().err == (
        f"rmfast: {file}: was begun with temperature 1.0, and this is 0.5; give another --out, or remove the file\n"
    )


def test_other_ends_are_other_settings(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    shutil.copytree(models / "policy", tmp_path / "policy")
    assert main(command(tmp_path, data, out)) == 0
    (tmp_path / "policy" / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert main(command(tmp_path, data, out)) == 2
    assert "was begun with ends [2], and this is [0, 2]; " in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(models: Path, data: Path, tmp_path: Path) -> None:
    """And their files are joined; what one of them left before it ended is used."""
    alone, both = tmp_path / "alone.jsonl", tmp_path / "both.jsonl"
    assert main(command(models, data, alone)) == 0
    line = (tmp_path / "alone.samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "both.samples.1.jsonl").write_text(line[0] + line[2])
    # torchrun would take --n for an abbreviation of its own options.
    words = ["--samples" if word == "--n" else word for word in command(models, data, both)]
    started = [*torchrun(2), "-m", "rmfast.cli", *words]
    done = subprocess.run(
        started, env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "1 prompts have their samples in" in done.stdout and done.stdout.count("5 rows: ") == 1
    for got, want in zip(read(both), read(alone), strict=True):
        assert got.pop("log_probs") == pytest.approx(want.pop("log_probs"), abs=1e-4)
        assert got == want
    assert not (tmp_path / "both.samples.1.jsonl").exists()


def rewards_of(model: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array(rmfast.load(model).score([{"prompt": r["prompt"], "responses": r["responses"]} for r in rows]))


def test_the_best_by_reward_models_is_kept(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the worst of two members; nothing is drawn again for other ways to keep."""
    raw = tmp_path / "raw.jsonl"
    assert main(command(models, data, raw, n=4)) == 0
    rows = read(raw)
    members = np.stack([rewards_of(models / name, rows) for name in ("first", "second")])
    worst = members.min(0)
    judged = ("--reward", str(models / "first"), str(models / "second"), "--combine", "worst")
    found = {}
    for keep in ("best", "best-worst", "all"):
        out = tmp_path / keep / "raw.jsonl"
        out.parent.mkdir()
        (out.parent / "raw.samples.jsonl").write_bytes((tmp_path / "raw.samples.jsonl").read_bytes())
        assert main(command(models, data, out, *judged, "--keep", keep, n=4)) == 0
        assert "5 prompts have their samples" in (said := capsys.readouterr().out)
        assert "2 members combined by worst" in said
        assert "20 answers were cut where there was no room; reward models read them as if they ended there" in said
        found[keep] = read(out)
    for row, best, pair, scored, by in zip(rows, found["best"], found["best-worst"], found["all"], worst, strict=True):
        texts = [row["responses"][int(by.argmax())], row["responses"][int(by.argmin())]]
        answers = [[{"role": "assistant", "content": t}] for t in texts] if isinstance(row["prompt"], list) else texts
        assert (best["prompt"], best["completion"]) == (row["prompt"], answers[0])
        assert best["reward"] == pytest.approx(by.max(), abs=1e-4)
        assert (pair["chosen"], pair["rejected"]) == tuple(answers)
        example = read_row("row", pair, kind=PAIRS)
        assert len(example.responses) == 2 and example.edges[0].better == 0
        assert scored["responses"] == row["responses"]
    assert np.array([row["rewards"] for row in found["all"]]).swapaxes(0, 1) == pytest.approx(members, abs=1e-4)


def test_rows_that_reward_models_cannot_read_are_named(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "two.jsonl", tmp_path / "best.jsonl"
    data.write_text(json.dumps({"prompt": "word " * 60}) + "\n" + json.dumps({"prompt": "Once"}) + "\n")
    narrow = save_reward_model(tmp_path / "narrow", max_position_embeddings=50)
    assert main(command(models, data, out, "--reward", str(narrow))) == 0
    assert "1 of 2 rows could not be scored: 1 too long; first: row 1: " in capsys.readouterr().out
    assert [row["prompt"] for row in read(out)] == ["Once"]


def test_proxy_is_drawn_against_gold(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "best.jsonl", tmp_path / "report"
    judged = ("--reward", str(models / "first"), str(models / "second"))
    gold = ("--gold", str(models / "gold"), "--report", str(report))
    assert main(command(models, data, out, *judged, *gold, n=4)) == 0
    assert f"proxy against gold over N: {report / 'report.html'}" in capsys.readouterr().out
    figures = json.loads((report / "best_of_n.json").read_text())
    assert figures["counts"] == [1, 2, 4] and figures["rows"] == 5
    assert [curve["name"] for curve in figures["members"]] == [str(models / "first"), str(models / "second")]
    assert {path.name for path in report.iterdir()} == {"best_of_n.json", "members.png", "rules.png", "report.html"}
    assert main(command(models, data, out, *judged, *gold, n=4)) == 0  # an earlier report is replaced
    (report / "report.html").write_text("a page of mine")
    assert main(command(models, data, out, *judged, *gold, n=4)) == 2
    assert "report.html is there already and is no page of rmfast" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, says",
    [
        (("--keep", "best"), "--keep is for the rewards of --reward, and there is none"),
        (("--gold", "x"), "--report draws the rewards of --reward against those of --gold: give all three, or neither"),
        (("--report", "x"), "--report draws the rewards of --reward against those of --gold"),
        (("--top-p", "2"), "top_p must be above 0 and at most 1 (off), got 2.0"),
        (("--memory", "1e-9"), "a memory of 1e-09 GB holds keys and values of 0 tokens"),
        (("--reward", "nowhere"), "nowhere"),
        (("--reward", "x", "--keep", "best-worst", "--n", "1"), "--keep best-worst makes pairs of a prompt's samples"),
        (("--temperature", "1e-6"), "temperature must be 0 (greedy) or at least 1e-05, got 1e-06"),
        (("--stop", "\udcff"), "stop must be text that UTF-8 can hold"),
    ],
)
def test_flags_that_do_not_fit(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], says: str
) -> None:
    assert main(command(models, data, tmp_path / "out.jsonl", *flags)) == 2
    error = capsys.readouterr().err
    assert error.startswith("rmfast: ") and says in error and error.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_a_reward_model_as_policy_and_a_file_that_is_no_samples(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["sample", str(models / "first"), "--data", str(data), "--out", str(tmp_path / "out.jsonl")]
    assert main(wrong) == 2
    assert "a reward model; a policy is a causal language model" in capsys.readouterr().err
    assert main(command(models, data, data)) == 2
    assert "would overwrite --data" in capsys.readouterr().err
