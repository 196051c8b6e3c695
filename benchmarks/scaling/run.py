"""One point of a scaling curve: steps of random packs through the real trainer, on as many ranks as torchrun started.

    torchrun --standalone --nproc_per_node 2 benchmarks/scaling/run.py CONFIG.yaml [--section.key value ...] \\
        --mode weak --out FOLDER

weak: `--groups-per-rank` prompt groups for each rank; strong: the config's data.pairs_per_step for all of them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from inputs import Recorder, open_run, stepping_alone  # noqa: E402
from lengths import DISTRIBUTIONS, draw_lengths  # noqa: E402

from rmfast.config import Config, load_config  # noqa: E402
from rmfast.errors import UserError  # noqa: E402
from rmfast.tasks.build.inputs import open_world  # noqa: E402
from rmfast.trainer.loop import Progress  # noqa: E402

WARM_UP = 2  # steps that are not counted


def measure(config: Config, options: argparse.Namespace) -> dict[str, Any] | None:
    """Train some steps; what they took, on rank 0.

    Raises:
        UserError: the config cannot be trained.
    """
    world = open_world(config)
    with world:
        groups = options.groups_per_rank * world.size if options.mode == "weak" else config.data.pairs_per_step
        config = stepping_alone(config, groups=groups, steps=options.steps + WARM_UP)
        lengths = draw_lengths(options.lengths, groups * (options.steps + WARM_UP), config.run.seed)
        run = open_run(config, world, lengths)
        recorder = Recorder()
        run.log = recorder  # type: ignore[assignment]
        run.train(Progress())
        lines = recorder.lines[WARM_UP:]
        seconds = [line["step_seconds"] for line in lines]
        total = [line["tokens_per_second"] * line["step_seconds"] for line in lines]
        mfu = [line["mfu"] for line in lines]
        cuda = world.device.type == "cuda"
        parallel = config.parallel.model_dump(mode="json")
        return {
            "mode": options.mode,
            "ranks": world.size,
            "nodes": world.size // int(os.environ.get("LOCAL_WORLD_SIZE", world.size)),
            "groups": groups,
            "step_seconds": statistics.median(seconds),
            "tokens_per_second": sum(total) / sum(seconds),
            "mfu": None if None in mfu else statistics.median(mfu),
            "memory_gib": max(line["memory_gib"] for line in lines),
            "seconds": seconds,
            "tokens": total,
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


def commit() -> str | None:
    """Of this checkout; None without git."""
    try:
        words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


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
    if main_rank and result is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{options.mode}-{result['ranks']:05d}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{path}: {result['step_seconds']:.3f} s a step, {result['tokens_per_second']:,.0f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
