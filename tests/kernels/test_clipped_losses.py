"""PPO's losses: references against the formulas token by token, kernels against fp64, masks that hide anything."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels.clipped_losses import policy_loss, value_loss
from tests.kernels.harness import DEVICE, assert_exact, compiles, poisoned, registered, run

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
ONE = [torch.ones((), device=DEVICE)]
OPS = {"policy": policy_loss, "value": value_loss}
Clips = dict[str, float | None]
POLICY_CLIPS: list[Clips] = [
    {"clip": 0.2},
    {"clip": 0.0},
    {"clip": 0.2, "clip_high": 0.6},
    {"clip": 0.3, "clip_high": 0},
]
VALUE_CLIPS: list[Clips] = [{"clip": 0.2}, {"clip": None}]


def call(op: Callable[..., Tensor], impl: str, *inputs: Tensor, **options: Any) -> Tensor:
    return op(*inputs, impl=impl, **({"clip": 0.2} | options))


def tokens(count: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[Tensor]:
    first = (torch.randn(count, device=DEVICE) * scale).to(dtype).requires_grad_()
    return [first, *(torch.randn(2, count, device=DEVICE) * scale).to(dtype)]


def masks(count: int, boolean: bool) -> Tensor:
    mask = torch.rand(count, device=DEVICE)
    return mask > 0.4 if boolean else mask * (mask > 0.4)


def policy_by_hand(
    x: list[float], old: list[float], goal: list[float], mask: list[float], clip: float, clip_high: float | None = None
) -> float:
    total, high = 0.0, clip if clip_high is None else clip_high
    for lp, o, a, m in zip(x, old, goal, mask, strict=True):
        rho = math.exp(lp - o)
        total += m * max(-a * rho, -a * min(max(rho, 1 - clip), 1 + high))
    return total / sum(mask) if sum(mask) else 0.0


def value_by_hand(x: list[float], old: list[float], goal: list[float], mask: list[float], clip: float | None) -> float:
    total = 0.0
    for v, o, r, m in zip(x, old, goal, mask, strict=True):
        near = v if clip is None else min(max(v, o - clip), o + clip)
        total += m * 0.5 * max((v - r) ** 2, (near - r) ** 2)
    return total / sum(mask) if sum(mask) else 0.0


@pytest.mark.parametrize("boolean", [True, False], ids=["bool", "float"])
@pytest.mark.parametrize("name, clips", [*(("policy", c) for c in POLICY_CLIPS), *(("value", c) for c in VALUE_CLIPS)])
@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 12))
def test_reference_against_the_formulas(name: str, clips: Clips, boolean: bool, count: int) -> None:
    """Gradients by central differences, at which a kink would be an accident."""
    x, old, goal = (t.cpu() for t in tokens(count, torch.float64))
    mask = masks(count, boolean).cpu()
    value, grad = run(partial(call, OPS[name], "reference", **clips), [x, old, goal, mask], [torch.ones(())])
    by_hand: Callable[..., float] = partial(policy_by_hand if name == "policy" else value_by_hand, **clips)
    rest = (old.tolist(), goal.tolist(), mask.double().tolist())
    assert value.item() == pytest.approx(by_hand(x.tolist(), *rest), rel=1e-12)
    for i in range(count):
        up, down = x.tolist(), x.tolist()
        up[i] += 1e-6
        down[i] -= 1e-6
        slope = (by_hand(up, *rest) - by_hand(down, *rest)) / 2e-6
        assert grad[i].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name, clips", [("policy", POLICY_CLIPS[0]), ("policy", POLICY_CLIPS[2]), *(("value", c) for c in VALUE_CLIPS)]
)
@settings(max_examples=12, deadline=None)
@given(count=st.sampled_from([0, 1, 15, 17, 70, 300]), boolean=st.booleans(), total=st.sampled_from([None, 0.0, 7.5]))
def test_values_and_gradients(
    name: str, clips: Clips, dtype: torch.dtype, count: int, boolean: bool, total: float | None
) -> None:
    """The loss is a sum of terms of both signs, which may cancel: an error is measured by the terms' size."""
    op = partial(call, OPS[name], **clips, total=total)
    inputs = tokens(count, dtype)
    x, old, goal = (t.detach().double() for t in inputs)
    mask = masks(count, boolean)
    size = op("reference", x, old, -goal.abs() if name == "policy" else goal, mask).item()
    assert_exact(op, [*inputs, mask], grads=[torch.randn((), device=DEVICE)], scale=size)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", OPS)
def test_what_is_masked_does_not_matter(name: str, bad: float, impl: str) -> None:
    inputs, mask = tokens(40), masks(40, True)
    good = run(partial(call, OPS[name], impl), [*inputs, mask], ONE)
    with torch.no_grad():
        for t in inputs:
            t[~mask] = bad
    for a, b in zip(good, run(partial(call, OPS[name], impl), [*inputs, mask], ONE), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", OPS)
def test_what_is_not_masked_does(name: str, bad: float) -> None:
    for i in range(3):
        inputs = tokens(20)
        with torch.no_grad():
            inputs[i][3] = bad
        assert_exact(partial(call, OPS[name]), [*inputs, torch.ones(20, device=DEVICE)], grads=ONE)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("name", OPS)
def test_an_empty_mask_is_zero(name: str, impl: str) -> None:
    for count in (0, 20):
        mask = torch.zeros(count, dtype=torch.bool, device=DEVICE)
        with poisoned():
            got, grad = run(partial(call, OPS[name], impl), [*tokens(count), mask], ONE)
        assert got == 0 and grad.shape == (count,) and not grad.any()


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_clipping_stops_the_gradient_one_way_only(impl: str) -> None:
    x = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.1], device=DEVICE).requires_grad_()
    goal = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0], device=DEVICE)
    zero, mask = torch.zeros(5, device=DEVICE), torch.ones(5, device=DEVICE)
    _, grad = run(partial(call, policy_loss, impl), [x, zero, goal, mask], ONE)
    assert (grad != 0).tolist() == [False, True, True, False, True]
    _, grad = run(partial(call, value_loss, impl), [x, zero, 3 * goal, mask], ONE)
    assert (grad != 0).tolist() == [False, True, True, False, True]


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_the_upper_end_of_the_range_has_its_width(impl: str) -> None:
    x = torch.tensor([0.25, 0.5, -0.25, 0.25, 0.5], device=DEVICE).requires_grad_()  # ratios 1.28, 1.65, 0.78
    goal = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0], device=DEVICE)
    inputs = [x, torch.zeros(5, device=DEVICE), goal, torch.ones(5, device=DEVICE)]
    _, grad = run(partial(call, policy_loss, impl, clip_high=0.4), inputs, ONE)
    assert (grad != 0).tolist() == [True, False, False, True, True]
    default, same = (run(partial(call, policy_loss, impl, **clips), inputs, ONE) for clips in ({}, {"clip_high": 0.2}))
    assert all(torch.equal(a, b) for a, b in zip(default, same, strict=True))
    assert (default[1] != 0).tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_ties_share_the_gradient(dtype: torch.dtype, impl: str) -> None:
    """As `torch.maximum` does: inside the range, at its ends (there torch.clamp differs by version), where a clipped
    value is as far."""
    x = torch.tensor([1.0, -1.0, 0.25, -0.25, 0.125, 1.0, 1.0], dtype=dtype, device=DEVICE).requires_grad_()
    goal = torch.tensor([0.625, -0.625, 3.0, -3.0, 3.0, 0.5, 0.75], dtype=dtype, device=DEVICE)
    zero, mask = torch.zeros_like(goal), torch.ones_like(goal)
    clipped = torch.where(x.abs() <= 0.25, x, 0.25 * x.detach().sign())
    truth = torch.maximum((x - goal).square(), (clipped - goal).square()).mean() / 2
    want = torch.autograd.grad(truth, x)[0]
    got = run(partial(call, value_loss, impl, clip=0.25), [x, zero, goal, mask], ONE)
    torch.testing.assert_close(got, [truth.detach(), want])
    torch.testing.assert_close(7 * want[:2], torch.tensor([0.1875, -0.1875], dtype=dtype, device=DEVICE))


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_ties_of_the_policy_share_the_gradient(impl: str) -> None:
    """Outside the range only rounding makes them: here of an advantage of 32 of the smallest numbers there are."""
    tiny = 5e-324
    x = torch.tensor([math.log(1.0125), math.log(1.005), 0.3], dtype=torch.float64, device=DEVICE).requires_grad_()
    goal = torch.tensor([32 * tiny, 32 * tiny, 0.0], dtype=torch.float64, device=DEVICE)
    zero, mask = torch.zeros_like(goal), torch.ones_like(goal)
    _, grad = run(partial(call, policy_loss, impl, clip=0.01, total=1.0), [x, zero, goal, mask], ONE)
    assert [g / tiny for g in grad.tolist()] == [-16, -32, 0]
    rho = x.exp()
    truth = torch.maximum(-goal * rho, -goal * rho.clamp(0.99, 1.01)).sum()
    assert torch.equal(grad, torch.autograd.grad(truth, x)[0])


def test_an_old_value_of_nan_is_seen() -> None:
    inputs = tokens(5)
    inputs[1][2] = torch.nan
    for impl in ("triton", "reference"):
        assert call(value_loss, impl, *inputs, torch.ones(5, device=DEVICE)).isnan()


def test_a_ratio_that_overflows_where_it_is_clipped() -> None:
    x = torch.tensor([1000.0, 0.1], device=DEVICE).requires_grad_()
    inputs = [x, torch.zeros(2, device=DEVICE), torch.ones(2, device=DEVICE), torch.ones(2, device=DEVICE)]
    assert_exact(partial(call, policy_loss), inputs, grads=ONE)
    assert run(partial(call, policy_loss, "triton"), inputs, ONE)[1].isfinite().all()


@pytest.mark.parametrize("name", OPS)
def test_parts_add_up(name: str) -> None:
    inputs = [*tokens(50, torch.float64), masks(50, False).double()]
    total = inputs[3].sum()
    parts = [call(OPS[name], "triton", *(t[s] for t in inputs), total=total) for s in (slice(0, 13), slice(13, 50))]
    torch.testing.assert_close(sum(parts), call(OPS[name], "triton", *inputs))


@pytest.mark.parametrize("name", OPS)
def test_strided_gradcheck_registration(name: str) -> None:
    op = partial(call, OPS[name])
    assert_exact(
        lambda impl, *t: op(impl, *(x[:: i + 2][:14] for i, x in enumerate(t))),
        [*tokens(70), masks(70, True)], grads=ONE,
    )  # fmt: skip
    first, *rest = tokens(20, torch.float64)
    rest.append(masks(20, False))
    assert torch.autograd.gradcheck(lambda x: op("triton", x, *rest), first)
    (grad,) = torch.autograd.grad(op("triton", first, *rest), first, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.sum(), first)
    registered(torch.ops.rmfast.clipped_loss.default, name == "policy", first, *rest, 0.2, 0.3, ONE[0])
    compiles(partial(op, total=3.0), [*tokens(20), masks(20, False)])


def test_errors() -> None:
    for op in OPS.values():
        for change, message in [({1: torch.zeros(1, 3)}, "must be"), ({3: torch.zeros(2)}, "mask must be")]:
            inputs = dict(enumerate([torch.zeros(3)] * 4)) | change
            with pytest.raises(ValueError, match=f"{op.__name__}: .*{message}"):
                op(*inputs.values(), clip=0.2)
        with pytest.raises(ValueError, match="negative"):
            op(*[torch.zeros(3)] * 4, clip=-1.0)
    with pytest.raises(ValueError, match="policy_loss: clip_high must not be negative, got -0.1"):
        policy_loss(*[torch.zeros(3)] * 4, clip=0.2, clip_high=-0.1)
    with pytest.raises(ValueError, match="policy_loss: clip must be a number, got None"):
        policy_loss(*[torch.zeros(3)] * 4, clip=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPS)
def test_a_second_derivative_is_refused(name: str) -> None:
    first, *rest = tokens(20, torch.float64)
    loss = call(OPS[name], "triton", first, *rest, masks(20, False))
    (grad,) = torch.autograd.grad(loss, first, create_graph=True)
    with pytest.raises(RuntimeError, match="clipped_loss_backward"):
        torch.autograd.grad((grad * first).sum(), first)
