"""Masks of loads and stores are made of booleans, in the interpreter too: Triton 3.9's refuses any others.

Up to 3.8 it takes a comparison of two scalars, where it is spread over a vector, for integers, and loads by these.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.interpreter import InterpreterBuilder

from rmfast.kernels import gae, prefix_attention, prefix_layout, sinkhorn
from rmfast.kernels.common import INTERPRETED
from tests.kernels.test_dispatch import NAMES, gradients

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here")


def attention_of_rows() -> None:
    rows, layout = torch.tensor([1, 3]), prefix_layout([(2, [1, 1])])
    q, k, v = (torch.randn(n, 2, 4).requires_grad_() for n in (2, 4, 4))
    out = prefix_attention(q, k, v, layout, rows=rows, window=2, softcap=1.0, impl="triton")
    torch.autograd.grad(out.sum(), (q, k, v))


CALLS: dict[str, Callable[[], object]] = {
    **{name: lambda name=name: gradients(name) for name in NAMES},  # type: ignore[misc]
    "prefix_attention of rows": attention_of_rows,
    "gae": lambda: gae(torch.randn(4), torch.randn(4), torch.tensor([1, 3]), gamma=0.9, lam=0.9, impl="triton"),
    "sinkhorn": lambda: sinkhorn(torch.randn(4, 3), epsilon=0.05, iterations=2, impl="triton"),
}


@pytest.mark.parametrize("name", CALLS)
def test_masks_are_booleans(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def watch(method: str, place: int) -> None:
        run = getattr(InterpreterBuilder, method)

        def watched(self: Any, *args: Any) -> Any:
            seen.append(str(args[place].data.dtype))
            return run(self, *args)

        monkeypatch.setattr(InterpreterBuilder, method, watched)

    watch("create_masked_load", 1)
    watch("create_masked_store", 2)
    CALLS[name]()
    assert set(seen) == {"bool"}
