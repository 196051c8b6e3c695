"""The draw in plain torch: its noise, what is kept, log-probabilities, and that a row depends on nothing but itself."""

import math
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rmfast.kernels import draw_tokens, row_keys
from rmfast.kernels.draw_tokens import noise, threshold
from rmfast.kernels.draw_tokens import reference as plain
from rmfast.kernels.draw_tokens.options import Options
from tests.kernels.draws import ALL, OPTIONS, keys_of, processed, with_seen, zeros


def words(text: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([int(word, 16)]) for word in text.split())


# Counter, key and result of the known-answer tests of Random123 (Salmon et al. 2011).
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_gives_the_published_words(counter: str, key: str, result: str) -> None:
    assert noise.philox(words(counter), words(key)) == words(result)


def test_a_rows_key_is_philox_of_seed_draw_number_and_sample() -> None:
    def signed(text: str) -> int:
        return int.from_bytes(bytes.fromhex(text), signed=True)

    number, sample = (torch.tensor([signed(text)]) for text in ("85a308d3243f6a88", "0370734413198a2e"))
    assert row_keys(0x299F31D0A4093822, number, sample) == signed("94fdccebd16cfe09")
    assert torch.equal(row_keys(-1, zeros(1), zeros(1)), row_keys(2**64 - 1, zeros(1), zeros(1)))


def test_seed_draw_number_and_sample_each_change_the_key() -> None:
    numbers = torch.tensor([0, 1, -1, -(2**63), 2**63 - 1, 2**32])
    grid = torch.cartesian_prod(numbers, torch.tensor([0, 1, 2, 2**32]))
    keys = torch.cat([row_keys(seed, *grid.T) for seed in (0, 1, 2**40)])
    assert len(keys.unique()) == len(keys) == 72


def test_key_position_level_and_index_each_change_the_noise() -> None:
    keys, positions = torch.tensor([0, 1, 2**32]), torch.tensor([0, 1, 2**31, 2**32])
    found = [
        noise.uniforms(keys[:, None, None], positions[:, None], level, torch.arange(3))
        for level in (noise.BLOCKS, noise.IDS)
    ]
    assert len(torch.stack(found).unique()) == 2 * 3 * 4 * 3


def test_no_uniform_is_0_or_1(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, u in ((0, 2.0**-53), (noise.WORD, 1 - 2.0**-53)):
        monkeypatch.setattr(noise, "philox", lambda *_, word=word: (torch.tensor([word]),) * 4)
        assert noise.uniforms(zeros(1), zeros(1), 0, zeros(1)) == u
        (value,) = noise.gumbel(zeros(1), zeros(1), 0, zeros(1)).tolist()
        assert value == pytest.approx(-math.log(-math.log(u)), rel=1e-12) and -3.7 < value < 36.8


@pytest.mark.parametrize("name", OPTIONS)
def test_scores_and_what_is_kept_are_transformers(name: str) -> None:
    logits, seen = 2 * torch.randn(300, 1000), torch.rand(300, 1000) < 0.2
    options = Options(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
                      | OPTIONS[name])  # fmt: skip
    scores = plain.adjusted(logits, seen, options)
    keep = threshold.kept(plain.blocks(scores), options, None)
    kept = scores if keep is None else scores.masked_fill(~keep.flatten(1)[:, :1000], -torch.inf)
    assert torch.equal(kept, processed(logits, OPTIONS[name], seen))


@pytest.mark.parametrize("name", ["top-k", "top-p", "all"])
def test_of_ties_transformers_may_leave_some_and_the_draw_keeps_all(name: str) -> None:
    logits, options = torch.randn(200, 300).mul(4).round() / 4, dict(OPTIONS[name], repetition_penalty=1.0)
    whole = Options(**{"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0} | options)
    scores = plain.adjusted(logits, None, whole)
    keep = threshold.kept(plain.blocks(scores), whole, None).flatten(1)[:, :300]
    theirs = processed(logits, options, torch.zeros_like(logits, dtype=torch.bool)) > -torch.inf
    least = scores.masked_fill(~theirs, torch.inf).amin(1, keepdim=True)
    assert torch.equal(keep, scores >= least)
    assert torch.equal(keep, theirs) == (name == "top-k")


@pytest.mark.parametrize("name", OPTIONS)
def test_log_probabilities(name: str) -> None:
    logits, seen = 3 * torch.randn(200, 700), torch.rand(200, 700) < 0.2
    drawn = draw_tokens(logits, keys_of(200), zeros(200), impl="reference", **with_seen(OPTIONS[name], seen))
    raw = logits.double().log_softmax(1).gather(1, drawn.tokens[:, None])[:, 0]
    behaviour = processed(logits, OPTIONS[name], seen).double().log_softmax(1).gather(1, drawn.tokens[:, None])[:, 0]
    torch.testing.assert_close(drawn.log_prob.double(), raw, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.behaviour_log_prob.double(), behaviour, rtol=0, atol=1e-5)


def test_greedy_takes_the_lowest_of_equal_ids_after_the_penalty() -> None:
    logits, seen = torch.full((3, 600), -1.0), torch.zeros(3, 600, dtype=torch.bool)
    logits[0, [599, 300, 301]] = 2.0
    logits[1, [5, 400]] = torch.tensor([2.0, 1.5])
    seen[1, 5] = seen[2, :7] = True
    drawn = draw_tokens(
        logits, keys_of(3), zeros(3), temperature=0.0, top_p=0.5, repetition_penalty=2.0, seen=seen, impl="reference"
    )
    assert drawn.tokens.tolist() == [300, 400, 7] and drawn.behaviour_log_prob.tolist() == [0, 0, 0]
    torch.testing.assert_close(drawn.log_prob, logits.log_softmax(1)[range(3), drawn.tokens])


@pytest.mark.parametrize("padding", [0.0, 50.0, torch.inf, torch.nan])
def test_ids_beyond_the_tokenizers_have_no_weight(padding: float) -> None:
    logits = torch.randn(300, 600)
    logits[:, 310:] = padding
    drawn = draw_tokens(logits, keys_of(300), zeros(300), size=310, top_p=0.99, impl="reference")
    alone = draw_tokens(logits[:, :310], keys_of(300), zeros(300), top_p=0.99, impl="reference")
    assert all(torch.equal(a, b) for a, b in zip(drawn, alone, strict=True)) and drawn.tokens.max() < 310
    raw = logits[:, :310].double().log_softmax(1).gather(1, drawn.tokens[:, None])[:, 0]
    torch.testing.assert_close(drawn.log_prob.double(), raw, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
def test_a_row_does_not_depend_on_its_company(options: dict[str, Any]) -> None:
    logits, seen, keys, positions = torch.randn(40, 700), torch.rand(40, 700) < 0.2, keys_of(40), torch.arange(40) % 3
    whole = draw_tokens(logits, keys, positions, impl="reference", **with_seen(options, seen))
    for rows in (torch.arange(1), torch.arange(39, 20, -1), torch.tensor([7, 7, 3])):
        given = with_seen(options, seen[rows])
        some = draw_tokens(logits[rows], keys[rows], positions[rows], impl="reference", **given)
        assert all(torch.equal(a[rows], b) for a, b in zip(whole, some, strict=True))


def test_equal_rows_of_other_keys_or_positions_draw_others() -> None:
    logits, key = torch.zeros(50, 1000), keys_of(1)
    assert len(draw_tokens(logits, keys_of(50), zeros(50), impl="reference").tokens.unique()) > 40
    assert len(draw_tokens(logits, key.expand(50), torch.arange(50), impl="reference").tokens.unique()) > 40
    assert len(draw_tokens(logits, key.expand(50), zeros(50), impl="reference").tokens.unique()) == 1


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_row_without_a_distribution_gives_nan_and_no_other_does(temperature: float) -> None:
    logits = torch.randn(6, 300)
    clean = draw_tokens(logits, keys_of(6), zeros(6), temperature=temperature, top_p=0.9, impl="reference")
    logits[1, 7], logits[2, 290], logits[4] = torch.nan, torch.inf, -torch.inf
    logits[5, clean.tokens[5] - 1] = -torch.inf
    drawn = draw_tokens(logits, keys_of(6), zeros(6), temperature=temperature, top_p=0.9, impl="reference")
    bad = torch.tensor([False, True, True, False, True, False])
    assert torch.equal(drawn.log_prob.isnan(), bad) and torch.equal(drawn.behaviour_log_prob.isnan(), bad)
    assert not drawn.tokens[bad].any() and torch.equal(drawn.tokens[~bad], clean.tokens[~bad])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_and_strided_logits_are_as_their_fp32_copies(dtype: torch.dtype) -> None:
    logits, seen = torch.randn(20, 600).to(dtype), torch.rand(20, 600) < 0.2
    turned = (logits.T.contiguous().T, seen.T.contiguous().T)
    for x, marks in ((logits, seen), turned, (logits[::2, 30:], seen[::2, 30:])):
        rows = len(x)
        given = [(x, marks), (x.float().contiguous(), marks.contiguous())]
        a, b = (draw_tokens(y, keys_of(rows), zeros(rows), seen=m, **ALL, impl="reference") for y, m in given)
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
        assert a.log_prob.dtype == a.behaviour_log_prob.dtype == torch.float32 and a.tokens.dtype == torch.int64


def test_edges_of_the_options() -> None:
    """Filters that keep all or one, more of them than there are ids, and logits of -inf, which weigh nothing."""
    logits = torch.randn(30, 300)
    logits[:, 100:] = -torch.inf
    keys, best = keys_of(30), logits.argmax(1)
    plain_draw = draw_tokens(logits, keys, zeros(30), impl="reference")
    assert plain_draw.tokens.max() < 100
    for options in ({"top_k": 200}, {"top_k": 10**6}, {"top_p": 1 - 1e-15}, {"min_p": 1e-30}):
        drawn = draw_tokens(logits, keys, zeros(30), impl="reference", **options)
        assert torch.equal(drawn.tokens, plain_draw.tokens), options
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-5}):
        drawn = draw_tokens(logits, keys, zeros(30), impl="reference", **options)
        assert torch.equal(drawn.tokens, best) and (drawn.behaviour_log_prob.abs() < 1e-6).all(), options
    none = draw_tokens(logits[:0], keys[:0], zeros(0), top_p=0.9, impl="reference")
    assert [len(x) for x in none] == [0, 0, 0]


def test_nothing_waits_for_the_device() -> None:
    """Fake tensors have no values: whatever asks for one fails."""
    with FakeTensorMode(), torch.inference_mode():
        seen = torch.zeros(3, 600, dtype=torch.bool)
        drawn = draw_tokens(torch.zeros(3, 600), zeros(3), zeros(3), seen=seen, size=500, impl="reference", **ALL)
        greedy = draw_tokens(torch.zeros(3, 600), zeros(3), zeros(3), temperature=0.0, impl="reference")
    assert drawn.tokens.shape == greedy.tokens.shape == (3,)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++"))), reason="no C++ compiler")
def test_compiled_noise_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a product left int64, compiled code would give other words. Three rounds are soon compiled."""
    monkeypatch.setattr(noise, "ROUNDS", 3)
    given = (keys_of(4)[:, None], zeros(4)[:, None], noise.IDS, torch.arange(300))
    torch._dynamo.reset()
    compiled = torch.compile(noise.uniforms, fullgraph=True, dynamic=False)
    assert torch.equal(compiled(*given), noise.uniforms(*given))


def test_the_op_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few rounds and one bisection, which are soon traced."""
    monkeypatch.setattr(noise, "ROUNDS", 3)
    logits, seen = torch.randn(5, 600), torch.rand(5, 600) < 0.2

    def draw(x: Tensor, impl: str) -> tuple[Tensor, ...]:
        return draw_tokens(x, keys_of(5), zeros(5), seen=seen, impl=impl, **ALL | {"top_k": 0})

    torch._dynamo.reset()
    graph = torch.compile(draw, fullgraph=True, backend="eager")
    for a, b in zip(graph(logits, "auto"), draw(logits, "reference"), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(4)}, r"logits must be fp32, bf16 or fp16 \[R, V\], got torch.float32 \[4\]"),
        ({"logits": torch.zeros(2, 4, dtype=torch.float64)}, "logits must be fp32"),
        ({"logits": torch.zeros(2, 0)}, "logits must be fp32"),
        ({"keys": torch.zeros(2)}, r"keys must be int64 \[2\], got torch.float32 \[2\]"),
        ({"positions": zeros(3)}, r"positions must be int64 \[2\], got torch.int64 \[3\]"),
        ({"temperature": -1.0}, r"temperature must be 0 \(greedy\) or at least 1e-05, got -1.0"),
        ({"temperature": 1e-9}, "temperature must be 0"),
        ({"temperature": math.nan}, "temperature must be 0"),
        ({"top_k": -1}, r"top_k must be 0 \(all\) or more, a whole number of 64 bits, got -1"),
        ({"top_k": 2**63}, r"top_k must be 0 \(all\) or more, a whole number of 64 bits, got 9223372036854775808"),
        ({"top_k": 2.5}, r"top_k must be 0 \(all\) or more, a whole number of 64 bits, got 2.5"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"min_p": 1.5}, "min_p must be from 0 to 1, got 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be positive, got 0.0"),
        ({"repetition_penalty": 1.1}, "repetition_penalty needs seen"),
        ({"seen": torch.zeros(2, 3, dtype=torch.bool)}, r"seen must be bool \[2, 4\], got torch.bool \[2, 3\]"),
        ({"size": 0}, "size must be positive, got 0"),
        ({"first": 100}, "first must be a multiple of 256 from 0 on, got 100"),
        ({"impl": "triton"}, "impl must be one of auto, csrc, reference, got 'triton'"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"logits": torch.zeros(2, 4), "keys": zeros(2), "positions": zeros(2)} | change
    with pytest.raises(ValueError, match=f"^draw_tokens: {message}"):
        draw_tokens(**arguments)


def test_errors_of_keys() -> None:
    with pytest.raises(ValueError, match=r"^row_keys: samples must be int64 \[R\], got torch.float32 \[2\]"):
        row_keys(0, zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"^row_keys: samples must be \[2\] as draw_numbers, got \[3\]"):
        row_keys(0, zeros(2), zeros(3))
