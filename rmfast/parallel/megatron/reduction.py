"""When gradients are summed over the data ranks: bucket by bucket, while the last pack's backward still runs."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from torch import nn

BUCKET: int | None = None
"""Elements of a bucket, at least; None for megatron-core's 40 million, or a million for each data rank if that is more.
Pipeline ranks after the first, and runs of layers after the first, have one bucket: what they send is hidden by the
backward of those before them."""


def reduction_settings() -> DistributedDataParallelConfig:
    """Of megatron-core's buffers: gradients are added up in fp32 and scattered, bucket by bucket."""
    return DistributedDataParallelConfig(
        use_distributed_optimizer=True, grad_reduce_in_fp32=True, overlap_grad_reduce=True, bucket_size=BUCKET
    )


class Reduction:
    """Begins the reductions of a stage's buckets, in one order on all ranks and in all steps.

    megatron-core 0.16.1 has a trigger, which this takes the place of. It counts in the first step how often
    each weight gets a gradient and stops if a later step differs, as a step does that leaves weights out; and it begins
    a bucket the moment that it is full, so that data ranks whose packs fill them in another order would sum one bucket
    with another. Here a bucket begins once it is full and those before it have begun; what is left begins when the
    backward is over. Neither changes a sum: which buckets there are and what is added in each is fixed by the model.

    Args:
        chunk: the stage, made with `reduction_settings`.
    """

    def __init__(self, chunk: DistributedDataParallel) -> None:
        self._buckets = chunk.bucket_groups
        self._number = {p: number for number, bucket in enumerate(self._buckets) for p in bucket.params}
        self._missing: list[set[nn.Parameter]] = []  # gradients that a bucket still waits for
        self._begun = 0
        self._last = True  # whether the backward that runs is the last pack's
        for bucket in self._buckets:
            bucket.is_first_batch = False  # megatron-core's trigger counts nothing
        chunk.param_to_bucket_group = dict.fromkeys(self._number, self)  # whom the backward's hooks tell

    def reset(self, unused: Collection[nn.Parameter] = ()) -> None:
        """Before a step's first backward.

        Args:
            unused: weights that get no gradient from the last pack.
        """
        self._missing = [bucket.params.difference(unused) for bucket in self._buckets]
        self._begun = 0

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it gradients are added up and nothing is sent: for all packs but the last."""
        self._last = False
        try:
            yield
        finally:
            self._last = True

    def register_grad_ready(self, parameter: nn.Parameter, _force_all_reduce: bool = False) -> None:
        """A pack's gradient of a weight has been added up: megatron-core's hooks call this."""
        if not self._last:
            return
        waiting = self._missing[self._number[parameter]]
        assert parameter in waiting, "a gradient came after its bucket may have been sent"
        waiting.remove(parameter)
        while self._begun < len(self._buckets) and not self._missing[self._begun]:
            self._begin()

    def begin_all(self, *_parameters: object) -> None:
        """Begin what has not begun: all gradients are there."""
        while self._begun < len(self._buckets):
            self._begin()

    def _begin(self) -> None:
        self._buckets[self._begun].start_grad_sync()
        self._begun += 1
