"""The RoPE kernels against complex rotation in fp64: values, gradients, strides, empty inputs, registration."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels import rope, rope_tables, rotate, split_rope
from rmfast.kernels.rope import triton as rope_triton
from tests.kernels.harness import DEVICE, assert_exact, compiles, equal, far_apart, registered, run, shared_storages

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
HALVES = [1, 3, 8, 40, 48]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()


def frequencies(half: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (10_000.0 ** -(torch.arange(half, device=DEVICE, dtype=torch.float64) / half)).to(dtype)


def places(tokens: int, last: int = 3000) -> Tensor:
    return torch.randint(0, last, (tokens,), device=DEVICE)


def turned(x: Tensor, positions: Tensor, inv_freq: Tensor, scale: float) -> Tensor:
    """Dimension i and dimension i + D / 2 as one complex number, times scale e^(i angle)."""
    half = x.shape[2] // 2
    angles = positions.to(x.dtype)[:, None, None] * inv_freq.to(x.dtype)
    out = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.full_like(angles, scale), angles)
    return torch.cat((out.real, out.imag), -1)


def both(scale: float, impl: str, q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    return rope(q, k, positions, inv_freq=inv_freq, scale=scale, impl=impl)


def both_truth(scale: float, q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    return turned(q, positions, inv_freq, scale), turned(k, positions, inv_freq, scale)


def split(
    heads: int, kv_heads: int, scale: float, impl: str, qkv: Tensor, positions: Tensor, inv_freq: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tables = rope_tables(positions, inv_freq, scale=scale, dtype=qkv.dtype)
    return split_rope(qkv, tables, heads=heads, kv_heads=kv_heads, head_dim=2 * len(inv_freq), impl=impl)


def split_truth(
    heads: int, kv_heads: int, scale: float, qkv: Tensor, positions: Tensor, inv_freq: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, dim = len(qkv), 2 * len(inv_freq)
    q, k, v = qkv.split((heads * dim, kv_heads * dim, kv_heads * dim), 1)
    q, k, v = (x.reshape(tokens, x.shape[1] // dim, dim) for x in (q, k, v))
    return turned(q, positions, inv_freq, scale), turned(k, positions, inv_freq, scale), v


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=10, deadline=None)
@given(
    tokens=st.integers(0, 20), heads=st.integers(1, 5), kv_heads=st.integers(1, 3), half=st.sampled_from(HALVES),
    scale=st.sampled_from([1.0, 1.3]),
)  # fmt: skip
def test_values_and_gradients(
    dtype: torch.dtype, tokens: int, heads: int, kv_heads: int, half: int, scale: float
) -> None:
    dim, positions = 2 * half, places(tokens)
    inv_freq = frequencies(half, torch.float64 if dtype == torch.float64 else torch.float32)
    grads = [normal(tokens, h, dim).detach() for h in (heads, kv_heads, kv_heads)]
    q, k = normal(tokens, heads, dim, dtype=dtype), normal(tokens, kv_heads, dim, dtype=dtype)
    assert_exact(partial(both, scale), [q, k, positions, inv_freq], grads=grads[:2], truth=partial(both_truth, scale))
    qkv = normal(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    assert_exact(
        partial(split, heads, kv_heads, scale), [qkv, positions, inv_freq],
        grads=grads, truth=partial(split_truth, heads, kv_heads, scale),
    )  # fmt: skip


def test_late_positions() -> None:
    """Angles up to 1e5 are as exact as fp32 holds them."""
    positions, inv_freq = torch.tensor([0, 1, 4096, 65_537, 99_999], device=DEVICE), frequencies(4)
    q, k = normal(5, 2, 8), normal(5, 1, 8)
    angles = (positions[:, None].float() * inv_freq).double()
    for x, y in zip((q, k), both(1.0, "triton", q, k, positions, inv_freq), strict=True):
        exact = [turned(x[t : t + 1].double(), torch.ones(1, device=DEVICE), angles[t], 1.0) for t in range(5)]
        torch.testing.assert_close(y.double(), torch.cat(exact), rtol=0, atol=2e-6)


def test_split_is_split_and_rope() -> None:
    positions, inv_freq, qkv = places(6), frequencies(8), normal(6, 7 * 16)
    q, k, v = split(3, 2, 1.0, "triton", qkv, positions, inv_freq)
    parts = qkv.detach().view(6, 7, 16)
    for a, b in zip((q, k), both(1.0, "triton", parts[:, :3], parts[:, 3:5], positions, inv_freq), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(v, parts[:, 5:])


def test_bf16_values_pass_as_they_are() -> None:
    """No rounding, no infinity turned to NaN: values are copied."""
    qkv = normal(5, 3 * 6, dtype=torch.bfloat16).detach()
    qkv[1, 12], qkv[2, 15], qkv[3, 13] = torch.inf, torch.nan, 1e-40
    v = split(1, 1, 1.3, "triton", qkv, places(5), frequencies(3))[2]
    assert torch.equal(v.flatten(1).view(torch.int16), qkv[:, 12:].view(torch.int16))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_element_spoils_its_pair_alone(bad: float) -> None:
    positions, inv_freq, qkv = places(4), frequencies(3), normal(4, 4 * 6)
    good = split(2, 1, 1.0, "triton", qkv, positions, inv_freq)
    with torch.no_grad():
        qkv[1, 7] = bad
    damaged = split(2, 1, 1.0, "triton", qkv, positions, inv_freq)
    same = [(a == b).flatten() for a, b in zip(good, damaged, strict=True)]
    assert not damaged[0][1, 1, [1, 4]].isfinite().any()
    assert [int((~s).sum()) for s in same] == [2, 0, 0]


def test_strided() -> None:
    positions, inv_freq, wide = places(12)[::2], frequencies(5), normal(6, 8, 10)
    views = [
        (lambda t: t[:, :3], lambda t: t[:, 5:7]),
        (lambda t: t[:, ::2], lambda t: t[:, 1::4]),
        (lambda t: t.transpose(1, 2)[:, :, :8], lambda t: t.transpose(1, 2)[:, :2, :8]),
        (lambda t: t[:, :1].expand(6, 4, 10), lambda t: t.flip(0)),
    ]
    for q_of, k_of in views:
        half = q_of(wide).shape[2] // 2
        shapes = [q_of(wide).shape, k_of(wide).shape]
        assert_exact(
            lambda impl, w, p, f, q_of=q_of, k_of=k_of: both(1.0, impl, q_of(w), k_of(w), p, f),
            [wide, positions, inv_freq[:half]],
            grads=[torch.randn(shape, device=DEVICE) for shape in shapes],
        )
    for view in (lambda t: t[:, 1:5].flatten(1), lambda t: t.flatten(1)[:, 7:47], lambda t: t.flatten(1)[:, ::2]):
        grads = [normal(6, h, 10).detach().transpose(0, 1).contiguous().transpose(0, 1) for h in (2, 1, 1)]
        op = partial(split, 2, 1, 1.0)
        assert_exact(
            lambda impl, w, p, f, view=view, op=op: op(impl, view(w), p, f), [wide, positions, inv_freq], grads=grads
        )


def test_outputs_that_no_one_reads_and_expanded_gradients() -> None:
    positions, inv_freq, qkv = places(4), frequencies(3), normal(4, 4 * 6)
    for i in range(3):
        op = partial(split, 2, 1, 1.0)
        assert_exact(
            lambda impl, x, p, f, i=i, op=op: op(impl, x, p, f)[i].sum(), [qkv, positions, inv_freq],
            grads=[torch.ones((), device=DEVICE)],
        )  # fmt: skip


def test_the_gradient_of_a_rotation_is_the_inverse_rotation() -> None:
    positions, inv_freq = places(5), frequencies(4)
    q, k = normal(5, 2, 8), normal(5, 1, 8)
    q_out, k_out = both(1.0, "triton", q, k, positions, inv_freq)
    torch.testing.assert_close(q_out.square().sum(2), q.square().sum(2))
    *_, grad_q, grad_k = run(partial(both, 1.0, "triton"), [q, k, positions, inv_freq], [q_out, k_out])
    torch.testing.assert_close((grad_q, grad_k), (q.detach(), k.detach()))


def test_gradcheck() -> None:
    positions, inv_freq = places(3), frequencies(2, torch.float64)
    q, k = normal(3, 2, 4, dtype=torch.float64), normal(3, 1, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q, k: both(1.2, "triton", q, k, positions, inv_freq), (q, k), fast_mode=True)
    qkv = normal(3, 16, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: split(2, 1, 1.2, "triton", x, positions, inv_freq), (qkv,), fast_mode=True
    )


def test_registration() -> None:
    positions, inv_freq, qkv = places(4), frequencies(3), normal(4, 4 * 6)
    q, k = normal(4, 2, 6), normal(4, 1, 6)
    tables = rope_tables(positions, inv_freq, scale=1.5)
    registered(torch.ops.rmfast.rope.default, q, k, tables)
    registered(torch.ops.rmfast.split_rope.default, qkv, tables, 2, 1, 6)
    compiles(lambda impl, q, k: both(1.5, impl, q, k, positions, inv_freq), [q, k])
    compiles(lambda impl, x: split(2, 1, 1.5, impl, x, positions, inv_freq), [qkv])


def test_tables_are_the_scaled_cosines_and_sines_of_fp32_angles() -> None:
    tables = rope_tables(torch.tensor([0, 7]), torch.tensor([1.0, 0.25]), scale=2.0, dtype=torch.bfloat16)
    angles = torch.tensor([[0.0, 0.0], [7.0, 1.75]])
    assert torch.equal(tables, torch.stack((2 * angles.cos(), 2 * angles.sin())))
    assert rope_tables(torch.tensor([1]), torch.ones(1), dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_rotation_by_tables_is_that_by_their_positions(impl: str) -> None:
    positions, inv_freq = places(6), frequencies(4)
    q, k = normal(6, 3, 8), normal(6, 1, 8)
    turned_by = rotate(q, k, rope_tables(positions, inv_freq, scale=1.3), impl=impl)
    equal(turned_by, rope(q, k, positions, inv_freq=inv_freq, scale=1.3, impl=impl))


def test_of_two_outputs_the_one_that_is_not_used_has_no_gradient() -> None:
    positions, inv_freq = places(4), frequencies(2)
    q, k = normal(4, 2, 4), normal(4, 1, 4)
    tables, ones = rope_tables(positions, inv_freq), torch.ones(4, 2, 4, device=DEVICE)
    (want, _) = torch.autograd.grad(rotate(q, k, tables, impl="reference"), (q, k), (ones, ones[:, :1]))
    for i, (used, other) in enumerate(((q, k), (k, q))):
        out = rotate(q, k, tables, impl="triton")[i]
        got, none = torch.autograd.grad(out, (used, other), ones[:, : out.shape[1]], allow_unused=True)
        torch.testing.assert_close(got, want[:, : out.shape[1]])
        assert none is None


def test_errors() -> None:
    qkv, positions, inv_freq = torch.zeros(2, 16), torch.arange(2), torch.ones(2)
    tables = rope_tables(positions, inv_freq)
    good = {"qkv": qkv, "tables": tables, "heads": 2, "kv_heads": 1, "head_dim": 4}
    for change, message in [
        ({"qkv": qkv[:, :12]}, r"must be \[T, 16\], got \(2, 12\)"),
        ({"tables": tables[:, :1]}, r"tables must be torch.float32 \[2, 2, 2\], got torch.float32 \[2, 1, 2\]"),
        ({"tables": tables.double()}, r"tables must be torch.float32 \[2, 2, 2\], got torch.float64"),
        ({"qkv": qkv[:, :12], "head_dim": 3}, "must be even"),
        ({"heads": 0}, "heads and kv_heads must be positive"),
        ({"heads": 6, "kv_heads": -1}, "heads and kv_heads must be positive"),
        ({"head_dim": 0, "qkv": qkv[:, :0]}, "head_dim must be even and positive"),
        ({"impl": "x"}, "impl must be"),
    ]:
        with pytest.raises(ValueError, match=f"split_rope: .*{message}"):
            split_rope(**(good | change))
    q, k = torch.zeros(2, 2, 4), torch.zeros(2, 1, 4)
    for call, message in [
        (lambda: rope(q, k.double(), positions, inv_freq=inv_freq), "dtypes of q"),
        (lambda: rope(q, k, positions[:, None], inv_freq=inv_freq), r"positions must be int \[T\]"),
        (lambda: rope(q, k, positions.float(), inv_freq=inv_freq), r"positions must be int \[T\]"),
        (lambda: rope(q, k, positions, inv_freq=torch.ones(3)), r"inv_freq must be \[2\]"),
        (lambda: rope(q[..., :0], k[..., :0], positions, inv_freq=inv_freq[:0]), "head_dim must be even and positive"),
        (lambda: rotate(q, k, tables[:, :, :1]), "tables must be"),
    ]:
        with pytest.raises(ValueError, match=f"^rope: .*{message}"):
            call()


@pytest.mark.usefixtures("alone_on_the_gpu")
@pytest.mark.parametrize("dim", [0, 1], ids=["tokens", "heads"])
def test_strides_beyond_two_to_the_31_elements(dim: int) -> None:
    tables = rope_tables(places(3), frequencies(3))
    q, k, v = (normal(3, 3, 6, dtype=torch.bfloat16).detach() for _ in range(3))
    with shared_storages():
        want = rope_triton.rope(q, k, tables)
        equal(rope_triton.rope(far_apart(q, dim), k, tables), want)
        equal(rope_triton.rope(q, far_apart(k, dim), tables), want)
        grad = rope_triton.split_rope_bwd(q, k, v, tables)
        equal([rope_triton.split_rope_bwd(q, k, far_apart(v, dim), tables)], [grad])
