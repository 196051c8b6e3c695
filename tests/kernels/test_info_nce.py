"""InfoNCE equals cross-entropy over the dense matrix of cosines, in fp64, with all its gradients."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels.info_nce import info_nce, op, reference
from rmfast.kernels.info_nce import triton as kernels
from rmfast.kernels.normalize import lengths, normalize_bwd
from tests.kernels.harness import (
    DEVICE,
    assert_exact,
    compiles,
    equal,
    far_apart,
    registered,
    shared_storages,
    without_autocast_too,
)
from tests.tiny import Results

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
IMPLS = ["reference", "triton"]
WIDTHS = [1, 3, 16, 40, 128, 150]  # past 128 the backward goes another way


def call(temperature: float) -> Callable[..., Tensor]:
    return lambda impl, q, k, y: info_nce(q, k, temperature=temperature, positive=y, impl=impl)


def dense(queries: Tensor, keys: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Row by row as equation 9 is written; a vector shorter than 1e-12 is divided by that."""
    losses = []
    for query, own in zip(queries, positive, strict=True):
        lengths = keys.norm(dim=1).clamp(min=1e-12) * query.norm().clamp(min=1e-12)
        logits = keys.mv(query) / lengths / temperature
        shifted = logits - logits.max().detach()
        losses.append(shifted.exp().sum().log() - shifted[own])
    return torch.stack(losses).mean()


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, device=DEVICE)).to(dtype).requires_grad_()


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=15, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 31, 33, 65]),
    columns=st.sampled_from([1, 5, 32, 70]),
    width=st.sampled_from(WIDTHS),
    temperature=st.sampled_from([0.01, 0.3, 1.0]),
    chunk=st.sampled_from([1, 5000, 1 << 24]),
)
@example(rows=65, columns=70, width=150, temperature=0.3, chunk=1)
@example(rows=33, columns=70, width=40, temperature=0.3, chunk=1)
def test_against_dense(impl: str, rows: int, columns: int, width: int, temperature: float, chunk: int) -> None:
    queries, keys = normal(rows, width, dtype=torch.float64), normal(columns, width, dtype=torch.float64, scale=3.0)
    positive = torch.randint(columns, (rows,), device=DEVICE)  # several queries may share a key
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (reference, kernels):
            patch.setattr(module, "CHUNK_BYTES", chunk)
        for loss in (
            info_nce(queries, keys, temperature=temperature, positive=positive, impl=impl),
            dense(queries, keys, positive, temperature),
        ):
            results.append((loss, torch.autograd.grad(1.7 * loss, (queries, keys))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12 / temperature)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=8, deadline=None)
@given(
    rows=st.sampled_from([1, 7, 40]),
    extra=st.sampled_from([0, 1, 60]),
    width=st.sampled_from([2, 33, 64, 150]),
    temperature=st.sampled_from([0.05, 0.5]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    programs=st.sampled_from([1, 256]),
)
def test_values_and_gradients(
    dtype: torch.dtype, rows: int, extra: int, width: int, temperature: float, scale: float, programs: int
) -> None:
    queries = normal(rows, width, dtype=dtype, scale=scale)
    keys = normal(rows + extra, width, dtype=dtype)
    grads = [torch.tensor(0.3, device=DEVICE)]
    positive = torch.randperm(rows + extra, device=DEVICE)[:rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "PROGRAMS", programs)
        # The matrix of gradients is rounded to bf16 once more than plain torch rounds, and the interpreter truncates.
        # Before the projection a gradient is as large as 1 / (temperature |q|), of which it may be a small part; a loss
        # is a difference of similarities.
        scales = 0.3 / (temperature * rows) * max(1.0, 1 / (scale * width**0.5))
        narrow = dtype == torch.bfloat16
        assert_exact(
            call(temperature), [queries, keys, positive], grads=grads, bf16_slack=2**-6,
            slack=2**-12 if narrow else 4e-6, scale=scales * (2**-6 if narrow else 1),
        )  # fmt: skip


@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl: str) -> None:
    inputs = normal(2, 4, dtype=torch.float64), normal(3, 4, dtype=torch.float64)
    positive = torch.tensor([2, 2], device=DEVICE)
    assert torch.autograd.gradcheck(lambda q, k: call(0.4)(impl, q, k, positive), inputs)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("width", [6, 131])
def test_zero_and_tiny_vectors(impl: str, width: int, dtype: torch.dtype) -> None:
    """As F.normalize: cosine 0 with all, and a gradient divided by 1e-12 without a projection."""
    queries, keys = normal(3, width, dtype=dtype), normal(4, width, dtype=dtype)
    with torch.no_grad():
        queries[0], queries[1], keys[2] = 0, queries[1] * 1e-14, 0
    positive = torch.arange(3, device=DEVICE)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (queries, keys)]
    truth = torch.nn.functional.cross_entropy(unit[0] @ unit[1].T / 0.2, positive)
    loss = info_nce(queries, keys, temperature=0.2, impl=impl)
    torch.testing.assert_close(loss, truth)
    for got, want in zip(
        torch.autograd.grad(loss, (queries, keys)), torch.autograd.grad(truth, (queries, keys)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=5e4 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("width", [5, 70])
def test_the_gradient_of_normalisation(width: int, dtype: torch.dtype) -> None:
    """On both sides of the clamp it is F.normalize's, row by row."""
    size = torch.tensor([0, 1e-15, 5e-13, 0.99e-12, 1.01e-12, 1e-6, 1.0], dtype=dtype, device=DEVICE)
    x, grad = torch.nn.functional.normalize(torch.randn(7, width, device=DEVICE, dtype=dtype), dim=1), normal(7, width)
    x, grad = (x * size[:, None]).requires_grad_(), grad.detach().to(dtype)
    (want,) = torch.autograd.grad(torch.nn.functional.normalize(x, dim=1), x, grad)
    x = x.detach()
    normed, length = reference._normalize(x)
    torch.testing.assert_close(lengths(x), length)
    one = torch.ones((), dtype=dtype, device=DEVICE)
    for got in (
        reference._normalize_grad(grad, normed, length),
        normalize_bwd(grad, one, x, length, divided=False),
        normalize_bwd(grad / length[:, None], one, x, length, divided=True),
    ):
        scaled = got * length[:, None], want * length[:, None]
        torch.testing.assert_close(*scaled, rtol=0, atol=50 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("width", [4, 130])
def test_gradcheck_of_short_vectors(impl: str, width: int) -> None:
    """With rows below the clamp and above; the steps are small beside it."""
    queries, keys = normal(2, width, dtype=torch.float64), normal(3, width, dtype=torch.float64)
    with torch.no_grad():
        for x in (queries, keys):
            x.mul_(4e-13 / x.norm(dim=1, keepdim=True))
            x[1] *= 5
    loss = lambda q, k: info_nce(q, k, temperature=0.4, impl=impl)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (queries, keys), eps=1e-16, rtol=1e-4, atol=1e6, fast_mode=width > 100)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("width", [4, 130])
def test_similarities_far_below_zero(impl: str, width: int) -> None:
    """exp of one is 0 and exp of minus one overflows; the loss and the gradients are as if all were moved up."""
    ones = torch.ones(5, width, device=DEVICE)
    for count in (3, 5, 33):
        queries, keys = normal(3, width), normal(count, width)
        with torch.no_grad():
            queries.mul_(0.01).add_(1.0)
            keys.mul_(0.01).sub_(1.0)
        loss = info_nce(queries, keys, temperature=0.005, impl=impl)
        wide = queries.detach().double().requires_grad_(), keys.detach().double().requires_grad_()
        truth = dense(*wide, torch.arange(3, device=DEVICE), 0.005)
        torch.testing.assert_close(loss, truth.float(), rtol=1e-4, atol=1e-4)
        grads = zip(torch.autograd.grad(loss, (queries, keys)), torch.autograd.grad(truth, wide), strict=True)
        for got, want in grads:
            torch.testing.assert_close(got, want.float(), rtol=0, atol=1e-3 * want.abs().max().item())
    assert info_nce(ones, -ones, temperature=0.005, impl=impl).item() == pytest.approx(math.log(5), rel=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
def test_identities(impl: str) -> None:
    one = normal(1, 5)
    loss = info_nce(one, one.detach() * 7, temperature=0.01, impl=impl)  # no negatives
    assert loss == 0 and not torch.autograd.grad(loss, one)[0].any()
    same = torch.ones(6, 3, device=DEVICE)
    torch.testing.assert_close(info_nce(same, same, temperature=0.1, impl=impl).item(), math.log(6))
    # Orthogonal queries that are their own keys: log(1 + (N - 1) exp(-1 / T)).
    eye = torch.eye(8, device=DEVICE)
    torch.testing.assert_close(info_nce(eye, 3 * eye, temperature=0.5, impl=impl).item(), math.log1p(7 * math.exp(-2)))
    # The scale of a vector does not matter, and a gradient is orthogonal to its vector.
    queries, keys = normal(9, 4), normal(9, 4)
    loss = info_nce(queries, keys, temperature=0.2, impl=impl)
    torch.testing.assert_close(info_nce(queries * 50, keys / 9, temperature=0.2, impl=impl), loss)
    for x, grad in zip((queries, keys), torch.autograd.grad(loss, (queries, keys)), strict=True):
        assert (x * grad).sum(1).abs().max() < 1e-6
    # A permutation of the keys with their queries changes nothing.
    order = torch.randperm(9, device=DEVICE)
    positive = torch.empty_like(order).scatter_(0, order, torch.arange(9, device=DEVICE))
    torch.testing.assert_close(info_nce(queries, keys[order], temperature=0.2, positive=positive, impl=impl), loss)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_queries(impl: str) -> None:
    queries, keys = normal(0, 4), normal(3, 4)
    for other in (keys, normal(0, 4)):
        loss = info_nce(queries, other, temperature=0.1, impl=impl)
        grads = torch.autograd.grad(loss, (queries, other))
        assert loss == 0 and grads[0].shape == (0, 4) and not grads[1].any()


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_inputs(impl: str) -> None:
    wide, broad = torch.randn(10, 3, 9, device=DEVICE), torch.randn(6, 400, device=DEVICE)
    for queries, keys in (
        (wide[:4, 1, :6], wide.flatten(0, 1)[:10, 3:]),
        (wide[:, 0, :].T[:, :6], wide[:9, :, 2].repeat(1, 2)),
        (broad[:, :130], broad.view(12, 200)[:, 70:]),
    ):
        positive = torch.tensor([2, 0, 1, 0, 5, 0, 3, 0, 0, 0] * 2, device=DEVICE)[::2][: len(queries)]
        grads = []
        own = (positive, positive.int())
        for *leaves, y in ((queries, keys, own[0]), (queries.contiguous(), keys.contiguous(), own[1])):
            leaves = [x.detach().requires_grad_() for x in leaves]
            loss = info_nce(*leaves, temperature=0.3, positive=y, impl=impl)
            grads.append((loss, *torch.autograd.grad(loss, leaves)))
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("width", [8, 130])
def test_positives_that_are_no_keys(width: int) -> None:
    queries, keys = normal(3, width), normal(4, width)
    for bad in (4, -1, 1 << 40):
        assert info_nce(
            queries, keys, temperature=1.0, positive=torch.tensor([0, bad, 1]).to(DEVICE), impl="triton"
        ).isnan()
        if DEVICE.type == "cpu":
            with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
                info_nce(queries, keys, temperature=1.0, positive=torch.tensor([0, bad, 1]), impl="reference")


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_is_not_hidden(impl: str) -> None:
    for place in (0, 1):
        inputs = [normal(5, 4), normal(40, 4)]
        with torch.no_grad():
            inputs[place][3, 1] = torch.nan
        loss = info_nce(*inputs, temperature=0.1, impl=impl)
        assert loss.isnan() and torch.autograd.grad(loss, inputs[place])[0][3].isnan().all()


@pytest.mark.parametrize("module", [reference, kernels], ids=IMPLS)
def test_the_matrix_never_exists(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 32 * 160 * 4)
    for width in (4, 129):
        queries, keys = torch.randn(160, width, device=DEVICE), torch.randn(160, width, device=DEVICE)
        positive, one = torch.arange(160, device=DEVICE), torch.ones((), device=DEVICE)
        with Results() as results:
            saved = module.info_nce_fwd(queries, keys, positive, 0.1)[1:]  # type: ignore[attr-defined]
            module.info_nce_bwd(one, queries, keys, positive, *saved, 0.1)  # type: ignore[attr-defined]
        # The interpreter handles memory byte by byte.
        assert results.largest <= 4 * max(32 * 160, 160 * width, kernels.PROGRAMS // 5 * 160 if width <= 128 else 0)


def test_small_problems_are_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    worths = []
    monkeypatch.setattr(op, "use_triton", lambda *_, worth, **__: worths.append(worth) or False)
    for rows in (2047, 2048):
        info_nce(torch.ones(rows, 1), torch.ones(2048, 1), temperature=1.0)
    assert worths == [False, True]


@pytest.mark.parametrize("use_kernels", [False, True])
def test_registration(use_kernels: bool) -> None:
    positive = torch.tensor([3, 0, 3], device=DEVICE)
    registered(torch.ops.rmfast.info_nce.default, normal(3, 5), normal(4, 5), positive, 0.2, use_kernels)


def test_compilation() -> None:
    torch._dynamo.reset()  # what it has compiled for other tests counts against its limit
    compiles(call(0.2), [normal(3, 5), normal(4, 5), torch.tensor([3, 0, 3], device=DEVICE)])
    compiles(lambda impl, q, k: info_nce(q, k, temperature=1.0, impl=impl), [normal(3, 5), normal(4, 5)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(4)}, "queries must be"),
        ({"keys": torch.zeros(3, 3)}, "widths differ"),
        ({"queries": torch.zeros(2, 0), "keys": torch.zeros(3, 0)}, "vectors need"),
        ({"keys": torch.zeros(3, 4).double()}, "dtypes differ"),
        ({"keys": torch.zeros(0, 4)}, "2 queries and no keys"),
        ({"keys": torch.zeros(1, 4)}, "2 queries, 1 keys: positive must be given"),
        ({"positive": torch.tensor([0])}, r"positive must be \[2\]"),
        ({"positive": torch.zeros(2)}, "positive must be integers"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"impl": "full"}, "impl must be one of"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    arguments = {"queries": torch.zeros(2, 4), "keys": torch.zeros(3, 4), "temperature": 0.1} | change
    with pytest.raises(ValueError, match=f"info_nce: {message}"):
        info_nce(**arguments)


def test_fp16_is_the_references() -> None:
    queries, keys = normal(3, 5, dtype=torch.float16, scale=1e-3), normal(4, 5, dtype=torch.float16, scale=1e-3)
    assert info_nce(queries, keys, temperature=0.1).isfinite()
    with pytest.raises(ValueError, match="info_nce: impl='triton' is not possible: .* fp16"):
        info_nce(queries, keys, temperature=0.1, impl="triton")


def test_an_unknown_impl_is_refused_also_without_queries() -> None:
    with pytest.raises(ValueError, match="impl must be one of"):
        info_nce(torch.zeros(0, 4), torch.zeros(3, 4), temperature=0.1, impl="full")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("width", [40, 150])
def test_autocast_changes_nothing(impl: str, width: int) -> None:
    positive = torch.tensor([3, 0, 3], device=DEVICE)
    without_autocast_too(partial(call(0.2), impl), [normal(3, width), normal(4, width), positive])


@pytest.mark.usefixtures("alone_on_the_gpu")
@pytest.mark.parametrize("width", [16, 150])
def test_rows_beyond_two_to_the_31_elements(width: int) -> None:
    q, k = (normal(3, width, dtype=torch.bfloat16).detach() for _ in range(2))
    positive, grad = torch.tensor([2, 0, 1], device=DEVICE), torch.ones((), device=DEVICE)
    with shared_storages():
        loss, *kept = kernels.info_nce_fwd(q, k, positive, 0.2)
        want = kernels.info_nce_bwd(grad, q, k, positive, *kept, 0.2)
        for a, b in ((far_apart(q), k), (q, far_apart(k))):
            equal(kernels.info_nce_fwd(a, b, positive, 0.2), [loss, *kept])
            equal(kernels.info_nce_bwd(grad, a, b, positive, *kept, 0.2), want)
