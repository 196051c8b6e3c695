"""Every layout that a number of GPUs allows, ranked by the time of a step among those that fit."""

from collections.abc import Iterator
from dataclasses import dataclass

from rmfast.launch.cost import Engine, Layout, Workload, memory, seconds
from rmfast.launch.hardware import Gpu
from rmfast.models.config import DecoderConfig
from rmfast.models.recompute import Recompute

RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Plan:
    """A layout with its bytes and seconds by what takes them."""

    layout: Layout
    bytes: dict[str, float]
    seconds: dict[str, float]

    @property
    def memory(self) -> float:
        return sum(self.bytes.values())

    @property
    def step(self) -> float:
        return sum(self.seconds.values())


def layouts(config: DecoderConfig, gpus: int, gpu: Gpu) -> Iterator[Layout]:
    """What divides: heads, key-value heads and ffn by tensor; layers by pipeline x virtual; tensor within a node."""
    native: tuple[Engine, ...] = ("ddp", "fsdp") if gpus > 1 else ("ddp",)
    for recompute in RECOMPUTE:
        for engine in native:
            yield Layout(engine, data=gpus, recompute=recompute)
        for tensor in _divisors(min(gpus, gpu.node)):
            if config.heads % tensor or config.kv_heads % tensor or config.ffn % tensor or gpus % tensor:
                continue
            for pipeline in _divisors(gpus // tensor):
                if config.layers % pipeline:
                    continue
                data = gpus // tensor // pipeline
                if tensor == pipeline == 1 and gpus == 1:
                    continue
                for virtual in (1, 2, 4) if pipeline > 1 else (1,):
                    if config.layers % (pipeline * virtual) == 0:
                        yield Layout("megatron", data, tensor, pipeline, virtual, tensor > 1, recompute)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def plans(config: DecoderConfig, gpus: int, gpu: Gpu, load: Workload) -> tuple[list[Plan], list[Plan]]:
    """Plans that fit into memory, fastest first; and those that do not, smallest first.

    Of adapters megatron's terms are not written yet.
    """
    able = (x for x in layouts(config, gpus, gpu) if load.adapters is None or x.engine != "megatron")
    made = [Plan(x, memory(config, x, load), seconds(config, x, load, gpu)) for x in able]
    fit = [plan for plan in made if plan.memory <= gpu.memory]
    rest = [plan for plan in made if plan.memory > gpu.memory]
    return sorted(fit, key=lambda plan: plan.step), sorted(rest, key=lambda plan: plan.memory)
