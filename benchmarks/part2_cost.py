"""What the methods of Part II cost beside plain training, in CPU seconds of one thread.

Usage: `python benchmarks/part2_cost.py [--rounds N] [--layers N] [--out FILE.json]`. Steps of equal batches, optimizer
included, take turns: a plain one, a MetaRM one (promised: at most 1.1 x (tokens of both sets / tokens of the pairs)
plain ones), SimCSE with its second view as a second pass (the paper's way) and as extra responses. Then reward heads on
one frozen trunk: one against ten.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lengths import draw_lengths
from vs_trl import commit
from vs_trl_inputs import SMOLLM2, prepare_model

from rmfast.config import Config, load_config
from rmfast.data.plan import StepPlan
from rmfast.data.table import Edges
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.tasks.build.inputs import open_inputs, open_world
from rmfast.tasks.ensemble.head_batch import HeadData, HeadMember
from rmfast.tasks.ensemble.head_learner import HeadLearner, HeadOptions
from rmfast.tasks.meta import MetaRun
from rmfast.tasks.reward import RewardRun

IDS = (3, 4096)  # of the quickstart tokenizer, special ones left out
HEAD_PAIRS, HEAD_STEPS, BATCH = 2048, 200, 32


def write_rows(folder: Path, steps: int, pairs: int, prompts: int, samples: int) -> None:
    """Pairs of HH-RLHF's lengths, and prompts with samples as long as the chosen replies."""
    draw = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return draw.integers(*IDS, count).tolist()

    kinds = {"pairs": (steps * pairs, 1), "samples": (steps * prompts, samples - 1)}
    for seed, (name, (count, losers)) in enumerate(kinds.items()):
        rows = []
        for prompt, chosen, rejected in draw_lengths("hh", count, seed).tolist():
            others = [ids(rejected if losers == 1 else chosen) for _ in range(losers)]
            rows.append({"prompt_ids": ids(prompt), "chosen_ids": ids(chosen), "rejected_ids": others})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())


def run_of(values: dict[str, object]) -> RewardRun:
    """A run that is ready for steps."""
    config: Config = load_config([f"--{key}={value}" for key, value in values.items()])
    world = open_world(config)
    kind = MetaRun if config.task == "meta" else RewardRun
    run = kind(config, world, *open_inputs(config, world))
    run.engine.network.decoder.attend_with("auto")
    return run


def measure_steps(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds and computed tokens of each kind of step, round by round; the first round warms up."""
    write_rows(folder, args.rounds + 1, args.pairs, args.prompts, args.samples)
    SMOLLM2["num_hidden_layers"] = args.layers
    model = prepare_model(None, folder / "model", seed=0)
    common: dict[str, object] = {
        "model.path": folder / "model",
        "data.train": folder / "pairs.jsonl",
        "data.max_length": 2048,
        "data.pairs_per_step": args.pairs,
        "data.cache": folder / "cache",
        "run.dir": folder / "run",
        "run.threads": 1,
    }
    meta = {"task": "meta", "meta.data": folder / "samples.jsonl", "meta.k": args.samples}
    meta |= {"meta.prompts_per_step": args.prompts, "meta.check_every": "null"}
    simcse = {"objective.contrastive": "simcse"}
    kinds = {
        "plain": {},
        "meta": meta,
        "simcse, second pass": simcse | {"objective.views": "pass"},
        "simcse, extra responses": simcse | {"objective.views": "response"},
    }
    runs = {kind: run_of(common | values) for kind, values in kinds.items()}
    functions = {kind: run.step_function() for kind, run in runs.items()}
    loaders = {kind: run.loader(0) for kind, run in runs.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    tokens: dict[str, list[int]] = {kind: [] for kind in kinds}
    for number in range(args.rounds + 1):
        for kind, run in runs.items():
            step = loaders[kind].build(number)
            begin = time.process_time()
            functions[kind](step)
            run.engine.optimizer_step(0.0)
            seconds[kind].append(time.process_time() - begin)
            tokens[kind].append(sum(len(pack.tokens) for part in step.parts for pack in part.packs))
    return {
        "model": model,
        "seconds": {kind: values[1:] for kind, values in seconds.items()},
        "tokens": {kind: values[1:] for kind, values in tokens.items()},
    }


def measure_heads(rounds: int, members: Sequence[int] = (1, 10)) -> dict[str, list[float]]:
    """CPU seconds of a training of heads, by their number, on features that are there already."""
    draw = np.random.default_rng(0)
    first = 2 * np.arange(HEAD_PAIRS)
    ones = np.ones(HEAD_PAIRS, np.float32)
    edges = Edges(
        better=first, worse=first + 1, group=np.arange(HEAD_PAIRS), margin=0 * ones, target=ones, weight=ones,
        length=np.zeros(2 * HEAD_PAIRS, np.int64),
    )  # fmt: skip
    features = draw.standard_normal((2 * HEAD_PAIRS, SMOLLM2["hidden_size"])).astype(np.float32)
    data = HeadData(features=features, place=np.arange(len(features)), edges=edges)
    options = HeadOptions(
        lr=2e-3, schedule="linear", warmup=0.1, floor=0.0, adamw=AdamWOptions(), center=0.0, on_nonfinite="stop"
    )  # fmt: skip
    seconds: dict[str, list[float]] = {str(count): [] for count in members}
    for _ in range(rounds + 1):
        for count in members:
            made = []
            for m in range(count):
                plan = StepPlan([HEAD_PAIRS], (1.0,), groups_per_step=BATCH, seed=m)
                made.append(HeadMember(plan=plan, groups=np.arange(HEAD_PAIRS), total=HEAD_STEPS))
            heads = 0.02 * torch.randn(count, features.shape[1], generator=torch.Generator().manual_seed(0))
            trainer = HeadLearner(heads, made, data, options, torch.device("cpu"))
            begin = time.process_time()
            trainer.fit(lambda values: None, save=lambda: None, save_every=None, evaluate=lambda: None, eval_every=None)
            seconds[str(count)].append(time.process_time() - begin)
    return {count: values[1:] for count, values in seconds.items()}


def summary(result: dict[str, Any]) -> dict[str, float]:
    """Medians over rounds: each kind of step in plain steps, by time and by tokens; ten heads in one."""
    seconds, tokens = result["seconds"], result["tokens"]

    def ratio(table: dict[str, list[float]], kind: str, base: str) -> float:
        return statistics.median(a / b for a, b in zip(table[kind], table[base], strict=True))

    out = {}
    for kind in seconds:
        if kind != "plain":
            out[f"{kind}: time"] = ratio(seconds, kind, "plain")
            out[f"{kind}: tokens"] = ratio(tokens, kind, "plain")
    out["extra responses in second passes: time"] = ratio(seconds, "simcse, extra responses", "simcse, second pass")
    by_token = [m / p / (a / b) for m, p, a, b in zip(*(seconds[k] for k in ("meta", "plain")),
                                                     *(tokens[k] for k in ("meta", "plain")), strict=True)]  # fmt: skip
    out["meta: time by tokens"] = statistics.median(by_token)
    out["ten heads in one: time"] = ratio(result["heads"], "10", "1")
    return out


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 3), ("pairs", 4), ("prompts", 4), ("samples", 5), ("layers", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure_steps(Path(folder), args)
    result |= {"pairs": args.pairs, "prompts": args.prompts, "samples": args.samples, "layers": args.layers}
    result |= {"machine": {"device": cpu(), "threads": 1, "torch": torch.__version__, "commit": commit()}}
    result |= {"heads": measure_heads(args.rounds), "head_steps": HEAD_STEPS}
    result |= {"summary": summary(result)}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, value in result["summary"].items():
        print(f"{name:<42} {value:6.3f}")


if __name__ == "__main__":
    main()
