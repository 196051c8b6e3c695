"""The process groups of the megatron engine: those of one process, and how many a rank makes among a thousand."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rmfast.parallel.world import World

pytest.importorskip("megatron.core")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is opened; it is gloo's in any case."""
    calls: list[Any] = []
    plain = dist.init_process_group

    def init(backend: str, *, timeout: timedelta, device_id: torch.device | None, **place: Any) -> None:
        calls.append((backend, device_id, timeout))
        plain("gloo", timeout=timeout, **place)

    monkeypatch.setattr(dist, "init_process_group", init)
    yield calls
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("device", "backend"), [(torch.device("cpu"), "gloo"), (torch.device("cuda", 0), "cpu:gloo,cuda:nccl")]
)
def test_one_process_has_nccl_for_its_gpu(opened: list[Any], device: torch.device, backend: str) -> None:
    from rmfast.parallel.megatron import groups

    world = World(timeout_minutes=3)
    world.device = device
    made = groups.Groups(world, groups.Layout())
    assert opened == [(backend, device if device.type == "cuda" else None, timedelta(minutes=3))]
    assert [made.tensor.size, made.data.size, made.pipeline.size] == [1, 1, 1]


class Group:
    """Some ranks, as torch's groups of them; `device`: what it is bound to, where it can be split."""

    def __init__(self, ranks: Sequence[int], rank: int, device: torch.device | None = None) -> None:
        self.ranks, self.own, self.bound_device_id = list(ranks), rank, device
        self.supports_splitting = device is not None
        self.timeout: timedelta | None = None

    def rank(self) -> int:
        return self.ranks.index(self.own)

    def size(self) -> int:
        return len(self.ranks)

    def _get_backend(self, device: torch.device) -> "Group":
        return self

    def _set_default_timeout(self, timeout: timedelta) -> None:
        self.timeout = timeout


@pytest.mark.parametrize("kind", ["gloo", "nccl", "a part of an nccl world"])
@pytest.mark.parametrize("rank", [0, 9, 300, 1023])
def test_a_rank_among_a_thousand_makes_five_groups(monkeypatch: pytest.MonkeyPatch, kind: str, rank: int) -> None:
    """TP8 PP4. torch cannot split a part of the world, of which there are few ranks: it makes each of their groups."""
    from rmfast.parallel.megatron.groups import Groups, Layout

    part, first = kind.startswith("a part"), 8192
    device = torch.device("cpu") if kind == "gloo" else torch.device("cuda", 0)
    calls: list[tuple[str, Any]] = []
    world = Group([first + r for r in range(1024)] if part else range(1024), rank + first * part, device)

    def new_group(ranks: list[int], **options: Any) -> Group | None:
        calls.append(("new", ranks))
        local = options.get("use_local_synchronization", False)
        assert local == (kind == "gloo" or options.get("backend") == "gloo")  # NCCL's are made by all ranks
        return Group(ranks, rank) if rank in ranks else None

    def split_group(*, split_ranks: list[list[int]], timeout: timedelta) -> Group | None:
        calls.append(("split", split_ranks))
        assert not part and len({r for line in split_ranks for r in line}) == sum(map(len, split_ranks))
        return next((Group(line, rank) for line in split_ranks if rank in line), None)

    for name, value in {
        "is_initialized": lambda: True,
        "get_rank": lambda group=None: rank if group is None else group.rank(),
        "get_world_size": lambda group=None: 1024 if group is None else group.size(),
        "get_process_group_ranks": lambda group: group.ranks,
        "new_group": new_group,
        "split_group": split_group,
    }.items():
        monkeypatch.setattr(dist, name, value)
    for name, number in {"RANK": rank, "WORLD_SIZE": 1024}.items():
        monkeypatch.setenv(name, str(number))
    one = World(timeout_minutes=7)
    one.device, one._main = device, None
    dist.group.WORLD = world  # type: ignore[assignment]
    try:
        made = Groups(one, Layout(tensor=8, pipeline=4))
    finally:
        dist.group.WORLD = None

    tensor, data, stage = rank % 8, rank // 8 % 32, rank // 256
    assert [(x.rank, x.size) for x in (made.tensor, made.data, made.pipeline)] == [(tensor, 8), (data, 32), (stage, 4)]
    found: list[Any] = [made.tensor.group, made.data.group, made.pipeline.group]
    assert [group.ranks for group in found] == [
        [rank - tensor + t for t in range(8)],
        [rank + 8 * (d - data) for d in range(32)],
        [rank + 256 * (k - stage) for k in range(4)],
    ]
    ends = [rank % 256, rank % 256 + 768]
    assert (made.collection.embd is None) == (stage in (1, 2)) and ends == getattr(made.collection.embd, "ranks", ends)
    assert made.collection.cp.ranks == made.collection.ep.ranks == [rank]
    kinds = [name for name, _ in calls]
    if part:
        assert "split" not in kinds
        return
    assert len(calls) <= 5 and calls.count(("new", [rank])) == 1
    if kind == "nccl":
        assert kinds.count("split") == 4 and all(group.timeout == timedelta(minutes=7) for group in found)
