"""InfoNCE equals its dense fp64 self, both implementations, without ever holding all pairs."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels.contrastive import info_nce
from rmfast.kernels.contrastive.info_nce import reference
from rmfast.kernels.contrastive.info_nce import triton as kernels
from tests.kernels.harness import DEVICE, assert_exact, compiles, registered
from tests.tiny import Results

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
IMPLS = ["reference", "triton"]


def call(temperature: float = 0.1) -> Callable[..., Tensor]:
    return lambda impl, q, k, y: info_nce(q, k, temperature=temperature, positive=y, impl=impl)


def dense(queries: Tensor, keys: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """SimCSE's equation, as it is written: for temperatures at which nothing overflows fp64."""
    losses = []
    for query, y in zip(queries, positive.tolist(), strict=True):
        cosines = (keys @ query) / (query.square().sum().sqrt() * keys.square().sum(1).sqrt())
        e = (cosines / temperature).exp()
        losses.append(-(e[y] / e.sum()).log())
    return torch.stack(losses).mean()


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, device=DEVICE)).to(dtype).requires_grad_()


def indices(count: int, below: int) -> Tensor:
    return torch.randint(below, (count,), device=DEVICE)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 9),
    more=st.integers(0, 40),
    width=st.integers(1, 20),
    temperature=st.sampled_from([0.01, 0.1, 1.0]),
    chunk=st.sampled_from([1, 160, 1 << 24]),
    default=st.booleans(),
    impl=st.sampled_from(IMPLS),
)
def test_against_dense(
    rows: int, more: int, width: int, temperature: float, chunk: int, default: bool, impl: str
) -> None:
    queries, keys = normal(rows, width, dtype=torch.float64), normal(rows + more, width, dtype=torch.float64)
    positive = torch.arange(rows, device=DEVICE) if default else indices(rows, rows + more)
    truth = dense(queries, keys, positive, temperature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "CHUNK_BYTES", chunk)
        ours = info_nce(queries, keys, temperature=temperature, positive=None if default else positive, impl=impl)
        grads = torch.autograd.grad(3 * ours, (queries, keys))
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grads, torch.autograd.grad(3 * truth, (queries, keys)), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=3, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 16, 35]),
    keys=st.sampled_from([1, 32, 70]),
    width=st.sampled_from([1, 16, 40, 70]),
    temperature=st.sampled_from([0.02, 0.3]),
    programs=st.sampled_from([1, 8]),
)
def test_values_and_gradients(
    dtype: torch.dtype, rows: int, keys: int, width: int, temperature: float, programs: int
) -> None:
    q, k = normal(rows, width, dtype=dtype), normal(keys, width, dtype=dtype, scale=4.0)
    shortest = torch.cat([q.detach(), k.detach()]).double().norm(dim=1).min().item()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "PROGRAMS", programs)
        grads = [torch.tensor(0.7, device=DEVICE)]
        # A gradient's terms are of the size of 1 / (temperature |x|).
        assert_exact(
            call(temperature), [q, k, indices(rows, keys)], grads=grads, scale=max(1, 1 / shortest) / temperature
        )


@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl: str) -> None:
    q, k, y = normal(3, 3, dtype=torch.float64), normal(4, 3, dtype=torch.float64), torch.tensor([3, 0, 0]).to(DEVICE)
    assert torch.autograd.gradcheck(lambda q, k: call(0.5)(impl, q, k, y), (q, k))


@pytest.mark.parametrize("impl", IMPLS)
def test_all_pairs_never_exist(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, width = 96, 4
    monkeypatch.setattr(reference, "CHUNK_BYTES", 4 * rows * 8)
    monkeypatch.setattr(kernels, "PROGRAMS", 4)
    q, k, y = normal(rows, width), normal(rows, width), torch.arange(rows, device=DEVICE)
    module = reference if impl == "reference" else kernels
    with Results() as results:
        total, *saved = module.info_nce_fwd(q.detach(), k.detach(), y, 0.1)
        module.info_nce_bwd(total, q.detach(), k.detach(), y, *saved, 0.1)
    assert results.largest < rows * rows / 4


def test_identities() -> None:
    """Equal items cannot be told apart; lengths do not count; d and -d as items are finite."""
    for impl in IMPLS:
        same = torch.ones(5, 3, device=DEVICE)
        value = info_nce(same, same.repeat(4, 1), temperature=0.05, impl=impl)
        torch.testing.assert_close(value.item(), math.log(20), rtol=1e-5, atol=1e-5)
        q, k = normal(5, 7).detach(), normal(9, 7).detach()
        lengths = torch.rand(5, 1, device=DEVICE) + 0.5
        torch.testing.assert_close(
            info_nce(q * lengths, 1e3 * k, temperature=0.1, impl=impl), info_nce(q, k, temperature=0.1, impl=impl)
        )
        items = torch.cat([torch.eye(4), -torch.eye(4)]).to(DEVICE)
        value = info_nce(items, items, temperature=0.05, impl=impl).item()
        assert value == pytest.approx(math.log1p(6 * math.exp(-20) + math.exp(-40)), abs=2e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_vectors_too_short_for_a_direction(impl: str) -> None:
    """As F.normalize has it: divided by 1e-12, which is a constant for the gradient."""
    q = torch.tensor([[0.0, 0.0], [3e-13, 4e-13], [3.0, 4.0]], dtype=torch.float64, device=DEVICE).requires_grad_()
    k = normal(4, 2, dtype=torch.float64)
    with torch.no_grad():
        k[1] = 0
    y = torch.tensor([1, 2, 0], device=DEVICE)
    unit = torch.nn.functional.normalize
    truth = torch.nn.functional.cross_entropy(unit(q) @ unit(k).T / 0.1, y)
    ours = call()(impl, q, k, y)
    torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(torch.autograd.grad(ours, (q, k)), torch.autograd.grad(truth, (q, k)))


def test_extreme_temperatures() -> None:
    q = normal(20, 8)
    for temperature in (1e-4, 1e4):
        size = max(1, 1 / q.detach().norm(dim=1).min().item()) / temperature
        inputs = [q, normal(40, 8), indices(20, 40)]
        assert_exact(call(temperature), inputs, grads=[torch.tensor(1.0, device=DEVICE)], scale=size)


def test_positives_that_are_no_keys() -> None:
    q, k, good = normal(4, 3), normal(40, 3), torch.tensor([0, 5, 39, 7], device=DEVICE)
    for bad in (40, -1, 1 << 40):
        y = good.clone()
        y[1] = bad
        assert call()("triton", q, k, y).isnan()
        if DEVICE.type == "cpu":
            with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
                call()("reference", q, k, y)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_query_is_seen_and_spoils_no_other(bad: float) -> None:
    q, k, y = normal(20, 5).detach(), normal(40, 5).detach(), indices(20, 40)
    for kernel in (False, True):
        good = torch.ops.rmfast.info_nce(q, k, y, 0.1, kernel)[1]
        spoilt = q.clone()
        spoilt[3, 1] = bad
        total, lse, *_ = torch.ops.rmfast.info_nce(spoilt, k, y, 0.1, kernel)
        others = torch.arange(20, device=DEVICE) != 3
        assert total.isnan() and lse[3].isnan() and torch.equal(lse[others], good[others])


def test_strided_inputs() -> None:
    q, k, y = normal(40, 40), normal(9, 37), torch.arange(20, device=DEVICE)[::2]
    grads = [torch.tensor(1.0, device=DEVICE)]
    assert_exact(lambda impl, q, k, y: call(1.0)(impl, q[::4, 3:12], k.T, y), [q, k, y], grads=grads, scale=8.0)


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing(impl: str) -> None:
    q, k = normal(0, 3), normal(4, 3)
    loss = info_nce(q, k, temperature=0.1, impl=impl)
    loss.backward()
    assert loss.item() == 0 and q.grad is not None and q.grad.shape == (0, 3)
    assert k.grad is not None and torch.equal(k.grad, torch.zeros_like(k))
    assert info_nce(q, q, temperature=0.1, impl=impl).item() == 0
    wide = normal(2, 0)
    assert info_nce(wide, wide, temperature=0.1, impl=impl).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("use_kernels", [False, True])
def test_registration(use_kernels: bool) -> None:
    registered(torch.ops.rmfast.info_nce.default, normal(6, 5), normal(7, 5), indices(6, 7), 0.1, use_kernels)


def test_compilation() -> None:
    compiles(call(), [normal(6, 5), normal(7, 5), indices(6, 7)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(4)}, "queries must be"),
        ({"keys": torch.zeros(5, 3)}, "widths differ"),
        ({"keys": torch.zeros(5, 4).double()}, "dtypes differ"),
        ({"keys": torch.zeros(1, 4)}, "2 queries need as many keys"),
        ({"keys": torch.zeros(0, 4), "positive": torch.tensor([0, 1])}, "queries need at least one key"),
        ({"positive": torch.zeros(3, dtype=torch.int64)}, "positive must be"),
        ({"positive": torch.zeros(2)}, "positive must be integers"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"impl": "full"}, "impl must be one of"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    arguments = {"queries": torch.zeros(2, 4), "keys": torch.zeros(5, 4), "temperature": 0.1} | change
    with pytest.raises(ValueError, match=f"info_nce: {message}"):
        info_nce(**arguments)
