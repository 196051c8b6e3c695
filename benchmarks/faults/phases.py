"""SIGKILL in every phase of PPO: the run goes on to the same bits, and draws no prompt twice that was done.

A point is a prompt that is handed over with its samples, a read of scores, values or log-probabilities, an update, or a
file or folder that is about to get its name. Each kill is of a new run, at a random point of a phase, in turns.
"""

import random
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

from benchmarks.faults.cases import Case
from benchmarks.faults.results import other_bits, results
from benchmarks.faults.runs import Place
from tests.runs import set_trap

KILLS = 30
SETUPS = ("ppo", "ppo, other keys", "ppo ddp", "ppo fsdp")
NOWHERE = "none:0"

NAMES = {"_begin": "reward warm-up", "evaluate": "evaluation", "_experience": "reads", "_train": "update"}
NAMES |= {"save": "checkpoint", "export": "export", "keep": "rollout's file", "score": "score"}
NAMES |= {"read_log_probs": "log-probabilities", "read_values": "values"}


@dataclass(frozen=True, kw_only=True)
class Kill:
    """Where a run is killed: at a point of a rank, counted from 1."""

    setup: str
    rank: int
    point: int
    phase: str


def cases(place: Place, seed: int) -> Iterator[Case]:
    """So many kills, over all phases of all setups."""

    @cache
    def whole(setup: str) -> list[str]:
        place.remove(run := f"phases/whole {setup}")
        return _start(place, setup, run, NOWHERE)[1]

    @cache
    def plan() -> list[Kill]:
        return planned({setup: [points_of(log) for log in whole(setup)] for setup in SETUPS}, KILLS, seed)

    def one(number: int, name: str) -> dict[str, Any]:
        kill = plan()[number]
        return killed(place, kill, name, whole(kill.setup))

    for number in range(KILLS):
        name = f"phases/{number}"
        yield Case(name, partial(one, number, name))


def killed(place: Place, kill: Kill, name: str, expected: Sequence[str]) -> dict[str, Any]:
    """Kill a run at a point, and let it go on.

    Args:
        expected: what the ranks of the whole run said.
    """
    record = asdict(kill)
    codes, _ = _start(place, kill.setup, name, f"any:{kill.point}@{kill.rank}")
    if codes[kill.rank] != -signal.SIGKILL:
        return record | {"flaw": f"was not killed: {codes}"}
    codes, logs = _start(place, kill.setup, name, NOWHERE)
    if any(codes):
        return record | {"flaw": f"ended with {codes}: {logs[0][-800:]}"}
    if drawn(logs) != drawn(expected):
        return record | {"flaw": "a prompt was drawn again, or was not drawn"}
    return record | {"flaw": other_bits(results(place.run(name)), place.whole(kill.setup)[0])}


def _start(place: Place, setup: str, run: str, kill: str) -> tuple[list[int], list[str]]:
    """Exit codes of the ranks, and what each has said in this start and those before."""
    job = place.start(setup, run, prepare=partial(set_trap, kill))
    return job.wait(), [log.read_text(encoding="utf-8") for log in job.logs]


def phase(point: str) -> str:
    """The phase of a point, as the log names it ("read _experience read_values")."""
    kind, *within = point.split()
    words = [NAMES[name] for name in within if name != "_experience"]
    return ", ".join([*words, "sampling"] if kind == "draw" else words) or "other files"


def points_of(log: str) -> list[str]:
    """The points of a rank that "any" counts, in order."""
    return [phase(point) for point in re.findall("^point (.*)$", log, re.M) if not point.startswith("rename")]


def planned(points: Mapping[str, Sequence[Sequence[str]]], kills: int, seed: int) -> list[Kill]:
    """So many kills over all phases of all setups, in turn.

    Args:
        points: by setup, of each rank the phases of its points.
    """
    draw, left = random.Random(seed), []
    phases = {p: None for of_ranks in points.values() for of_rank in of_ranks for p in of_rank}
    while len(left) < kills:
        for wanted in phases:
            places = [
                Kill(setup=setup, rank=rank, point=number, phase=wanted)
                for setup, of_ranks in points.items()
                for rank, of_rank in enumerate(of_ranks)
                for number, name in enumerate(of_rank, 1)
                if name == wanted
            ]
            setup = draw.choice(sorted({place.setup for place in places}))
            left.append(draw.choice([place for place in places if place.setup == setup]))
    return left[:kills]


def drawn(logs: Sequence[str]) -> list[str]:
    """The prompts that some ranks drew, by their draws' numbers."""
    return sorted(re.findall(r"^drew (\d+)$", "".join(logs), re.M))


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """How many kills there were, and in which phases."""
    return {"kills": len(records), "phases": sorted({record["phase"] for record in records if "phase" in record})}
