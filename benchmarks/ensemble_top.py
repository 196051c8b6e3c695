"""What ten members over one trunk take (ensemble.mode top_layers), beside one that is fully trained: CPU seconds.

    python -m benchmarks.ensemble_top [--rounds 4] [--pairs 8] [--json FILE]

Three ways take turns, a step each in every round, all of one process with one thread: a reward run of all layers; one
of the top 2 (`model.top_layers: 2`), which ten members one after another take ten times; and ten members over one
trunk, with the trunk's states of as many rows as a step has (each row's are computed once for all members of a run of
one epoch) and a step of all ten. What builds the packs counts. The losses of the member that both others train must
agree. Random weights, pairs of random tokens with the lengths of HH-RLHF.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lengths import draw_lengths
from benchmarks.origin import origin, write_json
from benchmarks.runs import MeasuredRun, open_run
from benchmarks.steps.inputs import prepare_model, write_rows
from rmfast.config import load_config
from rmfast.data.pack import build_pack
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import open_inputs
from rmfast.tasks.ensemble.members import Ensemble, member_seed
from rmfast.tasks.ensemble.states import TRAIN, KeptStates
from rmfast.tasks.ensemble.top import open_learner, open_members

VOCABULARY = 4096  # of the quickstart tokenizer
AGREE = 1e-4  # relative
WAYS = {"full": "one member, all layers", "alone": "one member, top layers", "trunk": "states", "members": "members"}


def keys(folder: Path, model: Path, pairs: int, **more: object) -> list[str]:
    """The command line of a run."""
    common = {
        **{"model.path": model, "data.train": folder / "pairs.jsonl", "data.max_length": 2048},
        **{"data.pairs_per_step": pairs, "data.cache": folder / "cache", "run.threads": 1, "run.dir": folder / "run"},
    }
    return [f"--{key}={value}" for key, value in (common | more).items()]


def reward_step(folder: Path, model: Path, pairs: int, **more: object) -> tuple[Callable[[int], float], MeasuredRun]:
    """Steps of a reward run, in the order of an ensemble's first member."""
    config = load_config(keys(folder, model, pairs, **{"run.seed": member_seed(0, 0)} | more))
    world = World(1)
    run = open_run(config, world, open_inputs(config, world).table)
    run.pairs.loader.step = run.pairs.loader.build  # type: ignore[assignment]  # not ahead, in another way's time
    return lambda number: float(run.learner.step(number).device["loss"]), run


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds and losses, round by round; the first round warms up and is left out."""
    model, pairs, top = folder / "model", args.pairs, {"model.top_layers": args.top_layers}
    prepare_model(args.model, model, 0, num_hidden_layers=args.layers)
    write_rows(folder / "pairs.jsonl", draw_lengths(args.lengths, (args.rounds + 1) * pairs, 0), VOCABULARY, 0)
    full, of_full = reward_step(folder, model, pairs)
    alone, of_alone = reward_step(folder, model, pairs, **top)
    more = {"task": "ensemble", "ensemble.mode": "top_layers", "ensemble.members": args.members}
    config = load_config(keys(folder, model, pairs, **more, **top))
    world = World(1)
    ensemble = Ensemble(config=config, world=world, inputs=open_inputs(config, world), folder=folder)
    members, trunk = open_members(ensemble)
    learner = open_learner(ensemble, members, trunk)
    batches = learner._ahead._build
    learner._ahead = batches  # type: ignore[assignment]
    table, kept = ensemble.inputs.table, learner.engine.states
    assert isinstance(kept, KeptStates)

    def states(number: int) -> float:
        rows = np.arange(number * pairs, (number + 1) * pairs)
        pack = build_pack(table, rows)
        made, before = trunk(TRAIN, pack, rows), kept(TRAIN, pack, rows)
        return float((made - before).abs().max() / before.abs().max())

    ways: dict[str, Callable[[int], float]] = {"full": full, "alone": alone, "trunk": states}
    ways["members"] = lambda number: float(learner.step(number).device["loss"][0])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    values: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(args.rounds + 1):
        for way, step in ways.items():
            begin = time.process_time()
            values[way].append(step(number))
            seconds[way].append(time.process_time() - begin)
            print(f"round {number}: {WAYS[way]} {seconds[way][-1]:.2f} s", flush=True)
    difference = max(abs(a / b - 1) for a, b in zip(values["members"], values["alone"], strict=True))
    if max(difference, *values["trunk"]) > AGREE:
        raise RuntimeError(f"the ways do not take the same steps: {difference:.1e}, {values}")
    seconds = {way: each[1:] for way, each in seconds.items()}
    ours = [a + b for a, b in zip(seconds["trunk"], seconds["members"], strict=True)]
    return {
        "cpu_seconds": {way: median(each) for way, each in seconds.items()} | {"ensemble": median(ours)},
        "share_of_one_full_member": median(a / b for a, b in zip(ours, seconds["full"], strict=True)),
        "times_less_than_one_after_another": median(
            args.members * b / a for a, b in zip(ours, seconds["alone"], strict=True)
        ),
        "largest_loss_difference": difference,
        "bytes": {
            "ensemble": held(members.parameters(), learner.engine.optimizers)
            | {"trunk": size(trunk.trunk.parameters()), "states_of_a_row": kept.array.nbytes // len(table)},
            "full": of_run(of_full),
            "top_layers": of_run(of_alone),
        },
        "seconds": seconds,
    }


def of_run(run: MeasuredRun) -> dict[str, int]:
    engine: Any = run.engine
    return held(engine.network.parameters(), [engine.optimizer])


def held(weights: Iterable[Tensor], optimizers: Sequence[Any]) -> dict[str, int]:
    """Bytes of weights, of a gradient of each that is trained, and of moments."""
    moments = [size(each.values()) for optimizer in optimizers for each in optimizer.state().values()]
    return {"weights": size(weights), "gradients": sum(moments) // 2, "moments": sum(moments)}


def size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a shape (default: %(default)s)")
    parser.add_argument("--lengths", default="hh", help="of the pairs (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=8, help="of a step (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--top-layers", type=int, default=2)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    about = origin()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args) | about
    result["settings"] = vars(args) | {"json": None}
    if args.json:
        write_json(args.json, result)
    for name in ("share_of_one_full_member", "times_less_than_one_after_another"):
        print(f"{name.replace('_', ' ')}: {result[name]:.3f}")
    for name, sizes in result["bytes"].items():
        print(f"{name}: " + ", ".join(f"{part} {count / 1e6:,.1f} MB" for part, count in sizes.items()))


if __name__ == "__main__":
    main()
