"""Real runs on real preferences and the paper's experiments, by benchmarks/gpu/real.py.

They time nothing that is reported, so they run side by side.
"""

from typing import Any

from benchmarks.gpu.parts import Part, Settings
from benchmarks.gpu.results import Records

SEEDS = (0, 1, 2)


def parts(settings: Settings) -> list[Part]:
    """Reward models by data and seed, the ensemble, the experiments by seed."""

    def part(name: str, seconds: float, which: str, seed: int = 0, keeps: bool = False) -> Part:
        given = ("--tiny",) if settings.tiny else ("--model", settings.model, "--data", settings.data)
        folders = ("--scratch", settings.scratch, "--keep", settings.out / "moving")
        needs = () if settings.tiny else ("cuda", "training", "model", "data")
        words = ("benchmarks.gpu.real", which, "--seed", seed, *folders, *given)
        return Part("real", name, seconds, words, shared=True, needs=needs, keeps=keeps)

    if settings.tiny:
        return [part("hh seed 0", 60.0, "hh"), part("moving seed 0", 60.0, "moving")]
    return [
        *(part(f"hh seed {s}", 110.0, "hh", s) for s in SEEDS),
        *(part(f"alpaca seed {s}", 240.0, "alpaca", s) for s in SEEDS),
        part("ensemble", 300.0, "ensemble", keeps=True),
        *(part(f"moving seed {s}", 420.0, "moving", s, keeps=True) for s in SEEDS),
    ]


def paper(stage: dict[str, Any]) -> dict[str, Any] | None:
    """The experiments of all seeds as one result of benchmarks/paper/moving.py; None where none is done."""
    found = [record["result"] for name, record in stage["parts"].items()
             if name.startswith("moving") and record["status"] == "done"]  # fmt: skip
    if not found:
        return None
    out = found[0] | {"seeds": [seed for result in found for seed in result["seeds"]]}
    for name in [name for name, value in out.items() if isinstance(value, list) and name != "seeds"]:
        out[name] = [row for result in found for row in result[name]]
    return out


def lines(records: Records) -> list[str]:
    """Test accuracies with their intervals, and the ensemble's strengths."""
    out = []
    for name, record in records.items():
        result = record.get("result", {})
        for test, found in result.get("tests", {}).items():
            f = found["figures"]
            if test == "rmb":
                shown = ", ".join(f"{key} {value:.3f}" for key, value in found["headline"].items())
            else:
                shown = (f"{f['accuracy']:.3f} [{f['accuracy_low']:.3f}, {f['accuracy_high']:.3f}]; {f['baseline']} "
                         f"{f['baseline_accuracy']:.3f}")  # fmt: skip
            out.append(f"  {name:<18} on {test:<8}{shown}")
        if "negative" in result:
            out.append(f"  {name:<18} {result['pairs']} strengths, {result['negative']:.1%} below 0")
    return out
