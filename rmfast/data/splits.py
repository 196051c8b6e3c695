"""Which configuration and split of a dataset to read, for files, saved datasets and hub names alike.

A split is asked for by its name, or by a word of the same meaning where one split alone has it: `test` is also the only
split whose name holds test, testing, eval or evaluation, as in `test_prefs`; likewise train and training, and
validation, valid, val and dev. Nothing is ever mixed: where several could be meant, a line names what there is.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import TypeVar

from rmfast.data.unpack import NOT_READ, SUFFIXES, suffix_of
from rmfast.errors import UserError

T = TypeVar("T")
UNNAMED = "default"
"""The configuration of what is in none, by `datasets`' name for it."""
_MEANINGS = {
    "train": ("training", "train"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("testing", "test", "evaluation", "eval"),
}
"""The words by which `datasets` finds the splits of a folder."""
_MEANING_OF = {word: meaning for meaning, words in _MEANINGS.items() for word in words}
_WORD = re.compile(rf"(?<![a-z])({'|'.join(_MEANING_OF)})(?![a-z])", re.IGNORECASE)
_OF_SHARDS = re.compile(r"(?P<split>.+?)-\d+-of-\d+([^a-z].*)?", re.IGNORECASE)  # data/test-00000-of-00002-HASH
_SHARD = re.compile(r"([-._ ]?(part|shard|chunk|file|of)?[-._ ]?\d+)+$", re.IGNORECASE)  # train.part2, train_01


def choose_config(
    where: str, configs: Mapping[str, T], config: str | None, default: str | None = None
) -> tuple[str, T]:
    """The configuration that is asked for, else the default, else the only one; its name first.

    Raises:
        UserError: it is not there, or none is asked for and there are several.
    """
    if config is None:
        config = next(iter(configs)) if len(configs) == 1 else default
    if config is not None and config in configs:
        return config, configs[config]
    names = list(configs)
    how = f"{', '.join(names)}: name one, as in {where}:{names[0]}"
    if config is None or config == default:
        raise UserError(f"{where} has the configurations {how}")
    if names == [UNNAMED]:
        raise UserError(f"{where} has no configuration {config!r}, nor any other: leave out :{config}")
    raise UserError(f"{where} has no configuration {config!r}; it has {how}")


def choose_split(where: str, splits: Collection[str], split: str | None, default: str) -> str:
    """The split that is asked for, else the default one, else the only one; "" is what belongs to none.

    Raises:
        UserError: it is not there, or several could be meant.
    """
    wanted = split or default
    if wanted in splits:
        return wanted
    meaning = _MEANING_OF.get(wanted)
    meant = [name for name in splits if meaning is not None and meaning_of(name) == meaning]
    if len(meant) == 1:
        return meant[0]
    if split is None and len(splits) == 1:
        return next(iter(splits))  # there is nothing to choose from
    names = sorted(name for name in splits if name)
    if not names:
        raise UserError(f"{where} is one dataset and has no split {split!r}: leave out #{split}")
    several = f", and {len(meant)} of them could be meant" if meant else ""
    there = ", ".join(names) + (" and files of none" if "" in splits else "")
    how = f"name one with #SPLIT, as in {where}#{sorted(meant or names)[0]}"
    raise UserError(f"{where} has no split {wanted!r}{several}; it has {there}: {how}")


def meaning_of(name: str) -> str | None:
    """train, validation or test, by the first of their words in a split's name; None without such a word."""
    match = _WORD.search(name)
    return _MEANING_OF[match[1].lower()] if match else None


def by_place(files: Sequence[PurePath]) -> dict[str, dict[str, list[PurePath]]]:
    """A folder's files by configuration and split, as their paths in it tell; all as one where none has a split."""
    places = [place_of(file) for file in files]
    named = {config for config, split in places if split}
    configs: dict[str, dict[str, list[PurePath]]] = {}
    readable = any(suffix_of(file) in SUFFIXES for file in files)
    for file, (config, split) in zip(files, places, strict=True):
        if readable and not split and suffix_of(file) in NOT_READ:
            continue  # a table beside the rows
        if not named:
            config = UNNAMED
        if not named or config in named:  # beside splits, folders without any are no part of the dataset
            configs.setdefault(config, {}).setdefault(split, []).append(file)
    return configs


def place_of(file: PurePath) -> tuple[str, str]:
    """The configuration and the split ("" for none) that a file's path in a dataset's folder tells.

    `en/train-00000-of-00002.parquet`, `en/train.part1.jsonl` and `en/train/a.jsonl` are of split train in configuration
    en; a `data/` at the front is no configuration. A file in a split's folder may name a part of that split:
    `train/train_sft.jsonl`.
    """
    *folders, name = file.parts
    stem = name.removesuffix(suffix_of(file))
    shards = _OF_SHARDS.fullmatch(stem)
    named = shards["split"] if shards else _SHARD.sub("", stem) or stem
    at = next((place for place, folder in enumerate(folders) if meaning_of(folder)), len(folders))
    outer = folders[1:at] if folders[:1] == ["data"] else folders[:at]
    config = "/".join(outer) or UNNAMED
    if at == len(folders):
        return config, named if shards or meaning_of(named) else ""
    split = _SHARD.sub("", folders[at])
    return config, named if meaning_of(named) == meaning_of(split) else split
