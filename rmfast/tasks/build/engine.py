"""From a config to what runs its steps."""

from transformers import PreTrainedConfig

from rmfast.config import Config, ParallelConfig
from rmfast.errors import UserError
from rmfast.models.config import DTYPES, decoder_config
from rmfast.models.hf import load_network
from rmfast.models.lora import adapt
from rmfast.models.network import Network
from rmfast.parallel.engine import Engine
from rmfast.parallel.graphs import CudaRecorder
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.tasks.build.adapter import lora_options
from rmfast.tasks.build.choices import attention_impl
from rmfast.tasks.build.megatron import open_megatron
from rmfast.tasks.build.model import network_heads
from rmfast.tasks.build.objective import adamw_options, dropout, prototypes


def open_engine(config: Config, world: World, hf: PreTrainedConfig) -> Engine:
    """The engine that a config asks for, with its model. All ranks call it.

    Args:
        hf: config of the model folder.

    Raises:
        UserError: a model that cannot be read, or not be run like that.
    """
    if config.parallel.engine == "megatron":
        return _megatron(config, world, hf)
    attention = attention_impl(config, world.device, decoder_config(hf, config.model.path))
    return _native(config, world, adamw_options(config.optim, world.device), attention)


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
    words += [f"layers {'+'.join(map(str, parallel.pipeline_split))}"] if parallel.pipeline_split else []
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


def _megatron(config: Config, world: World, hf: PreTrainedConfig) -> Engine:
    model = config.model
    return open_megatron(
        config,
        world,
        model.path,
        hf,
        **network_heads(config),
        new_heads=True,
        from_scratch=model.from_scratch,
        adapter=lora_options(model),
        top_layers=model.top_layers,
        prototypes=prototypes(config),
        dropout=dropout(config),
    )
