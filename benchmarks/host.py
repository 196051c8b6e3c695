"""CPU time on the host, of one or more source trees in turns: ops beside their kernels, and the planner of packs.

    python -m benchmarks.host [--trees OLD NEW] [--rounds 5] [--out RESULT.json]

Triton's kernels are started on small CPU tensors and do nothing, so that what is left is the host's part: checks,
allocations, autograd, the dispatcher. `layer` is a thirtieth of a decoder with SmolLM2's 30 layers, forward and
backward, with linear layers too small to count as work. `plan: ...` are steps of an epoch of `--groups` prompt groups.
Each round runs every tree once, in a process of its own, on one thread; a figure is the median over rounds of a
process's median.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

LAYERS = 30
REPEATS = 40  # of a decoder; an op has as many times LAYERS


def per_call(call: Callable[[], object], calls: int) -> float:
    """Median CPU time of a call in microseconds, over ten stretches, after one that does not count."""
    times = []
    for _ in range(11):
        start = time.process_time()
        for _ in range(max(1, calls // 10)):
            call()
        times.append((time.process_time() - start) / max(1, calls // 10))
    return statistics.median(times[1:]) * 1e6


def ops() -> dict[str, float]:
    """Microseconds of each op, forward and backward, and of a layer, in the tree that this process imports."""
    import triton

    from rmfast.kernels import add_rms_norm, common, prefix_attention, prefix_layout, rope, score_head, swiglu
    from rmfast.models.config import DecoderConfig
    from rmfast.models.decoder import Decoder

    common.INTERPRETED = True  # Triton is taken for CPU tensors,
    triton.runtime.JITFunction.run = lambda *_, **__: None  # and does nothing
    layout = prefix_layout([(4, [6, 6])])
    tokens, positions = torch.zeros(16, dtype=torch.int64), torch.arange(16, dtype=torch.int32)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, requires_grad=True)

    x, other, weight, q, k = leaf(16, 16), leaf(16, 16), leaf(16), leaf(16, 9, 16), leaf(16, 3, 16)
    inv_freq = torch.ones(8)
    calls: dict[str, tuple[list[torch.Tensor], Callable[[], object]]] = {
        "add_rms_norm": ([x, other, weight], lambda: add_rms_norm(x, other, weight, eps=1e-5, impl="triton")),
        "rope": ([q, k], lambda: rope(q, k, positions, inv_freq=inv_freq, impl="triton")),
        "prefix_attention": ([q, k], lambda: prefix_attention(q, k, k, layout, impl="triton")),
        "swiglu": ([x], lambda: swiglu(x, impl="triton")),
        "score_head": ([x, weight], lambda: score_head(x, weight, weight[None], eps=1e-5, impl="triton")),
    }

    def both_ways(inputs: list[torch.Tensor], op: Callable[[], object]) -> None:
        out = op()
        outputs = [out] if isinstance(out, torch.Tensor) else list(out)  # type: ignore[call-overload]
        torch.autograd.grad(outputs, inputs, [torch.empty_like(o) for o in outputs])

    figures = {name: per_call(partial(both_ways, *op), REPEATS * LAYERS) for name, op in calls.items()}
    config = DecoderConfig(
        family="llama", vocabulary=32, width=16, layers=LAYERS, heads=9, kv_heads=3, head_dim=16, ffn=16, norm_eps=1e-5,
        init_std=0.02, rope=(1.0,) * 8, rope_scale=1.0, windows=(None,) * LAYERS, qkv_bias=False, out_bias=False,
        mlp_bias=False, qk_norm=False, tied=True,
    )  # fmt: skip
    decoder = Decoder(config, impl="triton")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
    rows = torch.arange(16)
    step = lambda: decoder(tokens, positions, layout, rows).sum().backward()  # noqa: E731
    return figures | {"layer": per_call(step, REPEATS) / LAYERS}


def plans(groups: int) -> dict[str, float]:
    """Microseconds that the planner takes for steps of an epoch of lognormal prompt groups."""
    from rmfast.data.plan import StepPlan, plan_packs

    lengths = np.clip(np.random.default_rng(0).lognormal(5.2, 0.6, size=groups), 20, 4000).astype(np.int64)
    plan = StepPlan([groups], (1.0,), groups_per_step=128, seed=0)
    start = time.process_time()
    plan.step(0)
    first = (time.process_time() - start) * 1e6
    numbers = cycle(range(1, groups // 128))
    return {
        "plan: an epoch's first step": first,
        "plan: 128 groups, 8 ranks": per_call(
            lambda: plan_packs(lengths[plan.step(next(numbers))[1]], ranks=8, budget=16384), 200
        ),
        "plan: 4,096 groups, 64 ranks": per_call(lambda: plan_packs(lengths[:4096], ranks=64, budget=16384), 10),
    }


def run(tree: Path, groups: int) -> dict[str, float]:
    """The figures in a process that imports the tree's rmfast."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", "--groups", str(groups)]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", nargs="+", type=Path, default=[Path()], help="folders that hold an rmfast")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--groups", type=int, default=4_000_000, help="of an epoch that is planned")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.measure:
        print(json.dumps(ops() | plans(args.groups)))
        return
    from benchmarks.origin import commit, origin, write_json

    trees = [tree.resolve() for tree in args.trees]
    rounds = [[run(tree, args.groups) for tree in trees] for _ in range(args.rounds)]
    by_tree = list(zip(*rounds, strict=True))
    medians = [{name: statistics.median(one[name] for one in runs) for name in runs[0]} for runs in by_tree]
    commits = [str(commit(tree)) for tree in trees]
    print(f"{'microseconds, ' + str(args.rounds) + ' rounds':<32}" + "".join(f"{c:>16}" for c in commits))
    for name in medians[0]:
        print(f"{name:<32}" + "".join(f"{m[name]:>16.1f}" for m in medians))
    if args.out:
        found = zip(commits, medians, by_tree, strict=True)
        figures = [{"commit": one, "median": median, "rounds": runs} for one, median, runs in found]
        write_json(args.out, origin() | {"layers": LAYERS, "groups": args.groups, "microseconds": figures})


if __name__ == "__main__":
    main()
