"""What the server counts, as Prometheus reads it."""

from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from rmfast.serve.panel import Row

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16384, 65536)


class Metrics:
    """Counts of one server; beside them the process's memory and CPU time.

    Args:
        held: how many requests are held now. waiting: how many rows wait now.
    """

    def __init__(self, held: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._all = CollectorRegistry()  # of this server alone: a process may have several
        count, gauge = partial(Counter, registry=self._all), partial(Gauge, registry=self._all)
        histogram = partial(Histogram, registry=self._all)
        ProcessCollector(registry=self._all)
        self._requests = count("rmfast_requests", "Requests answered", ["path", "status"])
        about = "From a request's head to its answer"
        self._seconds = histogram("rmfast_request_seconds", about, ["path"], buckets=SECONDS)
        self._gone = count("rmfast_clients_gone", "Requests whose client went before the answer")
        self._responses = count("rmfast_responses", "Responses scored")
        self._tokens = count("rmfast_tokens", "Tokens of scored responses, with their prompts")
        self._batches = histogram("rmfast_batch_tokens", "Tokens of rows computed together", buckets=TOKENS)
        self._compute = count("rmfast_compute_seconds", "Time in which batches were computed")
        gauge("rmfast_requests_held", "Requests being read or answered").set_function(held)
        gauge("rmfast_rows_waiting", "Rows that wait for a batch").set_function(waiting)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request was answered; paths that are none of the server's are counted as one."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def gone(self) -> None:
        """A client went before its answer."""
        self._gone.inc()

    def computed(self, rows: Sequence[Row], seconds: float) -> None:
        """A batch was computed."""
        self._responses.inc(sum(map(len, rows)))
        self._tokens.inc(sum(row.tokens for row in rows))
        self._batches.observe(sum(row.stored for row in rows))
        self._compute.inc(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._all)
