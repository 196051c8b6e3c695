"""Kinds of files that commands write: one that exists is replaced only where it looks like an earlier result."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmfast.errors import UserError

HEAD = 4096  # bytes in which a page, a picture or a script shows what it is
PICTURE_SOFTWARE = "rmfast"  # of a PNG's metadata


@dataclass(frozen=True)
class Kind:
    """`what` a file is called, and whether one is of the kind."""

    what: str
    matches: Callable[[Path], bool]


def check_kind(name: str, path: Path, kind: Kind) -> None:
    """Refuse to replace a file that the command cannot have written. An empty one, and what is no file, may be.

    Raises:
        UserError: names it, and what to do.
    """
    try:
        if path.is_file() and path.stat().st_size and not kind.matches(path):
            raise UserError(f"{name}: {path} is there already and is no {kind.what}; name another file, or remove it")
    except OSError as error:
        raise UserError(f"{name}: {path} is there already and cannot be read ({error.strerror})") from None


def json_object(text: bytes) -> dict[str, Any]:
    """What a text says that is a JSON object; nothing of any other."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _json(*keys: str) -> Callable[[Path], bool]:
    return lambda path: set(keys) <= json_object(path.read_bytes()).keys()


def _rows(is_ours: Callable[[dict[str, Any]], bool]) -> Callable[[Path], bool]:
    """Whether all rows of a file are: a person's file may begin with one that is like them."""

    def matches(path: Path) -> bool:
        with path.open("rb") as file:
            return all(is_ours(json_object(line)) for line in file)

    return matches


def _is_scored(row: dict[str, Any]) -> bool:
    return isinstance(row.get("rewards", ""), list | None)


def _head(mark: str, start: bytes = b"") -> Callable[[Path], bool]:
    def matches(path: Path) -> bool:
        with path.open("rb") as file:
            head = file.read(HEAD)
        return head.startswith(start) and mark.encode() in head

    return matches


RESULT = Kind("result of rmfast eval", _json("format", "suite", "items"))
DIAGNOSTICS = Kind("result of rmfast compare", _json("suite", "models", "draws"))
BEST_OF_N = Kind("result of best-of-N (rmfast sample)", _json("counts", "ceiling", "members", "rules"))
PLANS = Kind("result of rmfast plan", _json("workload", "plans"))
SCORED = Kind("file of rmfast score (rows with `rewards`)", _rows(_is_scored))
SAMPLED = Kind(
    "file of rmfast sample (rows with responses and their `stop_reasons`)",
    _rows(lambda row: row.keys() >= {"responses", "stop_reasons", "log_probs"}),
)
BEST = Kind(
    "file of rmfast sample --keep best (rows with `completion` and its `reward`)",
    _rows(lambda row: row.keys() >= {"prompt", "completion", "reward"}),
)
BEST_WORST = Kind(
    "file of rmfast sample --keep best-worst (rows with `reward_chosen` and `reward_rejected`)",
    _rows(lambda row: row.keys() >= {"chosen", "rejected", "reward_chosen", "reward_rejected"}),
)
DENOISED = Kind(
    "file of rmfast data denoise (rows with margin, target and weight)",
    _rows(lambda row: row.keys() >= {"margin", "target", "weight"}),
)
PAGE = Kind("page of rmfast", _head("<title>rmfast: "))
PICTURE = Kind("picture of rmfast", _head(PICTURE_SOFTWARE, b"\x89PNG"))
SCRIPT = Kind("script of rmfast launch", _head("\n# Made by: rmfast ", b"#!"))
