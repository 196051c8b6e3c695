"""Generalised advantage estimation: the reference against the recursion written out, the kernel against fp64."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels.common import to_device
from rmfast.kernels.gae import gae
from tests.kernels.harness import DEVICE, assert_exact, compiles, registered

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
LENGTHS = st.lists(st.sampled_from([0, 0, 1, 2, 7, 8, 9, 25]), max_size=6)


def estimate(
    impl: str, rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float = 0.97, lam: float = 0.9
) -> tuple[Tensor, Tensor]:
    return gae(rewards, values, lengths, gamma=gamma, lam=lam, impl=impl)


def by_hand(
    rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float = 0.97, lam: float = 0.9
) -> tuple[Tensor, Tensor]:
    """The recursion A_t = delta_t + gamma lam A_{t+1}, token by token from each end."""
    r, v = rewards.tolist(), values.tolist()
    advantages, end = [0.0] * len(r), 0
    for length in lengths.tolist():
        end += length
        following = value = 0.0
        for t in range(end - 1, end - length - 1, -1):
            following = r[t] + gamma * value - v[t] + gamma * lam * following
            advantages[t], value = following, v[t]
    advantage = torch.tensor(advantages, dtype=rewards.dtype, device=DEVICE)
    return advantage, advantage + values


def packed(lengths: list[int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    rewards, values = torch.randn(2, sum(lengths), device=DEVICE).to(dtype)
    return [rewards, values, torch.tensor(lengths, dtype=torch.int64)]


@pytest.mark.parametrize("gamma, lam", [(0.97, 0.9), (1.0, 1.0), (1.0, 0.0), (0.0, 0.5)])
@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS)
def test_reference_against_the_recursion(gamma: float, lam: float, lengths: list[int]) -> None:
    inputs = packed(lengths, torch.float64)
    for got, want in zip(estimate("reference", *inputs, gamma, lam), by_hand(*inputs, gamma, lam), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, gamma=st.sampled_from([1.0, 0.97]))
def test_values(dtype: torch.dtype, lengths: list[int], gamma: float) -> None:
    assert_exact(partial(estimate, gamma=gamma), packed(lengths, dtype), truth=partial(by_hand, gamma=gamma))


def test_ends_of_undiscounted_sequences() -> None:
    """With gamma = lam = 1 a return is the sum of the rewards that follow."""
    rewards, values, lengths = packed([3, 0, 9])
    for impl in ("triton", "reference"):
        _, returns = estimate(impl, rewards, values, lengths, 1.0, 1.0)
        want = torch.cat([x.flip(0).cumsum(0).flip(0) for x in rewards.split([3, 9])])
        torch.testing.assert_close(returns, want)


def test_a_bad_reward_spoils_only_what_is_before_it_in_its_sequence() -> None:
    for bad in (torch.nan, torch.inf):
        rewards, values, lengths = packed([9, 12, 4])
        good = estimate("reference", rewards, values, lengths)
        rewards[17], touched = bad, torch.zeros(25, dtype=torch.bool, device=DEVICE)
        touched[9:18] = True
        for impl in ("triton", "reference"):
            for a, b in zip(good, estimate(impl, rewards, values, lengths), strict=True):
                assert not b[touched].isfinite().any()
                torch.testing.assert_close(a[~touched], b[~touched])


def test_strided_and_int32() -> None:
    rewards, values, lengths = packed([18, 4])
    assert_exact(
        lambda impl, r, v, n: estimate(impl, r[::2], v[:11], n // 2),
        [rewards, values, lengths.to(torch.int32)],
    )
    assert_exact(
        lambda impl, r, v, n: estimate(impl, r[:11], v.reshape(11, 2)[:, 1], n // 2), [rewards, values, lengths]
    )


def test_sequences_of_several_blocks_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's blocks are of 8 tokens; these are of 512, with carries from one to the next."""
    from rmfast.kernels.gae import triton

    monkeypatch.setattr(triton, "capability", lambda _: (9, 0))
    for dtype in (torch.float64, torch.float32):
        inputs = packed([1300, 3, 0, 640, 512], dtype)
        assert_exact(partial(estimate, gamma=0.99, lam=0.97), inputs, truth=partial(by_hand, gamma=0.99, lam=0.97))


def test_lengths_on_the_cpu_reach_a_gpu_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from memory that is not pinned waits for all that the device has still to do."""
    calls: list[Any] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(Tensor, "to", lambda self, *args, **kwargs: calls.append((args, kwargs)) or self)
    gpu = torch.device("cuda", 0)
    to_device(torch.tensor([1, 2]), gpu)
    assert calls == ["pinned", ((gpu,), {"non_blocking": True})]
    calls.clear()
    to_device(torch.tensor([1, 2]), torch.device("cpu"))
    assert calls == [((torch.device("cpu"),), {})]


def test_no_gradients() -> None:
    rewards, values, lengths = packed([3])
    for impl in ("triton", "reference"):
        advantages, returns = estimate(impl, rewards, values.requires_grad_(), lengths)
        assert not advantages.requires_grad and not returns.requires_grad


def test_registration() -> None:
    rewards, values, lengths = packed([5, 0, 11])
    registered(torch.ops.rmfast.gae.default, rewards, values, lengths.to(DEVICE), 0.9, 0.8)
    compiles(estimate, [rewards, values, lengths])


def test_lengths_that_the_host_did_not_check() -> None:
    """Tokens past the last sequence are a sequence; one too long ends with the tokens."""
    from rmfast.kernels.gae import reference, triton

    rewards, values, _ = packed([20], torch.float64)
    for lengths, same in (([5, 3], [5, 3, 12]), ([5, 30], [5, 15]), ([25, 3], [20]), ([], [20])):
        given_lengths = torch.tensor(lengths, dtype=torch.int64, device=DEVICE)
        want = by_hand(rewards, values, torch.tensor(same), 0.97, 0.9)
        for fwd in (triton.gae_fwd, reference.gae):
            for a, b in zip(fwd(rewards, values, given_lengths, 0.97, 0.9), want, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": torch.zeros(1, 3)}, "rewards must be"),
        ({"values": torch.zeros(2)}, "values must be"),
        ({"lengths": torch.tensor([3.0])}, "int"),
        ({"lengths": torch.tensor([1, 1])}, "lengths must sum to 3, got 2"),
        ({"lengths": torch.tensor([2, 2], dtype=torch.int32)}, "lengths must sum to 3, got 4"),
        ({"lengths": torch.tensor([], dtype=torch.int64)}, "lengths must sum to 3, got 0"),
        ({"lengths": torch.tensor([-1, 4])}, "negative"),
    ],
)
def test_errors(change: dict[str, Tensor], message: str) -> None:
    inputs = {"rewards": torch.zeros(3), "values": torch.zeros(3), "lengths": torch.tensor([3])} | change
    with pytest.raises(ValueError, match=f"gae: .*{message}"):
        gae(**inputs, gamma=1.0, lam=1.0)
