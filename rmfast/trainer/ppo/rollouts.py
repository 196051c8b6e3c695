"""Sampling the answers of a step, each prompt's kept on disk as soon as it has them: none is drawn twice.

`step-N.jsonl` has a line for each prompt of a finished step, with all that is known of its answers. Until then each
rank writes what it draws into `.step-N.RANK.partial`. A line's key tells the weights, prompts and settings that it was
drawn with, and its tokens, so that a run that goes on from an earlier checkpoint takes what it would draw again, and
nothing else: not what was edited since. Each line has a checksum of all of it.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from rmfast import signals
from rmfast.console import say
from rmfast.data.files import FlushedLines, written_whole
from rmfast.jsonio import json_line
from rmfast.outputs.checksums import sealed_line, unsealed_line
from rmfast.outputs.failure import naming
from rmfast.parallel.engine import Engine, SampledEngine
from rmfast.parallel.gather import gather_bytes
from rmfast.parallel.trunk import TRUNK
from rmfast.parallel.world import World
from rmfast.rollout.decoding import engine_decoding
from rmfast.rollout.draft import Draft, Request
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.records import strided
from rmfast.rollout.sampler import Sampler

DRAWN = ("ids", "stop_reason", "sampled_log_prob", "behaviour_log_prob")  # of a sample, which its line's key holds

Records = dict[int, dict[str, Any]]
"""Lines of a file by their prompts' numbers in the step."""


class Policy(Engine, SampledEngine, Protocol):
    """An engine whose weights are trained and sampled from."""


@dataclass(frozen=True)
class Drawn:
    """The answers to each prompt of a step, and what the keys of their lines are made of."""

    drafts: list[list[Draft]]
    key: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollouts:
    """Draws answers with the weights of an engine, shared among its ranks.

    Args:
        folder: of the run's rollouts.
        n: answers of a prompt.
        ids: how many ids the tokenizer has. ends: those that end an answer.
        window, rows, memory, tokens_per_pack: see `Sampler`.
    """

    folder: Path
    options: SampleOptions
    n: int
    ids: int
    ends: Collection[int]
    window: int | None
    rows: int
    memory: float
    tokens_per_pack: int

    def draw(self, name: str, engine: Policy, requests: Sequence[Request]) -> Drawn:
        """The answers to some prompts, on every rank. All ranks call it.

        Args:
            name: of the step, as its file is called.

        Raises:
            Interrupted: the run was asked to stop; what was drawn is kept.
        """
        world, data, key = engine.world, engine.data, self._key(engine, requests)
        found: Records = {}
        if world.main:
            self.folder.mkdir(exist_ok=True)  # not what it is in: a run's folder that is gone is not made again
            for file in (self.folder / f"{name}.jsonl", *sorted(self.folder.glob(f".{name}.*.partial"))):
                lines, damaged = _read(file, key, self.n)
                found |= lines
                if damaged:
                    numbers = ", ".join(map(str, damaged[:5])) + ", ..." * (len(damaged) > 5)
                    say(f"{file}: damaged or cut off in line {numbers}: what is missing is drawn again")
        found = _joined(world, found)
        todo = [number for number in range(len(requests)) if number not in found][data.rank :: data.size]
        drawn = self._sample(name, engine, key, {number: requests[number] for number in todo})
        found |= _joined(world, drawn)
        world.check_signals(f"{len(found)} of {len(requests)} prompts of {name} have answers, all before it is saved")
        return Drawn([[draft_of(s) for s in found[number]["samples"]] for number in range(len(requests))], key)

    def _sample(self, name: str, engine: Policy, key: str, requests: Mapping[int, Request]) -> Records:
        """This rank's part; it may have none, and then takes part in gathering the weights alone. Of ranks that hold a
        model together one keeps what all draw."""
        numbers, drawn = list(requests), Records()
        with engine_decoding(engine, self.ids) as model:
            sampler = Sampler(
                model, self.options, ends=self.ends, window=self.window, rows=self.rows, memory=self.memory,
                tokens_per_pack=self.tokens_per_pack,
            )  # fmt: skip
            # Ranks that hold a model together leave it together.
            asked: dict[str, Any] = {"asked": signals.asked} if model.held.shared else {}
            ended = sampler.sample(list(requests.values()), self.n, **asked)
            if not model.held.keeps:
                for _ in ended:
                    pass
                return drawn
            path = self.folder / f".{name}.{engine.data.rank}.partial"
            with naming(path), path.open("ab") as file:
                if file.tell():
                    file.write(b"\n")  # behind a line that a crash cut off
                lines = FlushedLines(file)
                for place, drafts in ended:
                    number = numbers[place]
                    drawn[number] = _line(key, number, {"samples": [sample_record(draft) for draft in drafts]})
                    lines.write(sealed_line(json_line(drawn[number])))
                    if not model.held.shared and signals.asked():
                        break
                lines.force()
        return drawn

    def keep(self, name: str, key: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write a finished step; one rank calls it.

        Args:
            records: what is known of each prompt; `samples` begin with what `draw` gave.
        """
        with written_whole(self.folder / f"{name}.jsonl") as temporary, temporary.open("wb") as file:
            for number, record in enumerate(records):
                file.write(sealed_line(json_line(_line(key, number, record))))
        for left in self.folder.glob(f".{name}.*.partial*"):  # of draws, and of files that a crash left unfinished
            left.unlink()

    def _key(self, engine: Policy, requests: Sequence[Request]) -> str:
        """Of the weights, of some elements of each, of the prompts with their draws, and of the settings."""
        state = sorted(engine.state().items())
        weights = [shard.tensor for name, shard in state if name.startswith("model/") or name == TRUNK]
        digest = blake2b(strided(weights).tobytes(), digest_size=16)
        for request in requests:
            digest.update(request.ids.tobytes() + request.draw_number.to_bytes(8, "little"))
        digest.update(repr((asdict(self.options), self.n, sorted(self.ends), self.ids)).encode())
        parts = gather_bytes(engine.world, digest.digest())  # ranks may hold a part of the weights each
        return blake2b(b"".join(dict.fromkeys(parts)), digest_size=8).hexdigest()


def sample_record(draft: Draft) -> dict[str, Any]:
    """A sample as it is kept: exact, so that a run that reads it goes on with the same bits."""
    return {
        "ids": draft.ids.tolist(),
        "stop_reason": draft.stop_reason,
        "sampled_log_prob": exact(draft.log_prob),
        "behaviour_log_prob": exact(draft.behaviour_log_prob),
    }


def exact(values: np.ndarray | Tensor) -> list[float]:
    """fp32 numbers in as few digits as tell them apart."""
    return [float(f"{value:.9g}") for value in values.tolist()]


def _line(key: str, number: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of a prompt as a line of a file."""
    return {"number": number, "key": _line_key(key, number, record["samples"]), **record}


def _line_key(key: str, number: int, samples: Sequence[Mapping[str, Any]]) -> str:
    drawn = [[sample[name] for name in DRAWN] for sample in samples]
    return blake2b(json_line([key, number, drawn]).encode(), digest_size=8).hexdigest()


def draft_of(sample: Mapping[str, Any]) -> Draft:
    """The sample that a record of `sample_record` keeps."""
    columns = (np.array(sample[name], np.float32) for name in ("sampled_log_prob", "behaviour_log_prob"))
    return Draft(np.array(sample["ids"], np.int32), sample["stop_reason"], *columns)


def _read(file: Path, key: str, n: int) -> tuple[Records, list[int]]:
    """The lines of a file that were drawn so and are as they were written; the numbers, from 1 on, of those that are
    not as they were written. A last one that a crash cut off is neither."""
    found, damaged = Records(), list[int]()
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    for place, line in enumerate(lines, 1):
        try:
            record = unsealed_line(line)
            number, samples = record["number"], record["samples"]
            if record["key"] == _line_key(key, number, samples) and len(samples) == n:
                found[number] = record
        except (ValueError, KeyError, TypeError, RecursionError):
            if line and place < len(lines):
                damaged.append(place)
    return found, damaged


def _joined(world: World, records: Records) -> Records:
    """The records of all ranks, on every rank."""
    lines = b"\n".join(json_line(record).encode() for record in records.values())
    parts = (json.loads(line) for part in gather_bytes(world, lines) for line in part.splitlines())
    return {int(record["number"]): record for record in parts}
