"""The shared-prefix attention kernels against dense fp64 attention: values and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels import prefix_attention, prefix_layout
from tests.kernels.harness import DEVICE, assert_exact, compiles, registered

Groups = list[tuple[int, list[int]]]
RAGGED: Groups = [(5, [3, 0, 7]), (0, [2, 4]), (1, [1, 1]), (19, [6, 1, 23]), (4, [])]
shapes = st.lists(st.tuples(st.integers(0, 30), st.lists(st.integers(0, 15), max_size=3)), max_size=3)


def make(
    groups: Groups, heads: tuple[int, int] = (2, 1), dim: int = 8, dtype: torch.dtype = torch.float32, rows: int = -1
) -> tuple[list[Tensor], Tensor]:
    """q, k, v (leaves) and the layout; q for `rows` queries where that is not negative."""
    layout = prefix_layout(groups).to(DEVICE)
    tokens = layout.shape[1]
    counts = (tokens if rows < 0 else rows, tokens, tokens)
    sizes = (heads[0], heads[1], heads[1])
    tensors = [
        torch.randn(n, h, dim, device=DEVICE).to(dtype).requires_grad_() for n, h in zip(counts, sizes, strict=True)
    ]
    return tensors, layout


def dense(q: Tensor, k: Tensor, v: Tensor, layout: Tensor, rows: Tensor, options: dict[str, float]) -> Tensor:
    """Attention with the whole mask, token by token from the layout's definition."""
    start, prefix_end, segment, _ = layout.long()
    tokens = layout.shape[1]
    position = torch.arange(tokens, device=q.device)
    position = torch.where(position >= prefix_end, position - segment + prefix_end - start, position - start)
    i, j = rows[:, None], torch.arange(tokens, device=q.device)[None, :]
    mask = (j >= start[i]) & (j <= i) & ((j < prefix_end[i]) | (j >= segment[i]))
    mask &= position[i] - position[j] < options.get("window", 1 << 30)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q, k) * options.get("scale", q.shape[2] ** -0.5)
    if "softcap" in options:
        logits = options["softcap"] * torch.tanh(logits / options["softcap"])
    return torch.einsum("hqk,khd->qhd", logits.masked_fill(~mask, -torch.inf).softmax(-1), v)


def check(tensors: list[Tensor], layout: Tensor, rows: Tensor | None = None, **options: float) -> None:
    where = torch.arange(layout.shape[1], device=DEVICE) if rows is None else rows
    grad = torch.randn(tensors[0].shape, device=DEVICE).to(tensors[0].dtype)
    assert_exact(
        lambda impl, q, k, v: prefix_attention(q, k, v, layout, rows=rows, impl=impl, **options),
        tensors,
        grads=[grad],
        truth=lambda q, k, v: dense(q, k, v, layout, where, options),
        bf16_slack=2**-6,
        scale=1.0,
    )


@settings(max_examples=10, deadline=None)
@given(shapes, st.sampled_from([(1, 1), (4, 2), (3, 1)]))
def test_any_groups(groups: Groups, heads: tuple[int, int]) -> None:
    check(*make(groups, heads))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 4, "softcap": 1.5, "scale": 0.7}], ids=["plain", "windowed"])
def test_dtypes(dtype: torch.dtype, options: dict[str, float]) -> None:
    check(*make(RAGGED, (4, 2), dtype=dtype), **options)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 50), st.sampled_from([None, 0.5, 30.0]))
def test_window_and_softcap(window: int, softcap: float | None) -> None:
    check(*make(RAGGED), window=window, **({} if softcap is None else {"softcap": softcap}))


@pytest.mark.parametrize("softcap", [30.0, 1e4, 1e12])
def test_a_cap_far_above_the_logits_changes_nothing(softcap: float) -> None:
    tensors, layout = make([(9, [4, 6])], dtype=torch.float64)
    check(tensors, layout, softcap=softcap)
    capped, plain = (prefix_attention(*tensors, layout, impl="triton", **o) for o in ({"softcap": softcap}, {}))
    torch.testing.assert_close(capped, plain, rtol=0, atol=100 / softcap**2 + 1e-12)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_heads_farther_apart_than_an_int32_counts(which: int) -> None:
    tensors, layout = make([(2, [2, 1])], (3, 3), dim=16, dtype=torch.float16)
    # Only the pages that are written take memory.
    far = torch.empty(2**31 + 200, dtype=torch.float16, device=DEVICE).as_strided((5, 3, 16), (16, 2**30 + 16, 1))
    far.copy_(tensors[which].detach())
    grad = torch.randn(5, 3, 16, device=DEVICE).half()
    results = []
    for x in (tensors[which], far.requires_grad_()):
        inputs = [*tensors[:which], x, *tensors[which + 1 :]]
        out = prefix_attention(*inputs, layout, impl="triton")
        results.append((out, *torch.autograd.grad(out, inputs, grad)))
    for near, distant in zip(*results, strict=True):
        assert torch.equal(near, distant)


def test_what_is_refused() -> None:
    (q, k, v), layout = make([(4, [2])])
    for options, message in (
        ({"scale": 0.0}, "scale must be positive"),
        ({"window": 2**33}, "window must be positive and below 2\\^31"),
        ({"rows": torch.zeros(6)}, "rows must be one dimension of int32 or int64"),
        ({"rows": torch.zeros(6, dtype=torch.bool)}, "rows must be one dimension"),
        ({"rows": torch.zeros(6, 1, dtype=torch.int64)}, "rows must be one dimension"),
    ):
        for impl in ("reference", "triton"):
            with pytest.raises(ValueError, match=f"prefix_attention: {message}"):
                prefix_attention(q, k, v, layout, impl=impl, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="head_dim above 0"):
        prefix_attention(q[..., :0], k[..., :0], v[..., :0], layout)


@pytest.mark.parametrize("dim", [1, 64, 80, 96, 128])
def test_head_dimensions(dim: int) -> None:
    check(*make([(20, [17, 5])], dim=dim))


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_rows_in_any_order_with_repeats(data: st.DataObject) -> None:
    tokens = sum(p + sum(r) for p, r in RAGGED)
    rows = data.draw(st.lists(st.integers(0, tokens - 1), max_size=40))
    window = data.draw(st.sampled_from([None, 6]))
    tensors, layout = make(RAGGED, (4, 2), rows=len(rows))
    where = torch.tensor(rows, dtype=torch.int64, device=DEVICE)
    check(tensors, layout, where, **({} if window is None else {"window": window}))


def test_strided_views_of_one_product() -> None:
    layout = prefix_layout(RAGGED).to(DEVICE)
    qkv = torch.randn(layout.shape[1], 6, 10, device=DEVICE, requires_grad=True)

    def attend(impl: str, x: Tensor) -> Tensor:
        q, k, v = x[:, :4, 1:9], x[:, 4:5, 1:9], x[:, 5:, 1:9]
        return prefix_attention(q, k, v, layout, impl=impl)

    assert_exact(attend, [qkv], grads=[torch.randn(layout.shape[1], 4, 8, device=DEVICE)])


def test_a_prompt_is_as_if_computed_for_each_response() -> None:
    """Each response alone behind its own copy of the prompt gives the same; gradients of the copies add up."""
    prompt, responses = 9, [4, 6, 1]
    tensors, layout = make([(prompt, responses)], (2, 1), dtype=torch.float64)
    grad = torch.randn(tensors[0].shape, dtype=torch.float64, device=DEVICE)
    grad[:prompt] = 0  # a prompt's own output would be read once, not once a copy
    out = prefix_attention(*tensors, layout, impl="triton")
    shared = torch.autograd.grad(out, tensors, grad)
    index, begin = [], prompt
    for length in responses:
        index += [*range(prompt), *range(begin, begin + length)]
        begin += length
    index = torch.tensor(index, device=DEVICE)
    alone_layout = prefix_layout([(0, [prompt + n]) for n in responses]).to(DEVICE)
    alone = prefix_attention(*(x[index] for x in tensors), alone_layout, impl="triton")
    torch.testing.assert_close(alone, out[index])
    for mine, copies in zip(shared, torch.autograd.grad(alone, tensors, grad[index]), strict=True):
        torch.testing.assert_close(mine, copies)


def test_company_does_not_change_a_bit() -> None:
    group = (20, [7, 9])
    (q, k, v), layout = make([group])
    alone = prefix_attention(q, k, v, layout, impl="triton")
    pair = [torch.cat((x, torch.randn_like(x))) for x in (q, k, v)]
    both = prefix_attention(*pair, prefix_layout([group, group]).to(DEVICE), impl="triton")
    torch.testing.assert_close(both[: len(q)], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fault", [1, 2])
@pytest.mark.parametrize(
    ("every", "dim", "dtype"),
    [(1, 8, torch.float32), (2, 8, torch.float32), (1, 64, torch.bfloat16)],
    ids=["all tokens", "some rows", "all tokens, D 64 in bf16"],
)
def test_nan_and_infinity_stay_within_their_group(fault: int, every: int, dim: int, dtype: torch.dtype) -> None:
    """A tile of the interpreter holds 16 queries or 32 keys: the group at fault shares one with those beside it."""
    groups: Groups = [(5, [3, 7]), (6, [4, 9]), (0, [2, 4]), (7, [6, 1, 3])]
    token = torch.arange(sum(p + sum(r) for p, r in groups), device=DEVICE)
    row = token[::every]
    (q, k, v), layout = make(groups, (4, 2), dim=dim, dtype=dtype, rows=len(row))
    before, within = (sum(p + sum(r) for p, r in some) for some in (groups[:fault], groups[fault : fault + 1]))
    rows, tokens = ((x >= before) & (x < before + within) for x in (row, token))

    def results(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
        window = None if fault % 2 else 30
        out = prefix_attention(q, k, v, layout, rows=None if every == 1 else row, impl="triton", window=window)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]

    given = {"q": q, "k": k, "v": v, "grad": torch.randn(q.shape, device=DEVICE).to(dtype)}
    # The group at fault makes its tiles go group by group: other sums, so that a bf16 may round the other way.
    within_rounding = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    clean = results(**given)
    for which, value in {"q": torch.nan, "k": torch.inf, "v": torch.nan, "grad": torch.inf}.items():
        poisoned = given[which].detach().clone()
        poisoned[(rows if which in ("q", "grad") else tokens).nonzero()[1], 1, 3] = value
        got = results(**given | {which: poisoned.requires_grad_(which != "grad")})
        for x, y, those in zip(got, clean, (rows, rows, tokens, tokens), strict=True):
            torch.testing.assert_close(x[~those], y[~those], **within_rounding)
        assert not all(x.isfinite().all() for x in got)  # its own group is told


def test_gradcheck() -> None:
    tensors, layout = make([(2, [1]), (0, [1])], dim=2, dtype=torch.float64)
    rows = torch.tensor([3, 1], device=DEVICE)
    options = {"window": 2, "softcap": 2.0, "impl": "triton"}
    assert torch.autograd.gradcheck(lambda *x: prefix_attention(*x, layout, **options), tensors, fast_mode=True)
    few = [tensors[0][rows].detach().requires_grad_(), *tensors[1:]]
    assert torch.autograd.gradcheck(lambda *x: prefix_attention(*x, layout, rows=rows, **options), few, fast_mode=True)


def test_registration() -> None:
    tensors, layout = make([(3, [2, 1])])
    rows = torch.tensor([2, 5], device=DEVICE)
    few = tensors[0][:2].detach().requires_grad_()
    registered(torch.ops.rmfast.prefix_attention.default, *tensors, layout, None, 0.5, None, None)
    registered(torch.ops.rmfast.prefix_attention.default, few, *tensors[1:], layout, rows, 0.5, 2, 1.0)
    compiles(lambda impl, *x: prefix_attention(*x, layout, impl=impl), tensors)
    options = {"rows": rows, "window": 2, "softcap": 1.0}
    compiles(lambda impl, *x: prefix_attention(*x, layout, impl=impl, **options), [few, *tensors[1:]])


def test_heads_too_wide_are_the_references() -> None:
    tensors, layout = make([(2, [1])], dim=257)
    assert prefix_attention(*tensors, layout).shape == tensors[0].shape
    with pytest.raises(ValueError, match="prefix_attention: impl='triton' is not possible: head_dim 257"):
        prefix_attention(*tensors, layout, impl="triton")
