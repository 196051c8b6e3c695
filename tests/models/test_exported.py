"""Of an exported model damaged weights are refused and edited files told; of other folders nothing is asked."""

import logging
from pathlib import Path

import pytest

from rmfast.errors import UserError
from rmfast.models.exported import check_exported
from rmfast.models.hf import load_network
from rmfast.outputs.checksums import write_summed
from rmfast.outputs.marks import MODEL_MARK, kept_model, mark_model
from tests.runs import write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "more").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "more" / "chat.jinja").write_text("{{ messages }}")
    mark_model(folder, {"model.safetensors": write_summed(folder / "model.safetensors", bytes(range(99)))})
    return folder


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_model_as_it_was_exported_is_silent(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_exported(model)
    assert not caplog.records and kept_model(model) is None


@pytest.mark.parametrize("name", ["config.json", "more/chat.jinja"])
def test_an_edited_or_missing_file_is_a_line(model: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    (model / name).write_text("{}")
    check_exported(model)
    (model / name).unlink()
    check_exported(model)
    size = {"config.json": 8, "more/chat.jinja": 14}[name]
    assert lines(caplog) == [
        f"{model}: {name} has 2 bytes of {size}; it is taken as it is",
        f"{model}: {name} is not there; it is taken as it is",
    ]


def test_a_flipped_bit_of_the_weights_is_refused_with_a_remedy(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[50] ^= 8
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"model.safetensors: is not what was written.*delete rmfast.json") as error:
        check_exported(model)
    assert "\n" not in str(error.value)
    (model / MODEL_MARK).unlink()  # changed on purpose
    check_exported(model)
    assert not caplog.records


@pytest.mark.parametrize("text", ["", "{", '{"checksums": {}}'])
def test_damaged_checksums_are_a_line(model: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (model / MODEL_MARK).write_text(text)
    check_exported(model)
    assert len(caplog.records) == 1 and "its files are not checked, for rmfast.json cannot be used" in lines(caplog)[0]


def test_folders_without_checksums_are_not_checked(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    mark_model(model)  # as an earlier version did
    (model / "model.safetensors").write_bytes(b"")
    check_exported(model)
    assert not caplog.records


def test_one_process_of_a_run_says_it(
    model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "config.json").unlink()
    monkeypatch.setenv("RANK", "3")
    check_exported(model)
    assert not caplog.records


def test_loading_looks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    folder = write_model(tmp_path / "model")
    mark_model(folder, {})
    load_network(folder, new_heads=True)
    assert not caplog.records
    (folder / "generation_config.json").write_text("{}")
    load_network(folder, new_heads=True)
    assert len(caplog.records) == 1
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="damaged weights"):
        load_network(folder, new_heads=True)
