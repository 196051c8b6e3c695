"""The swapped prediction loss equals a loop over equations 7 and 8 in fp64, with all its gradients."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels.launch import recording
from rmfast.kernels.sinkhorn import sinkhorn, tiles
from rmfast.kernels.swapped_prediction_loss import swapped_prediction_loss
from rmfast.kernels.swapped_prediction_loss import triton as kernels
from tests.kernels.harness import DEVICE, assert_exact, compiles, registered, without_autocast_too
from tests.kernels.test_sinkhorn import swav

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
IMPLS = ["reference", "triton"]
OPTIONS = {"temperature": 0.1, "epsilon": 0.05, "iterations": 3}


def call(**options: float) -> Callable[..., Tensor]:
    def loss(impl: str, s: Tensor, t: Tensor, prototypes: Tensor, *codes: Tensor) -> Tensor:
        given = {"codes": codes} if codes else {}
        return swapped_prediction_loss(s, t, prototypes, **(OPTIONS | options), **given, impl=impl)

    return loss


def written_out(
    s: Tensor, t: Tensor, prototypes: Tensor, temperature: float, epsilon: float, iterations: int
) -> Tensor:
    unit_s, unit_t, unit_c = (x / x.square().sum(1, keepdim=True).sqrt() for x in (s, t, prototypes))
    q_s, q_t = (swav((x @ unit_c.T).detach(), epsilon, iterations) for x in (unit_s, unit_t))
    total = torch.zeros((), dtype=s.dtype, device=s.device)
    for b in range(len(s)):
        for x, q in ((unit_t[b], q_s[b]), (unit_s[b], q_t[b])):
            logits = torch.stack([x.dot(c) for c in unit_c]) / temperature
            total = total - sum(q[k] * (logits[k] - logits.exp().sum().log()) for k in range(len(unit_c)))
    return total / len(s)


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, device=DEVICE)).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("count", [1, 2, 7, 8, 16, 17, 300, 3000])
def test_no_score_that_is_overwritten_is_held_by_two_threads(
    count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a tile has fewer elements than a program has threads, several of them read what one overwrites."""
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    x, prototypes = torch.empty(64, 8, dtype=dtype), torch.empty(count, 8, dtype=dtype)
    with recording((9, 0)) as started:
        kernels.swapped_fwd(x, x, prototypes, None, None, 0.1, 0.05, 1)
    options = next(one.options for one in started if one.kernel is kernels.swapped_kernel)
    assert options["ROWS"] * options["COLUMNS"] >= 32 * options["num_warps"] > 0


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=10, deadline=None)
@given(
    rows=st.integers(1, 7),
    count=st.integers(1, 6),
    width=st.integers(1, 5),
    temperature=st.sampled_from([0.1, 1.0]),
    epsilon=st.sampled_from([0.05, 0.5]),
    iterations=st.integers(1, 3),
)
def test_against_the_equations(
    impl: str, rows: int, count: int, width: int, temperature: float, epsilon: float, iterations: int
) -> None:
    inputs = [normal(n, width, dtype=torch.float64) for n in (rows, rows, count)]
    results = []
    for function in (call(temperature=temperature, epsilon=epsilon, iterations=iterations), written_out):
        if function is written_out:
            loss = written_out(*inputs, temperature, epsilon, iterations)
        else:
            loss = function(impl, *inputs)
        results.append((loss, torch.autograd.grad(-0.6 * loss, inputs)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=8, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 9, 40, 140]),
    count=st.sampled_from([1, 20, 64, 150]),
    width=st.sampled_from([1, 8, 70]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    iterations=st.integers(0, 3),
    given_codes=st.booleans(),
)
def test_values_and_gradients(
    dtype: torch.dtype, rows: int, count: int, width: int, scale: float, iterations: int, given_codes: bool
) -> None:
    inputs = [
        normal(rows, width, dtype=dtype, scale=scale),
        normal(rows, width, dtype=dtype),
        normal(count, width, dtype=dtype),
    ]
    if given_codes:  # rows that do not sum to 1
        inputs += [torch.rand(rows, count, device=DEVICE).to(torch.float64).mul(2 / count).float() for _ in range(2)]
    # Rounding of 1 / epsilon in an exponent; before the projection a gradient is as large as 1 / (temperature length).
    size = 0.3 / (OPTIONS["temperature"] * max(1, rows) * width**0.5) * max(1.0, 1 / scale)
    assert_exact(
        call(iterations=iterations), inputs, grads=[torch.tensor(0.3, device=DEVICE)], slack=4e-5,
        scale=size if dtype != torch.bfloat16 else 0.0,
    )  # fmt: skip


@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl: str) -> None:
    """With codes given; those of the scores move with the inputs, which the gradient must not see."""
    inputs = [normal(n, 3, dtype=torch.float64) for n in (4, 4, 5)]
    codes = [torch.rand(4, 5, dtype=torch.float64, device=DEVICE) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *x: call()(impl, *x, *codes), inputs)


@pytest.mark.parametrize("impl", IMPLS)
def test_codes_from_outside(impl: str) -> None:
    """Codes that `sinkhorn` makes of the same scores give the same loss and gradients; swapped ones do not."""
    inputs = [normal(n, 6, dtype=torch.float64) for n in (10, 10, 4)]
    with torch.no_grad():
        s, t, prototypes = (x / x.norm(dim=1, keepdim=True) for x in inputs)
    codes = [sinkhorn(x @ prototypes.T, epsilon=0.05, iterations=3, impl=impl).requires_grad_() for x in (s, t)]
    results = []
    for outside in ((), codes, codes[::-1]):
        loss = call()(impl, *inputs, *outside)
        results.append((loss, *torch.autograd.grad(loss, inputs)))
    torch.testing.assert_close(results[0], results[1])
    assert (results[0][0] - results[2][0]).abs() > 1e-3
    outside = call()(impl, *inputs, *codes)
    assert torch.autograd.grad(outside, codes, allow_unused=True) == (None, None)
    # A part of a batch with its part of the codes: losses add up.
    half = [call()(impl, *(x[rows] for x in inputs[:2]), inputs[2], *(q[rows] for q in codes)) for rows in
            (slice(0, 3), slice(3, 10))]  # fmt: skip
    torch.testing.assert_close((3 * half[0] + 7 * half[1]) / 10, results[0][0])


@pytest.mark.parametrize("impl", IMPLS)
def test_identities(impl: str) -> None:
    s, t, prototypes = normal(9, 5), normal(9, 5), normal(4, 5)
    loss = call()(impl, s, t, prototypes)
    torch.testing.assert_close(call()(impl, t, s, prototypes), loss)
    torch.testing.assert_close(call()(impl, 30 * s, t / 7, 2 * prototypes), loss)
    for x, grad in zip((s, t, prototypes), torch.autograd.grad(loss, (s, t, prototypes)), strict=True):
        assert (x * grad).sum(1).abs().max() < 1e-5
    # Prototypes that are all the same: uniform codes and probabilities.
    same = torch.ones(8, 5, device=DEVICE)
    torch.testing.assert_close(call()(impl, s, t, same).item(), 2 * math.log(8))
    # One prototype: nothing to predict.
    assert call()(impl, s, t, prototypes[:1]).abs() < 1e-6


@pytest.mark.parametrize("impl", IMPLS)
def test_zero_vectors_and_empty_batches(impl: str) -> None:
    s, t, prototypes = (normal(n, 5, dtype=torch.float64) for n in (3, 3, 4))
    with torch.no_grad():
        s[1], prototypes[2] = 0, 0
    loss = call()(impl, s, t, prototypes)
    truth = call()("reference", s, t, prototypes)
    torch.testing.assert_close(loss, truth)
    grads = [torch.autograd.grad(x, (s, t, prototypes)) for x in (loss, truth)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
    assert grads[0][0][1].abs().max() > 1e6  # divided by 1e-12, as F.normalize has it
    inputs = normal(0, 5), normal(0, 5), normal(4, 5)
    loss = call()(impl, *inputs)
    assert loss == 0 and not any(g.any() for g in torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_inputs(impl: str) -> None:
    wide = torch.randn(12, 3, 6, device=DEVICE)
    views = wide[:, 0], wide[:, 1], wide[:4, 2]
    codes = torch.rand(4, 12, device=DEVICE).T, torch.rand(12, 8, device=DEVICE)[:, ::2]
    for outside in ((), codes):
        results = []
        for make in (lambda x: x, lambda x: x.contiguous()):
            leaves = [make(x).detach().requires_grad_() for x in views]
            loss = call()(impl, *leaves, *(make(q) for q in outside))
            results.append((loss, *torch.autograd.grad(loss, leaves)))
        torch.testing.assert_close(*results)


def test_nan_is_not_hidden() -> None:
    for impl in IMPLS:
        for place in range(3):
            inputs = [normal(4, 3), normal(4, 3), normal(5, 3)]
            with torch.no_grad():
                inputs[place][2, 1] = torch.nan
            assert call()(impl, *inputs).isnan()


def test_registration() -> None:
    inputs = normal(6, 5), normal(6, 5), normal(4, 5)
    codes = torch.rand(6, 4, device=DEVICE), torch.rand(6, 4, device=DEVICE)
    registered(torch.ops.rmfast.swapped_prediction_loss.default, *inputs, None, None, 0.1, 0.05, 2)
    registered(torch.ops.rmfast.swapped_prediction_loss.default, *inputs, *codes, 0.1, 0.05, 2)
    torch._dynamo.reset()  # what it has compiled for other tests counts against its limit
    compiles(call(), inputs)
    compiles(call(), [*inputs, *codes])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": torch.zeros(3, 4)}, "s and t must be"),
        ({"prototypes": torch.zeros(5, 3)}, r"prototypes must be \[K, 4\]"),
        ({"prototypes": torch.zeros(0, 4)}, r"prototypes must be \[K, 4\]"),
        ({"prototypes": torch.zeros(5, 4).double()}, "dtypes differ"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"epsilon": -1.0}, "epsilon must be positive"),
        ({"iterations": -1}, "iterations must not be negative"),
        ({"codes": (torch.zeros(2, 5), torch.zeros(2, 4))}, "codes must be two of"),
        ({"codes": (torch.zeros(2, 5),)}, "codes must be two of"),
        ({"codes": (torch.zeros(2, 5),) * 3}, "codes must be two of"),
        ({"impl": "full"}, "impl must be one of"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    arguments = {"s": torch.zeros(2, 4), "t": torch.zeros(2, 4), "prototypes": torch.zeros(5, 4)} | OPTIONS | change
    with pytest.raises(ValueError, match=f"swapped_prediction_loss: {message}"):
        swapped_prediction_loss(**arguments)


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_changes_nothing(impl: str) -> None:
    without_autocast_too(partial(call(), impl), [normal(n, 40) for n in (4, 4, 5)], backward=impl == "triton")
