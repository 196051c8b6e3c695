"""The draw over vocabulary slices on two gloo ranks is that of one process."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rmfast.kernels import Drawn, draw_tokens
from tests.kernels.draws import ALL, OPTIONS, keys_of, with_seen, zeros
from tests.runs import fork_ranks

ROWS, VOCABULARY = 60, 1100
SIZES = [1100, 1000, 500]
"""In the last the second rank has no id of the tokenizer's."""
SPLIT = 512
CASES: list[dict[str, Any]] = [{}, OPTIONS["top-p"], ALL, ALL | {"temperature": 0.0}]


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    logits, seen = 2 * torch.randn(ROWS, VOCABULARY), torch.rand(ROWS, VOCABULARY) < 0.2
    logits[0, 700], logits[1, 3], logits[2] = torch.nan, torch.inf, -torch.inf
    logits[3, :SPLIT] = -torch.inf
    logits[4:20] = logits[4:20].round()
    return logits, seen


def draws(**place: Any) -> list[Drawn]:
    """Every case at every size, of the columns from `first` on up to `end`."""
    columns = slice(place.get("first", 0), place.pop("end", None))
    logits, seen = (x[:, columns] for x in inputs())
    return [
        draw_tokens(logits, keys_of(ROWS), zeros(ROWS), size=size, impl="reference", **with_seen(case, seen), **place)
        for case in CASES
        for size in SIZES
    ]


def work(out: Path) -> None:
    dist.init_process_group("gloo")
    # Slices need not be in the order of ranks.
    slices = [{"first": SPLIT}, {"end": SPLIT}]
    found = draws(group=dist.group.WORLD, **slices[dist.get_rank()])
    torch.save([tuple(drawn) for drawn in found], out / str(dist.get_rank()))
    dist.destroy_process_group()


def test_two_ranks(tmp_path: Path) -> None:
    assert fork_ranks(2, lambda: work(tmp_path)) == [0, 0]
    ranks = [torch.load(tmp_path / str(rank)) for rank in (0, 1)]
    for one, *found in zip(draws(), *ranks, strict=True):
        for tokens, log_prob, behaviour in found:
            assert torch.equal(tokens, one.tokens)
            torch.testing.assert_close(log_prob, one.log_prob, rtol=0, atol=1e-6, equal_nan=True)
            torch.testing.assert_close(behaviour, one.behaviour_log_prob, rtol=0, atol=1e-6, equal_nan=True)
        assert one.log_prob[:3].isnan().tolist()[1:] == [True, True] and one.log_prob[4:].isfinite().all()
