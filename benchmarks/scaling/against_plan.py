"""Steps of real runs beside what rmfast plan says of them, for the rates that were measured in between.

    torchrun --standalone --nproc_per_node 2 benchmarks/scaling/against_plan.py --out FILE.json \\
        [--rounds 5] [--width 512 --layers 6 ...] [--dtype bfloat16]

In every round: the ceilings (ceilings.py), then a step of each case: native on one process, DDP, and the megatron
engine with tensor, pipeline and data parallelism. Medians over rounds. Wall time on GPUs; on a CPU the CPU time of each
process, where waiting for others (a bubble) does not show.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]

from ceilings import ceilings, clock  # noqa: E402
from inputs import open_run, stepping_alone  # noqa: E402
from memory import write_model  # noqa: E402
from run import commit  # noqa: E402

from rmfast.commands.plan import keys  # noqa: E402
from rmfast.config import load_config  # noqa: E402
from rmfast.launch.cost import Layout, Workload, seconds  # noqa: E402
from rmfast.launch.hardware import Gpu  # noqa: E402
from rmfast.launch.layouts import Plan  # noqa: E402
from rmfast.models.config import decoder_config  # noqa: E402
from rmfast.models.hf import read_config  # noqa: E402
from rmfast.parallel.world import World  # noqa: E402
from rmfast.tasks.build.inputs import open_world  # noqa: E402
from tests.megatron.standin import install  # noqa: E402

PROMPT = 1 / 2  # of a group's tokens; the rest are two responses


def cases(ranks: int) -> dict[str, Layout]:
    """What fits a number of ranks; native always runs on rank 0 alone."""
    out = {"native": Layout("ddp", 1)}
    if ranks > 1:
        out |= {f"ddp{ranks}": Layout("ddp", ranks), f"dp{ranks}": Layout("megatron", ranks)}
        out[f"tp{ranks}"] = Layout("megatron", 1, tensor=ranks)
        out[f"tp{ranks} sp"] = Layout("megatron", 1, tensor=ranks, sequence=True)
        out[f"pp{ranks}"] = Layout("megatron", 1, pipeline=ranks)
    return out


def workload(options: argparse.Namespace, layout: Layout) -> Workload:
    """`options.packs` packs of `options.tokens` for each data rank."""
    prompt = int(options.group * PROMPT)
    own = (options.group - prompt) // 2
    groups = options.tokens // options.group * options.packs * layout.data
    seen = prompt * (prompt + 1) // 2 + 2 * (own * prompt + own * (own + 1) // 2)
    width = 4 if options.dtype == "float32" else 2
    size = {"tokens": groups * (prompt + 2 * own), "responses": 2 * groups, "visible": groups * seen}
    return Workload(**size, pack=options.tokens, activation=width)


def stepper(options: argparse.Namespace, layout: Layout, folder: Path, world: World) -> Callable[[], float]:
    """What takes the next step of a case's run and tells its seconds on this rank."""
    load = workload(options, layout)
    words = ["--data.train", "random", "--model.path", str(folder), "--model.from_scratch", "true"]
    words += ["--model.dtype", options.dtype, "--data.tokens_per_pack", str(options.tokens)]
    words += keys(Plan(layout, {}, {})).split() if layout.world > 1 else []
    groups, steps = load.responses // 2, options.rounds + 1
    prompt = int(options.group * PROMPT)
    own = (options.group - prompt) // 2
    config = stepping_alone(load_config(words), groups=groups, steps=steps)
    run = open_run(
        config, world if layout.world > 1 else World.alone(world), np.tile((prompt, own, own), (groups * steps, 1))
    )
    step, ahead = run.step_function(), iter(run.loader(0))

    def take() -> float:
        batch = next(ahead)
        assert len(batch.packs) == options.packs, len(batch.packs)
        world.sum_(torch.zeros(1))  # all begin at once
        before = clock(world.device)
        step(batch)
        run.engine.optimizer_step(1e-5)
        return clock(world.device) - before

    return take


def measure(options: argparse.Namespace, folder: Path, world: World) -> dict[str, Any]:
    """Rates by round, and each case's seconds by round and rank. All ranks call it."""
    made = cases(world.size)
    runs = {n: stepper(options, x, folder, world) for n, x in made.items() if x.world > 1 or world.main}
    rates: list[dict[str, Any]] = []
    took: dict[str, list[list[float]]] = {name: [] for name in made}
    for round_ in range(options.rounds + 1):  # the first one warms up
        found = ceilings(world, width=options.width, ffn=options.ffn, tokens=options.tokens, size=options.size)
        rates += [found] if round_ else []
        for name in made:
            row = torch.zeros(world.size, dtype=torch.float64)
            if name in runs:
                row[world.rank] = runs[name]()
            elif not world.main:
                world.sum_(torch.zeros(1))  # rank 0 steps alone
            world.sum_(row)
            if round_:
                took[name].append(row.tolist())
    return {"rates": rates, "seconds": took}


def compare(
    options: argparse.Namespace, folder: Path, measured: dict[str, Any], ranks: int, waits: bool
) -> dict[str, Any]:
    """Planned beside measured, from the ceilings alone; and with products at the share of their rate that the one
    native process reaches, which leaves the layouts as what is predicted.

    Args:
        waits: whether what was measured is wall time: it counts waiting for others, and may hide what overlaps.
    """
    names = [field.name for field in fields(Gpu)]
    rates = {name: statistics.median(found[name] for found in measured["rates"]) for name in names}
    gpu = Gpu(**rates | {"node": int(rates["node"])})
    config = decoder_config(read_config(str(folder)))

    def planned(layout: Layout, gpu: Gpu) -> dict[str, float]:
        said = seconds(config, layout, workload(options, layout), gpu, overlap=waits)
        return said if waits else {**said, "bubble": 0.0}

    def slowest(name: str) -> float:
        return statistics.median(max(row) for row in measured["seconds"][name])

    one = planned(Layout("ddp", 1), gpu)
    rest = slowest("native") - (sum(one.values()) - one["compute"])
    fitted = replace(gpu, matrix_share=min(1.0, one["compute"] / rest) if rest > 0 else 1.0)
    rows = {}
    for name, layout in cases(ranks).items():
        said, again = planned(layout, gpu), planned(layout, fitted)
        by_rank = [statistics.median(column) for column in zip(*measured["seconds"][name], strict=True)]
        rows[name] = {
            "measured": slowest(name), "by_rank": by_rank,
            "planned": sum(said.values()), "ratio": sum(said.values()) / slowest(name), "planned_by": said,
            "fitted": sum(again.values()), "fitted_ratio": sum(again.values()) / slowest(name),
        }  # fmt: skip
    return {"gpu": vars(gpu), "matrix_share_of_one_process": fitted.matrix_share, "cases": rows}


def main(arguments: list[str]) -> int:
    """Entry point."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE.json")
    add("--rounds", type=int, default=5)
    add("--width", type=int, default=2048 if cuda else 512)
    add("--ffn", type=int, default=8192 if cuda else 1536)
    add("--layers", type=int, default=16 if cuda else 4)
    add("--heads", type=int, default=16 if cuda else 8)
    add("--group", type=int, default=512 if cuda else 64, help="tokens of a pair, half of them its prompt")
    add("--tokens", type=int, default=16384 if cuda else 256, help="of a pack")
    add("--packs", type=int, default=4, help="of a data rank in a step")
    add("--dtype", choices=["float32", "bfloat16"], default="bfloat16" if cuda else "float32")
    add("--size", type=int, default=2**30 if cuda else 2**25, help="bytes that links are measured with")
    options = parser.parse_args(arguments)
    install()  # nothing where there is CUDA
    sizes = {"hidden_size": options.width, "intermediate_size": options.ffn, "num_hidden_layers": options.layers}
    heads = {"num_attention_heads": options.heads, "num_key_value_heads": options.heads // 2}
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "model"  # one for each rank
        write_model(folder, sizes | heads | {"vocab_size": 4096, "head_dim": options.width // options.heads})
        world = open_world(load_config(["--model.path", str(folder), "--data.train", "random", "--run.threads", "1"]))
        with world:
            found = measure(options, folder, world)
        if not world.main:
            return 0
        about = {key: value for key, value in vars(options).items() if key != "out"} | found["rates"][0]["about"]
        result = compare(options, folder, found, world.size, cuda) | {"about": about | {"commit": commit()}}
    options.out.write_text(json.dumps(result | {"measured": found}, indent=1) + "\n", encoding="utf-8")
    print(
        "| case | measured s | planned s | ratio | planned at one process's share | ratio |\n|---|---|---|---|---|---|"
    )
    for name, row in result["cases"].items():
        print(f"| {name} | {row['measured']:.3f} | {row['planned']:.3f} | {row['ratio']:.2f} | ", end="")
        print(f"{row['fitted']:.3f} | {row['fitted_ratio']:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
