"""rmfast sample: answers to a file's prompts, drawn once whatever ends the command, and the best of them kept."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch.distributed.run import parse_args
from transformers import PreTrainedTokenizerFast

import rmfast
from rmfast.cli import main, parser
from rmfast.commands.sample import _Watch
from rmfast.data.row_kinds import PAIRS, samples
from rmfast.data.rows import read_row
from rmfast.outputs import lock
from rmfast.outputs.lock import FolderLock
from rmfast.outputs.process import this_process
from rmfast.rollout.sample_file import SampleFile
from tests.rollout.tiny_policies import save_policy
from tests.runs import fork_ranks
from tests.scoring import save_reward_model, transformers_scores
from tests.tiny import save_hf_model

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
    return write(tmp_path / "prompts.jsonl")


def write(file: Path) -> Path:
    """The prompts as data, one of them empty."""
    rows: list[dict[str, Any]] = [{"prompt": prompt, "source": "test"} for prompt in PROMPTS]
    rows.insert(2, {"prompt": ""})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def drawn(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Lines of a samples file: the settings, then two samples of two tokens of each prompt."""
    folder = tmp_path_factory.mktemp("drawn")
    data = write(folder / "prompts.jsonl")
    assert main(command(models, data, folder / "out.jsonl", n=2, tokens=2)) == 0
    return (folder / "out.samples.jsonl").read_text().splitlines(keepends=True)


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


def test_it_goes_on_where_it_was_stopped(models: Path, data: Path, tmp_path: Path) -> None:
    """Killed once four prompts have their samples: those are not drawn again, and all tokens are the same."""
    whole, cut, many = (tmp_path / name for name in ("whole.jsonl", "cut.jsonl", "many.jsonl"))
    many.write_text("".join(json.dumps({"prompt": f"Count to {number}:"}) + "\n" for number in range(12)))
    arguments = ("--rows", "6")
    assert main(command(models, many, whole, *arguments)) == 0
    add = SampleFile.add

    def once(file: SampleFile, number: int, record: dict[str, Any]) -> None:
        add(file, number, record)
        if len(file.found) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    def killed() -> None:
        SampleFile.add = once  # type: ignore[method-assign]
        main(command(models, many, cut, *arguments))

    assert fork_ranks(1, killed) == [-signal.SIGKILL] and not cut.exists()
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
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "GRACE", 0.01)
    out, file = tmp_path / "out.jsonl", tmp_path / "out.samples.jsonl"
    held = FolderLock(tmp_path, file=file)
    assert main(command(models, data, out)) == 2
    says = f"rmfast: --out: {file} is in use by {held._here}; wait until it ends, end it, or choose another --out\n"
    assert capsys.readouterr().err == says
    held.release()
    dead = replace(this_process(), host="n7", boot="another", job="12")  # whose file system has its lock still
    (tmp_path / ".out.samples.jsonl.lock").write_text(dead.text())
    assert main(command(models, data, out)) == 2
    assert f"in use by {dead}; " in (line := capsys.readouterr().err)
    assert line.endswith(" choose another --out; 3 minutes without a sign of it free the folder\n")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(command(models, data, out)) == 0
    assert f"--out: {file} was in use by {dead}, which is an earlier start of this job" in capsys.readouterr().out
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".lock"]


def test_the_time_left_is_told_from_tokens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """8 samples of at most 100 tokens, 10 tokens a second. What they will have at most, while so few have ended that
    the tokens of all are more for each of them; then the mean, 60 for each of 6. A line in ten seconds."""
    clock, lines = 0.0, 0

    def each() -> None:
        nonlocal lines
        lines += 1

    monkeypatch.setattr(time, "monotonic", lambda: clock)
    watch = _Watch(8, 100, True, each)
    for clock, ended in ((12.0, 0), (15.0, 1), (24.0, 2), (36.0, 6), (80.0, 8)):
        watch(int(10 * clock), ended)
    watch.end()
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "0 of 8 samples ended, 120 tokens, 10 tokens/s, left at most 0:01:08",
        "2 of 8 samples ended, 240 tokens, 10 tokens/s, left at most 0:00:56",
        "6 of 8 samples ended, 360 tokens, 10 tokens/s, left 0:00:12",
        "8 of 8 samples ended, 800 tokens, 10 tokens/s, left 0:00:00",
        "800 tokens in 0:01:20, 10 tokens/s",
    ]
    assert lines == 4


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


@pytest.mark.parametrize(
    "number, change, says",
    [
        (0, {"samples": None}, "number 0: samples must be a list of 2"),
        (0, {"samples": []}, "number 0: samples must be a list of 2"),
        (0, {"text": 3}, "number 0: a sample must have its text"),
        (0, {"token_ids": [1.5, 2]}, "number 0: token_ids must be a list of ids"),
        (0, {"token_ids": [5, 10**30]}, "number 0: token_ids must be a list of ids"),
        (0, {"log_prob": [-1.0, -(10**400)]}, "number 0: log_prob must be log-probabilities"),
        (0, {"stop_reason": "tired"}, "number 0: stop_reason must be one of eos, stop, length"),
        (0, {"log_prob": ["x", -1.0]}, "number 0: log_prob must be log-probabilities, one for each id"),
        (0, {"log_prob": [float("nan"), -1.0]}, "number 0: log_prob must be log-probabilities"),
        (0, {"behaviour_log_prob": [-1.0]}, "number 0: behaviour_log_prob must be log-probabilities, one for each id"),
        (5, {}, "number 5: there are 5 prompts, from 0 on"),
        (-1, {}, "number -1: there are 5 prompts, from 0 on"),
        ("1", {}, "is no file of samples"),
        (1.5, {}, "is no file of samples"),
    ],
)
def test_a_samples_file_that_was_edited_is_one_line(
    models: Path, data: Path, drawn: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    number: Any, change: dict[str, Any], says: str,
) -> None:  # fmt: skip
    record = {name: value for name, value in json.loads(drawn[1]).items() if name != "crc32"}  # an earlier version's
    if "samples" in change:
        record["samples"] = change["samples"]
    else:
        record["samples"][1] |= change
    file = tmp_path / "out.samples.jsonl"
    file.write_text(drawn[0] + json.dumps(record | {"number": number}) + "\n")
    assert main(command(models, data, tmp_path / "out.jsonl", n=2, tokens=2)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rmfast: {file}: ") and says in error and error.count("\n") == 1
    assert error.endswith("; give another --out, or remove the file\n")


def test_a_record_that_was_damaged_is_named_and_drawn_again_alone(
    models: Path, data: Path, drawn: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.samples.jsonl"
    damaged = [*drawn[:2], drawn[2].replace('"log_prob": [-', '"log_prob": [-9', 1), "torn\n", *drawn[4:]]
    assert damaged[2] != drawn[2]
    file.write_text("".join(damaged))
    assert main(command(models, data, tmp_path / "out.jsonl", n=2, tokens=2)) == 0
    said = capsys.readouterr().out
    assert f"{file}: line 3: its checksum differs: it was damaged or edited; its prompt is drawn again\n" in said
    assert said.count("its prompt is drawn again") == 2 and f"3 prompts have their samples in {file}" in said
    ids = {line["number"]: [s["token_ids"] for s in line["samples"]] for line in map(json.loads, drawn[1:])}
    again = [json.loads(line) for line in file.read_text().splitlines()[6:]]
    assert {line["number"]: [s["token_ids"] for s in line["samples"]] for line in again} == {n: ids[n] for n in (1, 2)}


def test_torchrun_leaves_the_commands_options_to_it(models: Path, data: Path, tmp_path: Path) -> None:
    """All but --n, for which it has --samples."""
    words = ["--samples" if word == "--n" else word for word in command(models, data, tmp_path / "out.jsonl")]
    given = parse_args(["--nproc_per_node", "2", "-m", "rmfast.cli", *words])
    assert (given.module, given.training_script, given.training_script_args) == (True, "rmfast.cli", words)
    options = parser().parse_args(words)
    assert (options.run, options.n, options.out) == ("sample.sample", 3, str(tmp_path / "out.jsonl"))


def test_two_processes_draw_what_one_draws(
    models: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And their files are joined; what one of them left before it ended is used."""
    alone, both = tmp_path / "alone.jsonl", tmp_path / "both.jsonl"
    assert main(command(models, data, alone)) == 0
    line = (tmp_path / "alone.samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "both.samples.1.jsonl").write_text(line[0] + line[2])
    capfd.readouterr()

    def work() -> None:
        assert main(command(models, data, both)) == 0

    assert fork_ranks(2, work) == [0, 0]
    said = capfd.readouterr().out
    assert "1 prompts have their samples in" in said and said.count("5 rows: ") == 1
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


def test_a_reward_model_reads_texts_by_its_tokenizer(models: Path, data: Path, tmp_path: Path) -> None:
    """Of single bytes, with a chat template of another form: no id is the policy's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({token: i for i, token in enumerate([*alphabet, "<end>"])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}({{ m['role'] }}) {{ m['content'] }}\n{% endfor %}"
    save_hf_model("llama", tmp_path / "bytes", vocab_size=len(tokenizer), eos_token_id=256, bos_token_id=None)
    tokenizer.save_pretrained(tmp_path / "bytes")
    out = tmp_path / "out.jsonl"
    both = ("--reward", str(models / "first"), str(tmp_path / "bytes"), "--keep", "all")
    assert main(command(models, data, out, *both)) == 0
    rows = read(out)
    assert [row["prompt"] for row in rows] == PROMPTS
    theirs = transformers_scores(tmp_path / "bytes", rows)
    for row, scores in zip(rows, theirs, strict=True):
        assert row["rewards"][1] == pytest.approx(scores, abs=1e-4) and np.ptp(scores) > 1e-3
        assert row["rewards"][0] != pytest.approx(scores, abs=1e-3)


def test_rows_that_reward_models_cannot_read_are_named(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "two.jsonl", tmp_path / "best.jsonl"
    data.write_text(json.dumps({"prompt": "word " * 60}) + "\n" + json.dumps({"prompt": "Once"}) + "\n")
    narrow = save_reward_model(tmp_path / "narrow", max_position_embeddings=50)
    assert main(command(models, data, out, "--reward", str(narrow))) == 0
    assert "1 of 2 rows could not be scored: 1 too long; first: row 1: " in capsys.readouterr().out
    assert [row["prompt"] for row in read(out)] == ["Once"]


def test_a_prompt_that_fills_the_context_is_told_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the model has it, with what it must hold."""
    save_policy(tmp_path / "policy", max_position_embeddings=40)
    data, out = tmp_path / "two.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(json.dumps({"prompt": [5] * count}) + "\n" for count in (40, 39)))
    assert main(command(tmp_path, data, out, n=1)) == 0
    says = f"first: {data}:1: too long: 40 tokens, and the model takes 40, answer included"
    assert f"1 of 2 rows could not be used: 1 too long; {says}" in capsys.readouterr().out
    assert [row["stop_reasons"] for row in read(out)] == [["length"]]


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
