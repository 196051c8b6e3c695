"""Odd but harmless input ends in one clear line or a counted row: a sample of what `python -m tests.odd` runs whole."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.odd import cases
from tests.odd.commands import write_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("odd"))


@pytest.fixture(autouse=True)
def at_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no name is there, and nothing is looked up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_odd_rows_are_bad_rows_by_a_cause() -> None:
    seen = cases.rows(1, 600)
    assert not seen.flaws and seen.ended["refused"] > 300


def test_odd_configs_are_refused_in_a_line(tmp_path: Path) -> None:
    seen = cases.configs(1, 300, tmp_path)
    assert not seen.flaws and seen.ended["refused"] > 200


def test_odd_commands_end_in_a_line(folder: Path) -> None:
    seen = cases.commands(1, 26, folder)
    assert not seen.flaws and seen.ended["refused"] > 10


@pytest.mark.parametrize("kind", ["models", "results", "runs"])
def test_odd_files_are_refused_in_a_line(folder: Path, kind: str) -> None:
    seen = getattr(cases, kind)(1, 60, folder)
    assert not seen.flaws and sum(seen.ended.values()) == 60
