"""What is damaged in a run folder, how, and what has to come of it."""

from dataclasses import dataclass

from benchmarks.faults.ways import (
    FILE,
    LOG,
    Way,
    delete,
    double,
    edit,
    edit_place,
    empty,
    flip,
    folder,
    half,
    newer,
    noise,
    swap,
    truncate,
    zeros,
)

NAMED = "damaged|built again|made again|not whole"
"""What is said of damage that the next start finds."""


@dataclass(frozen=True)
class Target:
    """What is damaged.

    Attributes:
        base: "killed", in which there are two checkpoints, or "whole".
        path: in the run folder; NEWEST and OLDER are its checkpoints, CACHE is a store of the data's cache.
        said: what the next start has to say where it ends well; "" where there may be nothing to say.
        ends: it has to end well (True), to be refused (False), or may do either (None).
        logged: the logs, too, have to be those of the whole run.
    """

    setup: str
    base: str
    path: str
    ways: tuple[Way, ...]
    said: str = ""
    ends: bool | None = True
    logged: bool = True


WEIGHTS, PLACES, ABOUT = "rank-00000.safetensors", "rank-00000.json", "manifest.json"
CHECKPOINT: dict[str, tuple[Way, ...]] = {
    WEIGHTS: (*FILE, double, folder),
    PLACES: (*FILE, double, edit_place),
    ABOUT: (*FILE, double, folder, edit),
    "config.json": (flip, delete),
    "tokenizer.json": (truncate,),
}
HEADS, FULL = "ensemble heads", "ensemble full"

TARGETS = (
    *(Target("reward", "killed", f"checkpoints/NEWEST/{name}", ways, NAMED) for name, ways in CHECKPOINT.items()),
    Target("reward", "killed", "checkpoints/NEWEST", (half, newer), ends=None),
    Target("reward", "killed", "checkpoints/NEWEST", (delete,)),
    Target("reward", "killed", f"checkpoints/OLDER/{WEIGHTS}", (flip, delete)),
    Target("reward", "killed", f"checkpoints/*/{WEIGHTS}", (flip, empty), ends=False),
    Target("reward", "killed", f"checkpoints/NEWEST/{WEIGHTS}", (swap,), ends=False),  # both are damaged by it
    Target("reward", "killed", f"checkpoints/NEWEST/{ABOUT}", (swap,), ends=False),
    Target("reward", "killed", "checkpoints", (delete,)),
    Target("reward", "killed", "metrics.jsonl", LOG, logged=False),
    Target("reward", "killed", "eval.jsonl", LOG, logged=False),
    Target("reward", "killed", "config.yaml", (flip, truncate, empty, delete, noise, folder), ends=None),
    Target("reward", "killed", "rmfast.lock", (noise, delete, folder), ends=None),
    Target("reward", "killed", "CACHE/tokens.npy", (*FILE, folder), NAMED),
    Target("reward", "killed", "CACHE/better.npy", (flip, zeros), NAMED),
    Target("reward", "killed", "CACHE/tokens.npy", (double,)),  # what is behind an array is not read
    Target("reward", "killed", "CACHE/meta.json", (*FILE, double, edit), NAMED),
    Target("reward", "killed", "CACHE", (half,), NAMED),
    Target("reward", "killed", "CACHE", (delete,)),
    Target("reward", "whole", "model/model.safetensors", (*FILE, double)),
    Target("reward", "whole", "model/rmfast.json", (flip, delete, noise), ends=None),
    Target("reward", "whole", "model", (half, delete), ends=None),
    Target("reward", "whole", "summary.json", (noise, folder), ends=None),
    Target("reward", "whole", "eval/eval-final.npz", (truncate, folder), ends=None),
    Target("reward", "whole", f"checkpoints/NEWEST/{WEIGHTS}", (flip, delete), NAMED),
    Target("meta", "killed", f"checkpoints/NEWEST/{WEIGHTS}", (flip, truncate), NAMED),
    Target("sft", "killed", f"checkpoints/NEWEST/{ABOUT}", (edit, truncate), NAMED),
    Target("sft", "killed", "CACHE/trained.npy", (flip,), NAMED),
    Target(HEADS, "killed", "features.npy", (*FILE, folder), NAMED),
    Target(HEADS, "killed", "features.npy", (double,)),
    Target(HEADS, "killed", "features.json", (*FILE, double)),
    Target(HEADS, "killed", f"checkpoints/NEWEST/{WEIGHTS}", (flip, delete), NAMED),
    Target(HEADS, "whole", "ensemble.json", (flip, empty, delete), ends=None),
    Target(HEADS, "whole", "members/01/scores.npz", (flip, truncate, delete)),
    Target(FULL, "killed", f"members/00/checkpoints/NEWEST/{WEIGHTS}", (flip, empty), NAMED),
    Target(FULL, "whole", "members/01/scores.npz", (flip, truncate, delete)),
    Target("ppo", "killed", f"checkpoints/NEWEST/{WEIGHTS}", (flip, zeros), NAMED),
    Target("ppo", "killed", f"checkpoints/NEWEST/{ABOUT}", (edit, truncate), NAMED),
    Target("ppo", "killed", "rollouts/step-2.jsonl", (flip, truncate, delete), logged=False),
    Target("ppo", "killed", "rollouts", (delete,), logged=False),
    Target("ppo", "killed", "eval/rollouts/step-0.jsonl", (flip, truncate), logged=False),
    Target("ppo", "whole", "critic/model.safetensors", (flip, truncate)),
    Target("reward fsdp", "killed", "checkpoints/NEWEST/rank-00001.safetensors", (flip, delete), NAMED),
    Target("ppo fsdp", "killed", "checkpoints/NEWEST/rank-00001.json", (flip, truncate), NAMED),
    Target("megatron tp2", "killed", "checkpoints/NEWEST/rank-00001.safetensors", (flip, truncate), NAMED),
    Target("megatron pp2", "killed", f"checkpoints/NEWEST/{ABOUT}", (edit, delete), NAMED),
)

MODEL: dict[str, tuple[Way, ...]] = {
    "model.safetensors": (*FILE, double, folder),
    "config.json": (flip, truncate, empty, delete),
    "tokenizer.json": (flip, truncate, delete),
    "rmfast.json": (flip, noise, delete),
}
"""Of an exported model, which a command then loads."""
