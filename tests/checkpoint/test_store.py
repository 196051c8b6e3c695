"""Checkpoints: complete by name alone, readable at any number of ranks, with errors for what is damaged."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from rmfast.checkpoint import store
from rmfast.checkpoint.saver import Saver
from rmfast.checkpoint.store import list_checkpoints, open_checkpoint, read_manifest, read_weights
from rmfast.data import files
from rmfast.errors import UserError
from rmfast.outputs.checksums import Checksum
from rmfast.parallel.engine import Shard
from rmfast.parallel.world import World

WHOLE = {"model/a": torch.arange(21.0).reshape(7, 3), "exp_avg/a": torch.arange(7.0), "step": torch.tensor([5.0])}


class Thread(World):
    """A rank that is a thread."""

    def __init__(self, rank: int, size: int, meet: threading.Barrier, store: dist.Store) -> None:
        super().__init__()
        self.rank, self.size, self.meet, self.store = rank, size, meet, store

    def thread_store(self) -> dist.Store:
        return self.store

    def sum_(self, tensor: Tensor) -> Tensor:
        """None of the tests has another rank fail."""
        self.meet.wait(timeout=20)
        return tensor


def shards(rank: int, ranks: int) -> dict[str, Shard]:
    """Equal chunks of rows, the last ones shorter or empty, as FSDP2 cuts; the step is whole everywhere."""

    def part(tensor: Tensor) -> Shard:
        size = -(-len(tensor) // ranks)
        return Shard(tensor[rank * size : (rank + 1) * size], min(rank * size, len(tensor)), tuple(tensor.shape))

    return {n: Shard(t, 0, tuple(t.shape)) if n == "step" else part(t) for n, t in WHOLE.items()}


def save(
    folder: Path, step: int, *, ranks: int = 1, keep: int = 2, extras: Callable[[Path], None] | None = None
) -> None:
    meet, store = threading.Barrier(ranks), dist.HashStore()

    def one(rank: int) -> None:
        write = extras or (lambda temporary: (temporary / "config.json").touch())
        saver = Saver(folder, Thread(rank, ranks, meet, store), extras=write, keep=keep)
        saver.save(step, shards(rank, ranks), {"step": step})
        assert not saver.wait()

    with ThreadPoolExecutor(ranks) as pool:
        list(pool.map(one, range(ranks)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_any_rows_come_back_whichever_ranks_hold_them(tmp_path: Path, ranks: int) -> None:
    save(tmp_path, 4, ranks=ranks)
    path = tmp_path / "step-4"
    assert len(list(path.glob("rank-*.safetensors"))) == ranks
    manifest = read_manifest(path)
    assert manifest.pop("files").keys() == {file.name for file in path.iterdir()} - {"manifest.json"}
    assert manifest == {"format": 1, "step": 4, "ranks": ranks, "progress": {"step": 4}}
    with open_checkpoint(path) as (read, shapes):
        assert shapes == {name: tuple(tensor.shape) for name, tensor in WHOLE.items()}
        for name, tensor in WHOLE.items():
            for begin in range(len(tensor)):
                for end in range(begin + 1, len(tensor) + 1):
                    assert torch.equal(read(name, begin, end), tensor[begin:end])
    assert read_weights(path).keys() == {"a"}
    assert torch.equal(read_weights(path)["a"], WHOLE["model/a"])
    assert (path / "config.json").is_file()


def test_only_the_newest_stay_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for step in (8, 9, 10, 100):
        save(tmp_path, step, keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-9", "step-10", "step-100"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-100", "step-9"]


def test_no_folder_holds_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []


class Crash(RuntimeError):
    pass


@pytest.mark.parametrize("where", ["extras", "shard", "index", "manifest", "flush", "rename"])
def test_a_crash_at_any_instant_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save(tmp_path, 1)

    def crash(*_: object) -> None:
        raise Crash

    def crash_at(original: Callable[..., None], name: str) -> Callable[..., None]:
        return lambda path, *rest: crash() if Path(path).name.startswith(name) else original(path, *rest)

    with monkeypatch.context() as patch:
        if where == "shard":
            patch.setattr(store, "write_tensors", crash)
        elif where in ("index", "manifest"):
            name = "rank-" if where == "index" else "manifest"
            patch.setattr(store, "write_json", crash_at(store.write_json, name))
        elif where == "flush":
            patch.setattr(files, "sync", crash_at(files.sync, ".step-2"))
        elif where == "rename":
            patch.setattr(files.os, "replace", crash)
        with pytest.raises(Crash):
            save(tmp_path, 2, extras=crash if where == "extras" else None)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-1"]
    assert torch.equal(read_weights(tmp_path / "step-1")["a"], WHOLE["model/a"])
    save(tmp_path, 2)  # over what the crash left
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert torch.equal(read_weights(tmp_path / "step-2")["a"], WHOLE["model/a"])


def test_all_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = files.sync, files.os.replace
    monkeypatch.setattr(files, "sync", lambda path: (events.append(path.name), sync(path))[1])
    monkeypatch.setattr(files.os, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    save(tmp_path, 3, ranks=2)
    before = events[: events.index("rename")]
    shards_and_index = {f"rank-0000{rank}{suffix}" for rank in (0, 1) for suffix in (".json", ".safetensors")}
    assert shards_and_index | {"manifest.json", "config.json"} <= set(before)
    assert before[-1] == ".step-3.partial"
    assert events[events.index("rename") + 1 :] == [tmp_path.name]


def test_a_rank_flushes_its_own_files_before_it_meets_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0, which flushes the folder last, may be on another node."""
    flushed: dict[str, int] = {}
    sync, write = files.sync, store.write_json

    def note(path: Path, value: object) -> Checksum:
        if path.name == store.MANIFEST:
            flushed["all met"] = 0
        return write(path, value)

    monkeypatch.setattr(store, "write_json", note)
    monkeypatch.setattr(
        files, "sync", lambda path: (flushed.setdefault(path.name, threading.get_ident()), sync(path))[1]
    )
    save(tmp_path, 3, ranks=2)
    before = list(flushed)[: list(flushed).index("all met")]
    assert {f"rank-0000{rank}{suffix}" for rank in (0, 1) for suffix in (".json", ".safetensors")} <= set(before)
    first, second = ({flushed[name] for name in before if name.startswith(f"rank-0000{rank}")} for rank in (0, 1))
    assert len(first) == len(second) == 1 and first != second


def test_what_a_killed_save_left_goes_with_the_next_one(tmp_path: Path) -> None:
    for name in (".step-7.partial", ".step-12.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rank-00000.safetensors").touch()
    save(tmp_path, 9, ranks=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-9"]
    assert torch.equal(read_weights(tmp_path / "step-9")["a"], WHOLE["model/a"])


def test_a_folder_without_manifest_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step-2" / "manifest.json").unlink()
    (tmp_path / "step-x").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-1"]


@pytest.mark.parametrize(
    ("text", "hint"),
    [("{", "no readable manifest.json"), ('{"format": 9}', "checkpoint format 9, this version reads 1")],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str, hint: str) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-1" / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=hint):
        read_manifest(tmp_path / "step-1")


def test_rows_and_names_that_are_not_there_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 1, ranks=2)
    with open_checkpoint(tmp_path / "step-1") as (read, _):
        with pytest.raises(UserError, match="holds no model/b"):
            read("model/b", 0, 1)
        with pytest.raises(UserError, match="model/a has 7 rows, rows 5 to 9 are asked for"):
            read("model/a", 5, 9)
    index = tmp_path / "step-1" / "rank-00001.json"
    index.write_text(
        json.dumps({name: piece for name, piece in json.loads(index.read_text()).items() if "a" not in name})
    )
    with open_checkpoint(tmp_path / "step-1") as (read, _), pytest.raises(UserError, match="model/a has 7 rows"):
        read("model/a", 0, 7)
