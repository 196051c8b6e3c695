"""How long each phase of a step of PPO takes. docs/plan.md derives every term."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from rmfast.launch.cost import Layout, Workload, parameters, seconds
from rmfast.launch.hardware import Gpu
from rmfast.launch.ppo_cost import Held
from rmfast.models.config import DecoderConfig


@dataclass(frozen=True)
class Step:
    """A step of all ranks.

    Attributes:
        prompts: of a step. samples: of a prompt. prompt, answer: tokens of each, on average.
        rows: samples that a rank decodes at once. epochs: passes over a step, of so many `minibatches`.
    """

    prompts: int
    samples: int
    prompt: float
    answer: float
    rows: int
    epochs: int = 1
    minibatches: int = 1

    @property
    def answers(self) -> float:
        """Tokens of all answers."""
        return self.prompts * self.samples * self.answer

    @property
    def tokens(self) -> int:
        """Computed tokens, prompts once."""
        return int(self.prompts * self.prompt + self.answers)

    @property
    def visible(self) -> int:
        """Pairs of a query and a key that it sees."""
        seen = self.samples * self.answer * (self.prompt + self.answer / 2)
        return int(self.prompts * (self.prompt**2 / 2 + seen))

    def load(self, pack: int, activation: int) -> Workload:
        """What a pass of one model over it computes."""
        count = self.prompts * self.samples
        return Workload(self.tokens, count, min(pack, self.tokens), self.visible, True, activation)


def phase_seconds(
    models: Sequence[Held], layout: Layout, step: Step, gpu: Gpu, *, pack: int, activation: int
) -> dict[str, float]:
    """Seconds of each phase of a step, one after the other as they run.

    Args:
        models: each is computed whole, also where several have one trunk.
        pack: tokens of a pack. activation: bytes of one.
    """
    load, shapes = step.load(pack, activation), {model.name: model.config for model in models}
    rewards = [model.config for model in models if model.name == "reward"]
    read = [model for model in models if model.name != "reward"]
    heads = _head(shapes["policy"], layout, step, gpu, activation)
    trained = [model for model in read if model.trained]
    return {
        "sampling": sampling_seconds(shapes["policy"], layout, step, gpu, activation),
        "scoring": sum(_forward(config, layout, load, gpu) for config in rewards),
        "reading": sum(_forward(m.config, layout, load, gpu) + heads * (m.name != "critic") for m in read),
        # Of log-probabilities the backward computes the logits again.
        "updating": sum(_updates(m, layout, load, step, gpu) for m in trained) + 4 * step.epochs * heads,
    }


def sampling_seconds(config: DecoderConfig, layout: Layout, step: Step, gpu: Gpu, activation: int) -> float:
    """Of a rank's prompts, computed once, and its tokens: a step of decoding draws one for each row, and takes the
    longer of its products and of reading weights, keys and values. Full rows and equal answers are assumed."""
    prompts = replace(step, samples=0)
    before = _forward(config, layout, prompts.load(prompts.tokens, activation), gpu)
    before += _gathered(config, layout, gpu, activation)
    of_rank = step.prompts * step.samples / layout.data
    rows = min(step.rows, of_rank)
    steps = of_rank / rows * step.answer
    part = layout.tensor * layout.pipeline
    weights = (config.layers * config.layer_parameters + config.vocabulary * config.width) / part
    token = 2 * config.kv_heads * config.head_dim * config.layers / part
    keys = token * rows * (step.prompt / step.samples + step.answer / 2)
    attention = 4 * config.layers * config.heads * config.head_dim * rows * (step.prompt + step.answer / 2) / part
    products = (2 * rows * weights + attention) / _rate(gpu, activation)
    return before + steps * max(products, activation * (weights + keys) / gpu.bandwidth)


def _rate(gpu: Gpu, activation: int) -> float:
    return (gpu.matrix if activation == 2 else gpu.single) * gpu.matrix_share


def _gathered(config: DecoderConfig, layout: Layout, gpu: Gpu, activation: int) -> float:
    """Seconds in which fsdp brings all weights to a rank; 0 elsewhere."""
    if layout.engine != "fsdp":
        return 0.0
    link = (gpu.nvlink if layout.data <= gpu.node else gpu.network) * gpu.link_share
    return activation * parameters(config) * (layout.data - 1) / layout.data / link


def _forward(config: DecoderConfig, layout: Layout, load: Workload, gpu: Gpu) -> float:
    """A pass without gradients: a third of what a step computes. fsdp gathers layers with each pack, beside it."""
    found = seconds(config, replace(layout, recompute="none"), load, gpu)
    busy = sum(found[term] for term in ("compute", "elementwise", "tensor", "bubble")) / 3 + found["pipeline"] / 2
    packs = max(1, ceil(load.tokens / layout.data / load.pack))
    return max(busy, packs * _gathered(config, layout, gpu, load.activation))


def _head(config: DecoderConfig, layout: Layout, step: Step, gpu: Gpu, activation: int) -> float:
    """Logits of all answers' tokens, once."""
    return 2 * config.vocabulary * config.width * step.answers / layout.world / _rate(gpu, activation)


def _updates(model: Held, layout: Layout, load: Workload, step: Step, gpu: Gpu) -> float:
    """All updates of a model, but for logits."""
    part = replace(
        load,
        tokens=max(1, load.tokens // step.minibatches),
        visible=load.visible // step.minibatches,
        adapters=model.trained if model.trained < model.weights else None,
    )
    return step.epochs * step.minibatches * sum(seconds(model.config, layout, part, gpu).values())
