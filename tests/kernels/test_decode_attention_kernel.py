"""What only the Triton kernels of decode attention promise."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from rmfast.kernels import decode_attention
from rmfast.kernels.decode_attention import tiles
from rmfast.kernels.decode_attention import triton as decode_triton
from rmfast.kernels.launch import recording
from tests.kernels.decode import Groups, Inputs, by_row, make
from tests.kernels.harness import DEVICE, assert_exact, equal, far_apart, registered, shared_storages

LONG: Groups = [(150, [70, 3]), (0, [100]), (40, [0])]


@pytest.mark.parametrize("dtype, window", [(torch.float64, 90), (torch.float32, None), (torch.bfloat16, 90)], ids=str)
def test_many_parts_against_fp64_in_poisoned_memory(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, window: int | None
) -> None:
    monkeypatch.setattr(tiles, "PROGRAMS", 64)
    inputs = make(LONG, (3, 1), 16, dtype)
    assert tiles.split(4, 3, 1, inputs.prompt_kv.shape[1], inputs.own_kv.shape[1], 32)[3:] == (7, 6)

    def op(impl: str, *given: Tensor) -> Tensor:
        return decode_attention(*given, window=window, impl=impl)

    assert_exact(op, inputs, truth=lambda *given: by_row(*given, window=window), bf16_slack=2**-6, scale=1.0)


@pytest.mark.parametrize(
    ("rows", "group", "cut"),
    [
        (1, 3, (4, 1, 4, 16, 16)),
        (256, 3, (4, 1, 4, 6, 2)),
        (256, 1, (1, 1, 16, 16, 2)),
        (64, 32, (16, 2, 1, 3, 3)),
        (4096, 4, (4, 1, 4, 1, 1)),
    ],
)
def test_how_the_work_is_cut(monkeypatch: pytest.MonkeyPatch, rows: int, group: int, cut: tuple[int, ...]) -> None:
    """Heads of a program, blocks of them, rows of a program, and parts: enough programs, at most 16 parts."""
    monkeypatch.setattr(tiles, "PROGRAMS", 1024)
    assert tiles.split(rows, group, 3, 100_000, 100_000, 64) == cut
    assert tiles.split(rows, group, 3, 64, 0, 64)[3:] == (1, 1)


def test_the_launches_depend_on_shapes_alone() -> None:
    """Which prompts are shared, and how long anything is, is data: a CUDA graph replays it."""
    inputs = make([(20, [3, 4, 5]), (7, [9])])
    other = torch.zeros_like(inputs.layout)
    started = []
    for layout in (inputs.layout, other):
        with recording((9, 0)) as launches:
            decode_triton.decode_attention(*inputs[:3], layout, 0.25, None)
        started.append([(one.kernel, [x for x in one.arguments if not isinstance(x, Tensor)], one.options)
                        for one in launches])  # fmt: skip
    assert started[0] == started[1] and len(started[0]) == 2


def test_registration() -> None:
    inputs = make([(3, [1]), (0, [2])], (2, 1), 16)
    filled = [x.nan_to_num(0.0) if x.is_floating_point() else x for x in inputs]
    registered(torch.ops.rmfast.decode_attention.default, *filled, 0.25, None)
    k, v = (torch.randn(2, 1, 16, device=DEVICE) for _ in range(2))
    registered(torch.ops.rmfast.decode_append.default, filled[2], inputs.layout, k, v)


@pytest.mark.usefixtures("alone_on_the_gpu")
@pytest.mark.parametrize("which", [1, 2])
def test_tokens_farther_apart_than_an_int32_counts(which: int) -> None:
    inputs = make([(5, [4]), (2, [3, 6])], (4, 2), 16, torch.float16)
    append = [torch.randn(3, 2, 16, device=DEVICE).half() for _ in range(2)]
    want = decode_attention(*inputs, append=(append[0], append[1]), impl="triton")
    far = Inputs(*(far_apart(x, 1) if i == which else x for i, x in enumerate(inputs)))
    with shared_storages():
        equal([decode_attention(*far, append=(append[0], append[1]), impl="triton")], [want])
