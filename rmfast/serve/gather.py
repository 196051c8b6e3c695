"""Rows of many requests, gathered into packs: while one computes, the next fills."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from rmfast.errors import first_line
from rmfast.serve.asked import Floats
from rmfast.serve.panel import Row
from rmfast.serve.refusal import Refused

Compute = Callable[[Sequence[Row]], list[Floats]]
Told = Callable[[Sequence[Row], float], None]
"""Told of the rows that were computed together, and the seconds that it took."""


@dataclass(eq=False)
class _Ticket:
    """A request's rows and what is done of them."""

    rows: Sequence[Row]
    since: float
    future: "Future[list[Floats]]" = field(default_factory=Future)
    done: list[Floats] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):  # the client has gone
            self.future.set_exception(error)

    def add(self, members: Floats) -> None:
        self.done.append(members)
        if len(self.done) == len(self.rows):
            with suppress(InvalidStateError):
                self.future.set_result(self.done)


class Gatherer:
    """Computes rows in the order in which they come, in a thread, as many together as are there.

    A batch is begun when it is full, or when its oldest row has waited. Those of a request whose future is cancelled
    are left out.

    Args:
        compute: gives the members' rewards of rows.
        budget: tokens of a batch; a larger row is one by itself.
        wait: seconds that a row waits for others, at most.
        told: hears of each batch.
    """

    def __init__(self, compute: Compute, *, budget: int, wait: float, told: Told | None = None) -> None:
        self._compute, self._budget, self._wait, self._told = compute, budget, wait, told
        self._waiting: deque[tuple[_Ticket, Row]] = deque()
        self._stored = 0  # tokens that wait
        self._change = threading.Condition()
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="rmfast.packs", daemon=True)
        self._thread.start()

    def put(self, rows: Sequence[Row]) -> "Future[list[Floats]]":
        """The members' rewards [M, N] of each row, once they are computed; of a model that failed a `Refused`."""
        ticket = _Ticket(rows, time.monotonic())
        with self._change:
            self._waiting.extend((ticket, row) for row in rows)
            self._stored += sum(row.stored for row in rows)
            self._change.notify()
        return ticket.future

    @property
    def waiting(self) -> int:
        """Rows that are not begun."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether rows are computed."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End once all that was put is computed."""
        with self._change:
            self._ends = True
            self._change.notify()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            if batch and not self._try(batch):
                for one in batch:  # of several requests, only the one that fails is to fail
                    self._try([one])

    def _take(self) -> list[tuple[_Ticket, Row]] | None:
        """The next batch, which is empty where all have gone meanwhile; None at the end."""
        with self._change:
            while True:
                while self._waiting and self._waiting[0][0].future.done():  # cancelled, or failed before
                    self._stored -= self._waiting.popleft()[1].stored
                if not self._waiting:
                    if self._ends:
                        return None
                    self._change.wait()
                    continue
                left = self._waiting[0][0].since + self._wait - time.monotonic()
                if left <= 0 or self._stored >= self._budget or self._ends:
                    return self._fill()
                self._change.wait(left)

    def _fill(self) -> list[tuple[_Ticket, Row]]:
        batch: list[tuple[_Ticket, Row]] = []
        tokens = 0
        while self._waiting:
            ticket, row = self._waiting[0]
            gone = ticket.future.done()
            if not gone and batch and tokens + row.stored > self._budget:
                break
            self._waiting.popleft()
            self._stored -= row.stored
            if not gone:
                batch.append((ticket, row))
                tokens += row.stored
        return batch

    def _try(self, batch: Sequence[tuple[_Ticket, Row]]) -> bool:
        """Compute a batch; whether that is done with. Of a row by itself, which has failed, its client is told."""
        begun = time.monotonic()
        try:
            scores = self._compute([row for _, row in batch])
        except Exception as error:  # whatever a device or a kernel raises: the next batch may succeed
            if len(batch) == 1:
                batch[0][0].fail(Refused(500, f"the model failed: {type(error).__name__}: {first_line(error)}"))
            return len(batch) == 1
        if self._told is not None:
            self._told([row for _, row in batch], time.monotonic() - begun)
        for (ticket, _), members in zip(batch, scores, strict=True):
            ticket.add(members)
        return True
