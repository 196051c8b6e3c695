"""How a run folder and an exported model are told from what people or other programs wrote."""

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from rmfast.outputs.checksums import Checksum, file_checksum, sealed, unsealed, write_json
from rmfast.outputs.kinds import json_object

LOCK = "rmfast.lock"  # in a run folder from its first moment on
MODEL_MARK = "rmfast.json"  # in an exported model: names of the files that were exported with it
CHECKSUMS = "checksums"  # in it
CONFIG = "config.yaml"
CONFIG_MARK = "# Written by rmfast: the resolved config of the run in this folder.\n"
# What shells, Slurm and the scripts of `rmfast launch` put into a run folder, before or beside the run.
HARMLESS = ("*.log", "*.out", "*.err", "*.sbatch", ".slurm-*", "stop", "requeue", LOCK)
HARMLESS_FOLDER = "scaling"

MODELS = ("model", "adapter", "critic")
"""Folders that a run exports."""
RUN_FILES = (
    *(CONFIG, "metrics.jsonl", "eval.jsonl", "eval", "checkpoints", "rollouts", *MODELS),
    *("report", "summary.json", "tensorboard", "wandb", "stop", "requeue", LOCK),
)
LINKED = frozenset(
    {"checkpoints", "rollouts", "tensorboard", "members", "wandb"}
)  # large, and so kept elsewhere by a link
KEPT_ARRAYS = ("features.npy", "features.json", "states.npy", "states.json")
ENSEMBLE_FILES = ("ensemble.json", "members", "data.jsonl", *KEPT_ARRAYS)
ITERATE_FILE = "iterate.json"
ITERATE_FILES = (ITERATE_FILE, "sft", "reward", "answers", "judge.jsonl")
ROUNDS = "round-*"
"""Folders of an iteration's rounds."""


def config_text(values: dict[str, Any]) -> str:
    """What a run's config.yaml holds."""
    return CONFIG_MARK + yaml.safe_dump(values, sort_keys=False)


def is_own_config(path: Path) -> bool:
    """Whether a run wrote a config.yaml: by its mark or, of one from before there were marks, by its exact form."""
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith(CONFIG_MARK):
            return True
        values = yaml.safe_load(text)
        return {"task", "run", "model", "checkpoint"} <= set(values) and text == yaml.safe_dump(values, sort_keys=False)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return False


def is_run(folder: Path) -> bool:
    """Whether rmfast ran in a folder."""
    return (folder / LOCK).is_file() or is_unmarked_run(folder)


def is_unmarked_run(folder: Path) -> bool:
    """Whether a folder holds a run, or an ensemble's, that began before runs had a mark."""
    if (folder / LOCK).is_file():
        return False
    manifests = folder.glob("checkpoints/step-*/manifest.json")
    return any({"format", "ranks", "progress"} <= _values(file).keys() for file in manifests) or (
        "settings" in _values(folder / "ensemble.json")
    )


def stranger(folder: Path, known: Collection[Path]) -> Path | None:
    """A file that neither a run nor the scripts around it put into a folder; None where there is none.

    Args:
        known: files and folders inside it that are passed over.
    """
    passed: set[str] = {os.path.realpath(path) for path in known}
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        inside = Path(root) != folder
        if real in seen or (inside and (real in passed or Path(root) == folder / HARMLESS_FOLDER)):
            folders.clear()
            continue
        seen.add(real)  # a link may lead back
        folders.sort()
        for name in sorted(names):
            file = Path(root, name)
            if not any(fnmatch(name, form) for form in HARMLESS) and os.path.realpath(file) not in passed:
                return file
    return None


def mark_model(folder: Path, written: Mapping[str, Checksum] | None = None) -> None:
    """Note which files a model folder holds: these are rmfast's to replace.

    Args:
        written: checksums that were made while files were written; the other files' are made of what is there. None:
            no checksums are noted.
    """
    names = sorted(set(os.listdir(folder)) - {MODEL_MARK})
    values: dict[str, Any] = {"written_by": "rmfast", "files": names}
    if written is not None:
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        sums = {name: written.get(name) or file_checksum(folder / name) for name in files if name != MODEL_MARK}
        values = sealed({**values, CHECKSUMS: {name: asdict(checksum) for name, checksum in sums.items()}})
    write_json(folder / MODEL_MARK, values)


def exported_files(folder: Path) -> dict[str, Any]:
    """The checksums of the files that an exported model came with, by name; none where none were noted.

    Raises:
        ValueError: the file that notes them is damaged.
    """
    values = _values(folder / MODEL_MARK)
    if not values and (folder / MODEL_MARK).is_file():
        raise ValueError("it is no JSON object")
    return dict(unsealed(values, CHECKSUMS).get(CHECKSUMS, {}))


def mark_earlier_model(run: Path) -> None:
    """Mark the model of a run that began before there were marks."""
    model = run / "model"
    if is_unmarked_run(run) and model.is_dir() and not (model / MODEL_MARK).exists():
        mark_model(model)


def kept_model(folder: Path) -> Path | None:
    """What keeps a model folder from being replaced: a file in it, or itself, that rmfast did not write."""
    if not os.path.lexists(folder):
        return None
    if folder.is_symlink() or not folder.is_dir():
        return folder
    written = _values(folder / MODEL_MARK).get("files")
    if not isinstance(written, list):
        return None if is_unmarked_run(folder.parent) or not os.listdir(folder) else folder
    return next((folder / name for name in sorted(os.listdir(folder)) if name not in (*written, MODEL_MARK)), None)


def _values(file: Path) -> dict[str, Any]:
    try:
        return json_object(file.read_bytes())
    except OSError:
        return {}
