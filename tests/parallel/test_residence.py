"""Who is on the device: devices are played by names, for a CPU has none beside it."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from rmfast.parallel.residence import Residence
from rmfast.trainer.ppo.phases import Phases


@dataclass(eq=False)
class Weight:
    """A parameter: what it holds, and where that is."""

    name: str
    requires_grad: bool = False
    data: Any = None
    moves: list[str] = field(default_factory=list)

    @property
    def device(self) -> Any:
        return self.data.device

    def detach(self) -> Any:
        return self.data


@dataclass(frozen=True)
class Content:
    name: str
    device: Any

    def to(self, device: Any, non_blocking: bool = False) -> "Content":
        return Content(self.name, torch.device(device))


@dataclass(eq=False)
class Model:
    weights: list[Weight]
    moments: Any = torch.device("meta")

    def parameters(self) -> list[Weight]:
        return self.weights

    def move_moments(self, device: Any) -> None:
        self.moments = device


DEVICE, HOST = torch.device("meta"), torch.device("cpu")


def held(*models: Model) -> set[str]:
    """Names of the weights that are on the device."""
    return {w.name for model in models for w in model.weights if w.device == DEVICE}


def weight(name: str, trained: bool = False) -> Weight:
    return Weight(name, trained, Content(name, DEVICE))


@pytest.mark.parametrize("moments", [False, True])
def test_frozen_weights_are_where_they_are_read_and_trained_ones_stay(moments: bool) -> None:
    trunk = weight("trunk")
    policy, reference = Model([trunk, weight("adapter", True)]), Model([trunk])
    reward, critic = Model([weight("reward")]), Model([weight("frozen"), weight("critic", True)])
    every = (policy, reference, reward, critic)
    residence = Residence(every, DEVICE, moments=moments)
    residence.bring([policy], updating=False)
    assert held(*every) == {"trunk", "adapter", "critic"}
    residence.bring([reward], updating=False)
    assert held(*every) == {"reward", "adapter", "critic"}
    assert {model.moments for model in every} == {HOST if moments else DEVICE}
    residence.bring([reference, critic], updating=False)
    assert held(*every) == {"trunk", "adapter", "frozen", "critic"}
    residence.bring([policy, critic], updating=True)
    assert held(*every) == {"trunk", "adapter", "frozen", "critic"} and {model.moments for model in every} == {DEVICE}
    assert [w.data.name for model in every for w in model.weights] == [w.name for model in every for w in model.weights]


def test_a_phase_has_what_it_needs_before_it_begins_and_its_memory_after() -> None:
    asked: list[str] = []
    phases = Phases(HOST, asked.append)
    with phases("beginning"), phases("sampling"):
        assert asked == ["beginning", "sampling"]
    figures = phases.figures()
    assert list(figures) == ["memory_sampling_gib"] and 0.05 < figures["memory_sampling_gib"] < 100
    assert not phases.figures()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_network_computes_the_same_bits_after_it_was_away() -> None:
    layer = torch.nn.Linear(8, 8).cuda().requires_grad_(False)
    x = torch.randn(4, 8, device="cuda")
    before, device = layer(x), x.device

    class Engine:
        def parameters(self) -> list[torch.nn.Parameter]:
            return list(layer.parameters())

        def move_moments(self, device: torch.device) -> None:
            raise AssertionError("nobody asked for moments")

    residence = Residence([Engine()], device, moments=False)
    residence.bring([], updating=False)
    assert layer.weight.device.type == "cpu"
    residence.bring([Engine()], updating=False)
    assert layer.weight.device == device and torch.equal(layer(x), before)
