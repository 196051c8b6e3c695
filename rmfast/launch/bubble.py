"""How long a pipeline's stages wait for each other, by playing megatron-core's schedules."""

from collections.abc import Iterator
from functools import cache


@cache
def bubble(stages: int, turns: int, packs: int) -> float:
    """Time that a stage waits in a step, in times that a pack takes it (forward and backward, twice the forward).

    Args:
        stages: of the pipeline. turns: runs of layers on each stage; above 1 the interleaved schedule, for which the
            engine adds empty packs up to a multiple of the stages; these take no time but keep the order.
    """
    if stages == 1:
        return 0.0
    if turns == 1 or packs % stages == 0:
        return (stages - 1) / turns
    packs = min(packs, packs % stages + 2 * stages)  # rounds in the middle add nothing
    return _play(stages, turns, packs) - packs


def _play(stages: int, turns: int, packs: int) -> float:
    """When the last stage ends. A task is (forward?, pack, run of layers counted over all stages)."""
    orders = [_order(stage, stages, turns, -(-packs // stages) * stages) for stage in range(stages)]
    tasks = [next(order, None) for order in orders]
    ended: dict[tuple[bool, int, int], float] = {}
    clock, last = [0.0] * stages, stages * turns - 1
    while any(tasks):
        for stage, order in enumerate(orders):
            while (task := tasks[stage]) is not None:
                forward, pack, run = task
                before = (
                    (True, pack, run - 1) if forward else (False, pack, run + 1) if run < last else (True, pack, run)
                )
                if before[2] >= 0 and before not in ended:
                    break
                takes = 0.0 if pack >= packs else (1 if forward else 2) / 3 / turns
                clock[stage] = ended[task] = max(clock[stage], ended.get(before, 0.0)) + takes
                tasks[stage] = next(order, None)
    return max(clock)


def _order(stage: int, stages: int, turns: int, packs: int) -> Iterator[tuple[bool, int, int]]:
    """The order of a stage's tasks: interleaved 1F1B of megatron-core."""
    rounds = range(0, packs, stages)
    units = [(pack, turn) for first in rounds for turn in range(turns) for pack in range(first, first + stages)]
    ahead = min(len(units), 2 * (stages - stage - 1) + (turns - 1) * stages)
    forward = iter([(True, pack, turn * stages + stage) for pack, turn in units])
    backward = iter([(False, pack, (turns - 1 - turn) * stages + stage) for pack, turn in units])
    for _ in range(ahead):
        yield next(forward)
    for task in forward:
        yield task
        yield next(backward)
    yield from backward
