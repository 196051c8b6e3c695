"""Which engine attends in a run: decided once, kept when the run is resumed, for engines differ in their last bits."""

import numpy as np
import torch

from rmfast.config import Config
from rmfast.data.pack import build_pack
from rmfast.data.plan import StepPlan, plan_packs
from rmfast.data.table import GroupTable
from rmfast.errors import UserError
from rmfast.kernels.attention import faster_engine, flash
from rmfast.models.config import DTYPES, DecoderConfig
from rmfast.parallel.world import World


def choose_attention(
    config: Config, decoder: DecoderConfig, table: GroupTable, plan: StepPlan, world: World, saved: str | None
) -> str:
    """The `impl` of attention over whole packs: what `model.attention` says, or under "auto" the faster one.

    Args:
        saved: what the run that is resumed attends with.

    Raises:
        UserError: flash attention is asked for and cannot be had.
    """
    model, dtype = config.model, DTYPES[config.model.dtype]
    refusal = flash.refusal(world.device, dtype, decoder.head_dim)
    if refusal is None and all(window is not None for window in decoder.windows):
        refusal = "every layer has a sliding window"
    if model.attention == "flash":
        if refusal is not None:
            raise UserError(f"model.attention: flash is not possible: {refusal}")
        return "flash"
    if model.attention == "kernel" or model.kernels == "reference" or config.parallel.cuda_graphs or refusal:
        return model.kernels
    if saved is not None:
        return saved
    faster = world.main and _faster(config, decoder, table, plan, world.device) == "flash"
    # On the CPU: a collective between GPUs would not wait as long as compiling may take.
    return "flash" if world.sum_(torch.tensor(float(faster))).item() else model.kernels


def _faster(config: Config, decoder: DecoderConfig, table: GroupTable, plan: StepPlan, device: torch.device) -> str:
    _, rows = plan.step(0)
    packs = plan_packs(table.stored[rows], ranks=1, budget=config.data.tokens_per_pack)[0]
    fullest = max(packs, key=lambda pack: int(table.stored[rows[pack]].sum()))
    layout = build_pack(table, rows[np.asarray(fullest)]).layout
    sizes = (decoder.heads, decoder.kv_heads, decoder.head_dim)
    return faster_engine(layout, *sizes, DTYPES[config.model.dtype], device)
