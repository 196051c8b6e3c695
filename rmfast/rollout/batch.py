"""Continuous batching: prompts are computed once, and their samples decoded together, row by row as they fit.

A row is one sample of one prompt. Rows of a prompt are neighbours, so that attention reads the prompt's keys and values
once for all of them. A row that ends leaves its place to the next one. Which rows share a step changes what is drawn
by rounding only: the noise of a token depends on its prompt, sample and position.
"""

import math
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rmfast.errors import RunError, UserError
from rmfast.kernels import Drawn, row_keys
from rmfast.rollout.decoding import Decodes
from rmfast.rollout.draft import Draft, Request
from rmfast.rollout.options import SampleOptions, StopReason
from rmfast.rollout.pool import Extents
from rmfast.rollout.steps import Begin, Step
from rmfast.rollout.stops import Stops


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """What all prompts of a call share.

    Args:
        ends: ids that end a sample.
        rows: how many samples are decoded at once, at most.
        memory: bytes of keys and values, at most.
        tokens_per_pack: of prompts that are computed at once; a longer prompt is a pack alone.
    """

    model: Decodes
    options: SampleOptions
    ends: np.ndarray
    stops: Stops | None
    rows: int
    memory: float
    tokens_per_pack: int


@dataclass(eq=False)
class _Group:
    """A prompt whose rows are in the batch: where its keys and values are, and what its rows left so far."""

    number: int
    request: Request
    limit: int  # of new tokens
    begin: int
    logits: Tensor | None = None  # [V], of the first token; until all rows have begun
    started: int = 0
    slots: list[int] = field(default_factory=list)
    drafts: dict[int, Draft] = field(default_factory=dict)


class Batch:
    """The rows that are decoded together. A slot is a place in the arrays below, used again once its row has ended.

    Args:
        requests: the prompts. limits: of each, new tokens. n: samples of each.
        others: a batch that takes the same prompts in turn with this one; of `batches` in all, each has its share of
            rows and memory.
    """

    def __init__(
        self,
        settings: Settings,
        requests: Sequence[Request],
        limits: Sequence[int],
        n: int,
        *,
        others: "Batch | None" = None,
        batches: int = 1,
    ) -> None:
        self.settings, self.model, self.options, self.n = settings, settings.model, settings.options, n
        every = deque((i, request, limit) for i, (request, limit) in enumerate(zip(requests, limits, strict=True)))
        self.groups: list[_Group] = []
        self.done: list[tuple[int, list[Draft]]] = []  # prompts all of whose samples have ended
        rows = -(-min(settings.rows, n * len(requests)) // batches)
        tokens = self._room(every, rows, settings.memory / batches)
        self.waiting: deque[tuple[int, Request, int]] = every if others is None else others.waiting
        self.pool, self.free = self.model.pool(tokens), Extents(tokens)
        self.idle = list(range(rows))[::-1]
        self.group: list[_Group | None] = [None] * rows
        self.number = np.zeros(rows, np.int64)  # which sample of its prompt
        self.keys = np.zeros(rows, np.int64)
        self.begin = np.zeros(rows, np.int64)  # where a row's tokens are in the pool
        self.count = np.zeros(rows, np.int64)  # tokens drawn so far
        self.limit = np.zeros(rows, np.int64)
        longest = max(limits)
        self.ids = np.zeros((rows, longest), np.int32)
        self.log_prob = np.zeros((rows, longest), np.float32)
        self.behaviour = np.zeros((rows, longest), np.float32)
        self.tokens = self.samples = 0  # drawn, ended
        penalised = self.options.repetition_penalty != 1.0
        self.seen: Tensor | None = None
        if penalised and self.model.width:
            self.seen = torch.zeros(rows, self.model.width, dtype=torch.bool, device=self.model.device)

    def _room(self, every: Iterable[tuple[int, Request, int]], rows: int, memory: float) -> int:
        """Tokens of the pool: what so many rows may fill, or what the memory holds."""
        sizes = [(len(request.ids), limit - 1) for _, request, limit in every]
        prompts = sorted((size for size, _ in sizes), reverse=True)[: -(-rows // min(self.n, rows))]
        wanted = sum(prompts) + rows * max(size for _, size in sizes)
        room = self.model.agreed(int(min(wanted, memory / self.model.token_bytes)))
        least = max(prompt + size for prompt, size in sizes)
        if room < least:
            megabytes = math.ceil(least * self.model.token_bytes / 1e6)  # never less than what is needed
            raise UserError(
                f"a memory of {self.settings.memory / 1e9:.3g} GB holds keys and values of {room:,} tokens, and the "
                f"longest prompt and its answer may have {least:,}: give at least {megabytes / 1e3:g} GB, or fewer "
                "max_new_tokens"
            )
        return room

    def works(self) -> Generator[Begin | Step, Drawn, None]:
        """What is to be computed until all prompts have ended; each is answered by what was drawn."""
        while self.waiting or self.groups:
            yield from self._admit()
            if self.groups:
                step = self._step()
                self._keep(step[0], (yield step[1]))

    def _admit(self) -> Generator[Begin, Drawn, None]:
        """Begin as many rows as there is room for, the prompts of new ones computed first."""
        while self.idle:
            behind, new = [group for group in self.groups if group.started < self.n], list[_Group]()
            slots = [slot for group in behind for slot in self._claim(group)]
            if not behind:
                new, slots = self._next_prompts()
            if not slots:
                return
            self._keep(np.array(slots), (yield self._begin(slots, new)))

    def _claim(self, group: _Group) -> list[int]:
        """Slots and room for rows that a group lacks, as far as there are any."""
        slots: list[int] = []
        while self.idle and group.started < self.n:
            place = self.free.take(group.limit - 1)
            if place is None:
                break
            slot = self.idle.pop()
            self.group[slot], self.number[slot], self.begin[slot] = group, group.started, place
            self.count[slot], self.limit[slot] = 0, group.limit
            group.slots.append(slot)
            group.started += 1
            slots.append(slot)
        return slots

    def _next_prompts(self) -> tuple[list[_Group], list[int]]:
        """The next prompts, as many as fit with rows of theirs, and the slots of these."""
        groups: list[_Group] = []
        slots: list[int] = []
        tokens = 0
        while self.waiting and self.idle:
            number, request, limit = self.waiting[0]
            length = len(request.ids)
            if groups and tokens + length > self.settings.tokens_per_pack:
                break
            begin = self.free.take(length)
            if begin is None:
                break
            group = _Group(number, request, limit, begin)
            if not (claimed := self._claim(group)):
                self.free.give(begin, length)
                break
            self.waiting.popleft()
            groups.append(group)
            slots += claimed
            tokens += length
        self.groups += groups
        return groups, slots

    def _begin(self, slots: Sequence[int], new: Sequence[_Group]) -> Begin:
        """The first tokens of rows, and the new prompts of some."""
        ids = [np.asarray(group.request.ids, np.int64) for group in new]
        positions = [np.arange(len(i)) for i in ids]
        places = [group.begin + p for group, p in zip(new, positions, strict=True)]
        prompts = [np.concatenate(x) if x else np.empty(0, np.int64) for x in (ids, positions, places)]
        owners = [group for slot in slots if (group := self.group[slot]) is not None]
        chosen = np.array(slots)
        numbers = np.array([_signed(group.request.draw_number) for group in owners])
        keys = row_keys(self.options.seed, torch.from_numpy(numbers), torch.from_numpy(self.number[chosen]))
        self.keys[chosen] = keys.numpy()
        if self.seen is not None:
            self._see_prompts(slots, owners)

        def keep(logits: Tensor) -> None:
            for group, row in zip(new, logits, strict=True):
                group.logits = row

        def logits() -> Tensor:
            found = torch.stack([group.logits for group in owners if group.logits is not None])
            for group in owners:
                if group.started == self.n:
                    group.logits = None
            return found

        columns = np.stack((self.keys[chosen], self.count[chosen]))
        return Begin(
            prompts=np.stack(prompts),
            sizes=[len(i) for i in ids],
            columns=columns,
            seen=self._seen(chosen),
            keep=keep,
            logits=logits,
        )

    def _step(self) -> tuple[np.ndarray, Step]:
        """One token for every row, and the slots of these."""
        slots = np.array([slot for group in self.groups for slot in group.slots])
        count = self.count[slots]
        lengths = [(len(group.slots), len(group.request.ids), group.begin) for group in self.groups if group.slots]
        rows, prompt, begin = (np.array(x) for x in zip(*lengths, strict=True))
        prompt, begin = prompt.repeat(rows), begin.repeat(rows)
        tokens = self.ids[slots, count - 1].astype(np.int64)
        first, keys = self.begin[slots], self.keys[slots]
        layout = (begin, begin + prompt, first, first + count)
        return slots, Step(np.stack((tokens, prompt + count - 1, *layout, keys, count)), self._seen(slots))

    def _keep(self, slots: np.ndarray, drawn: Drawn) -> None:
        """Keep the rows' next tokens, and end the rows that they end."""
        tokens, log_prob, behaviour = (x.cpu().numpy() for x in drawn)
        if not np.isfinite(log_prob).all() or (tokens < 0).any():
            raise RunError("the model's logits are not finite: its weights are broken, or its dtype is too narrow")
        if self.seen is not None:
            self._see(slots, drawn.tokens)
        count = self.count[slots]
        self.ids[slots, count] = tokens
        self.log_prob[slots, count] = log_prob
        self.behaviour[slots, count] = behaviour
        self.count[slots] = count + 1
        self.tokens += len(slots)
        eos = np.isin(tokens, self.settings.ends)
        full = count + 1 >= self.limit[slots]
        stop = self._stops(slots) if self.settings.stops is not None else np.zeros(len(slots), bool)
        for i in np.flatnonzero(eos | full | stop).tolist():
            self._end(int(slots[i]), "eos" if eos[i] else "stop" if stop[i] else "length")
        for group in [group for group in self.groups if len(group.drafts) == self.n]:
            self.free.give(group.begin, len(group.request.ids))
            self.done.append((group.number, [group.drafts[i] for i in range(self.n)]))
            self.groups.remove(group)

    def _stops(self, slots: np.ndarray) -> np.ndarray:
        assert self.settings.stops is not None
        found = []
        for slot in slots.tolist():
            group = self.group[slot]
            assert group is not None
            found.append(
                self.settings.stops.end(group.request, int(self.number[slot]), self.ids[slot, : self.count[slot]])
            )
        return np.array(found, bool)

    def _end(self, slot: int, reason: StopReason) -> None:
        group, count = self.group[slot], int(self.count[slot])
        assert group is not None
        kept = (x[slot, :count].copy() for x in (self.ids, self.log_prob, self.behaviour))
        ids, log_prob, behaviour = kept
        group.drafts[int(self.number[slot])] = Draft(ids, reason, log_prob, behaviour)
        self.free.give(int(self.begin[slot]), group.limit - 1)
        group.slots.remove(slot)
        self.samples += 1
        self.group[slot] = None
        self.idle.append(slot)

    def ended(self) -> list[tuple[int, list[Draft]]]:
        """Prompts all of whose samples have ended since the last call."""
        done, self.done = self.done, []
        return done

    def _see_prompts(self, slots: Sequence[int], owners: Sequence[_Group]) -> None:
        """Mark the prompts' ids, for the repetition penalty."""
        assert self.seen is not None
        for slot, group in zip(slots, owners, strict=True):
            ids = torch.from_numpy(np.unique(group.request.ids)).long() - self.model.first
            self.seen[slot] = False
            self.seen[slot, ids[(ids >= 0) & (ids < self.model.width)].to(self.seen.device)] = True

    def _seen(self, slots: np.ndarray) -> Tensor | None:
        return None if self.seen is None else self.seen[torch.from_numpy(slots).to(self.seen.device)]

    def _see(self, slots: np.ndarray, tokens: Tensor) -> None:
        assert self.seen is not None
        at = tokens - self.model.first
        here = (at >= 0) & (at < self.seen.shape[1])
        at = at.where(here, 0)
        self.seen[torch.from_numpy(slots).to(at.device), at] |= here


def _signed(number: int) -> int:
    """The 64 bits of a number as int64 has them."""
    return (number & (1 << 64) - 1) - (1 << 64 if number >> 63 & 1 else 0)
