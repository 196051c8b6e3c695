"""Texts that ranks leave for the first of them, from whichever thread: collectives are the main thread's alone."""

import time

import torch.distributed as dist

from rmfast.errors import RunError
from rmfast.parallel.world import World

POLL = 0.05
"""Seconds between looks at whether all texts are there."""


class Notes:
    """All ranks make one, in the same order; one thread of each uses it.

    Args:
        name: tells it from others of the job.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self._store: dist.Store = world.thread_store() if world.size > 1 else dist.HashStore()

    def leave(self, number: int, text: str) -> None:
        """Leave this rank's text under a number."""
        self._store.set(self._key(number, self.world.rank), text)

    def collect(self, number: int) -> list[str]:
        """All ranks' texts, in the ranks' order, once they are there; one rank calls it, once.

        Raises:
            RunError: a rank has left none within the world's timeout.
        """
        keys, since = [self._key(number, rank) for rank in range(self.world.size)], time.monotonic()
        while not self._store.check(keys):
            if time.monotonic() - since > self.world.timeout.total_seconds():
                raise RunError(f"a process has not written its part within {self.world.timeout}")
            time.sleep(POLL)
        texts = [self._store.get(key).decode() for key in keys]
        for key in keys:
            self._store.delete_key(key)
        return texts

    def _key(self, number: int, rank: int) -> str:
        return f"rmfast/{self.name}/{number}/{rank}"
