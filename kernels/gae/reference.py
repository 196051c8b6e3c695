"""Generalised advantage estimation in plain torch."""

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """rewards, values [T]; lengths [B] -> advantages, returns [T]. A scan that doubles its reach in each step."""
    tokens = len(rewards)
    position = torch.arange(tokens, device=rewards.device)
    ends = torch.cat([lengths.cumsum(0), lengths.new_full((1,), tokens)]).clamp(max=tokens).to(position.dtype)
    end = ends[torch.searchsorted(ends, position, right=True).clamp(max=len(ends) - 1)]

    def later(x: Tensor, by: int) -> Tensor:
        """x of `by` tokens on, 0 where the sequence has ended: never multiplied in, for it may be nan."""
        return torch.where(position + by < end, torch.cat([x[by:], x.new_zeros(by)]), 0)

    advantages = rewards + gamma * later(values, 1) - values
    reach = 1
    while reach < tokens:
        advantages = advantages + (gamma * lam) ** reach * later(advantages, reach)
        reach *= 2
    return advantages, advantages + values
