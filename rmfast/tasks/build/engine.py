"""From a config to what runs its steps."""

import warnings

import torch
from transformers import PreTrainedConfig

from rmfast.config import Config, ParallelConfig
from rmfast.errors import UserError
from rmfast.models.config import DTYPES, decoder_config
from rmfast.models.hf import load_network
from rmfast.models.lora import adapt
from rmfast.models.network import Network
from rmfast.models.rows import open_rows
from rmfast.models.weights import HEAD
from rmfast.parallel.engine import Engine
from rmfast.parallel.graphs import CudaRecorder
from rmfast.parallel.megatron.groups import Layout, groups_of
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.tasks.build.adapter import lora_options
from rmfast.tasks.build.choices import attention_impl
from rmfast.tasks.build.model import network_heads
from rmfast.tasks.build.objective import adamw_options, dropout, prototypes


def open_engine(config: Config, world: World, hf: PreTrainedConfig) -> Engine:
    """The engine that a config asks for, with its model. All ranks call it.

    Args:
        hf: config of the model folder.

    Raises:
        UserError: a model that cannot be read, or not be run like that.
    """
    options = adamw_options(config.optim, world.device)
    attention = attention_impl(config, world.device, decoder_config(hf, config.model.path))
    if config.parallel.engine == "megatron":
        return _megatron(config, world, hf, options, attention)
    return _native(config, world, options, attention)


def _native(config: Config, world: World, options: AdamWOptions, attention: str) -> Engine:
    return NativeEngine(
        _network(config, attention),
        world=world,
        options=options,
        data_parallel=config.parallel.data,
        recorder=CudaRecorder(world.device) if config.parallel.cuda_graphs else None,
    )


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
        **network_heads(config),
        new_heads=True,
        seed=config.run.seed,
        from_scratch=model.from_scratch,
        dtype=DTYPES[model.dtype],
        dropout=dropout(config),
        recompute=model.recompute,
        impl=model.kernels,
        attention=attention,
    )
    if (options := lora_options(model)) is not None:
        adapt(network, options, seed=config.run.seed)
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
    model, parallel = config.model, config.parallel
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

    seed, count, what, adapter = config.run.seed, prototypes(config), network_heads(config), lora_options(model)
    with open_rows(model.path, hf, seed=seed, from_scratch=model.from_scratch, adapter=adapter, **what) as rows:
        groups = groups_of(world, layout)
        try:
            stages = build_stages(
                decoder,
                groups,
                heads=rows.parameters[HEAD].shape[0] if HEAD in rows.parameters else 0,
                lm=what["lm"],
                top_layers=model.top_layers,
                prototypes=None if count is None else (count, seed),
                adapter=adapter,
                dtype=DTYPES[model.dtype],
                dropout=dropout(config),
                recompute=model.recompute,
                impl=model.kernels,
                attention=attention,
            )
        except ValueError as error:
            raise UserError(f"model.top_layers: {error}") from None
        return MegatronEngine(stages, groups, rows, options=options)
