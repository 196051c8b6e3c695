"""From a config to the adapter that its run trains, to lines that say what it takes, and to its folder."""

from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from rmfast.checkpoint.adapter import publish_adapter
from rmfast.checkpoint.export import choose_pad_token
from rmfast.config import Config, ModelConfig
from rmfast.models.config import DTYPES
from rmfast.models.low_rank import TARGETS, LoraOptions
from rmfast.parallel.engine import Engine
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import Inputs


def lora_options(model: ModelConfig) -> LoraOptions | None:
    """What a config's adapter is; None without one."""
    if model.adapter == "none":
        return None
    return LoraOptions(
        rank=model.lora_rank,
        alpha=2.0 * model.lora_rank if model.lora_alpha is None else model.lora_alpha,
        targets=model.lora_targets or TARGETS,
        dropout=model.lora_dropout,
        rslora=model.lora_rslora,
    )


def state_bytes(whole: int, trained: int, frozen: int = 4) -> dict[str, int]:
    """Bytes of a model's weights, their gradients and AdamW's moments.

    Args:
        whole: weights, `trained` of which are trained, in fp32; each other one takes `frozen` bytes.
    """
    return {"weights": frozen * (whole - trained) + 4 * trained, "gradients": 4 * trained, "optimizer": 8 * trained}


def lora_lines(config: Config, engine: Engine, world: World) -> tuple[str, ...]:
    """What a run's adapter is and takes; none of a run without."""
    options = lora_options(config.model)
    if options is None:
        return ()
    whole, trained = engine.parameter_counts()
    parallel = config.parallel
    shards = world.size if parallel.data == "fsdp" else parallel.tensor * parallel.pipeline
    held = state_bytes(whole, trained, DTYPES[config.model.dtype].itemsize)
    sizes = ", ".join(f"{name} {size / shards / 1e6:,.1f} MB" for name, size in held.items())
    full = sum(state_bytes(whole, whole).values()) / shards / 1e6
    scale = "sqrt(rank)" if options.rslora else "rank"
    return (
        f"LoRA: rank {options.rank}, alpha {options.alpha:g} (over {scale}), on {', '.join(options.targets)}; "
        f"{trained:,} of {whole:,} weights are trained",
        f"each process holds {sizes}; full training {full:,.1f} MB in all",
    )


def export_adapter(
    config: Config, inputs: Inputs, adapter: dict[str, Tensor], folder: Path, ends: Collection[int]
) -> list[str]:
    """Write a run's adapter as `folder/adapter`, beside the model that it is merged into.

    Args:
        adapter: what `Engine.adapter` gives; empty of a run without one.
        ends: last tokens of the data's sequences; of a policy, the ids that end its samples.

    Returns:
        A line that says so; none without an adapter, and on other ranks than the first.
    """
    options = lora_options(config.model)
    if options is None or not adapter:
        return []
    base, place = Path(config.model.path), folder / "adapter"
    pad = choose_pad_token(inputs.tokenizer, inputs.decoder.vocabulary, ends)
    publish_adapter(place, adapter, options, base, inputs.tokenizer, pad, ends)
    return [f"exported {place}, the adapter of {base} in PEFT's format"]
