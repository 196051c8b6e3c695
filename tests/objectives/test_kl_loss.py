"""Estimators of the KL: over all tokens of a small vocabulary their gradient is the KL's."""

import pytest
import torch
from torch import Tensor

from rmfast.objectives.policy import kl_loss

VOCABULARY = 6


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    log_pi = logits.log_softmax(-1)
    return (log_pi.exp() * (log_pi - reference)).sum()


def expected(logits: Tensor, reference: Tensor, old: Tensor, estimator: str) -> Tensor:
    """Over every token, by how often the old policy draws it."""
    return (old.exp() * kl_loss(logits.log_softmax(-1), old, reference, estimator)).sum()  # type: ignore[arg-type]


def logits(seed: int, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("estimator", "moved"), [("k2", 0.0), ("k3", 0.0), ("k3", 0.4), ("k3", 2.0)])
def test_the_expected_gradient_is_that_of_the_kl(estimator: str, moved: float) -> None:
    policy, reference = logits(0).requires_grad_(), logits(1).log_softmax(-1)
    old = (policy.detach() + moved * logits(2)).log_softmax(-1)
    (want,) = torch.autograd.grad(kl(policy, reference), policy)
    (got,) = torch.autograd.grad(expected(policy, reference, old, estimator), policy)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    assert want.abs().max() > 0.1
    if estimator == "k3":
        torch.testing.assert_close(expected(policy, reference, old, estimator), kl(policy, reference))


def test_k2_is_not_that_of_the_kl_once_the_policy_has_moved() -> None:
    policy, reference = logits(0).requires_grad_(), logits(1).log_softmax(-1)
    old = (policy.detach() + 0.4 * logits(2)).log_softmax(-1)
    (want,) = torch.autograd.grad(kl(policy, reference), policy)
    (got,) = torch.autograd.grad(expected(policy, reference, old, "k2"), policy)
    assert (got - want).norm() > 0.05 * want.norm()


@pytest.mark.parametrize("gap", [-20.0, -5.0, -1e-3, 0.0, 1e-3, 5.0, 20.0])
@pytest.mark.parametrize("log_ratio", [0.0, 0.7])
def test_values_and_slopes_in_fp32(gap: float, log_ratio: float) -> None:
    """Both to the last digits, where exp(-gap) is 5e8 and where nearly nothing is left of it."""
    log_prob = torch.tensor([-3.0], requires_grad=True)
    old, reference = log_prob.detach() - log_ratio, log_prob.detach() - gap
    h = (log_prob.detach() - reference).double().item()
    rho = (log_prob.detach() - old).double().exp().item()
    value = kl_loss(log_prob, old, reference, "k3")
    (slope,) = torch.autograd.grad(value.sum(), log_prob)
    truth = torch.tensor([-h], dtype=torch.float64).expm1().item() + h
    assert value.item() == pytest.approx(rho * truth, rel=1e-3 if abs(h) < 1e-2 else 1e-6)
    assert slope.item() == pytest.approx(rho * h, rel=1e-6)
    value = kl_loss(log_prob, old, reference, "k2")
    (slope,) = torch.autograd.grad(value.sum(), log_prob)
    assert value.item() == pytest.approx(0.5 * h * h, rel=1e-6) and slope.item() == pytest.approx(h, rel=1e-6)
