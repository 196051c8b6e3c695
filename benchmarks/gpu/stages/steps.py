"""Whole training steps beside TRL and packed transformers, by benchmarks/steps/compare.py."""

from collections.abc import Sequence

from benchmarks.gpu.parts import Part, Settings
from benchmarks.gpu.results import Records, Results
from benchmarks.steps import figures

NAMES = {
    "trl": "TRL, its defaults",
    "trl-no-checkpointing": "TRL without checkpointing",
    "trl-tuned": "TRL without checkpointing, pairs sorted by length",
    "trl-liger": "the same with Liger",
    "hf-packed": "transformers, packed, no shared prefix",
    "rmfast-graphs": "rmfast with CUDA graphs",
    "rmfast": "rmfast",
}
FOUR = ("trl", "trl-no-checkpointing", "hf-packed", "rmfast")
TUNED = ("trl-tuned", "trl-liger", "rmfast-graphs", "rmfast")
# Part: model, lengths, modes, steps (two of them warm up), seconds of a mode as a multiple of those on llama-1b and hh.
RUNS: dict[str, tuple[str, str, tuple[str, ...], int, float]] = {
    "llama-1b hh": ("llama-1b", "hh", FOUR, 7, 1.0),
    "llama-1b hh, tuned": ("llama-1b", "hh", TUNED, 7, 1.0),
    "smollm2-135m hh": ("smollm2-135m", "hh", tuple(NAMES), 12, 0.6),
    "llama-1b long": ("llama-1b", "long", FOUR, 6, 1.4),
    "llama-1b alpaca": ("llama-1b", "alpaca", FOUR, 6, 1.1),
    "smollm2-135m alpaca": ("smollm2-135m", "alpaca", ("rmfast-graphs", *FOUR), 6, 0.7),
    "smollm2-135m long": ("smollm2-135m", "long", ("rmfast-graphs", *FOUR), 6, 0.8),
}
PREPARE = 45.0  # seconds: random weights, pairs and both ceilings
SECONDS = {"rmfast": 45.0, "rmfast-graphs": 50.0, "hf-packed": 30.0, "trl-no-checkpointing": 40.0, "trl": 50.0,
           "trl-tuned": 40.0, "trl-liger": 50.0}  # fmt: skip
LIMIT = 2.5  # times its seconds after which a mode is ended: it hangs, and the others' time runs
TINY = ["--model", "tiny", "--lengths", "tiny", "--threads", 1, "--steps", 3, "--pairs-per-step", 4, "--micro-batch", 4,
        "--tokens-per-pack", 128, "--modes", "hf-packed", "rmfast"]  # fmt: skip


def absent(modes: Sequence[str], settings: Settings) -> dict[str, str]:
    """Modes that cannot run here, and the need that is not there."""
    wanted = {mode: ("liger", "trl") if mode == "trl-liger" else ("trl",) for mode in modes if mode.startswith("trl")}
    missing = {mode: [need for need in needs if need in settings.lacking] for mode, needs in wanted.items()}
    return {mode: needs[0] for mode, needs in missing.items() if needs}


def left(name: str, settings: Settings) -> list[str]:
    """Modes of a part that no earlier call has measured; rmfast's count only where the part is of this code, which is
    found out when it runs."""
    record = Results(settings.out).stage("steps").get(name, {})
    rounds = record.get("result", {}).get("rounds", {})
    return [mode for mode in RUNS[name][2] if mode not in rounds or mode.startswith("rmfast")]


def parts(settings: Settings) -> list[Part]:
    """A part for each model and lengths; its seconds are those of the modes that are left. Modes that an earlier call
    has measured are not run again, those that cannot run here are left out and said."""
    command = ("benchmarks.steps.compare", "--breakdown", "--device", settings.device)
    if settings.tiny:
        return [Part("steps", "tiny", 60.0, (*command, *TINY), needs=("training",), keeps=True)]
    made = []
    for name, (model, lengths, modes, steps, slow) in RUNS.items():
        missing = absent(modes, settings)
        ready = [mode for mode in modes if mode not in missing]
        limit = LIMIT * slow * max(SECONDS[mode] for mode in ready)
        words = ("--model", model, "--lengths", lengths, "--steps", steps, "--modes", *ready, "--limit", limit)
        seconds = [slow * SECONDS[mode] for mode in left(name, settings)]
        whole, first = PREPARE + sum(seconds), PREPARE + sum(seconds[:1])
        made.append(Part("steps", name, whole, (*command, *words), needs=("cuda", "training"), keeps=True, first=first,
                         adds={"absent": missing}))  # fmt: skip
    return made


def lines(records: Records) -> list[str]:
    """What compare.py says of each part, also of one that did not come to its end."""
    found = {name: record["result"] for name, record in records.items() if "result" in record}
    return [
        line for name, result in found.items() for line in (f"  {name}", *(f"    {x}" for x in figures.lines(result)))
    ]
