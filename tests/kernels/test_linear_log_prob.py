"""Log-probability and entropy of a linear layer equal their dense fp64 selves, without ever holding full logits."""

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels import linear_log_prob
from rmfast.kernels.launch import launch, maths
from rmfast.kernels.linear_log_prob import products, reference
from rmfast.kernels.linear_log_prob import triton as kernels
from rmfast.kernels.linear_log_prob.tiles import tile
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


def call(temperature: float = 1.0) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda impl, h, w, y: linear_log_prob(h, w, y, temperature=temperature, impl=impl)


def dense_log_prob(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    p = (hidden @ weight.T / temperature).softmax(-1)
    return p[torch.arange(len(hidden)), target].log(), -(p * p.log()).sum(-1)


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, device=DEVICE)).to(dtype).requires_grad_()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 9),
    vocabulary=st.integers(1, 9),
    width=st.integers(1, 5),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    chunk=st.sampled_from([1, 160, 1 << 24]),
    impl=st.sampled_from(IMPLS),
)
def test_against_dense(rows: int, vocabulary: int, width: int, temperature: float, chunk: int, impl: str) -> None:
    hidden, weight = normal(rows, width, dtype=torch.float64), normal(vocabulary, width, dtype=torch.float64)
    target = torch.randint(vocabulary, (rows,), device=DEVICE)
    cotangents = torch.randn(2, rows, dtype=torch.float64, device=DEVICE)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (reference, kernels):
            patch.setattr(module, "CHUNK_BYTES", chunk)
        for values in (
            linear_log_prob(hidden, weight, target, temperature=temperature, impl=impl),
            dense_log_prob(hidden, weight, target, temperature),
        ):
            # Both results at once, and each alone: a missing gradient is a gradient of 0.
            grads = [torch.autograd.grad(values, (hidden, weight), list(cotangents), retain_graph=True)]
            grads += [
                torch.autograd.grad(values[i], (hidden, weight), cotangents[i], retain_graph=True) for i in (0, 1)
            ]
            results.append((values, grads))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(0, 7),
    vocabulary=st.sampled_from([1, 3, 64, 129, 200]),
    width=st.sampled_from([1, 8, 19]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    chunk=st.sampled_from([1, 2000, 1 << 24]),
)
def test_values_and_gradients(
    dtype: torch.dtype, rows: int, vocabulary: int, width: int, temperature: float, scale: float, chunk: int
) -> None:
    hidden, weight = normal(rows, width, dtype=dtype, scale=scale), normal(vocabulary, width, dtype=dtype)
    target = torch.randint(vocabulary, (rows,), device=DEVICE)
    grads = [torch.randn(rows, device=DEVICE), torch.randn(rows, device=DEVICE)]
    size = scale / temperature * width**0.5  # of a logit, which the results are differences of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "CHUNK_BYTES", chunk)
        patch.setattr(products, "SLICE_BYTES", chunk)
        assert_exact(
            call(temperature), [hidden, weight, target], grads=grads, scale=8 * size * (1 + size),
            slack=2**-9 if dtype == torch.bfloat16 else 4e-6,  # the results of bf16 logits are fp32
        )  # fmt: skip


@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl: str) -> None:
    hidden, weight = normal(4, 3, dtype=torch.float64), normal(5, 3, dtype=torch.float64)
    target = torch.tensor([0, 4, 4, 2], device=DEVICE)
    assert torch.autograd.gradcheck(lambda h, w: call(0.7)(impl, h, w, target), (hidden, weight))


@pytest.mark.parametrize("module", [reference, kernels], ids=IMPLS)
def test_full_logits_never_exist(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4000)
    hidden, weight, target = torch.randn(64, 8, device=DEVICE), torch.randn(100, 8, device=DEVICE), torch.arange(64)
    target = target.to(DEVICE)
    with Results() as results:
        value, entropy, log_z = module.linear_log_prob_fwd(hidden, weight, target, 1.0)  # type: ignore[attr-defined]
        module.linear_log_prob_bwd(value, value, hidden, weight, target, log_z, entropy, 1.0)  # type: ignore[attr-defined]
    assert results.largest <= 4000  # of 64 x 100 logits; the interpreter handles a chunk's memory byte by byte


def test_chunks_of_a_large_model() -> None:
    """Rows of 128k logits: a chunk is as large as its budget allows, whatever the number of rows."""
    for size, budget in ((4, reference.CHUNK_BYTES), (2, kernels.CHUNK_BYTES)):
        rows = reference.chunk_rows(16384, 128 * 1024, size, budget)
        assert budget // 2 < rows * 128 * 1024 * size <= budget
    assert reference.chunk_rows(0, 10, 4, 1 << 20) == reference.chunk_rows(5, 1 << 20, 4, 1 << 20) == 1


@pytest.mark.parametrize("vocabulary", [32000, 49152, 128256, 151936])
@pytest.mark.parametrize("count", [100, 1046, 20000])
def test_chunks_fill_the_tiles_of_matrix_products(vocabulary: int, count: int) -> None:
    """Also every chunk of a vector then begins at an aligned address."""
    hidden, weight = (torch.empty(n, 8, dtype=torch.bfloat16, device="meta") for n in (count, vocabulary))
    rows, columns = kernels._chunk(hidden, weight).shape
    assert columns == vocabulary and rows <= count
    assert rows == count or rows % 128 == 0
    assert rows == count or (rows + 128) * vocabulary * 2 > kernels.CHUNK_BYTES


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("output", [0, 1], ids=["log_prob", "entropy"])
def test_gradients_of_one_output_alone(impl: str, output: int) -> None:
    hidden, weight, grad = normal(5, 7), normal(11, 7), torch.rand(5, device=DEVICE)
    target = torch.tensor([0, 10, 3, 3, 7], device=DEVICE)
    got = torch.autograd.grad(call(0.7)(impl, hidden, weight, target)[output], (hidden, weight), grad)
    h, w = (t.detach().double().requires_grad_() for t in (hidden, weight))
    log_p = (h @ w.T / 0.7).log_softmax(-1)
    truth = (log_p.gather(-1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1))[output]
    for a, b in zip(got, torch.autograd.grad(truth, (h, w), grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=5e-6)


def test_on_a_gpu_a_product_is_added_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written apart and then added, the sum would pass through memory three more times."""
    calls: list[Any] = []
    monkeypatch.setattr(torch, "addmm", lambda *args, **options: calls.append((args, options)))
    total, a, b = torch.zeros(4, 3), *(SimpleNamespace(dtype=torch.bfloat16, is_cuda=True) for _ in range(2))
    products.add_product(total, a, b, 0.5)  # type: ignore[arg-type]
    [((first, *factors), options)] = calls
    assert first is total is options.pop("out") and factors == [a, b]
    assert options == {"out_dtype": torch.float32, "alpha": 0.5}
    assert "dtype_out" in torch.ops.aten.addmm.overloads()


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float32], ids=str)
def test_products_are_summed_wide(narrow: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SLICE_BYTES", 100)
    a, b, total = normal(17, 6, dtype=narrow).detach(), normal(6, 9, dtype=narrow).detach(), torch.randn(17, 9)
    expected = total.double().to(DEVICE) - 0.5 * a.double() @ b.double()
    total = total.to(DEVICE)
    products.add_product(total, a, b, -0.5)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)
    wide = products.wide_product(a, b, torch.float32)
    torch.testing.assert_close(wide.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(products, "TABLE_ROWS", 4)
    of_table = products.TableProduct()
    for rows in (slice(9), slice(9, 12)):
        logits = of_table(a[rows], b.t().contiguous(), torch.float32)
        torch.testing.assert_close(logits.double(), a[rows].double() @ b.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_extreme_logits(impl: str) -> None:
    hidden = torch.tensor([[1e4], [-1e4], [0.0]], requires_grad=True, device=DEVICE)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True, device=DEVICE)
    value, entropy = linear_log_prob(hidden, weight, torch.tensor([0, 0, 1], device=DEVICE), impl=impl)
    torch.testing.assert_close(value.cpu(), torch.tensor([0.0, -2e4, -math.log(3)]))
    torch.testing.assert_close(entropy.cpu(), torch.tensor([0.0, 0.0, math.log(3)]))
    (value.sum() + entropy.sum()).backward()
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_logits_of_minus_infinity_and_beyond_a_block(impl: str) -> None:
    """Whole blocks of -inf first, last and around; the truth is what the finite ones give."""
    size, block = 300, 64  # the interpreter's
    for finite in (range(size - 3, size), range(2), (block, 2 * block + 1)):
        weight = torch.full((size, 1), -torch.inf, device=DEVICE)
        weight[list(finite)] = torch.randn(len(finite), 1, device=DEVICE)
        value, entropy = linear_log_prob(
            torch.ones(1, 1, device=DEVICE), weight, torch.tensor([finite[0]], device=DEVICE), impl=impl
        )
        log_p = weight[list(finite), 0].log_softmax(0)
        torch.testing.assert_close(value[0], log_p[0])
        torch.testing.assert_close(entropy[0], -(log_p.exp() * log_p).sum())


def test_finite_logits_below_any_start_of_a_running_maximum() -> None:
    one, weight = torch.ones(1, 1, device=DEVICE), torch.full((300, 1), -1e35, device=DEVICE)
    _, entropy = linear_log_prob(one, weight, torch.tensor([7], device=DEVICE), impl="triton")
    torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(300)))


def test_gradients_beside_logits_of_minus_infinity() -> None:
    """The gradient of a logit of -inf is 0; that of a weight of one beside a hidden state of 1 is the same."""
    logits = torch.tensor([[0.5, -torch.inf, 1.0, -torch.inf]], device=DEVICE)
    p = logits.softmax(-1)
    entropy = -(p * p.log()).nansum(-1)
    zero, one = torch.zeros(1, device=DEVICE), torch.ones(1, device=DEVICE)
    log_z = logits.logsumexp(-1)
    truth = -0.5 * torch.where(p == 0, 0, p * (p.log() + entropy)) - p
    truth[0, 0] += 1
    kernels.launch(
        kernels.linear_log_prob_bwd_kernel, (1, 1), logits, zero.long(), one, 0.5 * one, log_z, entropy, 4,
        ENTROPY=True, BLOCK=16, MATHS=kernels.maths(logits),
    )  # fmt: skip
    torch.testing.assert_close(logits, truth)
    weight = torch.tensor([[0.5], [-torch.inf], [1.0], [-torch.inf]], device=DEVICE)
    for module in (reference, kernels):
        _, grad = module.linear_log_prob_bwd(one, 0.5 * one, one[:, None], weight, zero.long(), log_z, entropy, 1.0)
        torch.testing.assert_close(grad, truth.T)


def test_targets_that_are_no_rows() -> None:
    hidden, weight = normal(4, 3), normal(5, 3)
    target = torch.tensor([0, 5, -1, 1 << 40], device=DEVICE)
    value, entropy = linear_log_prob(hidden, weight, target, impl="triton")
    assert value.isnan().tolist() == [False, True, True, True] and entropy.isfinite().all()
    (grad,) = torch.autograd.grad(value.sum(), hidden)
    assert grad.isnan().all(1).tolist() == [False, True, True, True]
    if DEVICE.type == "cpu":
        for bad in (5, -1):
            with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
                linear_log_prob(hidden, weight, torch.tensor([0, bad, 1, 2]), impl="reference")


def test_nan_stays_in_its_row() -> None:
    hidden = torch.randn(3, 4, device=DEVICE)
    hidden[1, 2] = torch.nan
    for impl in IMPLS:
        value, entropy = linear_log_prob(
            hidden, torch.randn(70, 4, device=DEVICE), torch.arange(3).to(DEVICE), impl=impl
        )
        assert value.isnan().tolist() == entropy.isnan().tolist() == [False, True, False]


def test_bf16_maths_is_fp32() -> None:
    hidden, weight = torch.randn(32, 16).bfloat16(), torch.randn(200, 16).bfloat16()
    target = torch.arange(32)
    value, entropy = linear_log_prob(hidden, weight, target)
    truth = dense_log_prob(hidden.double(), weight.double(), target, 1.0)
    assert value.dtype == entropy.dtype == torch.float32
    # The products come out of the matrix multiply in bf16, as a language model's logits do.
    assert (value - truth[0]).abs().max() <= torch.finfo(torch.bfloat16).eps * (hidden @ weight.T).abs().max()
    assert (entropy - truth[1]).abs().max() <= torch.finfo(torch.bfloat16).eps * (hidden @ weight.T).abs().max()


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_inputs(impl: str) -> None:
    hidden, weight = torch.randn(8, 6, device=DEVICE).T, torch.randn(8, 5, device=DEVICE).T
    target = torch.tensor([0, 9, 4, 9, 2, 9, 1, 9, 3, 9, 4, 9], device=DEVICE)[::2]
    assert not hidden.is_contiguous() and not weight.is_contiguous() and not target.is_contiguous()

    def grads(h: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        leaves = h.detach().requires_grad_(), w.detach().requires_grad_()
        value, entropy = linear_log_prob(*leaves, y, impl=impl)
        # Gradients of a sum are expanded scalars: strides of 0.
        return value, entropy, *torch.autograd.grad(value.sum() + entropy.sum(), leaves)

    expected = grads(hidden.contiguous(), weight.contiguous(), target.contiguous())
    torch.testing.assert_close(grads(hidden, weight, target.to(torch.int16)), expected)


@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_soft_cap(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Before the temperature; forward and both gradients of both results."""
    monkeypatch.setattr(reference, "CHUNK_BYTES", chunk)
    hidden, weight = normal(5, 3, dtype=torch.float64, scale=2.0), normal(7, 3, dtype=torch.float64)
    target, grads = torch.arange(5, device=DEVICE), torch.randn(2, 5, dtype=torch.float64, device=DEVICE)
    p = (1.5 * (hidden @ weight.T / 1.5).tanh() / 0.7).softmax(-1)
    truth = torch.stack((p[torch.arange(5), target].log(), -(p * p.log()).sum(-1)))
    ours = torch.stack(linear_log_prob(hidden, weight, target, temperature=0.7, softcap=1.5))
    torch.testing.assert_close(ours, truth)
    for got, expected in zip(*(torch.autograd.grad(x, [hidden, weight], grads) for x in (ours, truth)), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("use_kernels", [False, True])
def test_registration(use_kernels: bool) -> None:
    hidden, weight, target = normal(6, 5), normal(7, 5), torch.arange(6, device=DEVICE)
    registered(torch.ops.rmfast.linear_log_prob.default, hidden, weight, target, 0.7, None, use_kernels)


def test_compilation() -> None:
    torch._dynamo.reset()  # what it has compiled for other tests counts against its limit
    compiles(call(0.7), [normal(6, 5), normal(7, 5), torch.arange(6, device=DEVICE)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(4)}, "hidden must be"),
        ({"weight": torch.zeros(5, 3)}, "hidden and weight differ in width"),
        ({"weight": torch.zeros(0, 4)}, "weight needs at least one row"),
        ({"weight": torch.zeros(5, 4).double()}, "dtypes differ"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, "target must be"),
        ({"target": torch.zeros(2)}, "target must be integers"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"impl": "full"}, "impl must be one of"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    arguments = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(5, 4), "target": torch.tensor([0, 1])} | change
    with pytest.raises(ValueError, match=f"linear_log_prob: {message}"):
        linear_log_prob(**arguments)


@pytest.mark.parametrize("impl", IMPLS)
def test_compilation_for_any_shape(impl: str) -> None:
    torch._dynamo.reset()
    graph = torch.compile(partial(linear_log_prob, impl=impl), fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 7):
        inputs = normal(rows, 8), normal(9, 8), torch.zeros(rows, dtype=torch.long, device=DEVICE)
        torch.testing.assert_close(graph(*inputs), linear_log_prob(*inputs, impl=impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_changes_nothing(impl: str) -> None:
    target = torch.tensor([3, 0, 6], device=DEVICE)
    without_autocast_too(partial(call(), impl), [normal(3, 40), normal(7, 40), target])


@pytest.mark.usefixtures("alone_on_the_gpu")
def test_a_row_of_logits_beyond_two_to_the_31_elements() -> None:
    """A vocabulary as large as a step between far rows, of which one block is visited."""
    block = tile("bwd", torch.empty(0, device=DEVICE), 0).block
    logits, numbers = normal(3, block, dtype=torch.bfloat16).detach(), torch.rand(4, 3, device=DEVICE)
    target, far = torch.tensor([1, 2, 3], device=DEVICE), far_apart(logits)
    with shared_storages():
        for t, vocabulary in ((logits, block), (far, far.stride(0))):
            launch(
                kernels.linear_log_prob_bwd_kernel, (3, 1), t, target, *numbers, vocabulary,
                ENTROPY=True, BLOCK=block, MATHS=maths(t),
            )  # fmt: skip
    equal([far], [logits])
