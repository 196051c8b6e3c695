"""Chat templates from data to result: what they take for granted, leave out, and which date they are given."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

import rmfast
from rmfast.cli import main
from rmfast.data.clock import fixed_date
from rmfast.errors import UserError
from rmfast.train import main as train
from tests.commands.rows import write, write_models
from tests.data.templates import CHATML, DATED, DEEPSEEK, NEEDS_TOOLS
from tests.runs import arguments, write_model

TOOLS = [{"type": "function", "function": {"name": "rain", "description": "Rain.", "parameters": {}}}]
ASK = [{"role": "user", "content": "Is 91 prime?"}]
LINE = "the chat template takes tools for granted: TypeError: object of type 'NoneType' has no len()"
GIVEN = "the chat template reads the clock; it is given {} on any day (template_date)"
CUT = [
    {"prompt": ASK, "chosen": "<think>7 times 13.</think>No.", "rejected": "<think>Odd.</think>Yes."},
    {"prompt": ASK, "chosen": "<think>I know.</think>No.", "rejected": "<think>I guess.</think>No."},
]
LEFT_OUT = (
    "2 rows: the chat template leaves out part of an answer that is scored, such as {}:1: 2 of 2 answers, without "
)
SAME = "1 row: only the chat template makes responses the same, such as {}:2: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("template"))


def template_file(folder: Path, template: str) -> str:
    (folder / "chat.jinja").write_text(template)
    return str(folder / "chat.jinja")


def test_a_template_that_needs_tools_and_a_date_is_trained_exported_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
    write_model(tmp_path / "base")
    rows = [{"prompt": ASK, "chosen": f"No {i}", "rejected": "Yes", "tools": TOOLS} for i in range(4)]
    data = write(tmp_path / "rows.jsonl", rows)
    command = arguments(
        model__path=tmp_path / "base",
        data__train=data,
        data__cache=tmp_path / "cache",
        data__chat_template=template_file(tmp_path, NEEDS_TOOLS.replace(CHATML, DATED)),
        data__template_date="2025-01-05",
        data__pairs_per_step=4,
        run__dir=tmp_path / "run",
        run__tensorboard=False,
        run__max_steps=1,
    )
    assert train(command) == 0
    printed = capsys.readouterr().out
    assert printed.count(LINE) == 1 and printed.count(GIVEN.format("2025-01-05")) == 1
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["template_date"] == "2025-01-05"
    model, out, scored = tmp_path / "run" / "model", tmp_path / "out", tmp_path / "scored.jsonl"
    assert main(["export", str(model), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert LINE in printed and GIVEN.format("2025-01-05") in printed
    plain = AutoTokenizer.from_pretrained(out)
    assert "Today: 05 Jan 2025" in plain.apply_chat_template(ASK, tools=TOOLS, tokenize=False)
    assert main(["score", str(out), "--data", str(data), "--out", str(scored)]) == 0
    assert capsys.readouterr().out.count(GIVEN.format("2025-01-05")) == 1
    ours = rmfast.load(model).score(rows)
    assert ours == rmfast.load(model, template_date="2025-01-05").score(rows)
    assert ours != rmfast.load(model, template_date="2025-01-06").score(rows)
    assert [json.loads(line)["rewards"] for line in scored.read_text().splitlines()] == [
        pytest.approx(own, abs=1e-6) for own in ours
    ]


def test_report_and_score_say_what_a_template_leaves_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = write(tmp_path / "rows.jsonl", CUT), str(folder / "one")
    option = ["--chat-template", template_file(tmp_path, DEEPSEEK)]
    assert main(["data", "report", str(data), "--model", model, *option]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"note {LEFT_OUT.format(data)}'<think>7 times 13.</think>'" in lines
    assert f"note {SAME.format(data)}'<think>I know.</think>No.' and '<think>I guess.</think>No.'" in lines
    assert "identical pairs 1 (50.0%) of the edges; they weigh nothing; in 1 row the texts differ" in lines
    assert main(["score", model, "--data", str(data), "--out", str(tmp_path / "out.jsonl"), *option]) == 0
    printed = capsys.readouterr().out
    assert LEFT_OUT.format(data) in printed and SAME.format(data) in printed


def test_eval_says_it_of_the_rows_that_are_concerned(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Responses of a prompt are computed together, and a note is of its own row alone."""
    whole = {"prompt": ASK, "chosen": "No.", "rejected": "Perhaps."}
    data, out = write(tmp_path / "rows.jsonl", [whole, *CUT]), tmp_path / "out.json"
    command = ["eval", str(folder / "one"), "--data", str(data), "--out", str(out)]
    assert main([*command, "--chat-template", template_file(tmp_path, DEEPSEEK)]) == 0
    notes = json.loads(out.read_text())["notes"]
    assert [note.partition(" 2 of 2")[0] for note in notes] == [
        "columns: prompt, chosen, rejected",
        f"2 rows: the chat template leaves out part of an answer that is scored, such as {data}:2:",
        f"1 row: only the chat template makes responses the same, such as {data}:3: "
        "'<think>I know.</think>No.' and '<think>I guess.</think>No.'",
    ]
    assert "Note: 2 rows: the chat template leaves out" in capsys.readouterr().out


def test_results_name_the_date_and_are_the_same_on_any_day(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": ASK, "chosen": f"No {i}.", "rejected": "Yes."} for i in range(3)]
    data, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.json"
    command = ["eval", str(folder / "one"), "--data", str(data), "--out", str(out)]
    dated = ["--chat-template", template_file(tmp_path, DATED)]

    def result(*options: str) -> tuple[str | None, list[list[float]]]:
        assert main([*command, *options]) == 0
        read = json.loads(out.read_text())
        return read["template_date"], [item["rewards"] for item in read["items"]]

    assert result()[0] is None
    assert "reads the clock" not in capsys.readouterr().out
    before = result(*dated)
    assert before[0] == "2024-07-26"
    assert capsys.readouterr().out.count(GIVEN.format("2024-07-26")) == 1
    other = result(*dated, "--template-date", "2031-12-31")
    assert other[0] == "2031-12-31" and other[1] != before[1]
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", None)  # a template must not ask for it
    assert result(*dated) == before


@pytest.mark.parametrize("command", ["eval", "score", "export", "report"])
def test_a_date_that_is_none_is_refused_in_one_line(
    folder: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "eval": ["eval", "MODEL", "--data", "x"],
        "score": ["score", "MODEL", "--data", "x", "--out", "y"],
        "export": ["export", "MODEL", "--out", "y"],
        "report": ["data", "report", "x"],
    }[command]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--template-date", "26.07.2024"])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("argument --template-date: is a date such as 2024-07-26, got '26.07.2024'")


def test_load_refuses_what_is_no_date(folder: Path) -> None:
    with pytest.raises(UserError, match="is a date such as 2024-07-26, got 'today'"):
        rmfast.load(folder / "one", template_date="today")
    model = rmfast.load(folder / "one", chat_template=DATED)
    assert fixed_date(model.tokenizer.chat_template) == "2024-07-26"
