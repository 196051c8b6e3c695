"""The compiled draw gives the tokens and log-probabilities of plain torch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rmfast.kernels import Drawn, compiled, draw_tokens
from rmfast.kernels.draw_tokens import csrc
from tests.kernels.draws import ALL, OPTIONS, drawn_many, keys_of, p_value, truth, with_seen, zeros

pytestmark = pytest.mark.usefixtures("csrc_library")


def both(logits: Tensor, **options: Any) -> tuple[Drawn, Drawn]:
    keys, positions = keys_of(len(logits), seed=3), torch.arange(len(logits)) % 5 + 2**33
    compiled, plain = (draw_tokens(logits, keys, positions, impl=impl, **options) for impl in ("csrc", "reference"))
    return compiled, plain


def assert_same(logits: Tensor, **options: Any) -> None:
    found, plain = both(logits, **options)
    assert torch.equal(found.tokens, plain.tokens), options
    for a, b in zip(found[1:], plain[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_are_plain_torchs(name: str, scale: float) -> None:
    for rows, vocabulary in ((200, 1000), (60, 256), (60, 255), (20, 5)):
        logits, seen = scale * torch.randn(rows, vocabulary), torch.rand(rows, vocabulary) < 0.2
        assert_same(logits, **with_seen(OPTIONS[name], seen))


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"top_k": 40, "temperature": 0.7}, {"top_k": 500}], ids=str)
def test_a_whole_vocabulary(options: dict[str, Any]) -> None:
    assert_same(3 * torch.randn(16, 49_152), **options)


@pytest.mark.parametrize("top_p", [1e-9, 0.01, 0.5, 0.999, 1 - 1e-7, 1 - 1e-15])
def test_top_p_from_one_end_to_the_other(top_p: float) -> None:
    for logits in (torch.randn(40, 900), 20 * torch.randn(40, 900), torch.randn(40, 900).round()):
        assert_same(logits, top_p=top_p)
        assert_same(logits, top_p=top_p, top_k=700)


def test_equal_and_infinitely_low_scores() -> None:
    for logits in (torch.zeros(40, 700), -torch.zeros(40, 700), torch.full((40, 700), -3e4)):
        for options in ({}, {"top_p": 0.3}, {"top_k": 3}, {"min_p": 1.0}, {"temperature": 0.0}):
            assert_same(logits, **options)
    logits = torch.randn(40, 700)
    logits[:, 50:650] = -torch.inf
    logits[::2, 650:] = torch.where(torch.rand(20, 50) < 0.5, 0.0, -0.0)
    for options in ({}, {"top_p": 0.9}, {"top_k": 60}, {"top_k": 300}, {"min_p": 0.1}, {"temperature": 0.0}):
        assert_same(logits, **options)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, ALL], ids=["plain", "greedy", "all"])
def test_a_row_without_a_distribution(options: dict[str, Any]) -> None:
    logits = torch.randn(7, 600)
    logits[0, 3], logits[2, 599], logits[4], logits[5] = torch.nan, torch.inf, -torch.inf, torch.nan
    logits[6] = -torch.inf
    logits[6, 300] = torch.nan
    seen = torch.rand(7, 600) < 0.5
    assert_same(logits, **with_seen(options, seen))
    drawn, _ = both(logits, **with_seen(options, seen))
    assert drawn.log_prob.isnan().tolist() == [True, False, True, False, True, True, True]
    assert not drawn.tokens[drawn.log_prob.isnan()].any()


def test_strides_sizes_and_first_ids() -> None:
    wide, marks = torch.randn(90, 2000), torch.rand(90, 2000) < 0.2
    for rows, columns in ((slice(None, None, 2), slice(100, 1100)), (slice(5, 50), slice(0, 1999))):
        assert_same(wide[rows, columns], seen=marks[rows, columns], **ALL)
    assert_same(wide, size=1234, first=512, temperature=0.9)
    assert_same(wide, size=700, top_p=0.9)
    assert_same(wide[:0])
    assert_same(wide, size=100, first=512)  # nothing to draw from


def test_log_probabilities_of_wide_logits() -> None:
    logits = 30 * torch.randn(500, 3000)
    drawn, _ = both(logits, temperature=30.0)
    for found, scores in ((drawn.log_prob, logits.double()), (drawn.behaviour_log_prob, (logits / 30).double())):
        truth = scores.log_softmax(1).gather(1, drawn.tokens[:, None])[:, 0]
        torch.testing.assert_close(found.double(), truth, rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_distribution(name: str, seed: int) -> None:
    """Of three blocks of 256."""
    options, logits, seen = OPTIONS[name], torch.randn(600), torch.rand(600) < 0.3
    logits[::20] += 4
    drawn = drawn_many(seed, logits, impl="csrc", **with_seen(options, seen))
    assert p_value(drawn.tokens, truth(logits, options, seen)) > 1e-4


def test_threads_change_nothing() -> None:
    logits = torch.randn(64, 3000)
    one, _ = both(logits, top_p=0.9)
    torch.set_num_threads(2)
    try:
        two = draw_tokens(logits, keys_of(64, seed=3), torch.arange(64) % 5 + 2**33, top_p=0.9, impl="csrc")
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_auto_takes_it_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.dtype] = []
    draw = csrc.draw

    def counted(logits: Tensor, *others: Any) -> Any:
        taken.append(logits.dtype)
        return draw(logits, *others)

    monkeypatch.setattr(csrc, "draw", counted)
    logits = torch.randn(4, 300)
    for x in (logits, logits.bfloat16(), logits.T.contiguous().T):
        draw_tokens(x, keys_of(4), zeros(4))
    assert taken == [torch.float32, torch.float32]
    with pytest.raises(
        ValueError, match="^draw_tokens: impl='csrc' is not possible: it takes rows that are contiguous"
    ):
        draw_tokens(logits.T.contiguous().T, keys_of(4), zeros(4), impl="csrc")
    monkeypatch.setattr(compiled, "missing", lambda: "the compiled ops are not built")
    draw_tokens(logits, keys_of(4), zeros(4))
    assert len(taken) == 2
    with pytest.raises(ValueError, match="^draw_tokens: impl='csrc' is not possible: the compiled ops are not built"):
        draw_tokens(logits, keys_of(4), zeros(4), impl="csrc")
