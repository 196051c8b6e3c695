"""AdamW with clipping equals torch's over many steps, and a step that is not finite leaves no trace."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.trainer_pt_utils import get_parameter_names

from rmfast.errors import UserError
from rmfast.kernels import compiled
from rmfast.kernels.multi_tensor import apex
from rmfast.parallel.optimizer import AdamWOptions, Optimizer
from rmfast.parallel.world import World
from tests.packages import installed


class Block(nn.Module):
    """One weight of every kind that a decoder has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.qkv = nn.Linear(6, 5)
        self.attention_norm = LlamaRMSNorm(6)
        self.norm = LlamaRMSNorm(5)
        self.head = nn.Linear(5, 1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.qkv(self.attention_norm(self.embed(tokens)))))


def twins() -> tuple[Block, Block]:
    torch.manual_seed(0)
    ours, theirs = Block(), Block()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def losses(block: Block, steps: int) -> Iterator[Tensor]:
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        tokens = torch.randint(11, (7,), generator=draw)
        yield 10.0 ** (step % 3 - 1) * block(tokens).square().sum()  # norms on both sides of the clip


def snapshot(block: Block, optimizer: Optimizer) -> list[Tensor]:
    moments = [tensor for parts in optimizer.state().values() for tensor in parts.values()]
    return [tensor.detach().clone() for tensor in [*block.parameters(), *moments, optimizer.steps]]


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equal_to_torch_with_the_decay_groups_of_transformers(clip: float, decay: float) -> None:
    ours, theirs = twins()
    options = AdamWOptions(betas=(0.8, 0.95), eps=1e-7, weight_decay=decay, clip=clip)
    optimizer = Optimizer(ours.named_parameters(), options, World(), sharded=False)
    # As transformers' Trainer.get_decay_parameter_names.
    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decayed = set(get_parameter_names(theirs, [nn.LayerNorm], forbidden))
    assert decayed == {"embed.weight", "qkv.weight", "head.weight"}
    named = dict(theirs.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if n in decayed], "weight_decay": decay},
        {"params": [p for n, p in named.items() if n not in decayed], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95), eps=1e-7)
    clipped = []
    for step, (mine, other) in enumerate(zip(losses(ours, 12), losses(theirs, 12), strict=True)):
        lr = 1e-2 * (step + 1) / 12
        mine.backward()
        other.backward()
        norm = optimizer.step(lr)
        optimizer.zero_grad()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), clip or float("inf"))
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
        reference.zero_grad()
        clipped.append(bool(norm > 1.0))
        torch.testing.assert_close(norm, expected, rtol=1e-5, atol=0)
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter, named[name], rtol=1e-5, atol=1e-6, msg=f"step {step}: {name}")
    assert set(clipped) == {True, False}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    ours, theirs = twins()
    options = AdamWOptions(weight_decay=0.1)
    optimizer = Optimizer(ours.named_parameters(), options, World(), sharded=False)
    reference = Optimizer(theirs.named_parameters(), options, World(), sharded=False)
    for step, (mine, other) in enumerate(zip(losses(ours, 4), losses(theirs, 4), strict=True)):
        mine.backward()
        if step == 2:  # a step that the twin never takes
            ours.qkv.weight.grad[0, 0] = bad  # type: ignore[index]
            before = snapshot(ours, optimizer)
            assert not optimizer.step(1e-2).isfinite()
            assert all(torch.equal(a, b) for a, b in zip(before, snapshot(ours, optimizer), strict=True))
            optimizer.zero_grad()
            assert all(parameter.grad is None for parameter in ours.parameters())
            continue
        other.backward()
        assert optimizer.step(1e-2).isfinite()
        reference.step(1e-2)
        optimizer.zero_grad()
        reference.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(snapshot(ours, optimizer), snapshot(theirs, reference), strict=True))


def test_a_step_that_is_not_valid_changes_nothing_though_its_gradient_is_finite() -> None:
    ours, _ = twins()
    optimizer = Optimizer(ours.named_parameters(), AdamWOptions(), World(), sharded=False)
    first, second = losses(ours, 2)
    first.backward()
    before = snapshot(ours, optimizer)
    assert optimizer.step(1e-2, torch.tensor(False)).isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(ours, optimizer), strict=True))
    optimizer.zero_grad()
    second.backward()
    optimizer.step(1e-2, torch.tensor(True))
    assert not torch.equal(before[0], ours.embed.weight)


def test_frozen_weights_are_left_out_and_a_rank_may_own_nothing() -> None:
    block, _ = twins()
    block.requires_grad_(False)
    optimizer = Optimizer(block.named_parameters(), AdamWOptions(), World(), sharded=False)
    assert optimizer.state() == {"exp_avg": {}, "exp_avg_sq": {}}
    assert optimizer.step(1e-2) == 0
    block.head.requires_grad_(True)
    optimizer = Optimizer(block.named_parameters(), AdamWOptions(), World(), sharded=False)
    before = block.embed.weight.clone()
    next(losses(block, 1)).backward()
    optimizer.step(1e-2)
    assert set(optimizer.state()["exp_avg"]) == {"head.weight"}
    assert torch.equal(before, block.embed.weight)


def test_apex_takes_the_same_steps_also_where_it_clips_and_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "missing", lambda: "not for this test")
    ours, theirs = twins()
    with installed("nvidia_apex") as patch:
        patch.setattr(apex, "refusal", lambda *_: None)  # it wants a GPU
        options = AdamWOptions(betas=(0.8, 0.95), weight_decay=0.1, backend="apex")
        optimizer = Optimizer(ours.named_parameters(), options, World(), sharded=False)
        reference = Optimizer(theirs.named_parameters(), replace(options, backend="auto"), World(), sharded=False)
        assert (optimizer.backend, reference.backend) == ("apex", "torch")
        for step, (mine, other) in enumerate(zip(losses(ours, 12), losses(theirs, 12), strict=True)):
            for loss, taker in ((mine, optimizer), (other, reference)):
                loss.backward()
                before = snapshot(ours, optimizer)
                norm = taker.step(1e-2, torch.tensor(step != 5))
                taker.zero_grad()
                if taker is optimizer:
                    same = [torch.equal(a, b) for a, b in zip(before, snapshot(ours, optimizer), strict=True)]
                    assert all(same) == (step == 5)
                    found = norm
            torch.testing.assert_close(found, norm, rtol=1e-5, atol=0)
        assert optimizer.steps == 11
    for got, want in zip(snapshot(ours, optimizer), snapshot(theirs, reference), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_backend_that_cannot_take_the_weights_is_refused_when_the_optimizer_is_made() -> None:
    block, _ = twins()
    with installed("nvidia_apex"), pytest.raises(UserError, match="optim.backend: apex is not possible: .* one GPU"):
        Optimizer(block.named_parameters(), AdamWOptions(backend="apex"), World(), sharded=False)
    with pytest.raises(UserError, match="optim.backend: csrc is not possible: it takes masters in fp32"):
        Optimizer(block.double().named_parameters(), AdamWOptions(backend="csrc"), World(), sharded=False)
