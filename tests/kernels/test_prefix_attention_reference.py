"""Attention in a pack equals dense attention of each sequence alone, in fp64, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels import prefix_attention, prefix_layout
from rmfast.kernels.prefix_attention.layout import parse_layout
from tests.tiny import Results

Groups = list[tuple[int, list[int]]]
GROUPS = st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(0, 5), max_size=4)), max_size=4)
HEADS = st.sampled_from([(4, 2), (2, 2), (3, 1)])
FIXED: Groups = [(3, [2, 4]), (0, [1, 3]), (5, []), (2, [0, 3]), (1, [1, 1, 1])]


def sequences(groups: Groups) -> list[tuple[list[int], list[int]]]:
    """(tokens of the pack that make one sequence, those of them whose output this sequence gives)."""
    out, start = [], 0
    for prefix, responses in groups:
        shared = list(range(start, start + prefix))
        out.append((shared, shared))
        start += prefix
        for length in responses:
            own = list(range(start, start + length))
            out.append((shared + own, own))
            start += length
    return out


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: Groups,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Every sequence by itself, with all its logits written out."""
    share = q.shape[1] // k.shape[1]
    rows: list[Tensor] = [q.new_zeros(q.shape[1:])] * len(q)
    for tokens, own in sequences(groups):
        keys, values = k[tokens].repeat_interleave(share, 1), v[tokens].repeat_interleave(share, 1)
        for token in own:
            at = tokens.index(token)
            first = 0 if window is None else max(0, at + 1 - window)
            logits = torch.einsum("hd,khd->hk", q[token], keys[first : at + 1])
            logits = logits * (q.shape[2] ** -0.5 if scale is None else scale)
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            rows[token] = torch.einsum("hk,khd->hd", logits.softmax(-1), values[first : at + 1])
    return torch.stack(rows) if rows else q


def random_qkv(
    groups: Groups, heads: tuple[int, int] = (4, 2), width: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    length = sum(prefix + sum(responses) for prefix, responses in groups)
    generator = torch.Generator().manual_seed(seed)

    def make(count: int) -> Tensor:
        return torch.randn(length, count, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return make(heads[0]), make(heads[1]), make(heads[1])


def assert_same(ours: Tensor, truth: Tensor, inputs: tuple[Tensor, ...], tolerance: float = 1e-12) -> None:
    """Outputs and all gradients agree."""
    assert ours.shape == truth.shape
    torch.testing.assert_close(ours, truth, rtol=tolerance, atol=tolerance)
    if truth.numel():
        cotangent = torch.randn_like(truth)
        for a, b in zip(
            torch.autograd.grad(ours, inputs, cotangent),
            torch.autograd.grad(truth, inputs, cotangent, allow_unused=True, materialize_grads=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(GROUPS, HEADS, st.none() | st.integers(1, 8), st.none() | st.just(3.0), st.none() | st.just(0.7))
def test_all_queries(
    groups: Groups, heads: tuple[int, int], window: int | None, softcap: float | None, scale: float | None
) -> None:
    inputs = random_qkv(groups, heads)
    ours = prefix_attention(*inputs, prefix_layout(groups), scale=scale, window=window, softcap=softcap)
    assert_same(ours, dense(*inputs, groups, scale, window, softcap), inputs)


@settings(max_examples=60, deadline=None)
@given(st.data(), GROUPS, HEADS, st.none() | st.integers(1, 8), st.none() | st.just(3.0))
def test_some_queries(
    data: st.DataObject, groups: Groups, heads: tuple[int, int], window: int | None, softcap: float | None
) -> None:
    q, k, v = inputs = random_qkv(groups, heads)
    picked = data.draw(st.lists(st.integers(0, len(q) - 1), max_size=6)) if len(q) else []
    for dtype in (torch.int64, torch.int32):
        rows = torch.tensor(picked, dtype=dtype)
        ours = prefix_attention(q[rows], k, v, prefix_layout(groups), rows=rows, window=window, softcap=softcap)
        truth = dense(*inputs, groups, window=window, softcap=softcap)[rows.long()]
        assert_same(ours, truth, inputs)


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"softcap": 2.0, "scale": 0.5}], ids=str)
def test_gradcheck(options: dict) -> None:
    groups: Groups = [(2, [1, 2]), (0, [2])]
    layout = prefix_layout(groups)
    q, k, v = random_qkv(groups, (2, 1), width=2)
    assert torch.autograd.gradcheck(lambda *x: prefix_attention(*x, layout, **options), (q, k, v))
    rows = torch.tensor([4, 2, 4])
    assert torch.autograd.gradcheck(
        lambda q, k, v: prefix_attention(q[rows], k, v, layout, rows=rows, **options), (q, k, v)
    )


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"softcap": 30.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("trimmed", [False, True])
def test_rounding_is_that_of_the_inputs(options: dict, dtype: torch.dtype, trimmed: bool) -> None:
    # Large logits, in which a rounding to bf16 would show.
    inputs = tuple(4 * x.detach() for x in random_qkv(FIXED, width=16, dtype=dtype))
    rows = torch.arange(len(inputs[0])) if trimmed else None
    ours = prefix_attention(*inputs, prefix_layout(FIXED), rows=rows, **options)
    truth = dense(*(x.double() for x in inputs), FIXED, **options)
    assert ours.dtype == dtype
    # fp32 maths inside: little is left but the rounding of probabilities and outputs to the inputs' dtype.
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert (ours - truth).abs().max() <= tolerance * truth.abs().max()


def test_non_contiguous_inputs() -> None:
    q, k, v = (x.detach() for x in random_qkv(FIXED))
    expected = prefix_attention(q, k, v, prefix_layout(FIXED))
    layout = prefix_layout(FIXED).T.contiguous().T
    strided = [x.permute(2, 1, 0).contiguous().permute(2, 1, 0) for x in (q, k, v)]
    sliced = [torch.cat((x, x), -1)[..., : x.shape[-1]] for x in (q, k, v)]
    for inputs in (strided, sliced):
        assert not any(x.is_contiguous() for x in inputs)
        torch.testing.assert_close(prefix_attention(*inputs, layout), expected)


def test_permuted_responses_permute_outputs() -> None:
    lengths = [2, 4, 1]
    q, k, v = (x.detach() for x in random_qkv([(3, lengths)]))
    out = prefix_attention(q, k, v, prefix_layout([(3, lengths)]))
    order = torch.tensor([0, 1, 2, 9, 5, 6, 7, 8, 3, 4])  # third, second, first response
    swapped = prefix_attention(q[order], k[order], v[order], prefix_layout([(3, lengths[::-1])]))
    torch.testing.assert_close(swapped, out[order])


@pytest.mark.parametrize("rows", [None, torch.arange(0, 2048, 8)], ids=["all", "some"])
def test_no_mask_over_the_pack(rows: Tensor | None) -> None:
    groups: Groups = [(4, [2, 2])] * 256
    q, k, v = (x.detach() for x in random_qkv(groups, (1, 1), width=2, dtype=torch.float32))
    with Results() as results:
        prefix_attention(q if rows is None else q[rows], k, v, prefix_layout(groups), rows=rows)
    assert results.largest <= 4 * 2048 * 2  # T x T would be 2048 * 2048


@settings(max_examples=60, deadline=None)
@given(GROUPS)
def test_layout(groups: Groups) -> None:
    layout = prefix_layout(groups)
    start, prefix_end, segment, last = layout.tolist()
    length = sum(prefix + sum(responses) for prefix, responses in groups)
    assert layout.dtype == torch.int32 and layout.shape == (4, length) and layout.is_contiguous()
    seen = {(own, key) for tokens, mine in sequences(groups) for own in mine for key in tokens if key <= own}
    by_rule = {
        (q, k)
        for q in range(length)
        for k in range(length)
        if start[q] <= k <= q and (k < prefix_end[q] or k >= segment[q])
    }
    assert by_rule == seen
    for k in range(length):  # row 3 bounds the queries of a key from above, and some query reaches the bound
        queries = [q for q, key in seen if key == k]
        assert max(queries) < last[k] and (max(queries) == last[k] - 1)
    kept = [(p, tuple(n for n in r if n)) for p, r in groups if p + sum(r)]
    assert [(g.prefix, g.responses) for g in parse_layout(layout)] == kept


def test_layout_refuses_negative_lengths() -> None:
    for groups in ([(-1, [2])], [(1, [2, -2])]):
        with pytest.raises(ValueError, match="prefix_layout: lengths must not be negative"):
            prefix_layout(groups)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"k": a["k"][:-1]}, "differ"),
        (lambda a: a | {"q": a["q"][0]}, r"\[tokens, heads, head_dim\]"),
        (lambda a: a | {"q": a["q"][..., :2]}, "head_dim"),
        (lambda a: a | {"q": a["q"][:, :3]}, "divide"),
        (lambda a: a | {"q": a["q"][:-1]}, "one query a token"),
        (lambda a: a | {"rows": torch.tensor([0])}, "one a row"),
        (lambda a: a | {"layout": a["layout"][:, :-1]}, "layout must be"),
        (lambda a: a | {"layout": a["layout"].long()}, "int32"),
        (lambda a: a | {"window": 0}, "window"),
        (lambda a: a | {"softcap": 0.0}, "softcap"),
        (lambda a: a | {"impl": "cuda"}, "impl must be one of"),
    ],
)
def test_errors(change: Callable[[dict], dict], message: str) -> None:
    q, k, v = random_qkv(FIXED)
    with pytest.raises(ValueError, match=f"prefix_attention: .*{message}"):
        prefix_attention(**change({"q": q, "k": k, "v": v, "layout": prefix_layout(FIXED)}))
