"""Sources are tokenised on one rank of each machine, and an error on any rank ends all of them."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rmfast.config import DataConfig
from rmfast.errors import UserError
from rmfast.parallel.world import World
from rmfast.tasks.build import tables
from tests.runs import fork_ranks, write_model, write_rows


@pytest.mark.parametrize("failing", [0, 1])
def test_a_disk_that_fails_one_rank_leaves_no_rank_waiting(
    tmp_path: Path, failing: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rank 0 tokenises, rank 1 opens what it left."""
    write_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", 8)
    rows, data = str(tmp_path / "rows.jsonl"), DataConfig(cache=str(tmp_path / "cache"), workers=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")

    def full(*_: object, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "cache" / "ids.npy"))

    def work() -> None:
        with World() as world, pytest.MonkeyPatch.context() as patch:
            if world.rank == failing:
                patch.setattr(tables, "build_store", full)
            with pytest.raises(OSError if world.rank == failing else UserError) as caught:
                tables.open_stores([rows], tokenizer, data, world, split="train")
            if world.rank != failing:
                assert str(caught.value) == f"another rank cannot read {rows}; its line says why"

    assert fork_ranks(2, work) == [0, 0], capfd.readouterr().err
    said = "rmfast: rank 1: " + str(tmp_path / "cache" / "ids.npy") + ": cannot be written: No space left on device"
    assert (said in capfd.readouterr().err) == (failing == 1)
