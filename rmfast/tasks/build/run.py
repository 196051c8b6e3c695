"""From a config to a run in its folder, and to the parts of its learner that tasks share."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from rmfast.checkpoint.export import choose_pad_token, write_tokenizer
from rmfast.checkpoint.network import write_adapted
from rmfast.config import Config, OptimConfig
from rmfast.data.columns import read_columns
from rmfast.data.loader import StepLoader
from rmfast.data.plan import StepPlan
from rmfast.data.table import GroupTable
from rmfast.errors import UserError
from rmfast.evaluation.suites.answers import Reader
from rmfast.models.config import DTYPES, context_window
from rmfast.models.save import save_config
from rmfast.parallel.engine import Engine
from rmfast.parallel.world import World
from rmfast.tasks.build.adapter import lora_options
from rmfast.tasks.build.folder import run_folder
from rmfast.tasks.build.inputs import Inputs
from rmfast.trainer.flops import Work, peak_flops
from rmfast.trainer.held_out import HeldOut
from rmfast.trainer.run import Run, RunOptions
from rmfast.trainer.schedule import learning_rate
from rmfast.trainer.suites import open_suites


def open_run(
    config: Config,
    world: World,
    inputs: Inputs,
    *,
    settings: Mapping[str, Any],
    data_key: str,
    policy_ends: Collection[int] | None = None,
) -> Run:
    """The run that a config asks for; see `Run`.

    Args:
        policy_ends: of a run that trains a policy, the ids that end its samples.
    """
    ends = inputs.ends if policy_ends is None else policy_ends
    pad = choose_pad_token(inputs.tokenizer, inputs.decoder.vocabulary, ends)
    lora = lora_options(config.model)

    def write_extras(folder: Path) -> None:
        if policy_ends is None:
            inputs.hf.save_pretrained(folder)
        else:
            dtype = DTYPES[config.model.dtype]
            save_config(folder, inputs.hf, inputs.decoder, heads=0, dtype=dtype, pad_token_id=pad, ends=policy_ends)
        write_tokenizer(inputs.tokenizer, folder, pad)
        if lora is not None:
            write_adapted(folder, lora, Path(config.model.path), DTYPES[config.model.dtype])

    return Run(
        run_folder(config.run.dir),
        world,
        run_options(config),
        config=config.dump(),
        settings=settings,
        data_key=data_key,
        write_extras=write_extras,
    )


def run_options(config: Config) -> RunOptions:
    """What a config's run does beside its steps."""
    evaluation, run = config.eval, config.run
    return RunOptions(
        evaluate_every=(evaluation.every, evaluation.suites_every),
        evaluate_first=evaluation.at_start,
        checkpoint_every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        max_skipped=config.optim.max_skipped if config.optim.on_nonfinite == "skip" else 0,
        log_every=run.log_every,
        tensorboard=run.tensorboard,
        wandb=run.wandb,
    )


def kept_settings(config: Config) -> dict[str, Any]:
    """What a resumed run must not change; data, order and seed are the data key's."""
    values = config.dump()
    lora = tuple(key for key in values["model"] if key.startswith("lora_"))
    kept = {"model": ("dtype", "top_layers", "adapter", *lora, "dropout"), "objective": tuple(values["objective"])}
    kept["optim"] = tuple(key for key in values["optim"] if key not in ("on_nonfinite", "max_skipped", "backend"))
    return {"task": config.task} | {f"{s}.{key}": values[s][key] for s, keys in kept.items() for key in keys}


def rates(optim: OptimConfig, total: int) -> Callable[[int], float]:
    """The learning rate of each step of a run; 0 after the last one. A warm-up below 1 is a share of the steps.

    Raises:
        UserError: the warm-up goes on beyond the last step.
    """
    warmup = round(optim.warmup * total) if optim.warmup < 1 else round(optim.warmup)
    if warmup > total:
        raise UserError(f"optim.warmup: {warmup:,} steps of {total:,}, so that the rate never reaches its peak")

    def rate(step: int) -> float:
        if step >= total:
            return 0.0
        return learning_rate(
            step, peak=optim.lr, schedule=optim.schedule, warmup=warmup, total=total, floor=optim.floor
        )

    return rate


def loader_of(config: Config, engine: Engine, table: GroupTable, plan: StepPlan, total: int, **more: Any) -> StepLoader:
    """This rank's share of a plan's steps; `more` are the loader's."""
    return StepLoader(
        table,
        plan,
        total=total,
        ranks=engine.data.size,
        rank=engine.data.rank,
        budget=config.data.tokens_per_pack,
        pin=engine.device.type == "cuda",
        fixed=config.parallel.cuda_graphs,
        **more,
    )


def held_out_of(config: Config, world: World, inputs: Inputs) -> HeldOut:
    """What a config's run is evaluated on."""
    reader = Reader(inputs.tokenizer, context_window(inputs.hf))
    columns = read_columns(config.data.columns)
    return HeldOut(
        tables=inputs.evals,
        suites=open_suites(config.eval.suites, reader, inputs.decoder.vocabulary, world, columns),
        every=config.eval.every,
        suites_every=config.eval.suites_every,
        budget=config.data.tokens_per_pack,
        center=config.objective.center,
        model=run_folder(config.run.dir),
    )


def work_of(config: Config, world: World, inputs: Inputs) -> Work:
    """What a config's steps cost."""
    model, decoder = config.model, inputs.decoder
    peak = peak_flops(world.device, DTYPES[model.dtype])
    first_trained = 0 if model.top_layers is None else decoder.layers - model.top_layers
    return Work(decoder, first_trained, model.adapter != "none", peak and peak * world.size)
