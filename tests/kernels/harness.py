"""How kernels are judged: against fp64, no worse than plain torch in the same dtype, with unwritten memory poisoned."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

EMPTIES = ("empty", "empty_like", "empty_strided")


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is allocated and not written reads as NaN (integers: their smallest value)."""
    patch = pytest.MonkeyPatch()

    def fill(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            out = make(*args, **kwargs)
            if out.is_floating_point():
                return out.fill_(torch.nan)
            return out if out.dtype == torch.bool else out.fill_(torch.iinfo(out.dtype).min)

        return made

    for name in EMPTIES:
        patch.setattr(torch, name, fill(getattr(torch, name)))
    patch.setattr(Tensor, "new_empty", fill(Tensor.new_empty))
    try:
        yield
    finally:
        patch.undo()


def _outputs(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def run(function: Callable[..., Any], inputs: Sequence[Tensor], grads: Sequence[Tensor] | None) -> list[Tensor]:
    """Outputs of `function(*inputs)` and, where `grads` (of its differentiable outputs, in order) are given, the
    gradients of those inputs that require them."""
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    outputs = _outputs(function(*leaves))
    results = [o.detach() for o in outputs]
    wanted = [x for x in leaves if x.requires_grad]
    if grads is not None and wanted:
        heads = [o for o in outputs if o.requires_grad]
        results += torch.autograd.grad(heads, wanted, [g.to(h.dtype) for g, h in zip(grads, heads, strict=False)])
    return results


def assert_exact(
    op: Callable[..., Any],
    inputs: Sequence[Tensor],
    *,
    grads: Sequence[Tensor] | None = None,
    truth: Callable[..., Any] | None = None,
    slack: float = 4e-6,
    bf16_slack: float = 2**-7,
    scale: float = 0.0,
) -> None:
    """The Triton kernels against fp64: outputs and every gradient, with poisoned memory, on a GPU twice and bit-equal
    (in the interpreter programs run one after another, in one order).

    A result may err by twice what plain torch errs in the same dtype, plus `slack` (fp32), `bf16_slack` (bf16: the
    interpreter truncates) or 1e-12 (fp64) times its own largest value, or times `scale` if that is larger: the size of
    the terms that a result is the difference of.

    Args:
        op: `op(impl, *inputs)` calls the public name with that impl.
        inputs: those that require gradients get checked ones.
        grads: of the differentiable outputs, in order; None checks values only.
        truth: of the inputs in fp64; default the op's own reference, which other tests prove.
    """
    with poisoned():
        mine, *repeats = (run(partial(op, "triton"), inputs, grads) for _ in range(1 + (DEVICE.type != "cpu")))
    rough = run(partial(op, "reference"), inputs, grads)
    wide = [x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in inputs]
    true = run(truth or partial(op, "reference"), wide, None if grads is None else [g.double() for g in grads])
    assert len(mine) == len(true) == len(rough)
    for again in repeats:
        for i, (got, repeat) in enumerate(zip(mine, again, strict=True)):
            assert torch.equal(got.nan_to_num(nan=12345.0), repeat.nan_to_num(nan=12345.0)), f"result {i}: runs differ"
    for i, (got, want, plain) in enumerate(zip(mine, true, rough, strict=True)):
        assert got.shape == want.shape, f"result {i}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
        assert got.dtype == plain.dtype, f"result {i}: {got.dtype}, the reference gives {plain.dtype}"
        same = (got.double() == want) | (got.isnan() & want.isnan())  # infinities too
        finite = want.isfinite()
        assert same[~finite].all(), f"result {i}: not finite where the truth is: {got[~finite]}, {want[~finite]}"
        share = 1e-12 if got.dtype == torch.float64 else bf16_slack if got.dtype == torch.bfloat16 else slack
        if finite.any():
            size = max(want[finite].abs().max().item(), scale)
            allowed = share * size + 2 * (plain.double() - want)[finite].abs().max()
            error = (got.double() - want)[finite].abs().max()
            assert error <= allowed, f"result {i}: error {error:.2e}, allowed {allowed:.2e}"


def registered(op: Any, *args: Any) -> None:
    """torch's own checks of a custom op: schema, fake tensors, autograd, compilation."""
    assert set(torch.library.opcheck(op, args).values()) == {"SUCCESS"}


def compiles(op: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
    """Both implementations under torch.compile(fullgraph=True) give what they give without, and the same gradients."""
    torch._dynamo.reset()  # every call compiles the same few lines of this file, of which dynamo keeps few versions
    for impl in ("triton", "reference"):
        plain = partial(op, impl)
        heads = [torch.ones_like(o) for o in _outputs(plain(*inputs)) if o.requires_grad]
        graph = torch.compile(plain, fullgraph=True, backend="aot_eager")
        for got, want in zip(run(graph, inputs, heads), run(plain, inputs, heads), strict=True):
            torch.testing.assert_close(got, want)


@contextlib.contextmanager
def shared_storages() -> Iterator[None]:
    """The interpreter copies each storage onto itself after a kernel: not here, for one that is large and unwritten."""
    patch = pytest.MonkeyPatch()
    copy = torch.UntypedStorage.copy_

    def copied(self: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        return self if self.data_ptr() == source.data_ptr() else copy(self, source, *args, **kwargs)

    patch.setattr(torch.UntypedStorage, "copy_", copied)
    try:
        yield
    finally:
        patch.undo()


def far_apart(x: Tensor, dim: int = 0) -> Tensor:
    """A copy of x (3 or more long in `dim`) whose last slice lies beyond 2^31 elements, in memory else untouched.

    Steps along `dim` fit into 32 bits; the product of the last index and the step does not. Kernels are compiled for
    steps that 16 divides or for others, and the two sum in another order: so x's step and this one are alike in that.
    """
    strides = list(x.contiguous().stride())
    step = 2**31 // (x.shape[dim] - 1) + 16
    step += (strides[dim] - step) % 16
    assert x.shape[dim] > 2 and step < 2**31
    strides[dim] = step
    room = 1 + sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True))
    before = 2**31  # a product that has wrapped around points there
    out = torch.empty(before + room, dtype=x.dtype, device=x.device).as_strided(x.shape, strides, before)
    return out.copy_(x.detach())


def equal(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    """The same bits."""
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def without_autocast_too(op: Callable[..., Any], inputs: Sequence[Tensor], *, backward: bool = True) -> None:
    """Results of an op under autocast and its gradients are those without it.

    `backward`: the gradients too are taken under autocast, and the op is compiled as well. An op of plain torch has its
    backward in torch's hands, which asks to leave autocast before it.
    """
    heads = [torch.ones_like(o) for o in _outputs(op(*inputs)) if o.requires_grad]
    want = run(op, inputs, heads)
    narrow = partial(torch.autocast, DEVICE.type, torch.bfloat16)

    def forward(*leaves: Tensor) -> Any:
        with narrow():
            return op(*leaves)

    with narrow(enabled=backward):
        results = [run(forward, inputs, heads)]
        if backward:
            torch._dynamo.reset()
            results.append(run(torch.compile(op, fullgraph=True, backend="aot_eager"), inputs, heads))
    for got in results:
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b)
