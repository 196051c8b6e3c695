"""Sampling: prompts in, samples out, as token ids."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from rmfast.errors import UserError
from rmfast.rollout.batch import Batch, Settings
from rmfast.rollout.decoding import Decodes
from rmfast.rollout.draft import Draft, Request
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.stages import drafts_of
from rmfast.rollout.stops import Stops

Progress = Callable[[int, int], None]


class Sampler:
    """Draws samples of prompts.

    Args:
        ends: ids that end a sample.
        window: tokens of the longest sequence, None without a limit.
        rows: how many samples are decoded at once, at most.
        memory: bytes of keys and values, at most.
        tokens_per_pack: of prompts that are computed at once; a longer prompt is a pack alone.
    """

    def __init__(
        self,
        model: Decodes,
        options: SampleOptions,
        *,
        ends: Collection[int],
        stops: Stops | None = None,
        window: int | None = None,
        rows: int = 256,
        memory: float = math.inf,
        tokens_per_pack: int = 2048,
    ) -> None:
        self.window = window
        self.settings = Settings(
            model=model, options=options, ends=np.array(sorted(ends), dtype=np.int64), stops=stops, rows=rows,
            memory=memory, tokens_per_pack=tokens_per_pack,
        )  # fmt: skip

    def sample(
        self,
        requests: Sequence[Request],
        n: int,
        progress: Progress | None = None,
        *,
        asked: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int, list[Draft]]]:
        """The n samples of each prompt, with the prompt's number, in the order in which they end.

        Args:
            progress: told after each step how many tokens are drawn and how many samples have ended.
            asked: asked after each step whether to end before all have; of processes that hold a model together
                those that draw are asked.

        Raises:
            UserError: a prompt that is empty or leaves no room in the window; a memory that cannot hold a row.
            RunError: logits that are not finite.
        """
        if not requests or n < 1:
            return
        limits = [self.limit(i, request) for i, request in enumerate(requests)]
        stages = self.settings.model.stages
        count = 1 if stages is None else min(stages.size, min(self.settings.rows, n * len(requests)))
        batches: list[Batch] = []
        for _ in range(count):
            first = batches[0] if batches else None
            batches.append(Batch(self.settings, requests, limits, n, others=first, batches=count))
        yield from drafts_of(batches, asked, progress)

    def limit(self, number: int, request: Request) -> int:
        """How many new tokens a prompt's samples have, at most."""
        length = len(request.ids)
        if not length:
            raise UserError(f"prompt {number}: has no tokens")
        if self.window is not None and length >= self.window:
            raise UserError(f"prompt {number}: {length:,} tokens, and the model takes {self.window:,}, answer included")
        longest = self.settings.options.max_new_tokens
        return longest if self.window is None else min(longest, self.window - length)
