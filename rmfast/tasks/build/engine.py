"""From a config to what runs its steps."""

import warnings

import torch
from transformers import PreTrainedConfig

from rmfast.config import Config, ParallelConfig
from rmfast.errors import UserError
from rmfast.kernels import describe
from rmfast.kernels.multi_tensor import describe_backend, first_backend
from rmfast.kernels.prefix_attention import flash
from rmfast.models.config import DTYPES, DecoderConfig, decoder_config
from rmfast.models.hf import load_network
from rmfast.models.network import Network
from rmfast.models.rows import open_rows
from rmfast.parallel.engine import Engine
from rmfast.parallel.graphs import CudaRecorder
from rmfast.parallel.megatron.groups import Layout, groups_of
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.tasks.build.objective import adamw_options, dropout, prototypes


def open_engine(config: Config, world: World, hf: PreTrainedConfig) -> Engine:
    """The engine that a config asks for, with its model. All ranks call it.

    Args:
        hf: config of the model folder.

    Raises:
        UserError: a model that cannot be read, or not be run like that.
    """
    options = adamw_options(config.optim, world.device)
    attention = attention_impl(config, world, decoder_config(hf, config.model.path))
    if config.parallel.engine == "megatron":
        return _megatron(config, world, hf, options, attention)
    return _native(config, world, options, attention)


def attention_impl(config: Config, world: World, decoder: DecoderConfig) -> str:
    """What attends over whole packs: model.attention.

    Raises:
        UserError: flash attention is asked for and cannot be had.
    """
    model = config.model
    if model.attention != "flash":
        return model.kernels
    refusal = flash.refusal(world.device, DTYPES[model.dtype], decoder.head_dim)
    if refusal is None and all(window is not None for window in decoder.windows):
        refusal = "every layer has a sliding window"
    if refusal is not None:
        raise UserError(f"model.attention: flash is not possible: {refusal}")
    return "flash"


def _native(config: Config, world: World, options: AdamWOptions, attention: str) -> Engine:
    recorder = None
    if config.parallel.cuda_graphs:
        if world.device.type != "cuda":
            raise UserError("parallel.cuda_graphs: there is no GPU here")
        recorder = CudaRecorder(world.device)
    return NativeEngine(
        _network(config, attention),
        world=world,
        options=options,
        data_parallel=config.parallel.data,
        recorder=recorder,
    )


def choices(config: Config, device: torch.device) -> dict[str, str]:
    """What runs a step on a device, with versions: for a run's first lines and its summary.json."""
    model = config.model
    kernels = f"kernel, {describe(device, model.kernels)}"
    backend = config.optim.backend
    return {
        "attention": f"flash, {flash.describe()}" if model.attention == "flash" else kernels,
        "optimizer": describe_backend(first_backend(device) if backend == "auto" else backend),
        "cuda_graphs": "on" if config.parallel.cuda_graphs else "off",
    }


def choices_line(config: Config, device: torch.device) -> str:
    """The same in a line."""
    return "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in choices(config, device).items())


def describe_parallel(parallel: ParallelConfig) -> str:
    """How ranks share the work, in words."""
    if parallel.engine == "native":
        return parallel.data
    words = [f"{name} {getattr(parallel, name)}" for name in ("tensor", "pipeline", "virtual")]
    return f"megatron, {', '.join(words)}{', sequence' if parallel.sequence else ''}"


def _network(config: Config, attention: str) -> Network:
    model = config.model
    network, _ = load_network(
        model.path,
        heads=model.heads,
        new_heads=True,
        seed=config.run.seed,
        from_scratch=model.from_scratch,
        lm=config.objective.lm > 0,
        dtype=DTYPES[model.dtype],
        dropout=dropout(config),
        recompute=model.recompute,
        impl=model.kernels,
        attention=attention,
    )
    if model.top_layers is not None:
        try:
            network.freeze(model.top_layers)
        except ValueError as error:
            raise UserError(f"model.top_layers: {error}") from None
    count = prototypes(config)
    if count is not None:
        network.add_prototypes(count, config.run.seed)
    return network


def _megatron(config: Config, world: World, hf: PreTrainedConfig, options: AdamWOptions, attention: str) -> Engine:
    model, parallel, lm = config.model, config.parallel, config.objective.lm > 0
    layout = Layout(
        tensor=parallel.tensor, pipeline=parallel.pipeline, virtual=parallel.virtual, sequence=parallel.sequence
    )
    decoder = decoder_config(hf, model.path)
    layout.check(decoder, world.size)
    try:
        torch.cuda.current_device()
    except (RuntimeError, AssertionError):
        raise UserError(
            "parallel.engine megatron needs GPUs, where megatron-core keeps its buffers; here is none: take "
            "parallel.engine native"
        ) from None
    # megatron-core takes seconds to import and need not be installed. Its warnings are of what it does without (Apex,
    # Transformer Engine) and of names that it uses: nothing that a user of rmfast could mend.
    warnings.filterwarnings("ignore", module=r"megatron\.core")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    from rmfast.parallel.megatron.engine import MegatronEngine
    from rmfast.parallel.megatron.stage import build_stages

    seed, count = config.run.seed, prototypes(config)
    with open_rows(model.path, hf, heads=model.heads, seed=seed, from_scratch=model.from_scratch, lm=lm) as rows:
        groups = groups_of(world, layout)
        try:
            stages = build_stages(
                decoder,
                groups,
                heads=rows.parameters["head.weight"].shape[0],
                lm=lm,
                top_layers=model.top_layers,
                prototypes=None if count is None else (count, seed),
                dtype=DTYPES[model.dtype],
                dropout=dropout(config),
                recompute=model.recompute,
                impl=model.kernels,
                attention=attention,
            )
        except ValueError as error:
            raise UserError(f"model.top_layers: {error}") from None
        return MegatronEngine(stages, groups, rows, options=options)
