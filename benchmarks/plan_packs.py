"""Times the planner of steps and packs on millions of prompt groups: is it ever what a run waits for?

python benchmarks/plan_packs.py [--groups N] [--json OUT]
"""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rmfast.data.plan import StepPlan, plan_packs


def milliseconds(run: Callable[[], object]) -> float:
    """CPU time of a call."""
    start = time.process_time()
    run()
    return (time.process_time() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=4_000_000, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    args = parser.parse_args()
    count = args.groups
    lengths = np.clip(np.random.default_rng(0).lognormal(5.2, 0.6, size=count), 20, 4000).astype(np.int64)
    plan = StepPlan([count], (1.0,), groups_per_step=128, seed=0)
    steps = min(200, count // 128 - 1)

    def later() -> None:
        for step in range(1, steps + 1):
            plan_packs(lengths[plan.step(step)[1]], ranks=8, budget=16384)

    figures = {
        f"first step of an epoch of {count:,} groups": milliseconds(lambda: plan.step(0)),
        "a later step of 128 groups, laid into packs over 8 ranks": milliseconds(later) / steps,
        "a step of 4,096 groups over 64 ranks": milliseconds(
            lambda: plan_packs(lengths[:4096], ranks=64, budget=16384)
        ),
    }
    for name, value in figures.items():
        print(f"{name}: {value:.2f} ms")
    if args.json:
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
        machine = {"device": "cpu", "machine": platform.machine(), "numpy": np.__version__, "commit": commit}
        args.json.write_text(json.dumps(machine | {"cpu_milliseconds": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
