"""The dataset card of a folder (the YAML on top of README.md) -> its configurations, their splits and files.

The rules are those of `datasets` (load.py, data_files.py, utils/metadata.py): each entry of `configs` has a
`config_name` and `data_files` (a pattern, a list of them, or a list of `{split, path}`), or `data_dir`, or both. The
default is the only configuration, the one named default or the one marked `default: true`.
"""

import glob
from collections.abc import Collection
from pathlib import Path, PurePath
from typing import Any

from rmfast.data.splits import UNNAMED, by_place, place_of
from rmfast.data.unpack import suffix_of
from rmfast.errors import UserError, first_line
from rmfast.yaml_text import parse_yaml

Configs = dict[str, dict[str, list[PurePath]]]
"""Of each configuration, of each split, the files in the folder."""


def folder_configs(folder: Path) -> tuple[Configs, str | None]:
    """The files that hold rows, hidden ones apart, by configuration and split, and the default configuration.

    As the folder's card says; without one, as the files' names do.

    Raises:
        UserError: the card cannot be read, or none of the files that it names is there.
    """
    files, listed = _files(folder), _listed(folder)
    if not listed:
        return by_place(files), None
    try:
        configs = {str(entry["config_name"]): _of_config(folder, entry, files) for entry in listed}
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{folder}: `configs` in its README.md cannot be read ({type(error).__name__}: {error})"
        ) from None
    configs = {name: splits for name, splits in configs.items() if splits}  # a clone may hold a part
    if not configs:
        raise UserError(f"{folder}: none of the data files that its README.md names is there")
    defaults = [str(entry["config_name"]) for entry in listed if entry.get("default")]
    return configs, defaults[0] if defaults else UNNAMED


def _listed(folder: Path) -> list[dict[str, Any]]:
    """The card's `configs`, with those of .huggingface.yaml in their place where there are any."""
    try:
        card = _yaml_of(folder / "README.md", fenced=True) | _yaml_of(folder / ".huggingface.yaml", fenced=False)
        listed = card.get("configs") or []
        if not all("config_name" in entry for entry in listed):
            raise ValueError("an entry of `configs` has no config_name")
        return list(listed)
    except (ValueError, TypeError) as error:
        reason = first_line(error)
        raise UserError(f"{folder}: the dataset card in its README.md cannot be read: {reason}") from None


def _yaml_of(file: Path, fenced: bool) -> dict[str, Any]:
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8").splitlines()
    if fenced:
        if lines[:1] != ["---"] or "---" not in lines[1:]:
            return {}
        lines = lines[1 : lines.index("---", 1)]
    content = parse_yaml("\n".join(lines))
    return content if isinstance(content, dict) else {}


def _of_config(folder: Path, entry: dict[str, Any], files: Collection[PurePath]) -> dict[str, list[PurePath]]:
    base = PurePath(entry.get("data_dir") or ".")
    patterns = entry.get("data_files")
    splits: dict[str, list[PurePath]] = {}
    if patterns is None:
        for file in files:
            if file.is_relative_to(base):
                splits.setdefault(place_of(file.relative_to(base))[1], []).append(file)
        return splits
    if not isinstance(patterns, list) or not all(isinstance(part, dict) for part in patterns):
        patterns = [{"split": "train", "path": patterns}]
    for part in patterns:
        names = part["path"] if isinstance(part["path"], list) else [part["path"]]
        found = {
            base / name for pattern in names for name in glob.glob(pattern, root_dir=folder / base, recursive=True)
        }
        splits[str(part["split"])] = [file for file in files if file in found]
    return {split: found for split, found in splits.items() if found}


def _files(folder: Path) -> list[PurePath]:
    """The files in a folder that hold rows, at any depth, hidden ones apart."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if suffix_of(path) and path.is_file())
    return [path for path in paths if not any(part[0] == "." for part in path.parts)]
