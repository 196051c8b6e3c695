"""A damaged checkpoint is named and left where it is, and the newest whole one is taken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rmfast.checkpoint import whole
from rmfast.checkpoint.store import open_checkpoint, read_manifest
from rmfast.checkpoint.whole import check_whole, damage, newest_readable, newest_whole
from rmfast.errors import UserError
from rmfast.parallel.world import World
from tests.checkpoint.saving import edit_manifest, save_steps, state_of
from tests.runs import fork_ranks

FILES = ("manifest.json", "rank-00000.json", "rank-00000.safetensors", "config.json", "templates/chat.jinja")


def truncate(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-len(data) // 3] ^= 1
    file.write_bytes(data)


def double(file: Path) -> None:
    file.write_bytes(file.read_bytes() * 2)


def swap(file: Path) -> None:
    other = file.parents[1] / "step-10" / file.name
    for name, data in ((file, other.read_bytes()), (other, file.read_bytes())):
        name.write_bytes(data)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save_steps(folder, 5, 10, 20)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_the_newest_checkpoint_is_whole(saved: Path) -> None:
    found = newest_whole(saved, World())
    assert found.path == saved / "step-20" and not found.damaged and not list(found.lines())
    assert [damage(saved / name) for name in ("step-5", "step-10", "step-20")] == ["", "", ""]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [truncate, empty, flip, double, Path.unlink], ids=lambda harm: harm.__name__)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(
    folder: Path, name: str, harm: Callable[[Path], None]
) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    harm(folder / "step-20" / name)
    found = newest_whole(folder, World())
    assert found.path == folder / "step-10"
    assert list(found.damaged) == [folder / "step-20"]
    (line,) = found.lines()
    assert line.startswith(f"{folder / 'step-20'}: damaged: ") and name in line and "\n" not in line
    with pytest.raises(UserError, match=name):
        check_whole(folder / "step-20")
    after = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert {file for file in before if after.get(file) != before[file]} == {folder / "step-20" / name}


def test_shards_of_two_checkpoints_that_changed_places_are_told(folder: Path) -> None:
    swap(folder / "step-20" / "rank-00000.safetensors")
    found = newest_whole(folder, World())
    assert found.path == folder / "step-5"
    assert list(found.damaged.values()) == ["rank-00000.safetensors is not what was written: its checksum differs"] * 2


def test_a_part_of_another_checkpoint_is_told(folder: Path) -> None:
    shutil.copy(folder / "step-20" / "rank-00000.json", folder / "step-20" / "rank-00001.json")
    found = newest_whole(folder, World())
    assert found.path == folder / "step-10"
    assert found.damaged == {folder / "step-20": "rank-00001.json is not of this checkpoint"}


def test_a_copy_of_a_checkpoint_under_another_name_is_whole(folder: Path, tmp_path: Path) -> None:
    check_whole(Path(shutil.copytree(folder / "step-10", tmp_path / "best")))


@pytest.mark.parametrize("name", ["step-99", "step-11"])
def test_a_checkpoint_that_was_renamed_to_another_step_is_told(folder: Path, name: str) -> None:
    (folder / "step-20").rename(folder / name)
    found = newest_whole(folder, World())
    assert found.path == folder / "step-10" and newest_readable(folder) == found
    why = "manifest.json says step 20, and its name another: it was renamed; name it back"
    assert found.damaged == {folder / name: why}
    (folder / name).rename(folder / "step-20")
    assert newest_whole(folder, World()).path == folder / "step-20"


@pytest.mark.parametrize("changed", [{"progress": {"step": 20, "seen": 999}}, {"ranks": 2}, {"files": {}}, {"new": 1}])
def test_an_edited_counter_is_told(folder: Path, changed: dict[str, object]) -> None:
    edit_manifest(folder / "step-20", **changed)
    found = newest_whole(folder, World())
    assert found.path == folder / "step-10"
    assert list(found.damaged.values()) == ["no readable manifest.json: its checksum differs: it was damaged or edited"]


def test_a_flipped_bit_in_any_byte_of_a_manifest_is_told_or_changes_nothing(folder: Path) -> None:
    file = folder / "step-20" / "manifest.json"
    data, values, told = file.read_bytes(), read_manifest(file.parent), 0
    for place in range(len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        try:
            assert read_manifest(file.parent) == values
        except UserError:
            told += 1
    assert told > len(data) / 2  # the rest are spaces


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"', "{", "[" * 100_000, '{"format": 1}', '{"format": 2}'])
def test_a_manifest_that_is_no_manifest_is_told(folder: Path, text: str) -> None:
    (folder / "step-20" / "manifest.json").write_text(text)
    found = newest_whole(folder, World())
    assert found.path == folder / "step-10" and "\n" not in next(found.lines())


def test_where_none_is_whole_the_line_says_so_and_nothing_begins_again(folder: Path) -> None:
    for name in ("step-5", "step-10", "step-20"):
        (folder / name / "manifest.json").unlink()
    with pytest.raises(UserError, match="none of 3 checkpoints is whole .step-20: no readable manifest.json") as error:
        newest_whole(folder, World())
    assert "\n" not in str(error.value) and "run.resume" in str(error.value)
    shutil.rmtree(folder / "step-5"), shutil.rmtree(folder / "step-10")
    with pytest.raises(UserError, match="its only checkpoint is not whole"):
        newest_whole(folder, World())
    assert newest_whole(folder / "step-20", World()).path is None  # which has no checkpoints


def test_a_checkpoint_of_an_earlier_version_is_taken_as_far_as_it_can_be_read(folder: Path) -> None:
    path = folder / "step-20"
    values = {key: value for key, value in read_manifest(path).items() if key != "files"}
    (path / "manifest.json").write_text(json.dumps(values))
    assert newest_whole(folder, World()).path == path
    truncate(path / "rank-00000.safetensors")
    assert newest_whole(folder, World()).path == folder / "step-10"
    (path / "rank-00000.safetensors").unlink()
    assert newest_whole(folder, World()).path == folder / "step-10"
    (path / "rank-00000.json").unlink()
    assert damage(path) == "parts of some ranks are not there"


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"x": {}}', '{"model/w": 3}', '{"model/w": {}}', "[" * 100_000])
def test_so_is_one_whose_index_is_none(folder: Path, text: str) -> None:
    values = {key: value for key, value in read_manifest(folder / "step-10").items() if key != "files"}
    (folder / "step-20" / "manifest.json").write_text(json.dumps(values))
    (folder / "step-20" / "rank-00000.json").write_text(text)
    found = newest_whole(folder, World())
    assert found.path == folder / "step-10" and "damaged checkpoint (" in next(found.lines())


def test_ranks_look_into_a_part_each_and_take_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either rank's part, and that which both look into, is damaged."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    looked: list[str] = []
    look = whole.difference

    def noted(path: Path, written: dict[str, object]) -> str:
        looked.append(path.name)
        return look(path, written)

    monkeypatch.setattr(whole, "difference", noted)

    def work() -> None:
        with World() as world:
            save_steps(folder, 1, 2, 3, world=world)
            assert newest_whole(folder, world).path == folder / "step-3"
            files = sorted(read_manifest(folder / "step-3")["files"])
            assert looked == [Path(name).name for name in files[world.rank :: 2]] and len(files) == 6
            for number, (step, name) in enumerate(((3, files[0]), (2, files[1]))):
                dist.barrier()
                if world.main:
                    truncate(folder / f"step-{step}" / name)
                dist.barrier()
                found = newest_whole(folder, world)
                assert found.path == folder / f"step-{step - 1}"
                assert len(found.damaged) == number + 1
                assert found.path is not None
                with open_checkpoint(found.path) as (read, _):
                    assert torch.equal(read("model/w", 0, 8), state_of(step - 1, World.alone(world))["model/w"].tensor)

    assert fork_ranks(2, work) == [0, 0]
