"""rmfast plan of task ppo: the memory of each phase, by layout."""

import json
from argparse import Namespace
from itertools import islice
from pathlib import Path
from typing import Any

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
from rmfast.models.config import DTYPES, decoder_config
from rmfast.models.hf import read_config
from rmfast.models.lora import adapter_weights
from rmfast.models.peft import chain
from rmfast.outputs.kinds import PLANS
from rmfast.outputs.overlap import Input
from rmfast.tasks.build.adapter import lora_options
from rmfast.tasks.build.trunk import same_folder

SAMPLE = 1000  # prompts that lengths are taken from


def plan_ppo(options: Namespace, config: Config, inputs: list[Input]) -> None:
    """The memory of each phase under ddp and fsdp with each recomputation; what fits first."""
    gpu, ppo = find_gpu(options.gpu), config.ppo
    out = out_file("--out", options.out, PLANS, inputs) if options.out else None
    lora = config.model.adapter != "none"
    held = {engine: models_of(config, shared=lora and engine == "ddp") for engine in ("ddp", "fsdp")}
    models = held["ddp"]
    prompt = _longest_prompt(config) if options.tokens_per_group is None else options.tokens_per_group
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
    made = [(layout, phases(held[layout.engine], layout, load, rollout, ppo.offload)) for layout in layouts]
    made.sort(key=lambda one: (max(one[1].values()) > gpu.memory, max(one[1].values())))
    say(
        f"{', '.join(map(_named, models))}; steps of {ppo.prompts_per_step} prompts of at most {prompt:,} tokens with "
        f"{ppo.samples} answers of {ppo.max_new_tokens:,}, packs of {load.pack:,}; "
        f"{config.model.dtype}, ppo.offload {ppo.offload}, {options.gpus} x {options.gpu} of {gpu.memory / 1e9:.0f} GB"
    )
    say("\n" + _table(made, gpu.memory))
    say("\nGB of the fullest GPU, by formulas that no GPU has confirmed (docs/plan.md). PPO's times are not counted.")
    if out is not None:
        rows = [{"layout": vars(layout), "bytes_by_phase": found} for layout, found in made]
        about = {"gpu": options.gpu, "hardware": vars(gpu), "gpus": options.gpus, "workload": vars(load)}
        write_file(out, [json.dumps(about | {"rollout": vars(rollout), "plans": rows}, indent=1).encode()])


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


def _longest_prompt(config: Config) -> int:
    """Tokens of the longest of the first prompts.

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
    return max(kept)


def _named(model: Held) -> str:
    trained = f" ({model.trained / 1e6:,.1f} M trained)" if model.trained else ""
    return f"{model.name} {model.weights / 1e6:,.1f} M weights{trained}"


def _table(made: list[tuple[Layout, dict[str, float]]], most: float) -> str:
    """Layouts down, phases across."""
    rows: list[list[Any]] = [["engine", "recompute", *NEEDS, "fits"]]
    for layout, found in made:
        fits = "yes" if max(found.values()) <= most else "no"
        rows.append([layout.engine, layout.recompute, *(f"{size / 1e9:.1f}" for size in found.values()), fits])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)
