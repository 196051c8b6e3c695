"""Attention in bf16 over prefixes longer than a tile, at the head dimensions of real models, on a GPU.

Tiles without any response token and pipelines of several stages exist only there; what they read wrongly can end the
process, so this file runs first and in a process of its own.
"""

import pytest
import torch
from torch import Tensor

from rmfast.kernels import prefix_attention, prefix_layout
from tests.kernels.harness import DEVICE

PACKS = {
    "long prompts": [(300, [70, 200]), (700, [3, 2])],
    "a prompt alone": [(1024, []), (256, [1])],
    "long sequences without a prompt": [(0, [900, 90]), (513, [64, 65])],
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("groups", PACKS.values(), ids=PACKS.keys())
def test_long_prefixes(groups: list[tuple[int, list[int]]], dim: int, window: int | None) -> None:
    """Output and gradients are those of fp64 to twice what plain torch in bf16 is off."""
    layout = prefix_layout(groups).to(DEVICE)
    q, k, v, grad = (torch.randn(layout.shape[1], heads, dim, device=DEVICE).bfloat16() for heads in (8, 2, 2, 8))

    def results(impl: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out = prefix_attention(*leaves, layout, window=window, impl=impl)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))]

    true, rough = results("reference", torch.float64), results("reference", torch.bfloat16)
    for got, want, other in zip(results("triton", torch.bfloat16), true, rough, strict=True):
        allowed = 2 * (other - want).abs().max() + 2**-7 * want.abs().max()
        assert (got - want).abs().max() <= allowed
