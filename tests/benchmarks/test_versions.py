"""benchmarks/versions.py: what each environment holds to, what is read of its tests, and what is run again."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from benchmarks import figures_tables, versions
from benchmarks.gpu import testing
from benchmarks.versions import ENVIRONMENTS, Environment
from tests.test_ground import setup_arguments

ROOT = Path(__file__).resolve().parents[2]
RAN = {"python": "3.11.7", "versions": {"torch": "2.13.0"}, "tests": ["tests"], "passed": 3, "skipped": 1, "failed": []}


def names(constraints: str) -> dict[str, str]:
    lines = (line for line in constraints.splitlines() if not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_differs_from_the_pins_where_it_says(name: str) -> None:
    one, whole = ENVIRONMENTS[name], names(versions.CONSTRAINTS.read_text(encoding="utf-8"))
    assert {*one.moved, *one.free} <= whole.keys(), "a name that constraints.txt does not have"
    expected = {key: version for key, version in whole.items() if key not in one.free} | dict(one.moved)
    assert names(versions.pins(one)) == expected
    assert all((ROOT / path).exists() for path in one.tests)


@pytest.mark.parametrize("library", ["torch", "triton", "transformers", "datasets"])
def test_the_oldest_versions_are_the_lower_bounds(library: str) -> None:
    arguments = setup_arguments()
    asked = map(Requirement, arguments["install_requires"] + arguments["extras_require"]["test"])
    bound = next(str(one.specifier) for one in asked if one.name == library)
    oldest = ENVIRONMENTS[f"{library}-oldest"].moved[library]
    assert re.sub(r"(\.0)+$", "", bound.removeprefix(">=")) == re.sub(r"(\.0)+$", "", oldest)


def test_outcomes_are_read_from_pytest_s_report(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(
        '<testsuites><testsuite><testcase classname="tests.a" name="one"/><testcase classname="tests.a" name="two">'
        '<failure message="x"/></testcase><testcase classname="tests.b" name="three"><skipped/></testcase>'
        '<testcase classname="" name="tests.c"><error message="import"/></testcase></testsuite></testsuites>'
    )
    found = testing.outcome(tmp_path / "report.xml")
    failures = found.pop("failures")
    assert found == {"passed": 1, "failed": 2, "skipped": 1}
    assert failures == [{"test": "::tests.c", "why": "import"}, {"test": "tests.a::two", "why": "x"}]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the environments that were built, in place of building them."""
    built: list[str] = []

    def measured(name: str, one: Environment, keep: bool) -> dict[str, Any]:
        built.append(name)
        return RAN | {"failed": ["tests.a::two"] if name == "torch-oldest" else []}

    monkeypatch.setattr(versions, "measured", measured)
    monkeypatch.setattr(versions, "RECORDS", tmp_path / "versions.json")
    monkeypatch.setattr(versions, "commit", lambda: "abc")
    return built


def test_what_has_run_at_this_commit_is_not_run_again(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert versions.main(["--only", "pinned"]) == 0 and ran == ["pinned"]
    assert versions.main(["--only", "pinned", "newest"]) == 0 and ran == ["pinned", "newest"]
    assert versions.main(["--only", "pinned", "--again"]) == 0 and ran[2:] == ["pinned"]
    monkeypatch.setattr(versions, "commit", lambda: "def")
    assert versions.main(["--only", "newest"]) == 0 and ran[3:] == ["newest"]
    records = json.loads(versions.RECORDS.read_text())["environments"]
    assert {name: record["commit"] for name, record in records.items()} == {"pinned": "abc", "newest": "def"}


def test_failures_are_named_and_end_with_1(ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert versions.main(["--only", "pinned", "torch-oldest"]) == 1 and ran == ["pinned", "torch-oldest"]
    printed = capsys.readouterr().out
    assert "pinned: 3 passed, 1 skipped\n" in printed
    assert "torch-oldest: 1 failed, 3 passed, 1 skipped\n  tests.a::two\n" in printed
    assert versions.main(["--only", "torch-oldest"]) == 1, "as it stands in the records"


def test_an_interpreter_that_is_missing_is_no_fault() -> None:
    found = versions.measured("python-0", Environment(("tests",), python="python0.0"), keep=False)
    assert found == {"why": "not run: no python0.0"}


def test_the_table_has_a_line_for_each() -> None:
    ends = {"commit": "abc", "date": "2026-01-02"}
    missing = {"why": "not run: no python3.13"} | ends
    lines = {"newest": RAN | {"failed": ["tests.a::two"]} | ends, "python-3.13": missing}
    table = figures_tables.versions({"environments": lines}).splitlines()
    assert table[2] == (
        "| newest | 3.11.7 | 2.13.0 | - | - | - | - | - | 1 failed, 3 passed, 1 skipped<br>tests.a (1) | `tests` "
        "| abc, 2026-01-02 |"
    )
    assert table[3].startswith("| python-3.13 | - |") and "| not run: no python3.13 | - | abc" in table[3]
