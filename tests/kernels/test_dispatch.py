"""How ops are called: past torch's dispatcher in plain eager code, through it where something watches; no zero-filled
gradients; second derivatives refused either way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rmfast.kernels import (
    add_rms_norm,
    difference_loss,
    info_nce,
    linear_log_prob,
    policy_loss,
    prefix_attention,
    prefix_layout,
    ranking_loss,
    rms_norm,
    rope_tables,
    rotate,
    score_head,
    split_rope,
    swapped_prediction_loss,
    swiglu,
    value_loss,
)  # fmt: skip
from rmfast.kernels.dispatch import Op, custom_op
from rmfast.kernels.info_nce.triton import RESIDENT
from tests.kernels.harness import DEVICE
from tests.tiny import Seen

Call = Callable[..., Any]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE).requires_grad_()


def ops() -> dict[str, tuple[Call, list[Tensor]]]:
    """Every differentiable op through its kernels, and the tensors that it is differentiated in."""
    layout, options = prefix_layout([(2, [1, 1])]).to(DEVICE), {"impl": "triton"}
    pairs, other = torch.tensor([0, 1], device=DEVICE), torch.tensor([1, 2], device=DEVICE)
    mask, target = torch.ones(4, device=DEVICE), torch.tensor([0, 2, 1, 3], device=DEVICE)
    tables = rope_tables(torch.arange(4, device=DEVICE), torch.ones(2, device=DEVICE))
    x, y, weight, heads = normal(4, 6), normal(4, 6), normal(6), normal(2, 6)
    q, k, qkv, values = normal(4, 2, 4), normal(4, 1, 4), normal(4, 16), normal(4)
    return {
        "rms_norm": (lambda a, w: rms_norm(a, w, eps=1e-5, **options), [x, weight]),
        "add_rms_norm": (lambda a, b, w: add_rms_norm(a, b, w, eps=1e-5, **options), [x, y, weight]),
        "swiglu": (lambda a: swiglu(a, **options), [x]),
        "rope": (lambda a, b: rotate(a, b, tables, **options), [q, k]),
        "split_rope": (lambda a: split_rope(a, tables, heads=2, kv_heads=1, head_dim=4, **options), [qkv]),
        "prefix_attention": (lambda a, b, c: prefix_attention(a, b, c, layout, **options), [q, k, normal(4, 1, 4)]),
        "score_head": (lambda a, w, h: score_head(a, w, h, eps=1e-5, **options), [x, weight, heads]),
        "ranking_loss": (lambda s: ranking_loss(s, pairs, other, **options), [values]),
        "difference_loss": (lambda s: difference_loss(s, torch.zeros(4, dtype=torch.int64, device=DEVICE), **options),
                            [values]),
        "policy_loss": (lambda a: policy_loss(a, values.detach(), mask, mask, clip=0.2, **options), [normal(4)]),
        "value_loss": (lambda a: value_loss(a, values.detach(), mask, mask, clip=0.2, **options), [normal(4)]),
        "linear_log_prob": (lambda h, w: linear_log_prob(h, w, target, **options)[0], [x, normal(5, 6)]),
        "info_nce": (lambda a, b: info_nce(a, b, temperature=0.2, **options), [x, y]),
        "swapped": (lambda a, b, p: swapped_prediction_loss(a, b, p, temperature=0.1, epsilon=0.05, iterations=2,
                                                            **options), [x, y, normal(3, 6)]),
    }  # fmt: skip


NAMES = sorted(ops())


def outputs(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def gradients(name: str, **options: Any) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    op, inputs = ops()[name]
    out = outputs(op(*inputs))
    heads = [torch.ones_like(o) for o in out]
    return (*out, *torch.autograd.grad(out, inputs, heads, **options))


def profiled(run: Callable[[], object]) -> dict[str, int]:
    """How often torch's profiler sees which op: it does not change how they are called, and looks into custom ones."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return {event.key: event.count for event in profile.key_averages()}


@pytest.mark.parametrize("name", NAMES)
def test_eager_calls_reach_no_custom_op_and_give_the_same_bits(name: str) -> None:
    results: list[tuple[Tensor, ...]] = []
    assert not [op for op in profiled(lambda: results.append(gradients(name))) if op.startswith("rmfast::")]
    with Seen() as seen:
        results.append(gradients(name))
    assert [op for op in seen.ops if op.startswith("rmfast.")]
    for plain, watched in zip(*results, strict=True):
        assert torch.equal(plain, watched)


# Where a backward sums over chunks, their number being data: the weight's gradient begins at zero, once.
SUMS = {"linear_log_prob": 1, "info_nce of wide vectors": 1}


@pytest.mark.parametrize("name", [*NAMES, "info_nce of wide vectors"])
def test_no_gradient_is_filled_with_zeros(name: str) -> None:
    """Neither gradients of what has none, nor within an op, but for `SUMS`."""
    wide = [normal(4, RESIDENT + 2), normal(4, RESIDENT + 2)]
    op, inputs = ops()[name] if name in NAMES else (ops()["info_nce"][0], wide)
    out = outputs(op(*inputs))
    heads = [torch.ones_like(o) for o in out]
    seen = profiled(lambda: torch.autograd.grad(out, inputs, heads))
    filled = {op: count for op, count in seen.items() if op in ("aten::zero_", "aten::full", "aten::ones")}
    assert filled == ({"aten::zero_": SUMS[name]} if name in SUMS else {})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("watched", [False, True], ids=["plain", "watched"])
def test_a_second_derivative_is_refused(name: str, watched: bool) -> None:
    op, inputs = ops()[name]

    def twice() -> None:
        out = outputs(op(*inputs))
        heads = [torch.ones_like(o, requires_grad=True) for o in out]  # the gradient of a rotation is of these alone
        first = torch.autograd.grad(out, inputs, heads, create_graph=True)
        assert all(grad.requires_grad for grad in first)
        torch.autograd.grad([grad.sum() for grad in first], [*inputs, *heads], allow_unused=True)

    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        if watched:
            with Seen():
                twice()
        else:
            twice()


def test_fake_tensors_are_not_computed() -> None:
    with FakeTensorMode() as mode:
        x, weight = (mode.from_tensor(t) for t in (normal(4, 6), normal(6)))
        out = rms_norm(x, weight, eps=1e-5, impl="triton")
    assert out.shape == (4, 6) and type(out) is type(x)
    again = rms_norm(x, weight, eps=1e-5, impl="triton")  # outside of the mode
    assert type(again) is type(x)


@custom_op("rmfast::test_parts")
def parts(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return x * scale, x + 0


def test_an_output_without_gradient_has_none_and_without_any_nothing_is_computed() -> None:
    seen: list[list[bool]] = []

    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        seen.append([grad is None for grad in grads])
        return next(grad for grad in grads if grad is not None) * ctx.scale, None

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.scale = inputs[1]

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:
            return None

    assert isinstance(parts, Op)
    parts.register_autograd(backward, setup_context=setup)
    x = torch.ones(2, requires_grad=True)
    first, second = parts(x, 3.0)
    (grad,) = torch.autograd.grad(first.sum(), x)
    assert seen == [[False, True]] and grad.tolist() == [3.0, 3.0]
    Cut.apply(parts(x, 3.0)[1]).sum().backward()
    assert len(seen) == 1 and x.grad is None
