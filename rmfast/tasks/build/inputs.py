"""What every task begins with: processes, run folder, model config, tokenizer, tables and the plan of steps."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rmfast.config import Config
from rmfast.console import say
from rmfast.data.plan import StepPlan
from rmfast.data.probe import taken_for_granted
from rmfast.data.row_kinds import PROMPTS, demonstrations
from rmfast.data.table import GroupTable
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.kernels.common import use_triton
from rmfast.models.config import DecoderConfig, decoder_config
from rmfast.models.hf import read_config
from rmfast.models.names import VALUES
from rmfast.parallel.world import World
from rmfast.tasks.build.choices import check_choices
from rmfast.tasks.build.model import check_window, say_date
from rmfast.tasks.build.objective import training_views
from rmfast.tasks.build.tables import group_counts, make_table, open_stores


def open_world(config: Config, timeout_minutes: float | None = None) -> World:
    """This run's processes, after what can be refused without them.

    Args:
        timeout_minutes: in place of the config's.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if config.run.wandb and find_spec("wandb") is None:
        raise UserError("run.wandb: the package wandb is not installed: pip install wandb")
    if config.parallel.engine == "megatron":
        # Collectives then begin before the matmuls that they are to overlap with; read when CUDA starts.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    world = World(timeout_minutes or config.parallel.timeout_minutes)
    try:
        use_triton("model.kernels", config.model.kernels, torch.empty(0, device=world.device))
    except ValueError as error:
        raise UserError(str(error)) from None
    return world


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """What a run begins with: the model folder's config and tokenizer, the training table, held-out tables by name."""

    hf: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    table: GroupTable
    evals: dict[str, GroupTable]

    @cached_property
    def decoder(self) -> DecoderConfig:
        return decoder_config(self.hf)

    @cached_property
    def ends(self) -> set[int]:
        """Last tokens of all sequences."""
        return self.table.ends.union(*(held_out.ends for held_out in self.evals.values()))


def open_inputs(config: Config, world: World) -> Inputs:
    """Model config, tokenizer and tables of a run, on all ranks."""
    hf, tokenizer = _open_model(config, world)
    vocabulary = decoder_config(hf).vocabulary
    stores = open_stores(config.data.train, tokenizer, config.data, world, split="train")
    held_out = open_stores(config.data.eval, tokenizer, config.data, world, split="test")
    table = make_table(
        stores, config.data, vocabulary, "train", world, config.denoise_options(), views=training_views(config)
    )
    evals = {
        name: make_table([store], config.data, vocabulary, name, world)
        for name, store in zip(eval_names(config.data.eval), held_out, strict=True)
    }
    return Inputs(hf=hf, tokenizer=tokenizer, table=table, evals=evals)


def open_demonstrations(config: Config, world: World) -> Inputs:
    """Model config, tokenizer, demonstrations and held-out ones of a run, on all ranks."""
    hf, tokenizer = _open_model(config, world)
    data, kind, vocabulary = config.data, demonstrations(config.sft.turns), decoder_config(hf).vocabulary
    stores = open_stores(data.train, tokenizer, data, world, split="train", kind=kind)
    held_out = open_stores(data.eval, tokenizer, data, world, split="test", kind=kind)
    table = make_table(stores, data, vocabulary, "train", world, kind=kind)
    evals = {
        name: make_table([store], data, vocabulary, name, world, kind=kind)
        for name, store in zip(eval_names(data.eval), held_out, strict=True)
    }
    return Inputs(hf=hf, tokenizer=tokenizer, table=table, evals=evals)


def open_prompts(config: Config, world: World) -> Inputs:
    """Model config, tokenizer, prompts and held-out prompts of a run of PPO, on all ranks."""
    hf, tokenizer = _open_model(config, world)
    ppo, vocabulary = config.ppo, decoder_config(hf).vocabulary
    # Room for the answer.
    data = config.data.model_copy(update={"max_length": config.data.max_length - ppo.max_new_tokens})

    def table(sources: Sequence[str], split: str, name: str) -> GroupTable:
        stores = open_stores(sources, tokenizer, data, world, split=split, kind=PROMPTS)
        return make_table(stores, data, vocabulary, name, world, kind=PROMPTS)

    held_out = {"eval": table(ppo.eval_prompts, "test", "eval prompts")} if ppo.eval_prompts else {}
    return Inputs(hf=hf, tokenizer=tokenizer, table=table(ppo.prompts, "train", "prompts"), evals=held_out)


def _open_model(config: Config, world: World) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Config and tokenizer of the model folder, once they are known to fit the config."""
    hf = read_config(config.model.path)
    vars(hf).pop(VALUES, None)  # of a critic, which this run's model is not
    check_choices(config, world.device, decoder_config(hf, config.model.path))
    check_window(config, hf)
    tokenizer = load_tokenizer(config.model.path, config.data.chat_template, config.data.template_date)
    granted = taken_for_granted(tokenizer)  # on all ranks: a template that is not valid must end them all
    if world.main:
        say_date(config.model.path, tokenizer)
        if granted:
            say(granted)
    return hf, tokenizer


def eval_names(sources: Sequence[str]) -> list[str]:
    """ "eval" for one held-out source; otherwise the file's name without its endings, numbered where two agree."""
    if len(sources) == 1:
        return ["eval"]
    stems = [Path(source).name.split(".")[0] or "eval" for source in sources]
    return [f"{s}-{stems[:i].count(s) + 1}" if stems.count(s) > 1 else s for i, s in enumerate(stems)]


def total_steps(plan: StepPlan, epochs: float) -> int:
    """Steps of that many epochs; a part of an epoch counts in whole steps."""
    whole = math.floor(epochs)
    rest = (epochs - whole) * (plan.first_step(whole + 1) - plan.first_step(whole))
    return max(1, plan.first_step(whole) + math.ceil(rest))


def step_plan(config: Config, table: GroupTable) -> tuple[StepPlan, int]:
    """The global batches of a run over a table, and the number of its steps."""
    data = config.data
    weights = data.train_weights or (1.0,) * len(data.train)
    counts = group_counts(table)
    plan = StepPlan(counts, weights, groups_per_step=data.pairs_per_step, seed=config.run.seed, shuffle=data.shuffle)
    return plan, config.run.max_steps or total_steps(plan, config.run.epochs)
