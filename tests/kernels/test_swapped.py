"""The swapped prediction loss equals SwAV's own in fp64; codes carry no gradient."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels.contrastive import sinkhorn, swapped_prediction_loss
from tests.kernels.harness import DEVICE, assert_exact, compiles, registered

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
IMPLS = ["reference", "triton"]


def call(temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3) -> Callable[..., Tensor]:
    def loss(impl: str, s: Tensor, t: Tensor, prototypes: Tensor, *codes: Tensor) -> Tensor:
        return swapped_prediction_loss(
            s, t, prototypes, temperature=temperature, epsilon=epsilon, iterations=iterations,
            codes=(codes[0], codes[1]) if codes else None, impl=impl,
        )  # fmt: skip

    return loss


def swav(
    s: Tensor, t: Tensor, prototypes: Tensor, temperature: float, epsilon: float, iterations: int,
    codes: tuple[Tensor, ...] = (),
) -> Tensor:  # fmt: skip
    """SwAV's listing for two views, item by item where it sums."""
    scores = []
    for x in (s, t):
        lengths = x.square().sum(1, keepdim=True).sqrt() * prototypes.square().sum(1).sqrt()
        scores.append(x @ prototypes.T / lengths)
    if not codes:
        made = []
        for x in scores:
            q = (x.detach() / epsilon).exp()
            for _ in range(iterations):
                q = q / q.sum(0)
                q = q / q.sum(1, keepdim=True)
            made.append(q)
        codes = tuple(made)
    total = s.new_zeros(())
    for x, q in ((scores[1], codes[0]), (scores[0], codes[1])):
        for row, code in zip(x, q, strict=True):
            e = (row / temperature).exp()
            total = total - (code * (e / e.sum()).log()).sum()
    return total / len(s)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()


@settings(max_examples=8, deadline=None)
@given(
    items=st.integers(1, 6),
    clusters=st.integers(1, 70),
    width=st.integers(2, 9),
    temperature=st.sampled_from([0.05, 0.1, 1.0]),
    epsilon=st.sampled_from([0.05, 0.5]),
    iterations=st.integers(1, 3),
    given_codes=st.booleans(),
    impl=st.sampled_from(IMPLS),
)
def test_against_swav(
    items: int, clusters: int, width: int, temperature: float, epsilon: float, iterations: int, given_codes: bool,
    impl: str,
) -> None:  # fmt: skip
    inputs = [normal(n, width, dtype=torch.float64) for n in (items, items, clusters)]
    # Codes that need not sum to 1 either.
    codes = tuple(torch.rand(2, items, clusters, dtype=torch.float64, device=DEVICE)) if given_codes else ()
    ours = call(temperature, epsilon, iterations)(impl, *inputs, *codes)
    truth = swav(*inputs, temperature, epsilon, iterations, codes)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * truth, inputs), rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=3, deadline=None)
@given(
    items=st.sampled_from([0, 1, 8, 35]),
    clusters=st.sampled_from([1, 32, 70]),
    width=st.sampled_from([2, 19]),
    given_codes=st.booleans(),
)
def test_values_and_gradients(dtype: torch.dtype, items: int, clusters: int, width: int, given_codes: bool) -> None:
    inputs = [normal(n, width, dtype=dtype) for n in (items, items, clusters)]
    codes = list(torch.rand(2, items, clusters, device=DEVICE).softmax(-1)) if given_codes else []
    shortest = torch.cat([x.detach() for x in inputs]).double().norm(dim=1).min().item()
    grads = [torch.tensor(0.7, device=DEVICE)]
    assert_exact(call(), [*inputs, *codes], grads=grads, scale=max(1, 1 / shortest) / 0.1)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl: str) -> None:
    inputs = [normal(n, 3, dtype=torch.float64) for n in (3, 3, 4)]
    codes = torch.rand(2, 3, 4, dtype=torch.float64, device=DEVICE).softmax(-1)  # those of Sinkhorn would move along
    assert torch.autograd.gradcheck(lambda *x: call(0.5)(impl, *x, codes[0], codes[1]), inputs)


@pytest.mark.parametrize("impl", IMPLS)
def test_given_codes_are_those_made_of_the_scores(impl: str) -> None:
    s, t, prototypes = normal(9, 5), normal(9, 5), normal(40, 5)
    unit = torch.nn.functional.normalize
    codes = [sinkhorn(unit(x) @ unit(prototypes).T, epsilon=0.05, iterations=3) for x in (s, t)]
    results = []
    for loss in (call()(impl, s, t, prototypes), call()(impl, s, t, prototypes, *codes)):
        results.append((loss, *torch.autograd.grad(loss, (s, t, prototypes))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_identities() -> None:
    """One cluster tells nothing; views are interchangeable; lengths do not count."""
    for impl in IMPLS:
        s, t, prototypes = normal(9, 5), normal(9, 5), normal(40, 5)
        assert abs(call()(impl, s, t, normal(1, 5)).item()) < 1e-6
        value = call()(impl, s, t, prototypes)
        torch.testing.assert_close(call()(impl, t, s, prototypes), value)
        torch.testing.assert_close(call()(impl, 3 * s, 0.1 * t, 50 * prototypes), value)
        same = torch.ones(6, 5, device=DEVICE)  # all clusters alike: uniform codes, uniform predictions
        assert call()(impl, same[:4], same[:4], same).item() == pytest.approx(2 * math.log(6), rel=1e-5)


def test_codes_given_with_a_graph_get_no_gradient() -> None:
    codes = torch.rand(2, 4, 3, device=DEVICE, requires_grad=True)
    for impl in IMPLS:
        s = normal(4, 5)
        call()(impl, s, normal(4, 5), normal(3, 5), codes[0], codes[1]).backward()
        assert codes.grad is None and s.grad is not None


def test_vectors_of_zeros() -> None:
    s = normal(4, 5)
    with torch.no_grad():
        s[1] = 0
    inputs = [s, normal(4, 5), normal(3, 5)]
    for impl in IMPLS:
        grads = torch.autograd.grad(call()(impl, *inputs), inputs)
        assert all(g.isfinite().all() for g in grads)


def test_strided_inputs() -> None:
    s, t, prototypes = normal(6, 9), normal(18, 12), normal(6, 40)
    codes = torch.rand(2, 40, 9, device=DEVICE)

    def strided(impl: str, s: Tensor, t: Tensor, p: Tensor, *codes: Tensor) -> Tensor:
        return call(1.0)(impl, s.T, t[::2, 3:9], p.T, *(c.T for c in codes))

    grads = [torch.tensor(1.0, device=DEVICE)]
    assert_exact(strided, [s, t, prototypes], grads=grads, scale=8.0)
    assert_exact(strided, [s, t, prototypes, codes[0], codes[1]], grads=grads, scale=8.0)


def test_registration() -> None:
    inputs, codes = [normal(6, 5), normal(6, 5), normal(7, 5)], torch.rand(2, 6, 7, device=DEVICE)
    for given_codes in ((None, None), (codes[0], codes[1])):
        registered(torch.ops.rmfast.swapped_prediction_loss.default, *inputs, *given_codes, 0.1, 0.05, 2)


def test_compilation() -> None:
    inputs, codes = [normal(6, 5), normal(6, 5), normal(7, 5)], torch.rand(2, 6, 7, device=DEVICE)
    compiles(call(), inputs)
    compiles(call(), [*inputs, codes[0], codes[1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s": torch.zeros(4)}, "s and t must be"),
        ({"t": torch.zeros(3, 4)}, "s and t must be"),
        ({"prototypes": torch.zeros(5, 3)}, "prototypes must be"),
        ({"prototypes": torch.zeros(0, 4)}, "prototypes must be"),
        ({"prototypes": torch.zeros(5, 4).double()}, "dtypes differ"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"epsilon": -1.0}, "epsilon must be positive"),
        ({"iterations": -1}, "iterations must not be negative"),
        ({"codes": (torch.zeros(2, 5), torch.zeros(2, 4))}, "codes must be"),
        ({"impl": "full"}, "impl must be one of"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    arguments = {"s": torch.zeros(2, 4), "t": torch.zeros(2, 4), "prototypes": torch.zeros(5, 4)}
    numbers = {"temperature": 0.1, "epsilon": 0.05, "iterations": 3}
    with pytest.raises(ValueError, match=f"swapped_prediction_loss: {message}"):
        swapped_prediction_loss(**arguments | numbers | change)
