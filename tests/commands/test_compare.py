"""rmfast compare, on what rmfast eval and rmfast score write."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from rmfast.cli import main
from rmfast.commands import compare as compare_task
from tests.scoring import save_reward_model

WORDS = ["the cat sat", "a dog ran home", "birds sing by the sea", "red mat", "it slept", "two grey cats ran far away"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results and scores of two models: a.json, b.json, a.jsonl, b.jsonl."""
    folder = tmp_path_factory.mktemp("compare")
    rows = [
        {"prompt": f"Who {i}?", "chosen": f" {WORDS[i % 6]}", "rejected": f" {WORDS[(i * 5 + 1) % 6]} {i}", "subset": s}
        for i, s in enumerate(["easy", "hard"] * 10)
    ]
    lists = [{"prompt": f"Who {i}?", "responses": [f" {word} {i}" for word in WORDS]} for i in range(6)]
    for name, content in (("pairs", rows), ("fewer", rows[:-1]), ("lists", lists)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    for name, kind, seed in (("a", "llama", 0), ("b", "qwen3", 5)):
        save_reward_model(folder / f"model-{name}", kind, seed=seed)
        run(folder, "eval", f"model-{name}", "--data", "pairs.jsonl", "--out", f"{name}.json")
        run(folder, "score", f"model-{name}", "--data", "lists.jsonl", "--out", f"{name}.jsonl")
    run(folder, "eval", "model-a", "--data", "fewer.jsonl", "--out", "fewer.json")
    return folder


def run(folder: Path, *words: str) -> None:
    files = (
        word if word.startswith("--") or "." not in word and "model" not in word else str(folder / word)
        for word in words
    )
    assert main(list(files)) == 0


def test_two_models_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]):
    words = ["compare", "a.json", "b.json", "--candidates", "a.jsonl", "b.jsonl", "--gold", "b.jsonl"]
    run(folder, *words, "--out", "found.json", "--html", "page.html")
    said = capsys.readouterr().out
    for line in ("Headline", "Length", "Calibration", "Cohen's kappa", "model-a - model-b: pairwise", "gold's pick"):
        assert line in said, line
    assert "2 models: a correlation over so few means nothing" in said
    found = json.loads((folder / "found.json").read_text())
    accuracy = [json.loads((folder / f"{name}.json").read_text())["accuracy"] for name in "ab"]
    assert [m["headline"]["pairwise"]["value"] for m in found["models"]] == pytest.approx(accuracy)
    difference = found["agreement"]["pairs"][0]["parts"]["pairwise"]
    assert difference["value"] == pytest.approx(accuracy[0] - accuracy[1])
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert found["selection"]["models"][1]["quality"]["value"] == pytest.approx(1)
    assert found["rows"] == 20 and found["agreement"]["all_wrong"]["parts"]["pairwise"]["rows"] == 20
    page = (folder / "page.html").read_text()
    assert "model-a" in page and "model-b" in page and "</html>" in page


def test_one_model_alone(folder: Path, capsys: pytest.CaptureFixture[str]):
    run(folder, "compare", "a.json")
    said = capsys.readouterr().out
    assert "at equal length" in said and "Cohen's kappa" not in said


def test_models_of_one_name_are_told_apart(folder: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copy(folder / "a.json", folder / "copy.json")
    run(folder, "compare", "a.json", "copy.json")
    said = capsys.readouterr().out
    assert "model-a (" in said and "cannot be told apart" in said and "1.000" in said


def changed(folder: Path, name: str, change: Callable[[dict], object]) -> str:
    """b.json, changed."""
    result = json.loads((folder / "b.json").read_text())
    change(result)
    (folder / name).write_text(json.dumps(result))
    return name


def refuse(result: dict) -> None:
    """The model could not take rows 3 and 12."""
    for place in (11, 2):
        item = result["items"].pop(place)
        row = {key: item[key] for key in ("label", "part", "path")}
        result["not_scored"].append(row | {"cause": "too long", "detail": "99 tokens"})
        result["rows_not_scored"] += 1


def test_rows_that_one_model_could_not_score(folder: Path, capsys: pytest.CaptureFixture[str]):
    less = changed(folder, "less.json", refuse)
    run(folder, "compare", "a.json", less, "--out", "found.json", "--html", "page.html")
    note = "2 rows left out: not scored by model-b (2 too long)"
    said = capsys.readouterr().out
    assert f"Note: {note}" in said and "18 rows, 18 pairs" in said
    found = json.loads((folder / "found.json").read_text())
    assert found["notes"][0] == note and found["rows"] == 18
    items = json.loads((folder / "a.json").read_text())["items"]
    won = [item["won"] for place, item in enumerate(items) if place not in (2, 11)]
    accuracy = sum(won) / 18
    assert found["models"][0]["headline"]["pairwise"]["value"] == pytest.approx(accuracy)
    assert f"pairwise  {100 * accuracy:.1f} %" in " ".join(said.split()).replace("pairwise ", "pairwise  ")
    page = (folder / "page.html").read_text()
    assert note in page and f"{sum(won)} of 18 right" in page
    assert "All of 20 rows were scored. Left out since others did not score them: 2 rows." in page


def test_files_are_written_before_anything_is_printed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def gone(_: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(compare_task, "say", gone)
    out, html = folder / "piped.json", folder / "piped.html"
    with suppress(BrokenPipeError):
        main(["compare", str(folder / "a.json"), "--out", str(out), "--html", str(html)])
    assert json.loads(out.read_text())["rows"] == 20 and html.read_text().endswith("</html>\n")


def test_the_order_of_what_is_printed_and_few_lines_of_length(folder: Path, capsys: pytest.CaptureFixture[str]):
    run(folder, "compare", "a.json", "b.json")
    blocks = capsys.readouterr().out.split("\n\n")
    titles = [block.split("  ")[0] for block in blocks]
    assert titles[1:5] == ["Headline", "Accuracy", "Differences on the same rows, in points", "Length"]
    assert blocks[3].count("pairwise") == 1  # a part that is a figure of the headline stands there once
    assert [line.split("  ")[0] for line in blocks[4].splitlines()[1:]] == [
        "lengths counted in",
        "pairwise: balanced (better answer longer, shorter)",
        "pairwise: right at equal length (model)",
        "pairwise: effect of length",
        "pairwise: gap and length gap (Spearman)",
    ]


def test_long_names_stand_once(folder: Path, capsys: pytest.CaptureFixture[str]):
    names = [f"a-reward-model-of-a-long-name-{i}-and-more" for i in range(2)]
    files = [changed(folder, f"long{i}.json", lambda r, name=name: r.update(name=name)) for i, name in enumerate(names)]
    run(folder, "compare", *files)
    said = capsys.readouterr().out
    for letter, name in zip("AB", names, strict=True):
        assert said.count(name) == 1 and f"{letter} a-reward-model-of-a...: {name}" in said
    assert "A a-reward-model-of-a... - B a-reward-model-of-a...: pairwise" in said


def test_one_row_is_one_row(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "single.jsonl").write_text((folder / "pairs.jsonl").read_text().splitlines()[0] + "\n")
    for name in "ab":
        run(folder, "eval", f"model-{name}", "--data", "single.jsonl", "--out", f"single-{name}.json")
    capsys.readouterr()
    run(folder, "compare", "single-a.json", "single-b.json", "--html", "page.html")
    said = capsys.readouterr().out
    assert "pairwise: 1 row, 1 pair, 1 prompt; 95 %" in said
    page = (folder / "page.html").read_text()
    for wrong in ("1 rows", "1 pairs", "1 prompts"):
        assert f" {wrong}" not in said and f">{wrong}" not in page and f" {wrong}" not in page
    assert "The one row was scored." in page and "The one pair of better and worse responses: " in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.json", "fewer.json"], "fewer.json: other rows than"),
        (["a.json", "none.json"], "none.json: No such file"),
        (["a.json", "pairs.jsonl"], "pairs.jsonl: no JSON"),
        (["a.json", "--gold", "a.jsonl"], "--candidates and --gold belong together"),
        (["a.json", "--candidates", "a.jsonl", "b.jsonl", "--gold", "b.jsonl"], "2 files for 1 results"),
        (["a.json", "--candidates", "pairs.jsonl", "--gold", "b.jsonl"], "pairs.jsonl:1: no `rewards`"),
        (["a.json", "--out", "a.json"], "would overwrite"),
        (["a.json", "--html", "a.json"], "would overwrite"),
        (["a.json", "--out", "x.json", "--html", "x.json"], "--out and --html both name"),
        (["a.json", "--suite", "none.py"], "no such file"),
    ],
)
def test_one_line_for_what_does_not_fit(folder, words, message, capsys: pytest.CaptureFixture[str]):
    kept = (folder / "a.json").read_bytes()
    assert main(["compare", *(w if w.startswith("--") else str(folder / w) for w in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert (folder / "a.json").read_bytes() == kept and not (folder / "x.json").exists()
