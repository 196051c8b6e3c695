"""CPU time of a training step without a save, beside that of another checkout, on one thread.

    python -m benchmarks.step_against --tree CHECKOUT [--rounds 3] [--steps 12] [--layers 4] [--out FILE.json]

Two processes, one of each checkout, take the same steps of the same model and rows in turns, a step each: what else the
machine does comes into both. Each round has two new processes. The losses have to agree.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

WARM_UP = 2  # steps of each process that do not count


def work(folder: Path, run: str, pairs: int) -> None:
    """What a process does, by the code of the checkout that it finds: a step for each line of its input."""
    import torch

    from benchmarks.runs import open_run
    from rmfast.config import load_config
    from rmfast.tasks.build.inputs import open_inputs, open_world

    torch.set_num_threads(1)
    keys = {"model.path": folder / "model", "data.train": folder / "pairs.jsonl", "data.max_length": 2048,
            "data.pairs_per_step": pairs, "data.cache": folder / f"{run}-cache", "run.dir": folder / run,
            "run.tensorboard": "false", "run.threads": 1}  # fmt: skip
    config = load_config([f"--{key}={value}" for key, value in keys.items()])
    world = open_world(config)
    measured = open_run(config, world, open_inputs(config, world).table)
    measured.build()
    began = time.process_time()

    def mark() -> None:
        nonlocal began
        print("step", time.process_time() - began, flush=True)
        sys.stdin.readline()
        began = time.process_time()

    lines = measured.measure(mark)
    print("losses", json.dumps([line["loss"] for line in lines]), flush=True)


class Process:
    """Steps of a checkout, each when it is asked for."""

    def __init__(self, tree: Path, folder: Path, run: str, pairs: int) -> None:
        from tests.runs import environment

        words = [sys.executable, __file__, str(folder), run, str(pairs)]
        variables = environment() | {"PYTHONPATH": str(tree)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, cwd=tree, env=variables, stdin=pipe, stdout=pipe, text=True)

    def read(self, word: str) -> Any:
        """What follows a word on the next line that begins with it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(f"{word} "):
                return json.loads(line.removeprefix(word))
        raise RuntimeError(f"a process ended with {self._process.wait()}")

    def step(self) -> float:
        """CPU seconds of one."""
        self._go()
        return self.read("step")

    def losses(self) -> list[float]:
        """Of all steps, once they are done."""
        self._go()
        found = self.read("losses")
        self._process.wait()
        return found

    def _go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


def measure(trees: Mapping[str, Path], folder: Path, steps: int, pairs: int) -> tuple[dict[str, list[float]], float]:
    """CPU seconds of each step of one round, by checkout, and how far their losses are apart at most."""
    processes = {name: Process(tree, folder, name, pairs) for name, tree in trees.items()}
    for process in processes.values():
        process.read("step")  # what comes before the first one
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    for number in range(steps):
        for name in list(trees)[:: 1 if number % 2 else -1]:
            seconds[name].append(processes[name].step())
    before, after = (process.losses() for process in processes.values())
    return {name: each[WARM_UP:] for name, each in seconds.items()}, max(
        abs(a - b) for a, b in zip(before, after, strict=True)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    from benchmarks.lengths import draw_lengths
    from benchmarks.origin import ROOT, commit, origin, write_json
    from benchmarks.part2_cost import VOCABULARY
    from benchmarks.runs import steps_parser
    from benchmarks.steps.inputs import prepare_model, write_rows

    parser = steps_parser(__doc__, rounds=3, steps=12, pairs=8, layers=4)
    parser.add_argument("--tree", type=Path, required=True, help="of the other checkout")
    args = parser.parse_args(arguments)
    trees, rounds, far = {"before": args.tree.absolute(), "now": ROOT}, [], 0.0
    about = origin() | {"before": commit(trees["before"])}
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            lengths = draw_lengths(args.lengths, args.steps * args.pairs, number)
            write_rows(folder / "pairs.jsonl", lengths, VOCABULARY, number)
            model = prepare_model(args.model, folder / "model", 0, num_hidden_layers=args.layers)
            seconds, apart = measure(trees, folder, args.steps, args.pairs)
        ratios = [now / before for before, now in zip(seconds["before"], seconds["now"], strict=True)]
        rounds.append({"seconds": seconds, "ratio": median(ratios)})
        far = max(far, apart)
        print(f"round {number + 1}: {median(ratios):.4f} times the CPU time of a step before", flush=True)
    ratio = median(each["ratio"] for each in rounds)
    settings = {
        "rounds": args.rounds,
        "steps": args.steps,
        "pairs": args.pairs,
        "layers": args.layers,
        "lengths": args.lengths,
    }
    result = {"model": model, "ratio": ratio, "losses_apart": far, "settings": settings, "rounds": rounds}
    if args.out:
        write_json(args.out, result | about)
    print(f"{ratio:.4f} times the CPU time of a step before; losses {far:.1e} apart")


if __name__ == "__main__":
    if sys.argv[1:] and not sys.argv[1].startswith("-"):  # one of its own processes
        del sys.path[0]
        work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    else:
        main()
