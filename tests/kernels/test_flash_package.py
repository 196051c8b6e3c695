"""flash attention by the package flash_attn, on a stand-in of its signatures; whose calls are taken, and why."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rmfast.kernels import prefix_attention, prefix_layout
from rmfast.kernels.prefix_attention import flash, flash_package, flash_torch
from tests.kernels.harness import DEVICE, assert_exact
from tests.packages import installed

RAGGED = [(5, [3, 0, 7]), (0, [2, 4]), (1, [1, 1]), (9, []), (4, [0]), (0, []), (3, [21]), (12, [1, 6])]


@pytest.mark.parametrize("groups", [RAGGED, [], [(7, [])], [(0, [5, 3])], [(1, [1])]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_reference_is_met(groups: list[tuple[int, list[int]]], dtype: torch.dtype) -> None:
    layout = prefix_layout(groups).to(DEVICE)
    q, k, v = (torch.randn(layout.shape[1], h, 8, device=DEVICE).to(dtype).requires_grad_() for h in (4, 2, 2))
    grad = torch.randn(q.shape, device=DEVICE).to(dtype)
    with installed("flash_attn_2") as patch:
        patch.setattr(flash, "refusal", lambda *_: None)
        assert flash.provider() is flash_package

        def attend(impl: str, *x: torch.Tensor) -> torch.Tensor:
            return prefix_attention(*x, layout, impl={"triton": "flash"}.get(impl, impl))

        assert_exact(attend, [q, k, v], grads=[grad], bf16_slack=2**-6)


def test_signatures_are_the_published_ones() -> None:
    """Of flash_attn 2.7.0; 2.8.0 adds zero_tensors to both and 2.8.4 num_splits to the forward, with defaults."""
    with installed("flash_attn_2"):
        from flash_attn import flash_attn_interface as calls
    lengths = ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "dropout_p", "softmax_scale", "causal"]
    window = ["window_size_left", "window_size_right", "softcap", "alibi_slopes"]
    forward = inspect.signature(calls._flash_attn_varlen_forward).parameters
    assert [*forward] == [
        "q", "k", "v", *lengths, *window, "return_softmax", "block_table", "leftpad_k", "seqused_k",
    ]  # fmt: skip
    assert [name for name, p in forward.items() if p.default is p.empty] == ["q", "k", "v", *lengths]
    backward = inspect.signature(calls._flash_attn_varlen_backward).parameters
    assert [*backward] == [
        "dout", "q", "k", "v", "out", "softmax_lse", "dq", "dk", "dv", *lengths, *window, "deterministic", "rng_state",
    ]  # fmt: skip
    assert [name for name, p in backward.items() if p.default is not p.empty] == ["rng_state"]


def test_whose_calls_are_taken(tmp_path: Path) -> None:
    with installed("flash_attn_2"):
        assert flash.describe() == "flash_attn 2.7.4.post1"
    with installed():
        assert flash.provider() is flash_torch
        assert flash.describe() == f"torch {torch.__version__}"
    package = tmp_path / "flash_attn"
    package.mkdir()
    (package / "flash_attn_interface.py").touch()
    (package / "__init__.py").write_text("__version__ = '2.6.3'\n")
    with installed(tmp_path):
        assert flash.describe() == f"torch {torch.__version__}: flash_attn 2.6.3 is older than 2.7"
    (package / "__init__.py").write_text("raise ImportError('flash_attn_2_cuda: undefined symbol')\n")
    with installed(tmp_path):
        assert flash.describe().endswith("the package flash_attn does not load: flash_attn_2_cuda: undefined symbol")


def test_a_torch_without_flash_attention_needs_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=9))
    asked = (torch.device("cuda"), torch.bfloat16, 128)
    with installed("flash_attn_2"):
        assert flash.refusal(*asked) is None
    with installed():
        assert flash.refusal(*asked) == (
            "this build of torch has no flash attention, and the package flash_attn is not installed "
            "(pip install --no-build-isolation 'rmfast[flash]')"
        )
