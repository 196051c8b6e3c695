"""One token for each of many rows: the model's logits and the draw, on a GPU replayed from a recording.

A step of few rows runs shorter on a GPU than its kernels take to launch one by one. A CUDA graph repeats kernels that
were started once, with the same shapes and on the same memory. So rows are added until there are a power of two, all
that a step reads is in one tensor, and all that it gives in another. A recording belongs to a pool of keys and values,
and so to one call of the sampler: weights that have moved since the call before are read where they are.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rmfast.data.pad import round_up
from rmfast.kernels import Drawn, draw_tokens
from rmfast.parallel.graphs import Recorder
from rmfast.rollout.decoding import Decodes
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.pool import Pool

COLUMNS = 8
"""What a step reads of a row: its last token and that one's position, the four of `decode_attention`'s layout, the key
of its noise, and how many tokens were drawn before."""


class Steps:
    """Steps of one pool."""

    def __init__(self, model: Decodes, options: SampleOptions, pool: Pool) -> None:
        self.model, self.options, self.pool = model, options, pool
        self._recordings: dict[int, _Recording] = {}

    def __call__(self, columns: np.ndarray, seen: Tensor | None) -> Drawn:
        """The next token of each of R rows; on the CPU where the step was recorded.

        Args:
            columns: int64 [8, R], see `COLUMNS`; rows of a prompt are neighbours.
            seen: bool [R, V], for the repetition penalty. A step with one is never recorded.
        """
        recorder = self.model.recorder
        if recorder is None or seen is not None:
            return self.run(torch.from_numpy(columns).to(self.model.device), seen)
        rows = round_up(columns.shape[1])
        if rows not in self._recordings:
            self._recordings[rows] = _Recording(self.run, rows, recorder, self.model.device)
        return self._recordings[rows](columns)

    def run(self, columns: Tensor, seen: Tensor | None = None) -> Drawn:
        """A step as it is."""
        logits = self.model.decode(self.pool, columns[0], columns[1], columns[2:6].int())
        return self.draw(logits, columns[6], columns[7], seen)

    def draw(self, logits: Tensor, keys: Tensor, counts: Tensor, seen: Tensor | None) -> Drawn:
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
