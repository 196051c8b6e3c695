"""From a config to models that the megatron engine's ranks hold in parts."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedConfig

from rmfast.config import Config
from rmfast.errors import UserError
from rmfast.models.config import DTYPES, decoder_config
from rmfast.models.lora import ADAPTER
from rmfast.models.low_rank import LoraOptions
from rmfast.models.rows import open_rows
from rmfast.models.weights import HEAD
from rmfast.parallel.megatron.groups import Groups, Layout, groups_of
from rmfast.parallel.world import World
from rmfast.tasks.build.choices import attention_impl
from rmfast.tasks.build.objective import adamw_options

if TYPE_CHECKING:
    from rmfast.parallel.megatron.engine import MegatronEngine


def open_groups(config: Config, world: World, hf: PreTrainedConfig, path: str) -> Groups:
    """The ranks as the config's layout divides a model among them; all ranks call it.

    Args:
        hf, path: of the model.

    Raises:
        UserError: the layout does not fit the model or the ranks; there is no GPU.
    """
    parallel = config.parallel
    layout = Layout(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        virtual=parallel.virtual,
        sequence=parallel.sequence,
        split=parallel.pipeline_split or (),
    )
    layout.check(decoder_config(hf, path), world.size)
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
    return groups_of(world, layout)


def open_megatron(
    config: Config,
    world: World,
    path: str | Path,
    hf: PreTrainedConfig,
    *,
    heads: int | None,
    lm: bool,
    new_heads: bool = False,
    from_scratch: bool = False,
    adapter: LoraOptions | None = None,
    adapter_name: str = ADAPTER,
    top_layers: int | None = None,
    prototypes: int | None = None,
    dropout: float = 0.0,
    frozen: bool = False,
    origin: str = "model.path",
) -> "MegatronEngine":
    """A folder's model over the config's layout; all ranks call it.

    Args:
        hf: its config. heads, lm, new_heads, from_scratch: see `load_network`.
        adapter: that is trained in place of the trunk, and its name. top_layers: see `Network.freeze`; None trains all.
        prototypes: their number. frozen: it is only read.
        origin: the key that names it, for errors.

    Raises:
        UserError: a model that cannot be read, or not be run like that.
    """
    groups = open_groups(config, world, hf, str(path))
    from rmfast.parallel.megatron.engine import MegatronEngine
    from rmfast.parallel.megatron.stage import build_stages

    model, seed, decoder = config.model, config.run.seed, decoder_config(hf, str(path))
    with open_rows(
        path, hf, heads=heads, seed=seed, from_scratch=from_scratch, lm=lm, new_heads=new_heads, adapter=adapter,
        adapter_name=adapter_name,
    ) as rows:  # fmt: skip
        try:
            stages = build_stages(
                decoder,
                groups,
                heads=rows.parameters[HEAD].shape[0] if HEAD in rows.parameters else 0,
                lm=lm,
                top_layers=top_layers,
                prototypes=None if prototypes is None else (prototypes, seed),
                adapter=adapter,
                adapter_name=adapter_name,
                frozen=frozen,
                dtype=DTYPES[model.dtype],
                dropout=dropout,
                recompute=model.recompute,
                impl=model.kernels,
                attention=attention_impl(config, world.device, decoder),
            )
        except ValueError as error:
            raise UserError(f"model.top_layers: {error}") from None
        options = adamw_options(config.optim, world.device)
        return MegatronEngine(stages, groups, rows, options=options, origin=origin)
