"""rmfast plan: which layout of N GPUs fits a run, and what its step would take."""

import json
from argparse import Namespace
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.commands.flags import out_file, write_file
from rmfast.commands.plan_ppo import plan_ppo
from rmfast.config import Config, load_config, split_arguments
from rmfast.console import say
from rmfast.data.columns import read_columns
from rmfast.data.example import BadRow
from rmfast.data.rows import read_row
from rmfast.data.sources import read_rows
from rmfast.data.tokenise import encode
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.launch.cost import Workload, parameters
from rmfast.launch.hardware import GPUS, find_gpu
from rmfast.launch.layouts import Plan, plans
from rmfast.models.config import DTYPES, DecoderConfig, decoder_config
from rmfast.models.hf import read_config
from rmfast.models.lora import adapter_weights
from rmfast.outputs.kinds import PLANS
from rmfast.outputs.overlap import Input
from rmfast.tasks.build.adapter import lora_options
from rmfast.tasks.build.folder import config_inputs
from rmfast.tasks.build.model import check_window

SAMPLE = 1000  # rows of the data that lengths are taken from
HEAD = ["engine", "TP", "PP", "DP", "recompute", "GB", "activations", "step s"]
HEAD += ["compute", "norms", "TP", "PP", "bubble", "DP", "optim"]  # as cost.seconds has them


def plan(options: Namespace) -> None:
    """rmfast plan"""
    gpu = find_gpu(options.gpu)
    arguments = [*options.config, *options.more]
    config = load_config(arguments)
    if config.task == "iterate":
        raise UserError(
            "rmfast plan counts one task: plan the stages of task iterate one by one (--task meta, --task ppo)"
        )
    if config.task == "sft":
        raise UserError("rmfast plan counts steps of reward models and PPO, not those of task sft")
    inputs = [*config_inputs(config, split_arguments(arguments)[0]), Input("--gpu", Path(options.gpu))]
    if config.task == "ppo":
        return plan_ppo(options, config, inputs)
    out = out_file("--out", options.out, PLANS, inputs) if options.out else None
    hf = read_config(config.model.path)
    shape = decoder_config(hf, config.model.path)
    check_window(config, hf)
    load = workload(config, shape, options.tokens_per_group)
    fit, rest = plans(shape, options.gpus, gpu, load)
    say(
        f"{config.model.path}: {parameters(shape) / 1e6:,.1f} M weights; steps of {config.data.pairs_per_step} groups, "
        f"{load.tokens:,} tokens in packs of {load.pack:,}; {config.model.dtype}, {options.gpus} x {options.gpu} of "
        f"{gpu.memory / 1e9:.0f} GB"
    )
    if not fit:
        say(f"No layout fits. The smallest takes {rest[0].memory / 1e9:.0f} GB a GPU ({keys(rest[0])}): more GPUs.")
    else:
        say("\n" + table(fit[: options.show]))
        say(f"\nThe first one as keys of a config: {keys(fit[0])}")
        rates = "shares of the data sheets" if options.gpu in GPUS else f"the rates of {options.gpu}"
        say(
            f"{len(fit)} layouts fit, {len(rest)} do not. Memory is by formulas that were compared with torch on CPUs; "
            f"times assume {rates} and were not measured on GPUs (docs/plan.md): trust their order more than them."
        )
    if left_out := uncounted(config):
        say(f"Not counted: {', '.join(left_out)} (docs/plan.md).")
    if out is not None:
        rows = [describe(p) for p in (*fit, *rest)]
        about = {"gpu": options.gpu, "hardware": vars(gpu), "gpus": options.gpus, "workload": vars(load)}
        write_file(out, [json.dumps(about | {"plans": rows}, indent=1).encode()])


def uncounted(config: Config) -> list[str]:
    """What the config asks for that the cost model leaves out."""
    asked = {
        "objective.contrastive's second views": config.objective.contrastive != "none",
        "task meta's second batch and copy of the weights": config.task == "meta",
        "the masks of model.dropout": bool(config.model.dropout),
        "what model.top_layers saves": config.model.top_layers is not None,
        "the other members": config.task == "ensemble" and config.ensemble.mode != "heads",
    }
    return [what for what, is_asked in asked.items() if is_asked]


def workload(config: Config, shape: DecoderConfig, tokens_per_group: int | None) -> Workload:
    """A step's batch: of lengths that are given, or those of the first rows of the data.

    Raises:
        UserError: neither is there.
    """
    data = config.data
    if tokens_per_group is not None:
        tokens, responses = tokens_per_group * data.pairs_per_step, 2 * data.pairs_per_step
        visible = tokens * tokens_per_group // 2
    else:
        try:
            stored, count, seen = _sample(config)
        except UserError as error:
            raise UserError(f"{error}; or give --tokens-per-group") from None
        tokens, responses, visible = (int(data.pairs_per_step * float(np.mean(x))) for x in (stored, count, seen))
    pack, lm = min(data.tokens_per_pack, tokens), config.objective.lm > 0
    width = DTYPES[config.model.dtype].itemsize
    lora = lora_options(config.model)
    adapters = None if lora is None else adapter_weights(shape, lora)
    return Workload(tokens, responses, pack, visible, every_token=lm, activation=width, adapters=adapters)


def _sample(config: Config) -> tuple[list[int], list[int], list[int]]:
    """Computed tokens, responses and visible pairs of some groups of the data."""
    tokenizer = load_tokenizer(config.model.path, config.data.chat_template, config.data.template_date)
    columns = read_columns(config.data.columns)
    examples = []
    for file, number, row in islice(read_rows(config.data.train[0], "train"), SAMPLE):
        with suppress(BadRow):
            examples.append(read_row(f"{file}:{number}", row, columns))
    made = [e for e in encode(tokenizer, examples) if not isinstance(e, BadRow)]
    kept = [e for e in made if max(map(len, e.ids)) <= config.data.max_length]
    if not kept:
        raise UserError(f"{config.data.train[0]}: none of its first {SAMPLE} rows can be used")
    stored, count, seen = [], [], []
    for e in kept:
        lengths = [len(ids) - e.prefix for ids in e.ids]
        stored.append(e.prefix + sum(lengths))
        count.append(len(lengths))
        seen.append(e.prefix * (e.prefix + 1) // 2 + sum(n * e.prefix + n * (n + 1) // 2 for n in lengths))
    return stored, count, seen


def keys(made: Plan) -> str:
    """A layout as keys of a config."""
    x = made.layout
    words: list[tuple[str, Any]] = []
    if x.engine == "megatron":
        words = [("parallel.engine", "megatron"), ("parallel.tensor", x.tensor), ("parallel.pipeline", x.pipeline)]
        words += [("parallel.virtual", x.virtual)] if x.virtual > 1 else []
        words += [("parallel.sequence", "true")] if x.sequence else []
    elif x.data > 1:
        words = [("parallel.data", x.engine)]
    words += [("model.recompute", x.recompute)] if x.recompute != "none" else []
    return " ".join(f"--{name} {value}" for name, value in words) or "nothing to set"


def describe(made: Plan) -> dict[str, Any]:
    """A plan as JSON."""
    sums = {"memory": made.memory, "seconds": made.step}
    return {"layout": vars(made.layout)} | sums | {"bytes_by": made.bytes, "seconds_by": made.seconds}


def table(made: list[Plan]) -> str:
    """Layouts down, memory and time across."""
    rows = [HEAD]
    for one in made:
        x = one.layout
        stages = f"{x.pipeline}" + (f"x{x.virtual}" if x.virtual > 1 else "")
        layout = [x.engine, str(x.tensor), stages, str(x.data), x.recompute]
        gigabytes = [n / 1e9 for n in (one.memory, one.bytes["activations"] + one.bytes["working"])]
        times = [one.step, *one.seconds.values()]
        rows.append([*layout, *(f"{n:.1f}" for n in gigabytes), *(f"{n:.3f}" for n in times)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [name in ("engine", "recompute") for name in HEAD]
    cells = [[c.ljust(w) if x else c.rjust(w) for c, w, x in zip(r, widths, left, strict=True)] for r in rows]
    return "\n".join("  ".join(row) for row in cells)
