"""benchmarks/figures.py: tables are what their files say, those of a GPU too."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import figures, figures_raw
from benchmarks import figures_tables as tables
from benchmarks.gpu.stages import kernels
from rmfast.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_pages_are_what_their_files_say() -> None:
    assert figures.main(["--check"]) == 0


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first page and its files, to be changed."""
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
    (tmp_path / "gpu").mkdir()
    for path in figures.RESULTS.glob("vs_trl*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(figures, "PAGES", (tmp_path / "README.md",))
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    monkeypatch.setattr(figures, "GPU", tmp_path / "gpu")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("README.md", "| 78.4 | 4.8 x |", "| 78.4 | 7.0 x |", "differs from its file"),
        ("README.md", "-->3.7 x<!--", "-->3.9 x<!--", "differs from its file"),
        ("README.md", "-->18.6 GiB<!--", "-->28.6 GiB<!--", "differs from its file"),
        ("README.md", "-->4.3 x<!--", "-->4.5 x<!--", "differs from its file"),
        ("README.md", "-->2.5 x<!--", "-->3.5 x<!--", "differs from its file"),
        ("README.md", "-->4e-5<!--", "-->4e-6<!--", "differs from its file"),
        ("README.md", "-->15<!--", "-->150<!--", "differs from its file"),
        ("README.md", "<!-- end of table -->", "", "2 markers begin a table, 1 end one"),
        ("README.md", "<!-- end of figure -->", "", "7 markers begin a figure, 6 end one"),
        ("vs_trl_cpu_shape.json", '"cpu_seconds": 59.7', '"cpu_seconds": 39.7', "trl-no-checkpointing, cpu_seconds"),
        ("vs_trl_curve_smollm2.json", '"trl": 4.00', '"trl": 1.00', "trl, largest difference of a loss"),
        ("vs_trl_cpu_smollm2.json", "{", "[", "damaged or no result"),
        ("gpu/steps.json", None, '{"stage": "steps", "parts": {}}', "steps.json: holds no results"),
        ("gpu/steps.json", None, "{", "steps.json: damaged or no result"),
        ("gpu/steps.json", None, '{"stage": "steps", "parts": {"x": {"status": "done", "result": {}}}}', "damaged"),
    ],
)
def test_whatever_is_changed_is_found(
    file: str, old: str | None, new: str, said: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures.main(["--check"]) == 0
    text = new if old is None else (copied / file).read_text()
    if old is not None:
        assert old in text
        text = text.replace(old, new, 1)
    (copied / file).write_text(text)
    before = (copied / "README.md").read_text()
    assert figures.main(["--check"]) == 1
    captured = capsys.readouterr()
    assert said in captured.out + captured.err and len((captured.out + captured.err).splitlines()) == 1
    if "differs" not in said:  # and nothing is written either
        assert figures.main([]) == 1 and (copied / "README.md").read_text() == before


def test_a_raw_time_and_a_missing_file_are_found(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "vs_trl_cpu_shape_2rounds.json"
    result = json.loads(path.read_text())
    result["rounds"]["trl"][1]["cpu_seconds"][2] *= 2
    path.write_text(json.dumps(result))
    assert figures.main(["--check"]) == 1 and "trl, cpu_seconds: the file says 78.3893" in capsys.readouterr().err
    path.unlink()
    assert figures.main(["--check"]) == 1 and "No such file" in capsys.readouterr().err
    assert figures.NOTHING in figures.filled("<!-- table: gpu-steps gpu/x.json -->\n<!-- end of table -->", copied)


def test_the_page_of_a_gpu_is_checked_too(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = {"passed": 3, "failed": 0, "skipped": 1, "failures": []}
    record = {"status": "done", "tries": 1, "device": "card", "versions": {"torch": "2"}, "result": result}
    parts = {"a": record | {"commit": "c", "when": "2026-01-02T"}, "b": record | {"commit": "d", "when": "2026-01-03T"}}
    (copied / "gpu" / "suite.json").write_text(json.dumps({"stage": "suite", "parts": parts}))
    assert figures.main(["--check"]) == 1
    page = copied / "gpu" / "README.md"
    page.write_text(figures.gpu_page(figures.GPU))
    assert figures.main(["--check"]) == 0
    assert "card, torch 2; commit c, 2026-01-02; and card, torch 2; commit d, 2026-01-03." in page.read_text()
    page.write_text(page.read_text().replace("2 parts: 6 passed", "2 parts: 7 passed"))
    capsys.readouterr()
    assert figures.main(["--check"]) == 1 and "gpu/README.md: a table or figure" in capsys.readouterr().out
    assert figures.main(["--check", "--gpu", str(copied / "none")]) == 1


def test_medians_of_kernels_and_of_tiles_are_computed_again(tmp_path: Path) -> None:
    row = {"op": "x", "size": "s", "pass": "forward", "contender": "torch", "milliseconds": 2.0, "speed_of_torch": 1.0,
           "rounds": [1.0, 2.0, 9.0]}  # fmt: skip
    line = {"name": "n", "held": {"m": 1}, "held_milliseconds": 2.0, "winner": {"m": 2}, "winner_milliseconds": 1.0,
            "tried": [{"tile": {"m": 1}, "milliseconds": 2.0, "rounds": [2.0]},
                      {"tile": {"m": 2}, "milliseconds": 1.0, "rounds": [1.0]}]}  # fmt: skip

    def load(stage: str, result: dict[str, Any]) -> None:
        record = {"status": "done", "result": result}
        (tmp_path / "x.json").write_text(json.dumps({"stage": stage, "parts": {"one": record}}))
        figures_raw.load(tmp_path / "x.json")

    load("kernels", {"results": [row]})
    load("tiles", {"lines": [line]})
    for change in ({"milliseconds": 1.0}, {"speed_of_torch": 2.0}):
        with pytest.raises(UserError, match="its raw figures give"):
            load("kernels", {"results": [row | change]})
    for change in ({"winner_milliseconds": 0.5}, {"held_milliseconds": 3.0}):
        with pytest.raises(UserError, match="its raw figures give"):
            load("tiles", {"lines": [line | change]})


def test_the_first_page_says_what_a_gpu_gave() -> None:
    origin = {"device": "card", "versions": {"torch": "2"}, "commit": "c", "when": "2026-01-02T03:04:05"}
    row = {"wall_seconds": 1.0, "tokens_per_second": 9e4, "mfu": 0.5, "peak_gib": 20.0}
    parts = {"one": origin | {"result": {"summary": {"trl": row | {"wall_seconds": 7.5}, "rmfast": row}}},
             "rmfast failed": origin | {"result": {"summary": {"trl": row}}}, "cut": origin}  # fmt: skip
    table = tables.gpu_steps({"stage": "steps", "parts": parts})
    assert "| one | 90,000 | 50 % | 20.0 | 7.5 x | - | - | - | card, torch 2, c, 2026-01-02 |" in table
    assert "failed" not in table and "cut" not in table


def test_every_part_of_the_kernels_is_divided_by_its_own_ceilings() -> None:
    row = {"op": "x", "size": "s", "pass": "forward", "contender": "rmfast", "bytes": 1000, "flops": 1,
           "milliseconds": 1.0, "share_of_limit": 0.5, "limit_by": "memory"}  # fmt: skip
    slow, fast = ({"bandwidth": rate, "matmul": 1e12, "dtype": "bfloat16"} for rate in (2e6, 4e6))
    parts = {name: {"status": "done", "result": {"results": [row | {"op": name}], "skipped": [], "limits": limits,
                                                 "tests": {name: "passed"}}}
             for name, limits in (("slow", slow), ("fast", fast))}  # fmt: skip
    whole = kernels.joined(parts)
    assert whole is not None
    assert [each["share_of_limit"] for each in whole["results"]] == [0.5, 0.25]
    assert "copy 0 to 0 GB/s" in kernels.lines(parts)[0] and "50.0%" in kernels.lines(parts)[1]
