"""Steps of real runs beside what rmfast plan says of them, for the rates that were measured in between.

    torchrun --standalone --nproc_per_node 2 tests/launch/against_plan.py --out FILE.json \\
        [--rounds 5] [--width 512 --layers 6 ...] [--dtype bfloat16]

In every round: the ceilings (ceilings.py), then a step of each case: native on one process, DDP, and the megatron
engine with tensor, pipeline and data parallelism. Medians over rounds. Wall time on GPUs; on a CPU the CPU time of each
process, where waiting for others (a bubble) does not show.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

if not __package__:  # run as a file: the repository's root instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.origin import commit, write_json
from benchmarks.runs import open_random
from benchmarks.scaling.ceilings import ceilings, clock
from rmfast.config import load_config
from rmfast.launch.cost import Layout, Workload, seconds
from rmfast.launch.hardware import Gpu
from rmfast.models.config import decoder_config
from rmfast.models.hf import read_config
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import open_world
from tests.launch.memory import layout_keys, write_model
from tests.megatron.standin import install

# On a CPU and on GPUs. group: tokens of a pair, half of them its prompt; packs: of a data rank in a step; size: bytes
# that links are measured with.
SIZES = {"width": (512, 2048), "ffn": (1536, 8192), "layers": (4, 16), "heads": (8, 16), "group": (64, 512),
         "tokens": (256, 16384), "packs": (4, 4), "size": (2**25, 2**30)}  # fmt: skip


def cases(ranks: int) -> dict[str, Layout]:
    """What fits a number of ranks; native always runs on rank 0 alone."""
    out = {"native": Layout("ddp", 1)}
    if ranks > 1:
        out |= {f"ddp{ranks}": Layout("ddp", ranks), f"dp{ranks}": Layout("megatron", ranks)}
        out[f"tp{ranks}"] = Layout("megatron", 1, tensor=ranks)
        out[f"tp{ranks} sp"] = Layout("megatron", 1, tensor=ranks, sequence=True)
        out[f"pp{ranks}"] = Layout("megatron", 1, pipeline=ranks)
    return out


def lengths_of(options: argparse.Namespace, layout: Layout) -> np.ndarray:
    """[groups, 3] of a step: `options.packs` packs of `options.tokens` for each data rank; half a group is prompt."""
    prompt = options.group // 2
    response = (options.group - prompt) // 2
    groups = options.tokens // options.group * options.packs * layout.data
    return np.tile((prompt, response, response), (groups, 1))


def workload(options: argparse.Namespace, layout: Layout) -> Workload:
    """The same as the plan sees it."""
    lengths = lengths_of(options, layout)
    groups, (prompt, response, _) = len(lengths), lengths[0].tolist()
    seen = prompt * (prompt + 1) // 2 + 2 * (response * prompt + response * (response + 1) // 2)
    size = {"tokens": int(lengths.sum()), "responses": 2 * groups, "visible": groups * seen}
    return Workload(**size, pack=options.tokens, activation=4 if options.dtype == "float32" else 2)


def stepper(options: argparse.Namespace, layout: Layout, folder: Path, world: World) -> Callable[[], float]:
    """What takes the next step of a case's run and returns its seconds on this rank."""
    words = ["--data.train", "random", "--model.path", str(folder), "--model.from_scratch", "true"]
    words += ["--model.dtype", options.dtype, "--data.tokens_per_pack", str(options.tokens), *layout_keys(layout)]
    lengths = lengths_of(options, layout)
    several = np.tile(lengths, (options.rounds + 1, 1))
    ranks = world if layout.world > 1 else World.alone(world)
    run = open_random(load_config(words), ranks, several, len(lengths))
    run.build()
    numbers = count()
    assert {len(run.pairs.loader.step(number).packs) for number in range(options.rounds + 1)} == {options.packs}

    def take() -> float:
        number = next(numbers)
        world.sum_(torch.zeros(1))  # all begin at once
        before = clock(world.device)
        run.learner.step(number)
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


def compare(options: argparse.Namespace, folder: Path, measured: dict[str, Any], world: World) -> dict[str, Any]:
    """Planned, from the median ceilings, beside the measured time of the slowest rank."""
    rates = {field.name: median(found[field.name] for found in measured["rates"]) for field in fields(Gpu)}
    gpu = Gpu(**rates | {"node": int(rates["node"])})
    config = decoder_config(read_config(str(folder)))
    waits = world.device.type == "cuda"  # wall time counts waiting for others, and may hide what overlaps
    rows = {}
    for name, layout in cases(world.size).items():
        planned = seconds(config, layout, workload(options, layout), gpu, overlap=waits)
        planned |= {} if waits else {"bubble": 0.0}
        took = measured["seconds"][name]
        slowest = median(max(row) for row in took)
        rows[name] = {
            "measured": slowest, "by_rank": [median(column) for column in zip(*took, strict=True)],
            "planned": sum(planned.values()), "ratio": sum(planned.values()) / slowest, "planned_by": planned,
        }  # fmt: skip
    return {"gpu": vars(gpu), "cases": rows}


def main(arguments: list[str]) -> int:
    """Entry point."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE.json")
    add("--rounds", type=int, default=5)
    for name, (cpu, gpu) in SIZES.items():
        add(f"--{name}", type=int, default=gpu if cuda else cpu, help="(default here: %(default)s)")
    add("--dtype", choices=["float32", "bfloat16"], default="bfloat16" if cuda else "float32")
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
        result = compare(options, folder, found, world) | {"about": about | {"commit": commit()}}
    write_json(options.out, result | {"measured": found})
    print("| case | measured s | planned s | planned / measured |\n|---|---|---|---|")
    for name, row in result["cases"].items():
        print(f"| {name} | {row['measured']:.3f} | {row['planned']:.3f} | {row['ratio']:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
