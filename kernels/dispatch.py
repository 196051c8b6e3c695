"""How an op's function is called: as a custom op of torch, or past the dispatcher where nothing but autograd looks."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

_R = TypeVar("_R")

# Of other types (fake and sharded tensors, symbolic sizes) the dispatcher knows more than a plain call would.
PLAIN = frozenset({Tensor, torch.nn.Parameter, int, float, bool, tuple, type(None)})  # tuples are of numbers


def _watched() -> bool:
    """Whether a compiler, a dispatch mode (fake tensors, tracing, checkpoints) or a function transform is active."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


class Op(Generic[_R]):
    """A custom op of torch that plain eager calls reach directly.

    The dispatcher costs a small op more host time than all of its own work. What it is there for (compilation, fake
    tensors, dispatch modes, the refusal of derivatives that an op lacks) still takes that way, with the same results.
    """

    def __init__(self, name: str, function: Callable[..., _R], mutates: tuple[str, ...] = ()) -> None:
        self.function = function
        self.custom: Any = torch.library.custom_op(name, function, mutates_args=mutates)
        self.register_fake = self.custom.register_fake
        self._recorded: Any = None

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """As torch's, but gradients that do not exist are None instead of zeros; at least one of them does exist."""

        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)
            setup_context(ctx, inputs, output)

        def gradients(ctx: Any, *grads: Tensor | None) -> Any:
            for grad in grads:
                if grad is not None:
                    return backward(ctx, *grads)
            return (None,) * len(ctx.needs_input_grad)

        def forward(ctx: Any, *args: Any) -> Any:
            output = self.function(*args)
            setup(ctx, args, output)
            return output

        self.custom.register_autograd(gradients, setup_context=setup)
        members = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
        recorded = type(self.function.__name__, (torch.autograd.Function,), members)
        # Its own `apply` looks for function transforms first, as has been done.
        self._recorded = super(torch.autograd.Function, recorded).apply  # type: ignore[misc]

    def __call__(self, *args: Any) -> _R:
        if _watched() or not PLAIN.issuperset(map(type, args)):
            return self.custom(*args)
        if not torch.is_grad_enabled():
            return self.function(*args)
        # Without a derivative the custom op refuses one.
        return (self._recorded or self.custom)(*args)


def custom_op(name: str, *, mutates: tuple[str, ...] = ()) -> Callable[[Callable[..., _R]], Op[_R]]:
    """Make a function the op `name` ("rmfast::..."), which writes to the arguments that it `mutates`; its arguments are
    given by position."""
    return lambda function: Op(name, function, mutates)
