"""What each phase of a step of PPO takes of a GPU's memory. docs/plan.md derives every term."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rmfast.launch.cost import RESERVE, Layout, Workload, memory, saved_bytes
from rmfast.models.config import DecoderConfig

NEEDS: dict[str, tuple[str, ...]] = {
    "sampling": ("policy",),
    "scoring": ("reward",),
    "reading": ("policy", "critic", "reference"),
    "updating": ("policy", "critic"),
}
"""Whose weights a phase reads."""


@dataclass(frozen=True)
class Held:
    """A model of a run.

    Attributes:
        name: policy, critic, reference or reward, of which there may be several.
        trunk: what its weights are of; models of one trunk hold them once.
        weights: of the trunk and heads. trained: how many weights are trained, adapters among them; 0 for none.
    """

    name: str
    trunk: str
    config: DecoderConfig
    weights: int
    trained: int = 0


@dataclass(frozen=True)
class Rollout:
    """A step of a rank.

    Attributes:
        rows: samples that are decoded at once. samples: of a prompt. prompt, answer: tokens of each, the longest.
        most: bytes of keys and values, at most; None for no limit.
    """

    rows: int
    samples: int
    prompt: int
    answer: int
    most: float | None = None


def on_device(models: Sequence[Held], phase: str, offload: str, activation: int, *, buckets: bool = False) -> float:
    """Bytes of models that are on the device in a phase (see `rmfast.parallel.residence`).

    A weight that is trained takes 16: itself, its gradient and two moments in fp32; and a copy where products read
    another dtype. One that is not takes `activation`, once for all models of its trunk.

    Args:
        buckets: gradients stay between updates, as DDP's do.
    """
    there = [model for model in models if offload == "none" or model.name in NEEDS[phase]]
    frozen = {model.trunk: model.weights for model in there if model.trained < model.weights}
    each = 4 + (activation if activation < 4 else 0)
    each += 4 if buckets or phase == "updating" else 0
    each += 8 if offload != "all" or phase == "updating" else 0
    return float(activation * sum(frozen.values()) + each * sum(model.trained for model in models))


def working_bytes(
    models: Mapping[str, DecoderConfig], layout: Layout, load: Workload, rollout: Rollout
) -> dict[str, float]:
    """Bytes that each phase needs beside models.

    sampling: keys and values, and fp32 logits of the rows twice. scoring, reading: a layer's activations of a pack.
    updating: what a pack keeps for its backward and the widest layer's (see `memory`), of the larger of policy and
    critic.
    """
    policy, b = models["policy"], load.activation
    token = 2 * policy.kv_heads * policy.head_dim * policy.layers * b
    prompts = -(-rollout.rows // rollout.samples)
    keys = float(token * (prompts * rollout.prompt + rollout.rows * rollout.answer))
    keys = keys if rollout.most is None else min(keys, rollout.most)
    tokens = min(load.pack, max(1, load.tokens // layout.data))
    forward = {name: tokens * saved_bytes(config, "none", activation=b) for name, config in models.items()}
    backward = []
    for name in ("policy", "critic"):
        if name in models:
            parts = memory(models[name], layout, load)
            backward.append(parts["activations"] + parts["working"])
    return {
        "sampling": keys + 8.0 * rollout.rows * policy.vocabulary,
        "scoring": forward["reward"],
        "reading": max(forward[name] for name in models if name != "reward"),
        "updating": max(backward),
    }


def phases(models: Sequence[Held], layout: Layout, load: Workload, rollout: Rollout, offload: str) -> dict[str, float]:
    """Bytes of the fullest GPU in each phase, the reserve among them.

    fsdp divides models by ranks and gathers two layers and the embedding of one.
    """
    configs = {model.name: model.config for model in models}
    working = working_bytes(configs, layout, load, rollout)
    sharded, found = layout.engine == "fsdp", {}
    for phase in NEEDS:
        buckets = layout.data > 1
        held = on_device(models, phase, offload, load.activation, buckets=buckets) / (layout.data if sharded else 1)
        gathered = 0.0
        if sharded:
            c = configs["reward" if phase == "scoring" else "policy"]
            layers = c.layers if phase == "sampling" else 2
            gathered = load.activation * (layers * c.layer_parameters + c.vocabulary * c.width)
        found[phase] = held + gathered + working[phase] + RESERVE
    return found
