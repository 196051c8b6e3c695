"""The engine on torch's flash attention: its lengths and its merge, on dense stand-ins for the two CUDA functions."""

import gc
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from rmfast.kernels import prefix_attention, prefix_layout
from rmfast.kernels.prefix_attention import flash, flash_lengths, flash_torch
from tests.kernels.dense import dense_backward, dense_forward, probabilities
from tests.kernels.harness import DEVICE, assert_exact, compiles, registered

Groups = list[tuple[int, list[int]]]
RAGGED: Groups = [(5, [3, 0, 7]), (0, [2, 4]), (1, [1, 1]), (9, []), (4, [0]), (0, []), (3, [21]), (12, [1, 6])]
shapes = st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 12), max_size=4)), max_size=5)
# As they are, before the stand-ins take their place.
provider, refusal = flash.provider, flash.refusal


@pytest.fixture(autouse=True, scope="module")
def _stand_ins() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(flash, "provider", lambda: SimpleNamespace(forward=dense_forward, backward=dense_backward))
    patch.setattr(flash, "refusal", lambda *_, **__: None)
    yield
    patch.undo()


def make(groups: Groups, heads: tuple[int, int] = (4, 2), dim: int = 8, dtype: torch.dtype = torch.float64):  # type: ignore[no-untyped-def]
    """q, k, v (leaves) and the layout."""
    layout = prefix_layout(groups).to(DEVICE)
    sizes = (heads[0], heads[1], heads[1])
    return [torch.randn(layout.shape[1], h, dim, device=DEVICE).to(dtype).requires_grad_() for h in sizes], layout


def attend(layout: Tensor, **options: float) -> Callable[..., Tensor]:
    """The public function; where the harness asks for the kernels it gets this engine."""
    return lambda impl, *x: prefix_attention(*x, layout, impl={"triton": "flash"}.get(impl, impl), **options)


def check(tensors: list[Tensor], layout: Tensor, size: float = 1.0, **options: float) -> None:
    grad = torch.randn(tensors[0].shape, device=DEVICE).to(tensors[0].dtype)
    assert_exact(attend(layout, **options), tensors, grads=[grad], bf16_slack=2**-6, scale=size)


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from([(1, 1), (4, 2), (3, 1)]))
def test_any_groups(groups: Groups, heads: tuple[int, int]) -> None:
    check(*make(groups, heads))


@pytest.mark.parametrize(
    "groups",
    [[], [(0, [])], [(7, [])], [(0, [5, 3])], [(1, [1])], [(1, []), (0, [1])], [(3, [0, 0])], [(2, [90, 1])], RAGGED],
    ids=str,
)
def test_shapes_at_the_edge(groups: Groups) -> None:
    check(*make(groups))


def test_scale_and_dtypes() -> None:
    check(*make(RAGGED), scale=0.9)
    check(*make(RAGGED, dtype=torch.float32))
    check(*make(RAGGED, dtype=torch.bfloat16))


def test_large_logits_neither_overflow_nor_vanish() -> None:
    """The prefix outweighs the response by e^thousands in some rows, and is outweighed in others."""
    tensors, layout = make(RAGGED)
    check([(100 * x).detach().requires_grad_() for x in tensors], layout, size=1e4)


def test_log_sum_exp_is_that_of_all_visible_logits() -> None:
    (q, k, v), layout = make(RAGGED)
    _, lse = torch.ops.rmfast.flash_prefix_attention(q, k, v, layout, 0.5)
    start, prefix_end, segment, _ = layout[..., None]
    key = torch.arange(len(k), device=DEVICE)
    mask = (key >= start) & (key <= key[:, None]) & ((key < prefix_end) | (key >= segment))
    logits = probabilities(q, k, False, 0.5).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(lse, logits.logsumexp(2), rtol=1e-13, atol=1e-13)


def test_strided_and_misaligned_views() -> None:
    layout = prefix_layout(RAGGED).to(DEVICE)
    wide = torch.randn(layout.shape[1], 6, 11, dtype=torch.float64, device=DEVICE, requires_grad=True)
    turned = torch.randn(8, 6, layout.shape[1], dtype=torch.float64, device=DEVICE, requires_grad=True)
    grad = torch.randn(8, 4, layout.shape[1], dtype=torch.float64, device=DEVICE).permute(2, 1, 0)
    by_head = torch.randn(6, layout.shape[1], 8, dtype=torch.float64, device=DEVICE, requires_grad=True)
    views = (lambda x: x[..., 1:9], lambda x: x.permute(2, 1, 0), lambda x: x.transpose(0, 1))
    for x, view in zip((wide, turned, by_head), views, strict=True):

        def run(impl: str, x: Tensor, view: Callable[[Tensor], Tensor] = view) -> Tensor:
            return attend(layout)(impl, view(x)[:, :4], view(x)[:, 4:5], view(x)[:, 5:])

        assert_exact(run, [x], grads=[grad])


def test_nan_stays_in_its_group() -> None:
    tensors, layout = make([(3, [2, 4]), (3, [2, 4])])
    q, k, v = (x.detach().clone() for x in tensors)
    k[1] = torch.nan  # in the first prompt
    out = prefix_attention(q, k, v, layout, impl="flash")
    assert out[1:9].isnan().all() and out[9:].isfinite().all()


def test_registered() -> None:
    for groups in (RAGGED, [(4, [])], []):
        (q, k, v), layout = make(groups)
        registered(torch.ops.rmfast.flash_prefix_attention.default, q, k, v, layout, 0.5)
        x = [t.detach() for t in (q, k, v)]
        out, lse = torch.ops.rmfast.flash_prefix_attention(*x, layout, 0.5)
        registered(torch.ops.rmfast.flash_prefix_attention_backward.default, out, *x, out, lse, layout, 0.5)


def test_compiles() -> None:
    tensors, layout = make(RAGGED)
    compiles(attend(layout), tensors)


def test_no_second_derivative() -> None:
    (q, k, v), layout = make([(2, [1])])
    (dq,) = torch.autograd.grad(prefix_attention(q, k, v, layout, impl="flash").sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="flash_prefix_attention_backward"):
        dq.sum().backward()


def test_lengths() -> None:
    n = flash_lengths(prefix_layout([(2, [3, 0, 1]), (0, [2]), (4, [])]))
    assert n.segments.tolist() == [0, 2, 5, 6, 8, 12]
    assert n.cross_q.tolist() == [0, 2, 6, 6, 8, 8, 12, 12]
    assert n.cross_k.tolist() == [0, 0, 2, 6, 6, 8, 8, 12]
    assert (n.longest, n.longest_q, n.longest_k, n.shares) == (4, 4, 4, True)
    assert n.responds.tolist() == [False] * 2 + [True] * 4 + [False] * 6
    assert n.answered.tolist() == [True] * 2 + [False] * 10
    single = flash_lengths(prefix_layout([(1, [1]), (1, [])]))
    assert (single.longest, single.longest_q, single.longest_k) == (2, 2, 2)  # 1 would mean decoding


def test_second_call_only_where_something_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def counted(*arguments):  # type: ignore[no-untyped-def]
        calls.append(arguments[-2])
        return dense_forward(*arguments)

    monkeypatch.setattr(flash, "provider", lambda: SimpleNamespace(forward=counted))
    for groups, causal in (([(3, []), (0, [2, 2])], [True]), ([(3, [1])], [True, False]), ([], [])):
        calls.clear()
        tensors, layout = make(groups)
        prefix_attention(*tensors, layout, impl="flash")
        assert calls == causal


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_layers_and_backward_of_a_pack_look_at_the_layout_once(monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    looked: list[Tensor] = []

    def counted(layout):  # type: ignore[no-untyped-def]
        looked.append(layout)
        return parse_layout(layout)

    parse_layout = flash.parse_layout
    monkeypatch.setattr(flash, "parse_layout", counted)
    (q, k, v), layout = make(RAGGED, (2, 2))

    def layer(x: Tensor) -> Tensor:
        return x + prefix_attention(x, k, v, layout, impl="flash")

    for _ in range(3):
        q = checkpoint(layer, q, use_reentrant=False) if again else layer(q)
    q.sum().backward()
    assert len(looked) == 1
    other = layout.clone()
    flash_lengths(other)
    assert len(looked) == 2


def test_lengths_follow_the_layout_tensor() -> None:
    layout = prefix_layout([(2, [3])])
    first = flash_lengths(layout)
    assert flash_lengths(layout) is first
    layout.copy_(prefix_layout([(1, [4])]))  # the same tensor, another pack
    assert flash_lengths(layout).segments.tolist() == [0, 1, 5]
    host = prefix_layout([(4, [1])])
    assert flash_lengths(torch.empty_like(host).copy_(host), host=host).segments.tolist() == [0, 4, 5]
    with torch.inference_mode():
        assert flash_lengths(prefix_layout([(3, [2])])).segments.tolist() == [0, 3, 5]
    known = len(flash._known)
    del layout, host
    gc.collect()
    assert len(flash._known) < known


def test_layout_written_between_forward_and_backward_is_an_error() -> None:
    (q, k, v), layout = make([(2, [3])])
    out = prefix_attention(q, k, v, layout, impl="flash")
    layout.copy_(prefix_layout([(1, [4])]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_auto_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    (q, k, v), layout = make(RAGGED)
    with pytest.raises(ValueError, match="impl must be one of auto, triton, reference, flash, got 'cuda'"):
        prefix_attention(q, k, v, layout, impl="cuda")
    monkeypatch.setattr(flash, "provider", None)
    prefix_attention(q, k, v, layout)  # "auto" does not come near it
    monkeypatch.setattr(flash, "refusal", refusal)
    monkeypatch.setattr(flash, "provider", lambda: flash_torch)
    half = [x.detach().bfloat16() for x in (q, k, v)]
    rows = torch.tensor([1], device=DEVICE)
    for inputs, options, message in (
        ((half[0][rows], *half[1:]), {"rows": rows}, "it computes all tokens, not some rows"),
        (half, {"window": 4}, "it has no window"),
        (half, {"softcap": 3.0}, "it has no softcap"),
        ((q, k, v), {}, "it needs fp16 or bf16, got torch.float64"),
        ([x[..., :6] for x in half], {}, "head_dim must be a multiple of 8 and at most 256, got 6"),
        ([x.repeat(1, 1, 33) for x in half], {}, "head_dim must be a multiple of 8 and at most 256, got 264"),
        ([x.cpu() for x in half], {}, "it needs CUDA tensors, got cpu"),
    ):
        with pytest.raises(ValueError, match=f"prefix_attention: impl='flash' is not possible: {message}"):
            prefix_attention(*inputs, layout.to(inputs[0].device), impl="flash", **options)


@pytest.mark.parametrize(
    ("built", "major", "message"), [(True, 8, None), (True, 9, None), (False, 9, "this build"), (True, 7, "an Ampere")]
)
def test_refusal_by_device(monkeypatch: pytest.MonkeyPatch, built: bool, major: int, message: str | None) -> None:
    monkeypatch.setattr(flash, "provider", lambda: flash_torch)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
    found = refusal(torch.device("cuda"), torch.bfloat16, 128)
    assert found is None if message is None else message in (found or "")


def test_torch_functions_are_as_we_call_them() -> None:
    """Names, order and results, on tensors that claim to be on a GPU."""
    forward, backward = (
        getattr(torch.ops.aten, f"_flash_attention_{name}").default._schema for name in ("forward", "backward")
    )
    lengths = ["cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal"]
    names, before = [a.name for a in forward.arguments], ["query", "key", "value"]
    assert names[:11] == [*before, *lengths, "return_debug_mask", "scale"]
    # torch has added arguments here and may again: all that we leave out must have defaults.
    assert all(a.kwarg_only and a.has_default_value() for a in forward.arguments[10:])
    names = [a.name for a in backward.arguments]
    assert names[:12] == ["grad_out", *before, "out", "logsumexp", *lengths]
    assert names[14] == "scale" and all(a.kwarg_only and a.has_default_value() for a in backward.arguments[14:])
    with FakeTensorMode():
        q, k = (torch.empty(10, h, 16, dtype=torch.bfloat16, device="cuda") for h in (4, 2))
        starts = torch.empty(4, dtype=torch.int32, device="cuda")
        out, lse = flash_torch.forward(q, k, k, starts, starts, 5, 5, True, 0.25)
        assert (out.shape, out.dtype) == (q.shape, q.dtype)
        assert (lse.shape, lse.dtype) == ((4, 10), torch.float32)
        grads = flash_torch.backward(out, q, k, k, out, lse, starts, starts, 5, 5, True, 0.25)
        assert [g.shape for g in grads] == [q.shape, k.shape, k.shape]


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("fails", [False, True])
def test_backward_asks_for_determinism_and_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch, mode: int, fails: bool
) -> None:
    seen = []

    def backward(*_, **__):  # type: ignore[no-untyped-def]
        seen.append((torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory))
        if fails:
            raise RuntimeError("as asked")
        return 1, 2, 3

    monkeypatch.setattr(flash_torch, "aten", SimpleNamespace(_flash_attention_backward=backward))
    x = torch.zeros(1, 1, 8)
    torch.set_deterministic_debug_mode(mode)
    try:
        if fails:
            with pytest.raises(RuntimeError, match="as asked"):
                flash_torch.backward(*[x] * 8, 1, 1, True, 1.0)
        else:
            assert flash_torch.backward(*[x] * 8, 1, 1, True, 1.0) == (1, 2, 3)
        assert torch.get_deterministic_debug_mode() == mode
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.set_deterministic_debug_mode(0)
    assert seen == [(2, False)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_on_the_gpu(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions themselves, also bit-equal twice."""
    for name, real in (("provider", provider), ("refusal", refusal)):
        monkeypatch.setattr(flash, name, real)
    for groups in (RAGGED, [(300, [70, 200]), (129, [64, 1])], [(1, [1])] * 3, [(0, [1, 1, 1])]):
        check(*make(groups, dim=dim, dtype=torch.bfloat16))
