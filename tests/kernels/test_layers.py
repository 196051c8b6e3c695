"""Norms, SwiGLU and RoPE equal their formulas written out in fp64, and Hugging Face's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rmfast.kernels import add_rms_norm, rms_norm, rope, swiglu

SHAPES = st.lists(st.integers(0, 4), max_size=2).map(tuple)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def dense_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows = [torch.tensor([v / math.sqrt(sum(u * u for u in r) / len(r) + eps) for v in r]) for r in _rows(x)]
    return (torch.stack(rows).reshape(x.shape) if rows else x) * weight


def _rows(x: Tensor) -> list[list[float]]:
    return x.reshape(-1, x.shape[-1]).tolist() if x.numel() else []


@pytest.fixture(autouse=True)
def _double_by_default():  # type: ignore[no-untyped-def]
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(1, 6), st.sampled_from([1e-6, 0.3]))
def test_rms_norm(shape: tuple[int, ...], width: int, eps: float) -> None:
    x, residual, weight = normal(*shape, width), normal(*shape, width), normal(width)
    torch.testing.assert_close(rms_norm(x, weight, eps=eps), dense_norm(x, weight, eps))
    normed, total = add_rms_norm(x, residual, weight, eps=eps)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, dense_norm(x + residual, weight, eps))


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(1, 6))
def test_swiglu(shape: tuple[int, ...], width: int) -> None:
    gate, up = normal(*shape, width), normal(*shape, width)
    torch.testing.assert_close(swiglu(torch.cat((gate, up), -1)), gate / (1 + torch.exp(-gate)) * up)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=5), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1.0, 1.3]))
def test_rope(positions: list[int], heads: int, half: int, scale: float) -> None:
    q, k = normal(len(positions), heads, 2 * half), normal(len(positions), 1, 2 * half)
    inv_freq = 0.3 ** torch.arange(half)
    for x, ours in zip((q, k), rope(q, k, torch.tensor(positions), inv_freq=inv_freq, scale=scale), strict=True):
        # Dimension i and dimension i + half turn as one complex number.
        turned = torch.complex(x[..., :half], x[..., half:])
        for t, position in enumerate(positions):
            turned[t] = turned[t] * scale * torch.polar(torch.ones(half), position * inv_freq)
        torch.testing.assert_close(ours, torch.cat((turned.real, turned.imag), -1), rtol=1e-9, atol=1e-9)


def test_rope_is_that_of_transformers() -> None:
    q, k, positions = normal(7, 4, 8).float(), normal(7, 2, 8).float(), torch.tensor([0, 1, 5, 5, 900, 2999, 3])
    inv_freq = 1.0 / 10_000.0 ** (torch.arange(0, 8, 2, dtype=torch.float32) / 8)
    angles = torch.cat((positions[:, None].float() * inv_freq,) * 2, -1)[None]
    theirs = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], angles.cos(), angles.sin())
    for a, b in zip(rope(q, k, positions, inv_freq=inv_freq), theirs, strict=True):
        torch.testing.assert_close(a, b[0].transpose(0, 1), rtol=0, atol=1e-6)


def test_rope_products_depend_on_distance_only() -> None:
    inv_freq = torch.tensor([1.0, 0.1])
    q, k = normal(1, 1, 4).expand(3, 1, 4), normal(1, 1, 4).expand(3, 1, 4)
    q, _ = rope(q, k, torch.tensor([5, 100, 2005]), inv_freq=inv_freq)
    _, k = rope(q, k, torch.tensor([2, 97, 2002]), inv_freq=inv_freq)
    products = (q * k).sum(-1).flatten()
    torch.testing.assert_close(products, products[:1].expand(3), rtol=1e-9, atol=1e-9)


def test_gradcheck() -> None:
    x, residual, weight = (normal(*shape).requires_grad_() for shape in [(3, 4), (3, 4), (4,)])
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, eps=1e-3), (x, weight))
    assert torch.autograd.gradcheck(lambda x, r, w: add_rms_norm(x, r, w, eps=1e-3), (x, residual, weight))
    assert torch.autograd.gradcheck(swiglu, (x,))
    q, k = normal(3, 2, 4).requires_grad_(), normal(3, 1, 4).requires_grad_()
    positions, inv_freq = torch.tensor([0, 7, 2]), torch.tensor([1.0, 0.1])
    assert torch.autograd.gradcheck(lambda q, k: rope(q, k, positions, inv_freq=inv_freq, scale=1.2), (q, k))


def test_bf16_maths_is_fp32() -> None:
    """One rounding at the end: the result is the fp64 one, rounded."""
    x, residual, weight = (normal(*shape, dtype=torch.bfloat16) for shape in [(64, 32), (64, 32), (32,)])
    q, k, inv_freq = normal(64, 2, 8, dtype=torch.bfloat16), normal(64, 1, 8, dtype=torch.bfloat16), torch.rand(4)
    positions = torch.arange(64) * 40
    normed, total = add_rms_norm(x, residual, weight, eps=1e-5)
    pairs = [
        (rms_norm(x, weight, eps=1e-5), rms_norm(x.double(), weight.double(), eps=1e-5)),
        (normed, rms_norm(total.double(), weight.double(), eps=1e-5)),
        (swiglu(x), swiglu(x.double())),
        (total, x.double() + residual.double()),
        *zip(
            rope(q, k, positions, inv_freq=inv_freq.float()),
            rope(q.double(), k.double(), positions, inv_freq=inv_freq.float().double()),
            strict=True,
        ),
    ]
    for ours, truth in pairs:
        assert ours.dtype == torch.bfloat16
        # Half a unit in the last place, and what fp32 angles of long positions lose.
        assert ((ours.double() - truth).abs() <= truth.abs() * 2**-8 * 1.02 + 2e-3).all()


def test_non_contiguous_inputs() -> None:
    x, weight = normal(4, 6).T, normal(8)[::2]
    torch.testing.assert_close(rms_norm(x, weight, eps=0.1), rms_norm(x.contiguous(), weight.contiguous(), eps=0.1))
    torch.testing.assert_close(swiglu(x), swiglu(x.contiguous()))
    q, k, positions = normal(4, 2, 6).permute(2, 1, 0), normal(4, 1, 6).permute(2, 1, 0), torch.arange(12)[::2]
    expected = rope(q.contiguous(), k.contiguous(), positions.contiguous(), inv_freq=torch.ones(2))
    torch.testing.assert_close(rope(q, k, positions, inv_freq=torch.ones(2)), expected)


def test_errors() -> None:
    x = torch.zeros(2, 4)
    q, k, positions, inv_freq = torch.zeros(2, 2, 4), torch.zeros(2, 1, 4), torch.arange(2), torch.ones(2)
    for call, message in [
        (lambda: rms_norm(x, torch.ones(3), eps=0.1), r"rms_norm: weight must be \[4\], got \(3,\)"),
        (lambda: add_rms_norm(x, x[:1], torch.ones(4), eps=0.1), "add_rms_norm: shapes differ"),
        (lambda: add_rms_norm(x, x, torch.ones(3), eps=0.1), "weight must be"),
        (lambda: swiglu(torch.zeros(2, 3)), "swiglu: the last dimension must be even"),
        (lambda: rope(x, k, positions, inv_freq=inv_freq), "rope: q and k must be"),
        (lambda: rope(q, k[:1], positions, inv_freq=inv_freq), "rope: .*one length"),
        (lambda: rope(q, k, positions[:1], inv_freq=inv_freq), "rope: .*one length"),
        (lambda: rope(q, k, positions, inv_freq=torch.ones(4)), r"rope: inv_freq must be \[2\]"),
        (lambda: rope(q, k[..., :2], positions, inv_freq=inv_freq), "rope: .*head_dim"),
        (lambda: rope(q[..., :3], k[..., :3], positions, inv_freq=inv_freq[:1]), "rope: .*even"),
        (lambda: rms_norm(x, torch.ones(4), eps=0.1, impl="x"), "rms_norm: impl"),
        (lambda: swiglu(x, impl="x"), "swiglu: impl"),
        (lambda: rope(q, k, positions, inv_freq=inv_freq, impl="x"), "rope: impl"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
