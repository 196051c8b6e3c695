"""Draws have the distribution that the options say: chi-square of 20,000 of them against a sort in fp64."""

import pytest
import torch

from rmfast.kernels.draw_tokens import noise, reference
from tests.kernels.draws import OPTIONS, drawn_many, keys_of, p_value, truth, with_seen

SEEDS = [0, 1, 2]
LEAST = 1e-4


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 ids, so that few have two levels."""
    monkeypatch.setattr(reference, "BLOCK", 16)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(small_blocks: None, name: str, seed: int) -> None:
    options, logits, seen = OPTIONS[name], torch.randn(50), torch.rand(50) < 0.3
    drawn = drawn_many(seed, logits, **with_seen(options, seen))
    probabilities = truth(logits, options, seen)
    assert (probabilities > 0).sum() >= 5
    assert p_value(drawn.tokens, probabilities) > LEAST
    torch.testing.assert_close(drawn.behaviour_log_prob, probabilities.log()[drawn.tokens].float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_top_p_with_ties(small_blocks: None, seed: int) -> None:
    """Ten ids share the score in which 0.75 is reached; all of them are drawn."""
    logits = torch.tensor([3.0, 2.0] + [0.5] * 10 + [-1.0] * 22)
    probabilities = truth(logits, {"top_p": 0.75}, torch.zeros(34, dtype=torch.bool))
    assert (probabilities > 0).sum() == 12 and logits.softmax(0)[:3].sum() < 0.75 < logits.softmax(0)[:11].sum()
    assert p_value(drawn_many(seed, logits, top_p=0.75).tokens, probabilities) > LEAST


def test_blocks_of_256() -> None:
    logits = 2 * torch.randn(600)
    assert p_value(drawn_many(0, logits).tokens, logits.double().softmax(0)) > LEAST


@pytest.mark.parametrize("level", [noise.BLOCKS, noise.IDS])
def test_uniforms_are_uniform_and_independent(level: int) -> None:
    keys, positions = keys_of(5000)[:, None], torch.arange(2)[:, None, None]
    u = (noise.uniforms(keys, positions, level, torch.arange(2)) * 10).long()  # [position, row, index]
    flat = torch.full((100,), 0.01, dtype=torch.float64)
    for a, b in ((u[0, :, 0], u[0, :, 1]), (u[0, :, 0], u[1, :, 0]), (u[0, :-1, 0], u[0, 1:, 0])):
        assert p_value(a * 10 + b, flat) > LEAST


def test_chi_square_sees_a_wrong_distribution(small_blocks: None) -> None:
    logits = torch.randn(40)
    assert p_value(drawn_many(0, logits, temperature=0.9).tokens, logits.double().softmax(0)) < LEAST
