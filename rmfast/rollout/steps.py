"""What a batch asks of a model: first tokens of rows, and one token for each of many; on a GPU the latter replayed
from a recording.

A step of few rows runs shorter on a GPU than its kernels take to launch one by one. A CUDA graph repeats kernels that
were started once, with the same shapes and on the same memory. So rows are added until there are a power of two, all
that a step reads is in one tensor, and all that it gives in another. A recording belongs to a pool of keys and values,
and so to one call of the sampler: weights that have moved since the call before are read where they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rmfast.data.pad import round_up
from rmfast.kernels import Drawn, draw_tokens, prefix_layout
from rmfast.parallel.graphs import Recorder
from rmfast.rollout.decoding import Decodes
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.pool import Pool

COLUMNS = 8
"""What a step reads of a row: its last token and that one's position, the four of `decode_attention`'s layout, the key
of its noise, and how many tokens were drawn before."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Begin:
    """What a batch asks for where rows begin: their first tokens, of prompts that are computed before or were earlier.

    Args:
        prompts: int64 [3, T], the ids, positions and places in the pool of new prompts' tokens. sizes: their lengths.
        columns: int64 [2, R], of each row the last two of `COLUMNS`.
        keep: is given the new prompts' logits. logits: gives those of the rows' prompts after that.
    """

    prompts: np.ndarray
    sizes: Sequence[int]
    columns: np.ndarray
    seen: Tensor | None
    keep: Callable[[Tensor], None]
    logits: Callable[[], Tensor]

    @property
    def tokens(self) -> int:
        """How many the model computes."""
        return self.prompts.shape[1]

    @property
    def rows(self) -> int:
        """How many tokens are drawn."""
        return self.columns.shape[1]


@dataclass(frozen=True, eq=False)
class Step:
    """What a batch asks for else: the next token of each of R rows.

    Args:
        columns: int64 [8, R], see `COLUMNS`; rows of a prompt are neighbours.
        seen: bool [R, V], for the repetition penalty. A step with one is never recorded.
    """

    columns: np.ndarray
    seen: Tensor | None

    @property
    def tokens(self) -> int:
        """How many the model computes."""
        return self.columns.shape[1]

    rows = tokens


class Steps:
    """What a batch asks for, of one pool."""

    def __init__(self, model: Decodes, options: SampleOptions, pool: Pool) -> None:
        self.model, self.options, self.pool = model, options, pool
        self._recordings: dict[int, _Recording] = {}

    def __call__(self, work: Begin | Step) -> Drawn:
        """What is drawn, by a process that has all layers; on the CPU where the step was recorded."""
        recorder = self.model.recorder
        if isinstance(work, Begin) or recorder is None or work.seen is not None:
            return self.drawn(work, self.computed(work) if work.tokens else None)
        rows = round_up(work.rows)
        if rows not in self._recordings:
            self._recordings[rows] = _Recording(self._recorded, rows, recorder, self.model.device)
        return self._recordings[rows](work.columns)

    def computed(self, work: Begin | Step, run: int = 0, before: Tensor | None = None) -> Tensor:
        """What a run of the model's layers gives of the tokens; see `Decodes`."""
        if isinstance(work, Step):
            return self._step(torch.from_numpy(work.columns).to(self.model.device), run, before)
        data = torch.from_numpy(work.prompts).to(self.model.device)
        layout = prefix_layout([(size, ()) for size in work.sizes]).to(self.model.device)
        return self.model.prompts(self.pool, data[0], data[1], layout, data[2], run, before)

    def drawn(self, work: Begin | Step, logits: Tensor | None) -> Drawn:
        """What is drawn from logits; None: where no new prompt was computed."""
        columns = torch.from_numpy(work.columns[-2:]).to(self.model.device)
        if isinstance(work, Begin):
            if logits is not None:
                work.keep(logits)
            logits = work.logits()
        assert logits is not None
        return self._draw(logits, columns[0], columns[1], work.seen)

    def _recorded(self, columns: Tensor) -> Drawn:
        return self._draw(self._step(columns), columns[6], columns[7], None)

    def _step(self, columns: Tensor, run: int = 0, before: Tensor | None = None) -> Tensor:
        return self.model.decode(self.pool, columns[0], columns[1], columns[2:6].int(), run, before)

    def _draw(self, logits: Tensor, keys: Tensor, counts: Tensor, seen: Tensor | None) -> Drawn:
        """Tokens of rows by the call's options; see `draw_tokens`."""
        o, model = self.options, self.model
        return draw_tokens(
            logits, keys, counts, temperature=o.temperature, top_k=o.top_k, top_p=o.top_p, min_p=o.min_p,
            repetition_penalty=o.repetition_penalty, seen=seen, size=model.ids, first=model.first, group=model.group,
        )  # fmt: skip


class _Recording:
    """A step of so many rows. Those that are added have no keys: they write nothing, and what they draw is not read."""

    def __init__(self, run: Callable[[Tensor], Drawn], rows: int, recorder: Recorder, device: torch.device) -> None:
        self._columns = torch.zeros(COLUMNS, rows, dtype=torch.int64, device=device)
        self._drawn = torch.empty(0)

        def record() -> None:
            self._drawn = torch.stack([values.double() for values in run(self._columns)])  # fp64 holds every id

        self._replay = recorder(record)

    def __call__(self, columns: np.ndarray) -> Drawn:
        padded = np.zeros(tuple(self._columns.shape), np.int64)
        padded[:, : columns.shape[1]] = columns
        self._columns.copy_(torch.from_numpy(padded))
        self._replay()
        tokens, log_prob, behaviour = self._drawn.cpu()[:, : columns.shape[1]]
        return Drawn(tokens.long(), log_prob.float(), behaviour.float())
