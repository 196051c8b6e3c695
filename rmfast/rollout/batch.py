"""Continuous batching: prompts are computed once, and their samples decoded together, row by row as they fit.

A row is one sample of one prompt. Rows of a prompt are neighbours, so that attention reads the prompt's keys and values
once for all of them. A row that ends leaves its place to the next one. Which rows share a step changes what is drawn
by rounding only: the noise of a token depends on its prompt, sample and position.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rmfast.errors import RunError, UserError
from rmfast.kernels import Drawn, prefix_layout, row_keys
from rmfast.rollout.decoding import Decodes
from rmfast.rollout.draft import Draft, Request
from rmfast.rollout.options import SampleOptions, StopReason
from rmfast.rollout.pool import Extents
from rmfast.rollout.steps import Steps
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
    """The rows that are decoded together. A slot is a place in the arrays below, used again once its row has ended."""

    def __init__(self, settings: Settings, requests: Sequence[Request], limits: Sequence[int], n: int) -> None:
        self.settings, self.model, self.options, self.n = settings, settings.model, settings.options, n
        self.waiting = deque(
            (i, request, limit) for i, (request, limit) in enumerate(zip(requests, limits, strict=True))
        )
        self.groups: list[_Group] = []
        rows = min(settings.rows, n * len(requests))
        tokens = self._room(rows)
        self.pool, self.free = self.model.pool(tokens), Extents(tokens)
        self.next = Steps(self.model, self.options, self.pool)
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
        if penalised:
            self.seen = torch.zeros(rows, 0, dtype=torch.bool, device=self.model.device)  # widened by the first logits

    def _room(self, rows: int) -> int:
        """Tokens of the pool: what so many rows may fill, or what the memory holds."""
        sizes = [(len(request.ids), limit - 1) for _, request, limit in self.waiting]
        prompts = sorted((size for size, _ in sizes), reverse=True)[: -(-rows // min(self.n, rows))]
        wanted = sum(prompts) + rows * max(size for _, size in sizes)
        room = int(min(wanted, self.settings.memory / self.model.token_bytes))
        least = max(prompt + size for prompt, size in sizes)
        if room < least:
            megabytes = math.ceil(least * self.model.token_bytes / 1e6)  # never less than what is needed
            raise UserError(
                f"a memory of {self.settings.memory / 1e9:.3g} GB holds keys and values of {room:,} tokens, and the "
                f"longest prompt and its answer may have {least:,}: give at least {megabytes / 1e3:g} GB, or fewer "
                "max_new_tokens"
            )
        return room

    def admit(self) -> None:
        """Begin as many rows as there is room for, the prompts of new ones computed first."""
        while self.idle:
            behind = [group for group in self.groups if group.started < self.n]
            slots = [slot for group in behind for slot in self._claim(group)] if behind else self._next_prompts()
            if not slots:
                return
            self._begin(slots)

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

    def _next_prompts(self) -> list[int]:
        """Compute prompts, as many as fit with rows of theirs; the slots of these."""
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
        if groups:
            self._compute(groups)
            self.groups += groups
        return slots

    def _compute(self, groups: Sequence[_Group]) -> None:
        """Keys and values of prompts, and the logits of their first tokens."""
        ids = [np.asarray(group.request.ids, np.int64) for group in groups]
        positions = [np.arange(len(i)) for i in ids]
        places = [group.begin + p for group, p in zip(groups, positions, strict=True)]
        columns = np.stack([np.concatenate(x) for x in (ids, positions, places)])
        data = torch.from_numpy(columns).to(self.model.device)
        layout = prefix_layout([(len(i), ()) for i in ids]).to(self.model.device)
        logits = self.model.prompts(self.pool, data[0], data[1], layout, data[2])
        for group, row in zip(groups, logits, strict=True):
            group.logits = row

    def _begin(self, slots: Sequence[int]) -> None:
        """Draw the first tokens of rows."""
        owners = [group for slot in slots if (group := self.group[slot]) is not None]
        chosen = np.array(slots)
        numbers = np.array([_signed(group.request.draw_number) for group in owners])
        keys = row_keys(self.options.seed, torch.from_numpy(numbers), torch.from_numpy(self.number[chosen]))
        self.keys[chosen] = keys.numpy()
        logits = torch.stack([group.logits for group in owners if group.logits is not None])
        if self.seen is not None:
            self._see_prompts(slots, owners, logits.shape[1])
        for group in owners:
            if group.started == self.n:
                group.logits = None
        columns = torch.from_numpy(np.stack((self.keys[chosen], self.count[chosen]))).to(self.model.device)
        self._keep(chosen, self.next.draw(logits, columns[0], columns[1], self._seen(chosen)))

    def step(self) -> None:
        """One token for every row."""
        slots = np.array([slot for group in self.groups for slot in group.slots])
        count = self.count[slots]
        lengths = [(len(group.slots), len(group.request.ids), group.begin) for group in self.groups if group.slots]
        rows, prompt, begin = (np.array(x) for x in zip(*lengths, strict=True))
        prompt, begin = prompt.repeat(rows), begin.repeat(rows)
        tokens = self.ids[slots, count - 1].astype(np.int64)
        first, keys = self.begin[slots], self.keys[slots]
        layout = (begin, begin + prompt, first, first + count)
        self._keep(slots, self.next(np.stack((tokens, prompt + count - 1, *layout, keys, count)), self._seen(slots)))

    def _keep(self, slots: np.ndarray, drawn: Drawn) -> None:
        """Keep the rows' next tokens, and end the rows that they end."""
        tokens, log_prob, behaviour = (x.cpu().numpy() for x in drawn)
        if not np.isfinite(log_prob).all():
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

    def ended(self) -> Iterator[tuple[int, list[Draft]]]:
        """Prompts all of whose samples have ended since the last call."""
        done = [group for group in self.groups if len(group.drafts) == self.n]
        for group in done:
            self.free.give(group.begin, len(group.request.ids))
            yield group.number, [group.drafts[i] for i in range(self.n)]
        if done:
            self.groups = [group for group in self.groups if len(group.drafts) < self.n]

    def _see_prompts(self, slots: Sequence[int], owners: Sequence[_Group], vocabulary: int) -> None:
        """Mark the prompts' ids, for the repetition penalty."""
        assert self.seen is not None
        if self.seen.shape[1] != vocabulary:
            self.seen = self.seen.new_zeros(len(self.seen), vocabulary)
        for slot, group in zip(slots, owners, strict=True):
            ids = torch.from_numpy(np.unique(group.request.ids)).long() - self.model.first
            self.seen[slot] = False
            self.seen[slot, ids[(ids >= 0) & (ids < vocabulary)].to(self.seen.device)] = True

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
