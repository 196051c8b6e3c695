"""One point of a scaling curve: steps of random packs through the real trainer, on as many ranks as torchrun started.

    torchrun --standalone --nproc_per_node 2 benchmarks/scaling/run.py CONFIG.yaml [--section.key value ...] \\
        --mode weak --out FOLDER

weak: `--groups-per-rank` prompt groups for each rank; strong: the config's data.pairs_per_step for all of them.
"""

import argparse
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch

if not __package__:  # run as a file: the repository's root instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.lengths import DISTRIBUTIONS, draw_lengths
from benchmarks.origin import commit, write_json
from benchmarks.runs import open_random
from rmfast.config import Config, load_config
from rmfast.errors import UserError
from rmfast.tasks.build.inputs import open_world

WARM_UP = 2  # steps that are not counted


def measure(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """Train some steps; what they took on this rank.

    Raises:
        UserError: the config cannot be trained.
    """
    with open_world(config) as world:
        groups = options.groups_per_rank * world.size if options.mode == "weak" else config.data.pairs_per_step
        lengths = draw_lengths(options.lengths, groups * (options.steps + WARM_UP), config.run.seed)
        run = open_random(config, world, lengths, groups)
        lines = run.measure()[WARM_UP:]
        seconds = [line["step_seconds"] for line in lines]
        tokens = [line["tokens_per_second"] * line["step_seconds"] for line in lines]
        mfu = [line["mfu"] for line in lines]
        parallel = config.parallel.model_dump(mode="json")
        cuda = world.device.type == "cuda"
        return {
            "mode": options.mode,
            "ranks": world.size,
            "nodes": world.size // int(os.environ.get("LOCAL_WORLD_SIZE", world.size)),
            "groups": groups,
            "step_seconds": median(seconds),
            "tokens_per_second": sum(tokens) / sum(seconds),
            "mfu": None if None in mfu else median(mfu),
            "memory_gib": max(line["memory_gib"] for line in lines),
            "seconds": seconds,
            "tokens": tokens,
            "model": Path(config.model.path).name,
            "weights": run.engine.parameter_counts()[0],
            "dtype": config.model.dtype,
            "recompute": config.model.recompute,
            "lengths": options.lengths,
            "tokens_per_pack": config.data.tokens_per_pack,
            "parallel": {key: value for key, value in parallel.items() if key != "timeout_minutes"},
            "device": torch.cuda.get_device_name(world.device) if cuda else "cpu",
            "torch": torch.__version__,
            "commit": commit(),
        }


def main(arguments: list[str]) -> int:
    """Entry point; 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="+", help="as rmfast/train.py takes it, keys included")
    parser.add_argument("--mode", choices=["weak", "strong"], required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where MODE-RANKS.json goes")
    parser.add_argument("--steps", type=int, default=20, help=f"counted, after {WARM_UP} others (default 20)")
    parser.add_argument("--groups-per-rank", type=int, default=16, help="weak: pairs for each rank (default 16)")
    parser.add_argument("--lengths", choices=list(DISTRIBUTIONS), default="hh", help="of the pairs (default hh)")
    options, more = parser.parse_known_args(arguments)
    main_rank = int(os.environ.get("RANK", 0)) == 0
    try:
        result = measure(load_config([*options.config, *more]), options)
    except UserError as error:
        if main_rank:
            print(f"error: {error}", file=sys.stderr)
        return 2
    if main_rank:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{options.mode}-{result['ranks']:05d}.json"
        write_json(path, result)
        print(f"{path}: {result['step_seconds']:.3f} s a step, {result['tokens_per_second']:,.0f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
