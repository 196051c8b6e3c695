"""PPO under the megatron engine's layouts against one native process, on gloo, over 5 iterations of tiny models.

    python -m benchmarks.megatron_ppo [--only WORD ...] [--steps 5] [--json FILE]

Every run is compared with the native one of its kind. No sampled token may differ; one that does is listed with its
file, prompt, answer and place, and may be a near tie. Losses and figures are within 1e-4 (norms relative), final
weights within 1e-5 (relative, by norm, over all). It ends with 1 where a run is not.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository's root instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.origin import origin, write_json
from tests.megatron.grid import LAYOUTS
from tests.megatron.ppo_grid import KINDS, apart, command, differing
from tests.ppo.tiny import drawn_of, write_inputs
from tests.runs import Case, launch

GRID = ("tp2", "pp2", "tp2 sp", "pp2 interleaved", "dp2", "tp2 pp2")
NATIVE = "native"
LIMITS = {"weights": 1e-5, "critic weights": 1e-5}
ELSE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="runs whose names hold one of these words")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    names = [(kind, x) for kind in KINDS for x in GRID if not asked.only or any(w in f"{kind} {x}" for w in asked.only)]
    with tempfile.TemporaryDirectory() as place:
        results = compared(write_inputs(Path(place), layers=4, more_words=584), names, asked.steps)
    if asked.json is not None:
        write_json(asked.json, origin() | {"settings": {"steps": asked.steps}, "results": results})
    if bad := [name for name, found in results.items() if not near(found)]:
        sys.exit(f"not the native run: {', '.join(bad)}")


def compared(folder: Path, names: Sequence[tuple[str, str]], steps: int) -> dict[str, dict[str, Any]]:
    """Runs of kinds under layouts, and how far each is from its kind's native run."""
    results: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kind for kind, _ in names):
        layouts = [NATIVE, *(layout for of, layout in names if of == kind)]
        cases = []
        for layout in layouts:
            x = None if layout == NATIVE else layout
            keys = command(folder, kind, f"{kind} {layout}", x, run__max_steps=steps)
            cases.append(Case(f"{kind} {layout}", keys, ranks=1 if x is None else LAYOUTS[x][0]))
        codes = launch(folder / "launch" / kind, cases, timeout=1800)
        for case in cases:
            if any(codes[case.name]):
                sys.exit((folder / "launch" / kind / f"{case.name}-0.log").read_text(encoding="utf-8"))
        truth = folder / f"{kind} {NATIVE}"
        drawn = sum(len(ids) for file in drawn_of(truth).values() for answers in file for ids in answers)
        for case in cases[1:]:
            tokens = [list(place) for place in differing(folder / case.name, truth)]
            results[case.name] = {"tokens": drawn, "differing": tokens, "apart": apart(folder / case.name, truth)}
            print(f"{case.name}: {results[case.name]}", flush=True)
    return results


def near(found: dict[str, Any]) -> bool:
    """Whether a run is its native one to rounding."""
    return not found["differing"] and all(value <= LIMITS.get(name, ELSE) for name, value in found["apart"].items())


if __name__ == "__main__":
    main()
