"""Rows of a batch have places of their own and the right positions, and all end, whatever memory and rows there are."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmfast.rollout.decoding import Decodes
from rmfast.rollout.draft import Request
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.sampler import Sampler
from tests.rollout.tiny_policies import sampled

IDS = 40


class Checking(Decodes):
    """Logits of a token and its position; a slice of a vocabulary whose first id is `first`. Checks the places."""

    device, group, recorder, token_bytes = torch.device("cpu"), None, None, 1

    def __init__(self, first: int = 0) -> None:
        self.first, self.ids, self.width = first, first + IDS, IDS

    def pool(self, tokens: int) -> Any:
        return tokens

    def prompts(self, pool: Any, tokens: Tensor, positions: Tensor, _: Tensor, places: Tensor, *_run: Any) -> Tensor:
        assert int(places.min()) >= 0 and int(places.max()) < pool
        ends = torch.cat([(positions[1:] == 0).nonzero().flatten(), torch.tensor([len(tokens) - 1])])
        return self.logits(tokens[ends], positions[ends])

    def decode(self, pool: Any, tokens: Tensor, positions: Tensor, layout: Tensor, *_run: Any) -> Tensor:
        begin, end, first, last = layout.tolist()
        used = np.zeros(pool, int)
        for low, high in {*zip(begin, end, strict=True), *zip(first, last, strict=True)}:
            assert low < high <= pool
            used[low:high] += 1
        assert used.max() == 1 and len(set(first)) == len(first)
        assert torch.equal(positions.int(), layout[1] - layout[0] + layout[3] - layout[2] - 1)
        return self.logits(tokens, positions)

    def logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        seeds = (1000 * tokens + positions).tolist()
        rows = [np.random.default_rng(seed).normal(size=IDS) for seed in seeds]
        return torch.from_numpy(np.stack(rows).astype(np.float32))


def requests(draw: random.Random, count: int, first: int = 0) -> list[Request]:
    prompts = [[first + draw.randint(3, IDS - 1) for _ in range(draw.randint(1, 25))] for _ in range(count)]
    return [Request(np.array(ids, np.int32), number) for number, ids in enumerate(prompts)]


@pytest.mark.parametrize("case", range(30))
def test_every_row_ends_as_it_does_with_room_for_all(case: int) -> None:
    draw = random.Random(case)
    prompts, n, longest = requests(draw, draw.randint(1, 8)), draw.randint(1, 6), draw.choice([1, 2, 5, 12])
    window, ends = draw.choice([None, 28]), draw.choice([range(5, 8), range(30)])
    options = SampleOptions(max_new_tokens=longest, repetition_penalty=draw.choice([1.0, 1.3]))
    limits = [longest if window is None else min(longest, window - len(request.ids)) for request in prompts]
    least = max(len(request.ids) + limit - 1 for request, limit in zip(prompts, limits, strict=True))
    memory = draw.choice([least, least + 1, least + 5, 2 * least])

    def drawn(**room: Any) -> list[list[tuple[list[int], str]]]:
        sampler = Sampler(Checking(), options, ends=ends, window=window, **room)
        return [[(d.ids.tolist(), d.stop_reason) for d in drafts] for drafts in sampled(sampler, prompts, n)]

    tight = drawn(rows=draw.randint(1, 12), memory=memory, tokens_per_pack=draw.choice([1, 10, 8192]))
    assert tight == drawn()


def test_of_a_sharded_vocabulary_the_penalty_is_of_the_ids_in_the_slice() -> None:
    prompts = requests(random.Random(0), 6, first=256)
    options = SampleOptions(max_new_tokens=8, repetition_penalty=1e6, temperature=0)
    sampler = Sampler(Checking(256), options, ends=(), rows=2)
    for request, drafts in zip(prompts, sampled(sampler, prompts, 2), strict=True):
        for draft in drafts:
            ids = draft.ids.tolist()
            assert min(ids) >= 256 and len({*ids}) == 8 and not {*ids} & {*request.ids.tolist()}
