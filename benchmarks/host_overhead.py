"""CPU time that rmfast's ops take on the host beside their kernels, of one or more source trees, in turns.

    python benchmarks/host_overhead.py [--trees OLD NEW] [--rounds 5] [--out RESULT.json]

Triton's kernels are started on small CPU tensors and do nothing, so that what is left is the host's part: checks,
allocations, autograd, the dispatcher. Each round runs every tree once, in a process of its own, on one thread; a figure
is the median over rounds of a process's median. `layer` is a thirtieth of a decoder with SmolLM2's 30 layers, forward
and backward, with linear layers too small to count as work.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
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


def measure() -> dict[str, float]:
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
    ops: dict[str, tuple[list[torch.Tensor], Callable[[], object]]] = {
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

    figures = {name: per_call(partial(both_ways, *op), REPEATS * LAYERS) for name, op in ops.items()}
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

    def step() -> None:
        decoder(tokens, positions, layout, rows).sum().backward()

    return figures | {"layer": per_call(step, REPEATS) / LAYERS}


def run(tree: Path) -> dict[str, float]:
    """`measure` in a process that imports the tree's rmfast."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure"]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def commit(tree: Path) -> str:
    """Its commit, with "-dirty" where files differ from it."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", nargs="+", type=Path, default=[ROOT], help="folders that hold an rmfast")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure()))
        return
    trees = [tree.resolve() for tree in args.trees]
    rounds = [[run(tree) for tree in trees] for _ in range(args.rounds)]
    figures = list(zip(*rounds, strict=True))  # by tree
    medians = [{name: statistics.median(one[name] for one in tree) for name in tree[0]} for tree in figures]
    commits = [commit(tree) for tree in trees]
    print(f"{'microseconds, ' + str(args.rounds) + ' rounds':<24}" + "".join(f"{c:>16}" for c in commits))
    for name in medians[0]:
        print(f"{name:<24}" + "".join(f"{m[name]:>16.1f}" for m in medians))
    if args.out:
        record = {
            "device": f"{platform.processor() or platform.machine()}, one thread",
            "torch": torch.__version__,
            "layers": LAYERS,
            "microseconds": [
                {"commit": one, "median": median, "rounds": tree}
                for one, median, tree in zip(commits, medians, figures, strict=True)
            ],
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
