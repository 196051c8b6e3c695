"""What tells the frozen weights under an adapter from others: a checkpoint holds it in their place."""

from collections.abc import Iterable

import torch
from torch import Tensor

from rmfast.errors import UserError

TRUNK = "trunk"
"""Its name in a checkpoint."""
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def fingerprint(weights: Iterable[Tensor]) -> Tensor:
    """int64: of each weight the sum of its elements' bits, modulo 2^64. The sums of a weight's parts add up to its."""
    return torch.stack([w.view(WORDS[w.element_size()]).sum(dtype=torch.int64) for w in weights])


def check_fingerprint(model: str, ours: Tensor, saved: Tensor) -> None:
    """Refuse a checkpoint's adapter of another trunk.

    Args:
        model: what the trunk was read from.

    Raises:
        UserError: they differ.
    """
    if not torch.equal(ours, saved):
        raise UserError(
            f"{model}: its weights are not those that the checkpoint's adapter was trained on; bring these back, or "
            "begin another run"
        )
