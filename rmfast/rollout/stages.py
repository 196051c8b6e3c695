"""Sampling through the stages of a pipeline: each process computes its layers of what several batches ask for.

All processes of a pipeline keep the batches' books alike. A residual stream goes from stage to stage; from the last
one, which draws, only token ids come back, and whether to go on. While one batch's tokens are on their way the stages
compute the others', so that with as many batches as stages, alike in work, none waits.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from rmfast.kernels import Drawn
from rmfast.rollout.batch import Batch
from rmfast.rollout.decoding import Decodes
from rmfast.rollout.draft import Draft
from rmfast.rollout.steps import Begin, Step, Steps

Asked = Callable[[], bool]
STREAM, ANSWER = 0, 1
"""Tags of messages: residual streams, and what was drawn."""
UNDERWAY = 64
"""Messages that a process has sent and not waited for, at most."""


@dataclass(frozen=True, eq=False)
class _Result:
    """What was drawn, and whether to begin nothing more."""

    drawn: Drawn
    stop: bool


class Stages:
    """This process's place among those that hold a model's layers.

    Args:
        asked: says on a process of the last stage that sampling is to end.
    """

    def __init__(self, model: Decodes, asked: Asked) -> None:
        self.model, self.asked, self.world = model, asked, model.stages
        self.rank, self.size = (0, 1) if self.world is None else (self.world.rank, self.world.size)
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()

    def run(self, steps: Steps, work: Begin | Step, run: int) -> _Result | None:
        """Compute a run of layers of what a batch asks for; on the last stage, after its last run, draw."""
        end = self.rank == self.size - 1 and run == self.model.runs - 1
        if self.size == 1 and end and not run:
            return _Result(steps(work), self.model.any(self.asked()))
        out = None
        if work.tokens:
            out = steps.computed(work, run, self._before(work.tokens, run))
            if not end:
                self._pass_on(out)
        if not end:
            return None
        drawn = steps.drawn(work, out)
        result = _Result(drawn, self.model.any(self.asked()))
        self._answer(result)
        return result

    def _before(self, tokens: int, run: int) -> Tensor | None:
        """The residual stream that a run begins with; None at the model's beginning."""
        if not run and not self.rank:
            return None
        stream = self.model.stream(tokens)
        world = self.world if self.rank else self.model.around
        assert world is not None
        dist.recv(stream, group=world.group, group_src=(self.rank - 1) % self.size, tag=STREAM)
        return stream

    def _pass_on(self, stream: Tensor) -> None:
        world = self.world if self.rank < self.size - 1 else self.model.around
        assert world is not None
        self._send(stream.contiguous(), world.group, (self.rank + 1) % self.size, STREAM)

    def _answer(self, result: _Result) -> None:
        """Tell the other stages; ids of -1 where logits are not finite."""
        assert self.world is not None
        sound = result.drawn.log_prob.isfinite()
        ids = torch.where(sound, result.drawn.tokens, -1).cpu()
        told = torch.cat((ids, ids.new_tensor([int(result.stop)])))
        for stage in range(self.size - 1):
            self._send(told, self.world.group, stage, ANSWER)

    def result(self, work: Begin | Step) -> _Result:
        """What the last stage drew; figures that only it has are 0."""
        assert self.world is not None
        told = torch.empty(work.rows + 1, dtype=torch.int64)
        dist.recv(told, group=self.world.group, group_src=self.size - 1, tag=ANSWER)
        nothing = torch.zeros(work.rows)
        return _Result(Drawn(told[:-1], nothing, nothing), bool(told[-1]))

    def _send(self, tensor: Tensor, group: dist.ProcessGroup | None, stage: int, tag: int) -> None:
        sent = dist.isend(tensor, group=group, group_dst=stage, tag=tag)
        assert sent is not None
        self._sent.append((sent, tensor))
        self.wait(UNDERWAY)

    def wait(self, most: int = 0) -> None:
        """Until so many messages at most are on their way."""
        while len(self._sent) > most:
            self._sent.popleft()[0].wait()


@dataclass(eq=False)
class _InFlight:
    """A batch, and what it asks for now: None before its beginning, and in the end."""

    batch: Batch
    steps: Steps

    def __post_init__(self) -> None:
        self._works = self.batch.works()
        self.work: Begin | Step | None = None
        self.result: _Result | None = None
        self._begun = False

    def go_on(self, stages: Stages) -> bool:
        """Take what was drawn, and have the next work; whether all batches are to stop."""
        if not self._begun:
            self._begun, self.work = True, next(self._works, None)
            return False
        assert self.work is not None
        result = self.result or stages.result(self.work)
        self.result = None
        try:
            self.work = self._works.send(result.drawn)
        except StopIteration:
            self.work = None
        return result.stop

    def leave(self) -> None:
        """Ask for nothing more."""
        self.work = None


def drafts_of(
    batches: Sequence[Batch], asked: Asked, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[int, list[Draft]]]:
    """Prompts with their samples, in the order in which they end; all processes that hold the model together see them
    in the same one.

    Args:
        asked, progress: see `Sampler.sample`.
    """
    model = batches[0].model
    stages, stop = Stages(model, asked), False
    flight = [_InFlight(batch, Steps(model, batch.options, batch.pool)) for batch in batches]
    while flight:
        for first in range(0, len(flight), stages.size):
            block = flight[first : first + stages.size]
            for run in range(model.runs):
                for one in block:
                    if not run:
                        stop = one.go_on(stages) or stop
                        yield from one.batch.ended()
                        if progress is not None:
                            progress(sum(b.tokens for b in batches), sum(b.samples for b in batches))
                        if stop:
                            one.leave()
                    if one.work is not None:
                        one.result = stages.run(one.steps, one.work, run)
        flight = [one for one in flight if one.work is not None]
    stages.wait()
