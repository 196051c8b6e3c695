"""A result's rows as arrays, and whether several results are of the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rmfast.errors import UserError
from rmfast.evaluation.diagnostics.resample import Indices
from rmfast.evaluation.diagnostics.words import counted
from rmfast.evaluation.metrics import Floats
from rmfast.evaluation.suites.result import ItemResult, SuiteResult

UNKNOWN = float("nan")  # one object, as a key of a dict: two rewards that are unknown are alike


@dataclass(frozen=True)
class Table:
    """E edges of all items, and R distinct responses of P prompts.

    A response in several rows of its prompt counts once among the responses. Texts are not in the file:
    responses with the same prompt, writer, length and reward are taken for one.

    Attributes:
        parts: names; `part` is an index into them.
        gap: [E] reward of the better answer less that of the worse one, nan where it is not known.
        length_gap: [E] length of the better answer less that of the worse one.
        part, prompt, better_writer, worse_writer: [E]; a writer is an index into `writers`, -1 where it is not known.
        first: [E] whether no earlier edge has the same answers.
        reward, length, owner, writer: [R], owner the prompt; None without rewards.
    """

    parts: tuple[str, ...]
    writers: tuple[str, ...]
    prompts: int
    gap: Floats
    length_gap: Floats
    part: Indices
    prompt: Indices
    better_writer: Indices
    worse_writer: Indices
    first: NDArray[np.bool_]
    reward: Floats | None
    length: Floats
    owner: Indices
    writer: Indices

    @property
    def won(self) -> NDArray[np.bool_]:
        """[E] whether the better answer is preferred; a tie and what is not known are lost."""
        return self.gap > 0


def table_of(result: SuiteResult) -> Table:
    """The arrays of a result."""
    items = result.items
    parts = dict.fromkeys(item.part for item in items)
    places = {name: place for place, name in enumerate(parts)}
    writers: dict[str, int] = {}
    with_rewards = all(item.rewards is not None for item in items)
    edges: list[tuple[float, ...]] = []
    responses: dict[tuple[float, ...], None] = {}
    for item in items:
        length, part = item.lengths, places[item.part]
        writer = [writers.setdefault(name, len(writers)) for name in item.writers] or [-1] * len(length)
        for (b, w), gap in zip(item.edges, item.gaps, strict=True):
            edges.append((gap, length[b] - length[w], part, item.prompt, writer[b], writer[w], length[b]))
        for place, reward in enumerate(item.rewards or () if with_rewards else ()):
            responses.setdefault((reward if reward == reward else UNKNOWN, length[place], item.prompt, writer[place]))
    e = np.array(edges, dtype=np.float64).reshape(-1, 7)
    r = np.array(list(responses), dtype=np.float64).reshape(-1, 4)
    same = np.nan_to_num(np.delete(e, 2, axis=1), nan=np.inf)
    first = np.zeros(len(e), dtype=np.bool_)
    first[np.unique(same, axis=0, return_index=True)[1]] = True
    numbers = np.unique([item.prompt for item in items])
    prompt, owner = (np.searchsorted(numbers, column) for column in (e[:, 3], r[:, 2]))
    return Table(
        tuple(parts), tuple(writers), numbers.size,
        e[:, 0], e[:, 1], e[:, 2].astype(np.intp), prompt, e[:, 4].astype(np.intp), e[:, 5].astype(np.intp), first,
        r[:, 0] if with_rewards else None, r[:, 1], owner, r[:, 3].astype(np.intp),
    )  # fmt: skip


def check_same(results: Sequence[SuiteResult], names: Sequence[str]) -> None:
    """Raise where results are not of the same rows in the same order.

    Folders are not compared: the data may have moved.

    Args:
        names: of the files, for the message.

    Raises:
        UserError: it names the first row that differs.
    """
    first = results[0]
    for result, name in zip(results[1:], names[1:], strict=True):
        if result.suite != first.suite:
            raise UserError(f"{name}: suite {result.suite}, but {names[0]} is of {first.suite}; compare one suite")
        check_items([first.items, result.items], [names[0], name])


def check_items(both: Sequence[Sequence[ItemResult]], names: Sequence[str]) -> None:
    """As `check_same`, of the items of two results."""
    again = "evaluate both on the same --data"
    for one, other in zip(*both, strict=False):
        ids = _identity(one), _identity(other)
        if ids[0] != ids[1]:
            keys = [key for key in ids[0] if ids[0][key] != ids[1][key]]
            raise UserError(
                f"{names[1]}: other rows than {names[0]}: the first is {other.label} where {names[0]} has "
                f"{one.label} (other {', '.join(keys)}); {again}"
            )
    counts = [len(items) for items in both]
    if counts[0] != counts[1]:
        longer = both[0] if counts[0] > counts[1] else both[1]
        raise UserError(
            f"{names[1]}: {counted(counts[1], 'row')}, but {names[0]} has {counts[0]:,}: the first without a like is "
            f"{longer[min(counts)].label}; {again}"
        )


def _identity(item: ItemResult) -> dict[str, object]:
    """What tells a row from others, in whichever folder its file is."""
    name, _, number = item.label.rpartition(":")
    row = f"{Path(name).name}:{number}"
    return {
        "id": row if item.uid == item.label else item.uid,
        "place": row,
        "part": (item.part, item.path),
        "edges": (item.edges, len(item.lengths)),
        "writers": item.writers,
        "prompt": item.prompt,
    }
