"""The process groups of the megatron engine, where it has one process."""

from collections.abc import Iterator
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
