"""Generalised advantage estimation: checks, dispatch, and the custom op of the kernel."""

import torch
from torch import Tensor

from rmfast.kernels.common import check, maths_dtype, to_device, use_triton
from rmfast.kernels.dispatch import custom_op
from rmfast.kernels.gae import reference


@custom_op("rmfast::gae")
def _gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    from rmfast.kernels.gae import triton

    return triton.gae_fwd(rewards, values, lengths, gamma, lam)


@_gae.register_fake
def _(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    dtype = maths_dtype(rewards, values)
    return rewards.new_empty(rewards.shape, dtype=dtype), rewards.new_empty(rewards.shape, dtype=dtype)


def gae(
    rewards: Tensor, values: Tensor, lengths: Tensor, *, gamma: float, lam: float, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of packed sequences. No gradients.

    delta_t = r_t + gamma V_{t+1} - V_t with a value of 0 after a sequence's end, A_t = sum over l of
    (gamma lam)^l delta_{t+l}, return_t = A_t + V_t.
    Source: Secrets of RLHF Part I; Schulman et al. 2015, equation 16.

    Args:
        rewards, values: [T], sequence after sequence.
        lengths: int [B], tokens of each sequence, 0 allowed; their sum is T. The sum is checked only where lengths are
            on the CPU, so that no device is waited for; elsewhere tokens beyond it count as one more sequence.
        gamma, lam: discount and the estimator's lambda.
        impl: "auto", "triton" or "reference".

    Returns:
        advantages, returns: [T]; fp32 (fp64 where an input is fp64).

    Raises:
        ValueError: shapes that do not fit together.
    """
    op = "gae"
    check(rewards.dim() == 1, op, f"rewards must be [T], got {tuple(rewards.shape)}")
    check(values.shape == rewards.shape, op, f"values must be [{len(rewards)}], got {tuple(values.shape)}")
    check(lengths.dim() == 1 and not lengths.is_floating_point(), op, "lengths must be int [B]")
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        total = int(lengths.sum())
        check(total == len(rewards), op, f"lengths must sum to {len(rewards)}, got {total}")
        check(not bool((lengths < 0).any()), op, "lengths must not be negative")
    rewards, values, lengths = rewards.detach(), values.detach(), to_device(lengths, rewards.device)
    if use_triton(op, impl, rewards):
        return _gae(rewards, values, lengths, gamma, lam)
    dtype = maths_dtype(rewards, values)
    return reference.gae(rewards.to(dtype), values.to(dtype), lengths, gamma, lam)
