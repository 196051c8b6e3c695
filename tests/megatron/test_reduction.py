"""Buckets are reduced once each, in their order, and no sooner than their gradients are there."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("megatron.core")


class Buckets:
    """A chunk of buckets of weights, numbered from 0 on, that notes which reductions begin."""

    def __init__(self, *sizes: int) -> None:
        from rmfast.parallel.megatron.reduction import Reduction

        self.begun: list[int] = []
        self.weights = [[nn.Parameter(torch.zeros(1)) for _ in range(size)] for size in sizes]
        self.chunk: Any = SimpleNamespace(
            bucket_groups=[
                SimpleNamespace(params=set(weights), start_grad_sync=lambda number=number: self.begun.append(number))
                for number, weights in enumerate(self.weights)
            ]
        )
        self.reduction = Reduction(self.chunk)

    def give(self, *numbers: tuple[int, int]) -> None:
        """Gradients of the last pack, in this order, by number of the bucket and in it."""
        for bucket, weight in numbers:
            parameter = self.weights[bucket][weight]
            self.chunk.param_to_bucket_group[parameter].register_grad_ready(parameter, False)


def test_a_full_bucket_waits_for_those_before_it() -> None:
    buckets = Buckets(2, 1, 1)
    buckets.reduction.reset()
    buckets.give((1, 0), (0, 0))
    assert buckets.begun == []
    buckets.give((0, 1))
    assert buckets.begun == [0, 1]
    buckets.give((2, 0))
    buckets.reduction.begin_all()
    assert buckets.begun == [0, 1, 2]


def test_nothing_is_sent_before_the_last_pack_and_the_rest_behind_it() -> None:
    buckets = Buckets(1, 2)
    for _ in range(2):
        buckets.begun.clear()
        buckets.reduction.reset()
        with buckets.reduction.no_sync():
            buckets.give((0, 0), (1, 0), (1, 1))
        assert buckets.begun == []
        buckets.give((0, 0), (1, 1))
        assert buckets.begun == [0]
        buckets.reduction.begin_all()
        assert buckets.begun == [0, 1]


def test_weights_that_a_step_does_not_use_are_not_waited_for() -> None:
    buckets = Buckets(1, 2, 1)
    buckets.reduction.reset([buckets.weights[0][0], buckets.weights[1][1]])
    buckets.give((1, 0))
    assert buckets.begun == [0, 1]


def test_a_gradient_that_comes_again_or_unasked_is_an_error() -> None:
    """The sum that is on its way lacks it."""
    buckets = Buckets(1, 1)
    buckets.reduction.reset(buckets.weights[1])
    buckets.give((0, 0))
    for number in (0, 1):
        with pytest.raises(AssertionError, match="after its bucket"):
            buckets.give((number, 0))
