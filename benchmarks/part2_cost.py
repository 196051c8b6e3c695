"""What the methods of Part II cost beside plain training, in CPU seconds of one thread.

    python -m benchmarks.part2_cost [--rounds 3] [--layers 30] [--out FILE.json]

Steps of equal batches, optimizer included, take turns: a plain one, a MetaRM one (promised: at most 1.1 x (tokens of
both sets / tokens of the pairs) plain ones), SimCSE with its second view as a second pass (the paper's way) and as
extra responses.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.lengths import draw_lengths
from benchmarks.origin import origin, write_json
from benchmarks.runs import MeasuredRun, open_run, steps_parser
from benchmarks.steps.inputs import prepare_model, write_rows
from rmfast.config import load_config
from rmfast.tasks.build.inputs import open_inputs, open_world

VOCABULARY = 4096  # of the quickstart tokenizer


def open_runs(folder: Path, args: argparse.Namespace) -> dict[str, MeasuredRun]:
    """A run of each kind, ready for steps."""
    simcse = {"objective.contrastive": "simcse"}
    kinds: dict[str, dict[str, object]] = {
        "plain": {},
        "meta": {"task": "meta", "meta.data": folder / "samples.jsonl", "meta.k": args.samples,
                 "meta.prompts_per_step": args.prompts, "meta.check_every": "null"},
        "simcse, second pass": simcse | {"objective.views": "pass"},
        "simcse, extra responses": simcse | {"objective.views": "response"},
    }  # fmt: skip
    common = {"model.path": folder / "model", "data.train": folder / "pairs.jsonl", "data.max_length": 2048,
              "data.pairs_per_step": args.pairs, "data.cache": folder / "cache", "run.dir": folder / "run",
              "run.threads": 1}  # fmt: skip
    runs = {}
    for kind, keys in kinds.items():
        config = load_config([f"--{key}={value}" for key, value in (common | keys).items()])
        world = open_world(config)
        runs[kind] = open_run(config, world, open_inputs(config, world).table)
    return runs


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds and computed tokens of each kind of step, round by round; the first round warms up."""
    pairs, prompts = ((args.rounds + 1) * each for each in (args.pairs, args.prompts))
    write_rows(folder / "pairs.jsonl", draw_lengths(args.lengths, pairs, 0), VOCABULARY, 0)
    lengths = draw_lengths(args.lengths, prompts, 1)[:, [0] + [1] * args.samples]  # samples are as long as chosen ones
    write_rows(folder / "samples.jsonl", lengths, VOCABULARY, 1)
    model = prepare_model(args.model, folder / "model", 0, num_hidden_layers=args.layers)
    runs = open_runs(folder, args)
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    tokens: dict[str, list[int]] = {kind: [] for kind in runs}
    for run in runs.values():
        run.build()
    for number in range(args.rounds + 1):
        for kind, run in runs.items():
            run.pairs.rate = lambda step: 0.0  # all rounds from the same weights
            before = run.learner.counters["num_computed_tokens"]
            begin = time.process_time()
            run.learner.step(number)
            seconds[kind].append(time.process_time() - begin)
            tokens[kind].append(run.learner.counters["num_computed_tokens"] - before)
    seconds, tokens = ({kind: each[1:] for kind, each in table.items()} for table in (seconds, tokens))  # type: ignore
    return {"model": model, "seconds": seconds, "tokens": tokens, "summary": summary(seconds, tokens)}


def summary(seconds: dict[str, list[float]], tokens: dict[str, list[int]]) -> dict[str, float]:
    """Medians over rounds: each kind of step in plain steps, by time and by tokens."""

    def ratio(table: dict[str, Any], kind: str, base: str = "plain") -> list[float]:
        return [a / b for a, b in zip(table[kind], table[base], strict=True)]

    out = {}
    for kind in list(seconds)[1:]:
        out[f"{kind}: time"] = median(ratio(seconds, kind))
        out[f"{kind}: tokens"] = median(ratio(tokens, kind))
    passes = ratio(seconds, "simcse, extra responses", "simcse, second pass")
    out["extra responses in second passes: time"] = median(passes)
    both = zip(ratio(seconds, "meta"), ratio(tokens, "meta"), strict=True)
    return out | {"meta: time by tokens": median(time / token for time, token in both)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = steps_parser(__doc__, rounds=3, pairs=4, prompts=4, samples=5, layers=30).parse_args(arguments)
    torch.set_num_threads(1)
    about = origin()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args) | {"settings": vars(args) | {"out": None}} | about
    if args.out:
        write_json(args.out, result)
    for name, value in result["summary"].items():
        print(f"{name:<42} {value:6.3f}")


if __name__ == "__main__":
    main()
