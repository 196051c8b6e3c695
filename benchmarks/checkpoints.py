"""What a checkpoint costs the steps, and what checksums cost, on one thread.

    python -m benchmarks.checkpoints [--rounds 4] [--layers 30] [--out FILE.json]

Steps without a save take turns with steps beside which a thread writes one. The step before waits until the state is
copied (promised: under 5 % of a step). A save is made without a step beside it, too. Of hashes: CPU seconds per GiB in
memory, as they are made while files are written; xxh3 where the package is installed.
"""

import argparse
import hashlib
import importlib.util
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.lengths import draw_lengths
from benchmarks.origin import origin, write_json
from benchmarks.part2_cost import VOCABULARY
from benchmarks.runs import MeasuredRun, open_run, steps_parser
from benchmarks.steps.inputs import prepare_model, write_rows
from rmfast.config import load_config
from rmfast.tasks.build.inputs import open_inputs, open_world

CALLS = 10_000


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of something: of the clock, and of the CPU in all threads of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def hashes(gib: float) -> dict[str, float]:
    """CPU seconds per GiB of each candidate."""
    data = np.random.default_rng(0).bytes(int(gib * 2**30))
    candidates: dict[str, Callable[[bytes], object]] = {
        "crc32": zlib.crc32,
        "blake2b": lambda data: hashlib.blake2b(data).digest(),
        "sha256": lambda data: hashlib.sha256(data).digest(),
    }
    if importlib.util.find_spec("xxhash"):
        import xxhash

        candidates["xxh3"] = xxhash.xxh3_128_digest
    return {name: timed(lambda f=work: f(data))["cpu"] / gib for name, work in candidates.items()}  # type: ignore


def open_plain(folder: Path, args: argparse.Namespace) -> tuple[str, MeasuredRun]:
    """What the model is, and a run of it that is ready for steps."""
    write_rows(folder / "pairs.jsonl", draw_lengths(args.lengths, (2 * args.rounds + 2) * args.pairs, 0), VOCABULARY, 0)
    model = prepare_model(args.model, folder / "model", 0, num_hidden_layers=args.layers)
    keys = {"model.path": folder / "model", "data.train": folder / "pairs.jsonl", "data.max_length": 2048,
            "data.pairs_per_step": args.pairs, "data.cache": folder / "cache", "run.dir": folder / "run",
            "run.threads": 1}  # fmt: skip
    config = load_config([f"--{key}={value}" for key, value in keys.items()])
    world = open_world(config)
    return model, open_run(config, world, open_inputs(config, world).table)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Steps with and without a save, in turns, after one of each that warms up."""
    model, measured = open_plain(folder, args)
    measured.build()
    run, learner = measured.training.run, measured.learner
    run.folder.mkdir()
    names = ("step", "wait", "step beside a save", "rest of the save", "save alone")
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}

    def save_alone() -> None:
        run.save(learner)
        assert not run.saver.wait()

    for round_ in range(args.rounds + 1):
        times["step"].append(timed(lambda n=2 * round_: learner.step(n)))  # type: ignore[misc]
        run.step = 2 * round_ + 1
        times["wait"].append(timed(lambda: run.save(learner)))
        times["step beside a save"].append(timed(lambda n=2 * round_ + 1: learner.step(n)))  # type: ignore[misc]
        times["rest of the save"].append(timed(run.saver.wait))
        run.step += 1
        times["save alone"].append(timed(save_alone))
    report = timed(lambda: [run.saver.report() for _ in range(CALLS)])["cpu"] / CALLS
    newest = max(run.folder.glob("checkpoints/step-*"), key=lambda path: path.stat().st_mtime)
    size = sum(file.stat().st_size for file in newest.iterdir()) / 2**30
    warm = {name: each[0] for name, each in times.items()}
    times = {name: each[1:] for name, each in times.items()}
    return {
        "model": model,
        "gib": size,
        "first": warm,
        "seconds": times,
        "report_seconds": report,
        "summary": summary(times, report),
    }


def summary(times: dict[str, list[dict[str, float]]], report: float) -> dict[str, float]:
    """Medians over rounds, in steps without a save."""

    def middle(name: str, kind: str) -> float:
        return median(each[kind] for each in times[name])

    step = {kind: middle("step", kind) for kind in ("wall", "cpu")}
    return {
        "step, CPU s": step["cpu"],
        "wait of the step that saves, wall s": middle("wait", "wall"),
        "wait, share of a step's wall": middle("wait", "wall") / step["wall"],
        "wait, share of a step's CPU": middle("wait", "cpu") / step["cpu"],
        "whole save, CPU s": middle("save alone", "cpu"),
        "whole save, share of a step's CPU": middle("save alone", "cpu") / step["cpu"],
        "asking each step for a save, share of a step's CPU": report / step["cpu"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = steps_parser(__doc__, rounds=4, pairs=8, layers=30)
    parser.add_argument("--gib", type=float, default=0.5, help="hashed at once (0.5)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    about = origin()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args) | {"hash_seconds_per_gib": hashes(args.gib)}
    if args.out:
        write_json(args.out, result | {"settings": vars(args) | {"out": None}} | about)
    for name, value in (result["summary"] | result["hash_seconds_per_gib"]).items():
        print(f"{name:<46} {value:8.4f}")


if __name__ == "__main__":
    main()
