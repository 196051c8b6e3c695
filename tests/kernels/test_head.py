"""Reward heads and log-probabilities equal their dense fp64 selves, without ever holding full logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels import linear_log_prob, score_head
from rmfast.kernels.head import log_prob
from tests.tiny import Results


def dense_scores(hidden: Tensor, norm: Tensor, head: Tensor, eps: float) -> Tensor:
    rows = [h / math.sqrt(sum(x * x for x in h.tolist()) / len(h) + eps) * norm for h in hidden]
    return torch.stack([head @ row for row in rows])


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_score_head(heads: int, eps: float) -> None:
    hidden, norm, head = torch.randn(5, 8).double(), torch.randn(8).double(), torch.randn(heads, 8).double()
    ours = score_head(hidden, norm, head, eps=eps)
    assert ours.shape == (5, heads)
    torch.testing.assert_close(ours, dense_scores(hidden, norm, head, eps), rtol=1e-12, atol=1e-12)


def test_score_head_gradcheck() -> None:
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in [(3, 4), (4,), (2, 4)]]
    assert torch.autograd.gradcheck(lambda *x: score_head(*x, eps=1e-3), inputs)


def test_scores_of_bf16_are_fp32() -> None:
    hidden, norm, head = torch.randn(64, 16).bfloat16(), torch.rand(16).bfloat16(), torch.randn(1, 16).bfloat16()
    ours = score_head(hidden, norm, head, eps=1e-5)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(
        ours, dense_scores(hidden.double(), norm.double(), head.double(), 1e-5).float(), rtol=1e-5, atol=1e-5
    )


def test_score_head_of_nothing_and_of_strided_rows() -> None:
    norm, head = torch.rand(8), torch.randn(2, 8)
    assert score_head(torch.empty(0, 8), norm, head, eps=1e-5).shape == (0, 2)
    hidden = torch.randn(8, 6).T
    assert not hidden.is_contiguous()
    torch.testing.assert_close(
        score_head(hidden, norm, head, eps=1e-5), score_head(hidden.contiguous(), norm, head, eps=1e-5)
    )


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4,), (4,), (1, 4)), "hidden must be"),
        (((2, 4), (1,), (1, 4)), "norm_weight must be"),
        (((2, 4), (4,), (1, 3)), "head_weight must be"),
        (((2, 4), (4,), (4,)), "head_weight must be"),
    ],
)
def test_score_head_errors(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"score_head: {message}"):
        score_head(*(torch.zeros(shape) for shape in shapes), eps=1e-5)


def dense_log_prob(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    p = (hidden @ weight.T / temperature).softmax(-1)
    return p[torch.arange(len(hidden)), target].log(), -(p * p.log()).sum(-1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from([1, 20, 1 << 24]),
)
def test_log_prob(rows: int, vocabulary: int, width: int, temperature: float, chunk: int) -> None:
    generator = torch.Generator().manual_seed(rows * 100 + vocabulary)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(vocabulary, (rows,), generator=generator)
    cotangents = torch.randn(2, rows, generator=generator, dtype=torch.float64)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_prob, "CHUNK_LOGITS", chunk)
        for call in (linear_log_prob, dense_log_prob):
            values = call(hidden, weight, target, temperature=temperature)
            # Both results at once, and each alone: a missing gradient is a gradient of 0.
            grads = [torch.autograd.grad(values, (hidden, weight), list(cotangents), retain_graph=True)]
            grads += [
                torch.autograd.grad(values[i], (hidden, weight), cotangents[i], retain_graph=True) for i in (0, 1)
            ]
            results.append((values, grads))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)


def test_log_prob_gradcheck() -> None:
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 4, 4, 2])
    assert torch.autograd.gradcheck(lambda h, w: linear_log_prob(h, w, target, temperature=0.7), (hidden, weight))


def test_full_logits_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_prob, "CHUNK_LOGITS", 1000)
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(100, 8, requires_grad=True)
    with Results() as results:
        value, _ = linear_log_prob(hidden, weight, torch.arange(64))
        value.sum().backward()
    assert results.largest <= 1000  # 64 x 100 logits in all


def test_extreme_logits() -> None:
    hidden = torch.tensor([[1e4], [-1e4], [0.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    value, entropy = linear_log_prob(hidden, weight, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(value, torch.tensor([0.0, -2e4, -math.log(3)]))
    torch.testing.assert_close(entropy, torch.tensor([0.0, 0.0, math.log(3)]))
    (value.sum() + entropy.sum()).backward()
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


def test_bf16_maths_is_fp32() -> None:
    hidden, weight = torch.randn(32, 16).bfloat16(), torch.randn(200, 16).bfloat16()
    target = torch.arange(32)
    value, entropy = linear_log_prob(hidden, weight, target)
    truth = dense_log_prob(hidden.double(), weight.double(), target, 1.0)
    assert value.dtype == entropy.dtype == torch.float32
    # The products come out of the matrix multiply in bf16, as a language model's logits do.
    assert (value - truth[0]).abs().max() <= torch.finfo(torch.bfloat16).eps * (hidden @ weight.T).abs().max()
    assert (entropy - truth[1]).abs().max() <= torch.finfo(torch.bfloat16).eps * (hidden @ weight.T).abs().max()


def test_log_prob_of_strided_inputs() -> None:
    hidden, weight, target = (
        torch.randn(8, 6).T,
        torch.randn(8, 5).T,
        torch.arange(12)[::2].remainder(5).repeat_interleave(2)[::2],
    )
    assert not hidden.is_contiguous() and not weight.is_contiguous() and not target.is_contiguous()
    expected = linear_log_prob(hidden.contiguous(), weight.contiguous(), target.contiguous())
    torch.testing.assert_close(linear_log_prob(hidden, weight, target.int()), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(4)}, "hidden must be"),
        ({"weight": torch.zeros(5, 3)}, "widths differ"),
        ({"weight": torch.zeros(5, 4).double()}, "dtypes differ"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, "target must be"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"impl": "full"}, "impl must be one of"),
    ],
)
def test_log_prob_errors(change: dict, message: str) -> None:
    arguments = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(5, 4), "target": torch.tensor([0, 1])} | change
    with pytest.raises(ValueError, match=f"linear_log_prob: {message}"):
        linear_log_prob(**arguments)
