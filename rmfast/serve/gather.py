"""Rows of many requests, gathered into packs: while one computes, the next fills."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from rmfast.data.tokenise import common_prefix
from rmfast.errors import first_line
from rmfast.serve.asked import Floats
from rmfast.serve.panel import Row
from rmfast.serve.refusal import Refused

Compute = Callable[[Sequence[Row]], list[Floats]]
Told = Callable[[Sequence[Row], float], None]
"""Told of the rows that were computed together, and the seconds that it took."""


ALIKE = 3
"""Rows begin alike where they share the first of so many parts of the tokens of one."""
LOOK = 512
"""Waiting rows among which those that begin alike are looked for."""


@dataclass(eq=False)
class _Ticket:
    """A request's rows and what is done of them."""

    rows: Sequence[Row]
    since: float
    future: "Future[list[Floats]]" = field(default_factory=Future)
    done: dict[int, Floats] = field(default_factory=dict)

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):  # the client has gone
            self.future.set_exception(error)

    def add(self, number: int, members: Floats) -> None:
        self.done[number] = members
        if len(self.done) == len(self.rows):
            with suppress(InvalidStateError):
                self.future.set_result([self.done[i] for i in range(len(self.rows))])


@dataclass(frozen=True, eq=False)
class _Waiting:
    """One of a request's rows."""

    ticket: _Ticket
    number: int

    @property
    def row(self) -> Row:
        return self.ticket.rows[self.number]

    @property
    def gone(self) -> bool:
        return self.ticket.future.done()


class Gatherer:
    """Computes rows in the order in which they come, in a thread, as many together as are there; rows that begin as the
    next one does are taken with it, so that it is computed once for all.

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
        self._waiting: list[_Waiting] = []
        self._change = threading.Condition()
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="rmfast.packs", daemon=True)
        self._thread.start()

    def put(self, rows: Sequence[Row]) -> "Future[list[Floats]]":
        """The members' rewards [M, N] of each row, once they are computed; of a model that failed a `Refused`."""
        ticket = _Ticket(rows, time.monotonic())
        with self._change:
            self._waiting += [_Waiting(ticket, number) for number in range(len(rows))]
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
            if not self._try(batch):
                for one in batch:  # of several requests, only the one that fails is to fail
                    self._try([one])

    def _take(self) -> list[_Waiting] | None:
        """The next batch; None at the end."""
        with self._change:
            while True:
                self._waiting = [one for one in self._waiting if not one.gone]
                if not self._waiting:
                    if self._ends:
                        return None
                    self._change.wait()
                    continue
                left = self._waiting[0].ticket.since + self._wait - time.monotonic()
                if left <= 0 or self._ends or sum(one.row.stored for one in self._waiting) >= self._budget:
                    return self._fill()
                self._change.wait(left)

    def _fill(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        tokens = 0
        left = self._waiting
        while left and (not batch or tokens + left[0].row.stored <= self._budget):
            oldest = left[0]
            batch.append(oldest)
            tokens += oldest.row.stored
            begins = oldest.row.first[: len(oldest.row.first) // (4 * ALIKE) * 4]
            others: list[_Waiting] = []
            for one in left[1:LOOK]:
                if one.row.first.startswith(begins) and (tokens + (new := _new(one.row, oldest.row))) <= self._budget:
                    batch.append(one)
                    tokens += new
                else:
                    others.append(one)
            left = others + left[LOOK:]
        self._waiting = left
        return batch

    def _try(self, batch: Sequence[_Waiting]) -> bool:
        """Compute a batch; whether that is done with. Of a row by itself, which has failed, its client is told."""
        begun = time.monotonic()
        try:
            scores = self._compute([one.row for one in batch])
        except Exception as error:  # whatever a device or a kernel raises: the next batch may succeed
            if len(batch) == 1:
                batch[0].ticket.fail(Refused(500, f"the model failed: {type(error).__name__}: {first_line(error)}"))
            return len(batch) == 1
        if self._told is not None:
            self._told([one.row for one in batch], time.monotonic() - begun)
        for one, members in zip(batch, scores, strict=True):
            one.ticket.add(one.number, members)
        return True


def _new(row: Row, oldest: Row) -> int:
    """Tokens that a row stores beside one that begins alike."""
    return row.stored - common_prefix(row.sequences[0][0], oldest.sequences[0][0])
