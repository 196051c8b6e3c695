"""Decode attention by every implementation: a softmax over each row's keys, whatever shares the call."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rmfast.kernels import decode_attention, prefix_attention, prefix_layout
from tests.kernels.decode import RAGGED, Groups, Inputs, by_row, error, make
from tests.kernels.harness import DEVICE

FEW: Groups = [(20, [3, 1, 7]), (0, [2]), (5, [0, 18])]
SLACK = {torch.float64: 1e-14, torch.float32: 4e-6, torch.bfloat16: 2**-5}


@pytest.fixture(params=["reference", "csrc", "triton"])
def impl(request: pytest.FixtureRequest) -> str:
    if request.param == "triton":
        pytest.importorskip("triton")
    elif request.param == "csrc":
        if DEVICE.type != "cpu":
            pytest.skip("csrc is for the CPU")
        request.getfixturevalue("csrc_library")
    return request.param


def fused(rows: int, heads: int, kv_heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as slices of one projection's output."""
    qkv = torch.randn(rows, heads + 2 * kv_heads, dim, device=DEVICE)
    return qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]


@pytest.mark.parametrize("window, one_pool", [(None, False), (6, True), (30, False)])
def test_runs_of_1_3_and_17_rows_with_empty_prompts_and_idle_rows(
    impl: str, window: int | None, one_pool: bool
) -> None:
    assert error(impl, make(RAGGED, (3, 1), 8, one_pool=one_pool), window=window) < SLACK[torch.float32]


@pytest.mark.parametrize(("heads", "dim"), [((2, 2), 7), ((9, 3), 64), ((8, 2), 24), ((20, 1), 80)], ids=str)
def test_heads_and_dimensions(impl: str, heads: tuple[int, int], dim: int) -> None:
    assert error(impl, make(FEW, heads, dim), scale=0.3) < SLACK[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(impl: str, dtype: torch.dtype) -> None:
    inputs = make(FEW, dtype=dtype)
    if impl == "csrc":
        with pytest.raises(ValueError, match="impl='csrc' is not possible: it takes fp32 on the CPU, got torch"):
            decode_attention(*inputs, impl=impl)
        return
    assert error(impl, inputs, window=4, scale=0.7) < SLACK[dtype]


@pytest.mark.parametrize("groups", [[], [(0, [0])], [(3, [0, 0]), (0, [0])], [(0, [1])]], ids=str)
def test_nothing_to_see(impl: str, groups: Groups) -> None:
    assert error(impl, make(groups)) < SLACK[torch.float32]
    if groups:
        idle = make([(0, [0, 0]), *groups])
        assert (decode_attention(*idle, impl=impl)[:2] == 0).all()


def test_pools_without_room(impl: str) -> None:
    q, pool = torch.randn(2, 4, 8, device=DEVICE), torch.empty(2, 0, 2, 8, device=DEVICE)
    layout = torch.zeros(4, 2, dtype=torch.int32, device=DEVICE)
    assert (decode_attention(q, pool, pool, layout, impl=impl) == 0).all()


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (5, None), (5, 0.5)])
def test_it_is_prefix_attention_at_the_last_token_of_each_response(
    impl: str, window: int | None, softcap: float | None
) -> None:
    impl = impl if softcap is None else "auto"
    options: dict[str, Any] = {"window": window, "softcap": softcap}
    groups: Groups = [(9, [4, 1]), (0, [3]), (30, [2])]
    pack = prefix_layout(groups).to(DEVICE)
    _, k, v = fused(pack.shape[1], 6, 2, 16)
    columns, place = [], 0
    for prompt, lengths in groups:
        start, place = place, place + prompt
        for length in lengths:
            columns.append((start, start + prompt, place, place + length))
            place += length
    layout = torch.tensor(columns, dtype=torch.int32, device=DEVICE).T
    q = fused(len(columns), 6, 2, 16)[0]
    pool = torch.stack((k, v))
    want = prefix_attention(q, k, v, pack, rows=layout[3].long() - 1, impl="reference", **options)
    got = decode_attention(q, pool, pool, layout, impl=impl, **options)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("one_pool", [False, True])
def test_append_writes_the_current_tokens_and_nothing_else(impl: str, one_pool: bool) -> None:
    inputs = make(FEW, (6, 2), 16, one_pool=one_pool)
    q, k, v = fused(len(inputs.q), 6, 2, 16)
    written = inputs.own_kv.clone()
    for row, (begin, end) in enumerate(inputs.layout[2:].T.tolist()):
        if end > begin:
            written[0, end - 1], written[1, end - 1] = k[row], v[row]
    by_hand = Inputs(q, written if one_pool else inputs.prompt_kv, written, inputs.layout)
    want = decode_attention(*by_hand, impl=impl)
    got = decode_attention(q, *inputs[1:], append=(k, v), impl=impl)
    assert torch.equal(inputs.own_kv.nan_to_num(9.0), written.nan_to_num(9.0))
    assert torch.equal(got, want)
    torch.testing.assert_close(want, by_row(*by_hand), rtol=0, atol=2e-6)


def test_pools_within_a_larger_one(impl: str) -> None:
    """As the layers of a cache are, with tokens farther apart than their heads are long."""
    inputs = make(FEW, (6, 2), 16)
    whole = [torch.full((2, 3, x.shape[1], 4, 16), torch.nan, device=DEVICE) for x in inputs[1:3]]
    views = [x[:, 1, :, 1:3] for x in whole]
    for view, pool in zip(views, inputs[1:3], strict=True):
        view.copy_(pool)
    got = decode_attention(inputs.q, *views, inputs.layout, impl=impl)
    assert torch.equal(got, decode_attention(*inputs, impl=impl))


def test_nan_reaches_its_row_alone_and_one_in_a_prompt_the_rows_of_the_prompt(impl: str) -> None:
    groups: Groups = [(20, [3, 4]), (6, [9, 2])]
    inputs = make(groups)
    want = decode_attention(*inputs, impl=impl)
    inputs.own_kv[:, inputs.layout[2, 1]] = torch.nan
    got = decode_attention(*inputs, impl=impl)
    assert got[1].isnan().all() and torch.equal(got[[0, 2, 3]], want[[0, 2, 3]])
    inputs.prompt_kv[1, inputs.layout[0, 3]] = torch.inf
    got = decode_attention(*inputs, impl=impl)
    assert torch.equal(got[0], want[0]) and not got[2:].isfinite().any()


def column(inputs: Inputs, rows: list[int]) -> Inputs:
    return inputs._replace(q=inputs.q[rows], layout=inputs.layout[:, rows])


@pytest.mark.parametrize("window", [None, 1, 20, 70])
@pytest.mark.parametrize("heads", [(9, 3), (2, 2), (5, 1)], ids=str)
def test_a_rows_bits_in_csrc_do_not_depend_on_its_company(
    csrc_library: object, heads: tuple[int, int], window: int | None
) -> None:
    """Neither on rows of other prompts nor on how many share its prompt."""
    groups: Groups = [(100, [3, 60, 0, 17]), (49, [5]), (150, [1] * 7 + [90])]
    inputs = make(groups, heads, 40)
    whole = decode_attention(*inputs, window=window, impl="csrc")
    for row in range(len(whole)):
        assert torch.equal(decode_attention(*column(inputs, [row]), window=window, impl="csrc")[0], whole[row])
    order = torch.randperm(len(whole)).tolist()
    assert torch.equal(decode_attention(*column(inputs, order), window=window, impl="csrc"), whole[order])


def test_threads_do_not_change_the_bits_of_csrc(csrc_library: object) -> None:
    inputs = make(RAGGED, (9, 3), 64)
    once = decode_attention(*inputs, impl="csrc")
    torch.set_num_threads(2)
    assert torch.equal(decode_attention(*inputs, impl="csrc"), once)
    torch.set_num_threads(1)


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_weights_of_csrc_over_many_sizes_of_logits(csrc_library: object, size: float) -> None:
    inputs = make([(90, [50, 20])], (4, 2), 32)
    assert error("csrc", inputs._replace(q=size * inputs.q)) < 3e-6 * max(size, 1)


def test_auto_on_the_cpu_takes_csrc_for_fp32(csrc_library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make(FEW)
    want = decode_attention(*inputs, impl="csrc")
    assert not torch.equal(want, decode_attention(*inputs, impl="reference"))
    assert torch.equal(decode_attention(*inputs), want)
    monkeypatch.setattr("rmfast.kernels.compiled.missing", lambda: "not built")
    assert torch.equal(decode_attention(*inputs), decode_attention(*inputs, impl="reference"))
    with pytest.raises(ValueError, match="decode_attention: impl='csrc' is not possible: not built"):
        decode_attention(*inputs, impl="csrc")


@pytest.mark.parametrize(("entry", "value", "name"), [(1, 99, "prompt_kv"), (0, -1, "prompt_kv"), (3, 99, "own_kv")])
def test_csrc_refuses_ranges_beyond_a_pool(csrc_library: object, entry: int, value: int, name: str) -> None:
    inputs = make([(4, [2, 3])])
    inputs.layout[entry, 1] = value
    with pytest.raises(RuntimeError, match=f"row 1 has the range .* of {name}, which holds"):
        decode_attention(*inputs, impl="csrc")


def test_what_is_refused() -> None:
    q, prompt_kv, own_kv, layout = make([(4, [2])], (6, 2), 16)
    append = (own_kv[0, :1], own_kv[0, :1])
    for changed, message in (
        ({"q": q[0]}, r"q must be floating point \[R, Hq, D\], got torch.float32 \[6, 16\]"),
        ({"q": q.int()}, "q must be floating point"),
        ({"q": q[..., :0]}, "head_dim must be above 0"),
        ({"q": q[:, :5]}, "2 key heads do not divide 5 query heads"),
        ({"prompt_kv": prompt_kv[0]}, r"prompt_kv must be torch.float32 \[2, tokens, Hkv, 16\]"),
        ({"own_kv": own_kv.double()}, r"own_kv must be torch.float32 .* got torch.float64 \[2, \d+, 2, 16\]"),
        ({"own_kv": own_kv.mT.contiguous().mT}, "the last two dimensions of own_kv must be contiguous"),
        ({"prompt_kv": prompt_kv[:, :, :1]}, "1 heads in prompt_kv, 2 in own_kv"),
        ({"layout": layout.long()}, r"layout must be torch.int32 \[4, 1\], got torch.int64 \[4, 1\]"),
        ({"layout": layout[:, :0]}, r"layout must be torch.int32 \[4, 1\]"),
        ({"append": (append[0], append[1][:0])}, r"append's v must be torch.float32 \[1, 2, 16\], got .* \[0, 2, 16\]"),
        ({"layout": layout.to("meta")}, "tensors must be on one device"),
        ({"window": 0}, r"window must be positive and below 2\^31, got 0"),
        ({"window": 2**31}, "window must be positive"),
        ({"scale": 0.0}, "scale must be positive, got 0.0"),
        ({"impl": "flash"}, "impl must be one of auto, triton, reference, csrc, got 'flash'"),
    ):
        given: dict[str, Any] = {"q": q, "prompt_kv": prompt_kv, "own_kv": own_kv, "layout": layout} | changed
        with pytest.raises(ValueError, match=f"^decode_attention: {message}"):
            decode_attention(**given)
