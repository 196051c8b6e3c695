"""Reward heads equal their dense fp64 selves."""

import math

import pytest
import torch
from torch import Tensor

from rmfast.kernels import score_head


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
