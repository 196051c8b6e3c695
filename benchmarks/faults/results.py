"""What a run leaves behind, and how far that of two runs is apart."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.same_numbers import TIMED
from rmfast.checkpoint.store import list_checkpoints, open_checkpoint, read_manifest
from rmfast.outputs.arrays import read_arrays
from rmfast.outputs.marks import MODELS
from tests.ppo.tiny import COMPANY, TIMES
from tests.runs import read_lines

LOGS = ("metrics.jsonl", "eval.jsonl", "data.jsonl")
COMPANY_BOUND = 1e-5


@dataclass(frozen=True)
class Results:
    """Of a run.

    Attributes:
        values: lines of logs without times, tokens of rollouts, counters of the newest checkpoint, by file.
        tensors: of exported models, of the newest checkpoint (optimizer included) and of evaluations, by file and name.
    """

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def results(run: Path, logged: bool = True) -> Results:
    """What is in a run folder, an ensemble's members included.

    Args:
        logged: whether its logs and rollouts are read.
    """
    values: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for path in sorted(path for name in LOGS for path in run.rglob(name)) if logged else ():
        values[str(path.relative_to(run))] = [_untimed(line) for line in read_lines(path)]
    for path in sorted(run.rglob("rollouts/*.jsonl")) if logged else ():
        values[str(path.relative_to(run))] = [[s["ids"] for s in line["samples"]] for line in read_lines(path)]
    for path in sorted(path for model in MODELS for path in run.rglob(f"{model}/*.safetensors")):
        tensors |= {f"{path.relative_to(run)} {name}": tensor for name, tensor in load_file(path).items()}
    for folder in sorted(run.rglob("checkpoints")):
        newest = list_checkpoints(folder)[-1]
        values[str(newest.relative_to(run))] = read_manifest(newest)["progress"]
        with open_checkpoint(newest) as (read, shapes):
            tensors |= {f"{newest.relative_to(run)} {name}": read(name, 0, shapes[name][0]) for name in shapes}
    for path in sorted(run.rglob("*.npz")):
        arrays = {name: array for name, array in read_arrays(path).items() if array.dtype.kind in "bif"}
        tensors |= {f"{path.relative_to(run)} {name}": torch.from_numpy(np.array(a)) for name, a in arrays.items()}
    return Results(values, tensors)


def _untimed(line: dict[str, Any]) -> dict[str, Any]:
    times = {key for key in line if key.endswith("_per_second")} | TIMED | TIMES
    # Of a step that has an evaluation: that of a run which was stopped there comes later, and is in eval.jsonl alone.
    twice = {key for key in line if key.startswith("eval_") and "step_seconds" in line}
    return {key: value for key, value in line.items() if key not in times | twice}


def other_bits(ours: Results, theirs: Results, *, values: bool = True) -> str:
    """Where two runs differ; empty where they have the same bits.

    Args:
        values: whether those are compared, beside the tensors. Figures of the sampler's log-probabilities may differ by
            rounding: tokens that are drawn after a kill are drawn in other company.
    """
    if values:
        far, where = apart(ours.values, theirs.values, but=COMPANY)
        if far:
            return where
        if (found := apart(ours.values, theirs.values))[0] > COMPANY_BOUND:
            return found[1]
    if ours.tensors.keys() != theirs.tensors.keys():
        return f"{sorted(ours.tensors.keys() ^ theirs.tensors.keys())[0]} is in one alone"
    for name, tensor in ours.tensors.items():
        if not torch.equal(_bits(tensor), _bits(theirs.tensors[name])):
            return f"{name} differs"
    return ""


def _bits(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(nan=-12345.0) if tensor.is_floating_point() else tensor


def farthest(ours: Results, theirs: Results) -> tuple[float, str]:
    """The largest difference of two runs' figures and tensors, relative where the values are beyond 1, and where.

    Infinite where one has what the other lacks, or where a whole number or a text differs.
    """
    worst = apart(_figures(ours), _figures(theirs))
    for name in sorted(ours.tensors.keys() | theirs.tensors.keys()):
        if "model/" not in name:  # Adam's moments are of gradients
            continue
        one, other = ours.tensors.get(name), theirs.tensors.get(name)
        if one is None or other is None or one.shape != other.shape:
            return float("inf"), f"{name} is in one alone, or of another shape"
        far = ((one.double() - other.double()).abs() / other.double().abs().clamp(min=1)).max()
        worst = max(worst, (float(far), name))
    return worst


def _figures(found: Results) -> dict[str, Any]:
    """Without what says how the work is spread: packs of two ranks are others than those of one."""
    spread = {"padding_share", "num_computed_tokens", "prefix_saved_share"}
    return {
        file: [{key: value for key, value in line.items() if key not in spread} for line in lines]
        for file, lines in found.values.items()
        if file.endswith(LOGS)
    }


def apart(ours: Any, theirs: Any, where: str = "", but: frozenset[str] | set[str] = frozenset()) -> tuple[float, str]:
    """The largest difference of two JSON values, and where it is; `but`: keys that are passed over."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and ours.keys() == theirs.keys():
        found = [apart(ours[key], theirs[key], f"{where} {key}", but) for key in ours if key not in but]
        return max(found, default=(0.0, ""))
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        found = [apart(a, b, f"{where} {i}", but) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]
        return max(found, default=(0.0, ""))
    if isinstance(ours, float) and isinstance(theirs, float) and ours != theirs:
        return abs(ours - theirs) / max(abs(theirs), 1.0), f"{where.strip()}: {ours} was {theirs}"
    return (0.0, "") if ours == theirs else (float("inf"), f"{where.strip()}: {str(ours)[:80]} was {str(theirs)[:80]}")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The records that earlier calls left; a last line that was cut off does not count."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
