"""rmfast plan of task ppo: memory and time of each phase, by layout."""

import json
from argparse import Namespace
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

from rmfast.commands.flags import out_file, write_file
from rmfast.config import Config
from rmfast.console import say
from rmfast.data.columns import read_columns
from rmfast.data.example import BadRow
from rmfast.data.row_kinds import PROMPTS
from rmfast.data.rows import read_row
from rmfast.data.sources import read_rows
from rmfast.data.tokenise import encode
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reward_model import find_folder
from rmfast.launch.cost import Engine, Layout, Workload, parameters
from rmfast.launch.hardware import find_gpu
from rmfast.launch.layouts import RECOMPUTE
from rmfast.launch.ppo_cost import NEEDS, Held, Rollout, phases
from rmfast.launch.ppo_time import Step, phase_seconds
from rmfast.models.config import DTYPES, decoder_config
from rmfast.models.hf import read_config
from rmfast.models.lora import adapter_weights
from rmfast.models.peft import chain
from rmfast.outputs.kinds import PLANS
from rmfast.outputs.overlap import Input
from rmfast.tasks.build.adapter import lora_options
from rmfast.tasks.build.trunk import same_folder

SAMPLE = 1000  # prompts that lengths are taken from


@dataclass(frozen=True)
class Phases:
    """What each phase of a step takes under a layout."""

    layout: Layout
    bytes_by_phase: dict[str, float]
    seconds_by_phase: dict[str, float]

    @property
    def peak(self) -> float:
        return max(self.bytes_by_phase.values())

    @property
    def seconds(self) -> float:
        return sum(self.seconds_by_phase.values())


def plan_ppo(options: Namespace, config: Config, inputs: list[Input]) -> None:
    """Memory and time of each phase under ddp and fsdp with each recomputation; what fits first, then the fastest."""
    gpu, ppo = find_gpu(options.gpu), config.ppo
    out = out_file("--out", options.out, PLANS, inputs) if options.out else None
    lora = config.model.adapter != "none"
    held = {engine: models_of(config, shared=lora and engine == "ddp") for engine in ("ddp", "fsdp")}
    models = held["ddp"]
    given = options.tokens_per_group
    lengths = _prompt_lengths(config) if given is None else [given]
    prompt = max(lengths)
    rollout = Rollout(
        rows=min(config.rollout.rows, -(-ppo.prompts_per_step * ppo.samples // options.gpus)),
        samples=ppo.samples,
        prompt=prompt,
        answer=ppo.max_new_tokens,
        most=None if config.rollout.memory is None else config.rollout.memory * 1e9,
    )
    tokens = ppo.prompts_per_step * (prompt + ppo.samples * ppo.max_new_tokens)
    width = DTYPES[config.model.dtype].itemsize
    load = Workload(
        tokens, ppo.prompts_per_step * ppo.samples, min(config.data.tokens_per_pack, tokens), 0, every_token=True,
        activation=width, adapters=models[0].trained if lora else None,
    )  # fmt: skip
    engines: tuple[Engine, ...] = ("ddp", "fsdp") if options.gpus > 1 and ppo.offload == "none" else ("ddp",)
    layouts = [Layout(engine, options.gpus, recompute=kind) for kind in RECOMPUTE for engine in engines]
    step = Step(
        ppo.prompts_per_step, ppo.samples, fmean(lengths), ppo.max_new_tokens, rollout.rows, ppo.epochs or 1,
        ppo.minibatches or 1,
    )  # fmt: skip
    made = [
        Phases(
            layout,
            phases(held[layout.engine], layout, load, rollout, ppo.offload),
            phase_seconds(held[layout.engine], layout, step, gpu, pack=load.pack, activation=width),
        )
        for layout in layouts
    ]
    made.sort(key=lambda one: (one.peak > gpu.memory, one.seconds, one.peak))
    say(
        f"{', '.join(map(_named, models))}; steps of {ppo.prompts_per_step} prompts of at most {prompt:,} tokens with "
        f"{ppo.samples} answers of {ppo.max_new_tokens:,}, packs of {load.pack:,}; "
        f"{config.model.dtype}, ppo.offload {ppo.offload}, {options.gpus} x {options.gpu} of {gpu.memory / 1e9:.0f} GB"
    )
    say("\n" + _table(made, gpu.memory))
    say(
        f"\nGB of the fullest GPU, and seconds where all answers have {ppo.max_new_tokens:,} tokens, by formulas that "
        "no GPU has confirmed (docs/plan.md): trust the order of times more than times."
    )
    if out is not None:
        rows = [
            {"layout": vars(one.layout), "bytes_by_phase": one.bytes_by_phase, "seconds_by_phase": one.seconds_by_phase}
            for one in made
        ]
        about = {"gpu": options.gpu, "hardware": vars(gpu), "gpus": options.gpus, "workload": vars(load)}
        write_file(
            out, [json.dumps(about | {"rollout": vars(rollout), "step": vars(step), "plans": rows}, indent=1).encode()]
        )


def models_of(config: Config, *, shared: bool) -> list[Held]:
    """The models that a run would hold; see `ModelBuilder`.

    Args:
        shared: whether adapters of one model share its weights, as they do but under fsdp.
    """
    ppo, policy, lora = config.ppo, config.model.path, lora_options(config.model)
    rewards = [str(find_folder(path)) for path in ppo.reward]
    over = [lora is not None and _is_adapter(path, policy) for path in rewards]
    paths = {"reward": rewards[0], "policy": policy}
    kinds = [("policy", policy, policy)]
    if ppo.critic is not None:
        of_reward = policy if over[0] else "reward 0"
        trunk = {"policy": policy, "reward": of_reward}.get(ppo.critic, "critic")
        kinds.append(("critic", paths.get(ppo.critic, ppo.critic), trunk))
    same = ppo.reference is None or same_folder(ppo.reference, policy)
    kinds.append(("reference", ppo.reference or policy, policy if same else "reference"))
    kinds += [("reward", path, policy if over[i] else f"reward {i}") for i, path in enumerate(rewards)]
    found: list[Held] = []
    for name, path, trunk in kinds:
        shape = decoder_config(read_config(find_folder(path)), path)
        whole = parameters(shape)
        if name in ("policy", "reference") and not shape.tied:
            whole += shape.vocabulary * shape.width
        count = whole if lora is None else adapter_weights(shape, lora)
        trained = count if name in ("policy", "critic") else 0
        found.append(Held(name, trunk if shared else f"{name} {len(found)}", shape, whole, trained))
    return found


def _is_adapter(path: str, policy: str) -> bool:
    """Whether a reward model is one adapter of the policy's model."""
    adapters, base = chain(Path(path))
    return len(adapters) == 1 and same_folder(base, policy)


def _prompt_lengths(config: Config) -> list[int]:
    """Tokens of each of the first prompts.

    Raises:
        UserError: none can be read.
    """
    tokenizer = load_tokenizer(config.model.path, config.data.chat_template, config.data.template_date)
    columns, most = read_columns(config.data.columns), config.data.max_length - config.ppo.max_new_tokens
    examples = []
    for file, number, row in islice(read_rows(config.ppo.prompts[0], "prompts"), SAMPLE):
        try:
            examples.append(read_row(f"{file}:{number}", row, columns, kind=PROMPTS))
        except BadRow:
            continue
    made = [len(e.sequences[0]) for e in encode(tokenizer, examples) if not isinstance(e, BadRow)]
    if not (kept := [length for length in made if length <= most]):
        raise UserError(
            f"{config.ppo.prompts[0]}: none of its first {SAMPLE} prompts can be used; or give --tokens-per-group"
        )
    return kept


def _named(model: Held) -> str:
    trained = f" ({model.trained / 1e6:,.1f} M trained)" if model.trained else ""
    return f"{model.name} {model.weights / 1e6:,.1f} M weights{trained}"


def _table(made: list[Phases], most: float) -> str:
    """Layouts down, phases across."""
    rows = [["engine", "recompute", *(f"{phase} GB" for phase in NEEDS), "fits", *(f"{phase} s" for phase in NEEDS)]]
    rows[0].append("step s")
    for one in made:
        sizes = [f"{size / 1e9:.1f}" for size in one.bytes_by_phase.values()]
        times = [f"{time:.3g}" for time in (*one.seconds_by_phase.values(), one.seconds)]
        fits = "yes" if one.peak <= most else "no"
        rows.append([one.layout.engine, one.layout.recompute, *sizes, fits, *times])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)
