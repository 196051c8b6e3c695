"""In which order attention's programs go through a long sequence: the heaviest start first, none is left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton.runtime.interpreter import InterpreterBuilder

from rmfast.kernels import prefix_layout
from rmfast.kernels.common import INTERPRETED
from rmfast.kernels.prefix_attention.reference import seen_keys
from rmfast.kernels.prefix_attention.triton import prefix_attention_bwd, prefix_attention_fwd

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="only the interpreter shows what a program writes")

TOKENS, DIM = 150, 16


def written(run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Tensor]]:
    """Program and addresses of each store, in the order in which they happened."""
    stores: list[tuple[int, Tensor]] = []
    place, store = InterpreterBuilder.set_grid_idx, InterpreterBuilder.create_masked_store
    at = [0]

    def placed(self: Any, x: int, y: int, z: int) -> None:
        at[0] = x
        place(self, x, y, z)

    def stored(self: Any, pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        stores.append((at[0], torch.from_numpy(pointers.data.astype("int64")[mask.data])))
        return store(self, pointers, value, mask, *others)

    with monkeypatch.context() as patch:
        patch.setattr(InterpreterBuilder, "set_grid_idx", placed)
        patch.setattr(InterpreterBuilder, "create_masked_store", stored)
        run()
    return stores


def work_by_program(out: Tensor, stores: list[tuple[int, Tensor]], seen: Tensor) -> list[int]:
    """How many tokens those that each program writes to `out` see, or are seen by, in the order of programs."""
    size = out.element_size()
    found: dict[int, int] = {}
    for program, addresses in stores:
        element = (addresses - out.data_ptr()) // size
        if len(element) and element.min() >= 0 and element.max() < out.numel():
            tokens = (element // out.stride(0)).unique()
            found[program] = int(seen[tokens].any(0).sum())
    return [found[program] for program in range(len(found))]


def test_the_heaviest_programs_of_a_long_sequence_start_first(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = prefix_layout([(0, [TOKENS])])
    token = torch.arange(TOKENS)
    seen = seen_keys(layout, token, token, None)
    q, k, v, grad = (torch.randn(TOKENS, 1, DIM) for _ in range(4))
    options = (layout, None, 0.25, None, None)
    results: list[Tensor] = []
    stores = written(lambda: results.extend(prefix_attention_fwd(q, k, v, *options)), monkeypatch)
    out, lse = results
    assert work_by_program(out, stores, seen) == [150, 144, 128, 112, 96, 80, 64, 48, 32, 16]  # tiles of 16 queries
    stores = written(lambda: results.extend(prefix_attention_bwd(grad, q, k, v, out, lse, *options)), monkeypatch)
    dq, dk, dv = results[2:]
    assert work_by_program(dq, stores, seen) == [150, 144, 128, 112, 96, 80, 64, 48, 32, 16]
    for gradient in (dk, dv):
        assert work_by_program(gradient, stores, seen.T) == [150, 118, 86, 54, 22]  # tiles of 32 keys
