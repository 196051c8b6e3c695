"""Ranks that work without each other end together."""

import errno
import os

import pytest

from rmfast.errors import PeerError
from rmfast.parallel.agree import all_or_none
from rmfast.parallel.world import World
from tests.runs import fork_ranks


def test_a_disk_that_fails_one_rank_leaves_no_rank_waiting(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        def full() -> int:
            if world.main:
                return 7
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.json")

        with World() as world:
            with pytest.raises(PeerError if world.main else OSError):
                all_or_none(world, full)
            assert all_or_none(world, lambda: world.rank) == world.rank

    assert fork_ranks(2, work) == [0, 0]
    assert "rmfast: rank 1: out.json: cannot be written: No space left on device; free some space there\n" in (
        capfd.readouterr().err
    )
