"""A step of the megatron engine in a world of one is the native engine's: over NCCL where there is a GPU, else gloo."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rmfast.train import main
from tests.megatron.grid import command
from tests.megatron.standin import install
from tests.runs import read_lines, write_model, write_rows

pytest.importorskip("megatron.core")


def test_a_step_is_that_of_the_native_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch.setattr)
    monkeypatch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
    backends: list[str] = []
    opened = dist.init_process_group

    def init(backend: str, **options: Any) -> None:
        backends.append(backend)
        opened(backend, **options)

    monkeypatch.setattr(dist, "init_process_group", init)
    write_model(tmp_path / "llama")
    write_rows(tmp_path / "rows.jsonl", 12)
    lines = {}
    for engine in ("native", "megatron"):
        keys = {"parallel__engine": engine, "run__max_steps": 1}
        assert main(command(tmp_path, "center", engine, model__path="llama", **keys)) == 0
        lines[engine] = [line for line in read_lines(tmp_path / engine / "metrics.jsonl") if "loss" in line]
    assert backends == ["cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"]
    assert len(lines["native"]) == 1
    for one, other in zip(lines["megatron"], lines["native"], strict=True):
        for name in ("loss", "grad_norm", "margin"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name
