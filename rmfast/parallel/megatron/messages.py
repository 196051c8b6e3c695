"""What the stages of a pipeline send each other, without telling its length first."""

from collections.abc import Iterator, Sequence

from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import get_schedule_table
from torch import Tensor


class Neighbours(P2PCommunicator):
    """The stages before and after this one, which are sent residual streams [T, 1, d] and their gradients.

    megatron-core 0.16.1 sends each length before the message, and waits for the device to read it. Here every stage
    builds the packs by itself and knows in which order the schedule runs them.
    """

    def expect(self, lengths: Sequence[int]) -> None:
        """Before a schedule runs: T of each pack, as this rank holds it."""
        config, rank, last = self.config, self.pp_group.rank(), self.pp_group.size() - 1
        runs = config.virtual_pipeline_model_parallel_size or 1
        table = get_schedule_table(len(lengths), runs, config.microbatch_group_size_per_vp_stage or last + 1)
        every = [lengths[pack] for pack, _ in table]
        # The first stage hears from the last one of all runs of layers but the last, and so the other way in the
        # backward: with one run, nothing.
        around = [lengths[pack] for pack, run in table if run < runs - 1]
        self._forward = iter(around if rank == 0 else every)
        self._backward = iter(around if rank == last else every)

    def _communicate_shapes(
        self, send_next: Tensor | None, send_prev: Tensor | None, recv_prev: bool, recv_next: bool
    ) -> tuple[list[int], list[int]]:
        return self._next(self._forward, recv_prev), self._next(self._backward, recv_next)

    def _next(self, lengths: Iterator[int], comes: bool) -> list[int]:
        return [next(lengths), 1, self.config.hidden_size] if comes else []
