"""What the references hold at a time: no table of all pairs or logits, forward and backward, tensor by tensor."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rmfast.kernels import difference_loss, info_nce, linear_log_prob, sinkhorn, swapped_prediction_loss
from rmfast.kernels.info_nce import op as info_nce_op
from rmfast.kernels.info_nce import reference as info_nce_reference
from rmfast.kernels.linear_log_prob import op as log_prob_op
from rmfast.kernels.linear_log_prob import reference as log_prob_reference
from tests.tiny import Results


class Inside:
    """A module's functions, each run under `Results`: a mode does not see into a custom op that it meets."""

    def __init__(self, module: object, results: Results) -> None:
        self._module, self._results = module, results

    def __getattr__(self, name: str) -> Callable[..., object]:
        def watched(*args: object) -> object:
            with self._results:
                return getattr(self._module, name)(*args)

        return watched


def normal(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def largest(loss: Callable[[], Tensor], results: Results) -> int:
    """Elements of the largest tensor that a loss and its gradients make."""
    with results:
        loss().backward()
    return results.largest


def test_info_nce(monkeypatch: pytest.MonkeyPatch) -> None:
    results, count, width = Results(), 4096, 16
    monkeypatch.setattr(info_nce_op, "reference", Inside(info_nce_reference, results))
    monkeypatch.setattr(info_nce_reference, "CHUNK_BYTES", 1 << 23)
    queries, keys = normal(count, width), normal(count, width)
    most = largest(lambda: info_nce(queries, keys, temperature=0.1, impl="reference"), results)
    assert count * width < most <= (1 << 23) // 4 < count**2 / 4


def test_linear_log_prob(monkeypatch: pytest.MonkeyPatch) -> None:
    results, rows, vocabulary = Results(), 1024, 32768
    monkeypatch.setattr(log_prob_op, "reference", Inside(log_prob_reference, results))
    monkeypatch.setattr(log_prob_reference, "CHUNK_BYTES", 1 << 23)
    hidden, weight, target = normal(rows, 4), normal(vocabulary, 4), torch.randint(vocabulary, (rows,))
    most = largest(lambda: torch.cat(linear_log_prob(hidden, weight, target, impl="reference")).sum(), results)
    assert vocabulary * 4 < most <= (1 << 23) // 4 < rows * vocabulary / 4


def test_the_chunks_that_ship_are_bounded() -> None:
    """The tests above set smaller ones, to be quick."""
    for module in (info_nce_reference, log_prob_reference):
        assert module.CHUNK_BYTES <= 1 << 26


def test_difference_loss() -> None:
    count = 8192
    scores, group = normal(count), torch.arange(count) // 4
    results = Results()
    with results:
        loss = difference_loss(scores, group, impl="reference")
        kept = results.alive()
        loss.backward()
    assert count < results.largest <= 1 << 20 < count**2 / 4
    assert kept < 64 * 8 * count  # between forward and backward: a few numbers a sample


def test_sinkhorn_and_swapped_prediction_hold_the_scores() -> None:
    """They are as documented: tables of B x K, and none larger (both views' scores lie in one)."""
    batch, count, width = 300, 200, 8
    results = Results()
    with results:
        sinkhorn(torch.rand(batch, count), epsilon=0.05, iterations=3, impl="reference")
    assert results.largest == batch * count
    vectors = normal(batch, width), normal(batch, width), normal(count, width)
    loss = lambda: swapped_prediction_loss(*vectors, temperature=0.1, epsilon=0.05, iterations=3, impl="reference")  # noqa: E731
    assert batch * count <= largest(loss, Results()) <= 2 * batch * count
