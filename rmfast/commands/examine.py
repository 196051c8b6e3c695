"""What a run folder holds, and whether each part is as it was written. Nothing is changed."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import yaml

from rmfast.checkpoint.store import all_checkpoints, read_manifest
from rmfast.checkpoint.whole import damage
from rmfast.errors import first_line
from rmfast.outputs.arrays import read_arrays
from rmfast.outputs.checksums import differences, unsealed_line
from rmfast.outputs.kinds import json_object
from rmfast.outputs.marks import CONFIG, ITERATE_FILE, MODEL_MARK, MODELS, ROUNDS, exported_files, is_run
from rmfast.tasks.ensemble.kept_array import whole_array

ARRAYS = {"features.json": "features of {:,} responses", "states.json": "states of {:,} tokens"}
LOGS = ("metrics.jsonl", "eval.jsonl")
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, RecursionError, yaml.YAMLError)
PARTIAL = ".*.partial*"
"""Names of what is not written to its end; a run that is killed leaves some."""


@dataclass(frozen=True)
class Finding:
    """One part of a folder. `damaged`: it is not what was written. `step`: of a whole checkpoint."""

    name: str
    text: str
    damaged: bool = False
    step: int | None = None


def examine(run: Path) -> Iterator[Finding]:
    """What is found in a run folder, an ensemble's members included."""
    yield _read(run / CONFIG, _config)
    steps = 0
    for name in LOGS:
        if (run / name).is_file():
            found, last = _log(run / name, whole=name == LOGS[0])
            yield found
            steps = max(steps, last)
    yield from _checkpoints(run / "checkpoints", steps)
    for name in MODELS:
        if (run / name).is_dir():
            yield from _model(run / name)
    kept = (*run.glob("[!.]*.json"), *run.glob("eval/[!.]*.npz"), *run.glob("members/*/scores.npz"))
    arrays = {run / name: what for name, what in ARRAYS.items()}
    for file in sorted(set(kept) - arrays.keys()):
        yield _read(file, _json if file.suffix == ".json" else _arrays, run)
    for note, what in arrays.items():
        if note.is_file():
            yield _read(note, partial(_array, what))
    yield from _rollouts(run / "rollouts")
    yield from _samples(run)
    for part in _parts(run):
        # Members that were trained together are no runs.
        of_part = examine(part) if is_run(part) else _model(part / "model") if (part / "model").is_dir() else ()
        yield from (replace(found, name=f"{part.relative_to(run)}/{found.name}") for found in of_part)


def _parts(run: Path) -> list[Path]:
    """The runs inside a run: an ensemble's members, or an iteration's stages."""
    if not (run / ITERATE_FILE).is_file():
        return sorted(run.glob("members/*"))
    stages = [run / "sft", run / "reward", *sorted(run.glob(f"{ROUNDS}/*"))]
    return [stage for stage in stages if is_run(stage)]


def _samples(run: Path) -> Iterator[Finding]:
    """The answers that an iteration has drawn, and their scores."""
    if (run / ITERATE_FILE).is_file():
        for folder in (run / "answers", *sorted(run.glob(f"{ROUNDS}/samples"))):
            for found in _rollouts(folder):
                yield replace(found, name=f"{folder.parent.relative_to(run)}/{found.name}".removeprefix("./"))
        for file in sorted(run.glob("answers/[!.]*.npz")):
            yield _read(file, _arrays, run)


def unfinished(run: Path) -> list[Path]:
    """Files and folders that nothing will read, for they were not written to their end."""
    found = {*run.glob(PARTIAL), *run.glob(f"*/{PARTIAL}"), *run.glob(f"{ROUNDS}/samples/{PARTIAL}")}
    return sorted(found.union(*(unfinished(part) for part in _parts(run))))


def _read(file: Path, read: Callable[[Path], str], run: Path | None = None) -> Finding:
    """What a function finds in a file, or why it cannot."""
    name = str(file.relative_to(run)) if run else file.name
    try:
        return Finding(name, read(file))
    except FileNotFoundError:
        return Finding(name, "is not there", damaged=True)
    except UNREADABLE as error:
        return Finding(name, f"cannot be read: {first_line(error)}", damaged=True)


def _config(file: Path) -> str:
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or not isinstance(values.get("run"), dict):
        raise ValueError("it is no config of a run")
    return f"task {values.get('task')}"


def _json(file: Path) -> str:
    json.loads(file.read_text(encoding="utf-8"))
    return "can be read"


def _arrays(file: Path) -> str:
    return f"{len(read_arrays(file))} arrays"


def _array(what: str, note: Path) -> str:
    array, _ = whole_array(note.with_suffix(".npy"), note)
    return what.format(array.shape[0])


def _log(file: Path, whole: bool) -> tuple[Finding, int]:
    """A log of steps, and its last one. `whole`: each step has a line."""
    steps, broken = list[int](), 0
    lines = file.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        step = json_object(line).get("step")
        if isinstance(step, int):
            steps.append(step)
        elif number < len(lines) or line.endswith(b"\n"):  # else a crash cut it off, and it goes when the run goes on
            broken = broken or number
    last = steps[-1] if steps else 0
    if broken:
        return Finding(file.name, f"line {broken} cannot be read; it would be left out", damaged=True), last
    if not steps:
        return Finding(file.name, "no line yet"), 0
    if whole and steps != list(range(1, last + 1)):
        gap = next((n for n, step in enumerate(steps, start=1) if step != n), last)
        return Finding(file.name, f"step {gap} is not in its place", damaged=True), last
    return Finding(file.name, f"{len(steps)} lines, the last of step {last}"), last


def _checkpoints(folder: Path, logged: int) -> Iterator[Finding]:
    for path in all_checkpoints(folder):
        name = f"{folder.name}/{path.name}"
        if found := damage(path):
            yield Finding(name, f"damaged: {found}", damaged=True)
            continue
        manifest = read_manifest(path)
        files, step = manifest.get("files"), int(manifest["step"])
        text = "can be read; it is of an earlier version, without checksums"
        if files is not None:
            text = f"whole, {len(files)} files, {sum(sums['bytes'] for sums in files.values()):,} bytes"
        yield Finding(name, text, step=step)
        if logged < step:
            yield Finding(LOGS[0], f"ends at step {logged}, before {name}", damaged=True)


def _model(folder: Path) -> Iterator[Finding]:
    try:
        written = exported_files(folder)
    except ValueError as error:
        yield Finding(f"{folder.name}/{MODEL_MARK}", str(error), damaged=True)
        return
    found = differences(folder, written)
    for name, what in found.items():
        yield Finding(f"{folder.name}/{name}", what, damaged=True)
    if not found:
        yield Finding(folder.name, f"whole, {len(written)} files" if written else "has no checksums: not checked")


def _rollouts(folder: Path) -> Iterator[Finding]:
    files = sorted(folder.glob("*.jsonl"), key=lambda file: (len(file.name), file.name))
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            try:
                if {"number", "key", "samples"} <= unsealed_line(line).keys():
                    continue
                why = "it is no prompt's"
            except (ValueError, RecursionError) as error:
                why = first_line(error)
            text = f"line {number} cannot be read ({why}); its answers would be drawn again"
            yield Finding(f"{folder.name}/{file.name}", text, damaged=True)
    if files:
        yield Finding(folder.name, f"{len(files)} files, the last {files[-1].name}")
