"""Reward models that share a trunk, embedding and lower layers, as one that computes it once."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reward_model import (
    RewardModel,
    ScoredToken,
    find_folder,
    model_folder,
    skipped_token,
    warn_of_tokens,
)
from rmfast.evaluation.scoring.score import Progress
from rmfast.models.config import decoder_config
from rmfast.models.folder import read_json
from rmfast.models.hf import load_network, read_config
from rmfast.models.members import Members, SharedNetwork, trunk_of
from rmfast.models.placement import check_device, check_dtype
from rmfast.models.save import INDEX
from rmfast.models.weights import EMBEDDING, hf_parts
from rmfast.outputs.marks import exported_files

ALIKE = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Files by which models read alike, and are of one shape."""


def by_trunk(paths: Sequence[str | Path]) -> list[list[str | Path]]:
    """Reward models in their order, those that follow each other and share a trunk together: see `shared_layers`."""
    groups: list[list[str | Path]] = []
    for path in paths:
        if groups and _joins(groups[-1], path):
            groups[-1].append(path)
        else:
            groups.append([path])
    return groups


def _joins(group: Sequence[str | Path], path: str | Path) -> bool:
    layers = shared_layers(group[0], path)
    return layers > 0 and (len(group) == 1 or layers == shared_layers(group[0], group[1]))


def shared_layers(one: str | Path, other: str | Path) -> int:
    """How many of the lowest layers two folders have in one trunk, 0 for none; at most all but the last.

    A weight is shared where it is in a file that both folders have: one file (a hard link), or files of one name whose
    sizes and checksums, which rmfast noted at the export and checks where it loads, are the same. Only folders of one
    head, one config and one tokenizer are compared, whose weights are in several files.
    """
    first, second = find_folder(one), find_folder(other)
    maps = [_weight_map(folder) for folder in (first, second)]
    if not all(maps) or any(_bytes(first / name) != _bytes(second / name) for name in ALIKE):
        return 0
    hf = read_config(first)
    if hf.num_labels != 1:
        return 0
    try:
        config = decoder_config(hf)
    except UserError:  # another family
        return 0
    same = {name for name in {*maps[0].values()} & {*maps[1].values()} if _same_file(first, second, name)}
    parts = hf_parts(config)

    def shared(prefix: str) -> bool:
        names = [name for ours, found in parts.items() if ours.startswith(prefix) for name, _ in found]
        return all(maps[0].get(name) in same and maps[0].get(name) == maps[1].get(name) for name in names)

    if not shared(EMBEDDING):
        return 0
    differs = (layer for layer in range(config.layers - 1) if not shared(f"decoder.layers.{layer}."))
    return next(differs, config.layers - 1)


def load_together(
    paths: Sequence[str | Path],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    scored_token: ScoredToken | None = None,
    chat_template: str | None = None,
    template_date: str | None = None,
    tokens_per_pack: int = 16384,
    progress: Progress | None = None,
) -> RewardModel:
    """Reward models that share a trunk as one with a head for each, in their order, that computes the trunk once.

    The arguments are those of `rmfast.load`.

    Raises:
        UserError: they share no trunk (see `by_trunk`); as `rmfast.load`.
    """
    check_device(device)
    check_dtype(dtype)
    folders = [model_folder(path) for path in paths]
    if len(folders) < 2 or len(by_trunk(folders)) > 1:
        raise UserError(f"{', '.join(map(str, folders))}: no models that share a trunk; load each by itself")
    options: dict[str, Any] = {"dtype": dtype, "weights_dtype": dtype}
    first, hf = load_network(folders[0], **options)
    top_layers = first.config.layers - shared_layers(*folders[:2])
    members = Members(first.config, len(folders), top_layers, dtype=dtype).to(dtype)
    for number, folder in enumerate(folders):
        members.begin(number, load_network(folder, **options)[0] if number else first)
    tokenizer = load_tokenizer(folders[0], chat_template, template_date)
    warn_of_tokens(scored_token, hf, tokenizer, folders[0])
    network = SharedNetwork(trunk_of(first, top_layers), members).to(device)
    skips = skipped_token(scored_token, hf)
    return RewardModel(network, hf, tokenizer, skips=skips, tokens_per_pack=tokens_per_pack, progress=progress)


def _weight_map(folder: Path) -> dict[str, str]:
    """Each weight's file, of a model in several files; empty of others."""
    if not (folder / INDEX).is_file():
        return {}
    found = read_json(folder / INDEX).get("weight_map")
    return found if isinstance(found, dict) else {}


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _same_file(one: Path, other: Path, name: str) -> bool:
    try:
        if os.path.samefile(one / name, other / name):
            return True
        noted = [exported_files(folder).get(name) for folder in (one, other)]
    except (OSError, ValueError):  # not there; or rmfast's note is damaged
        return False
    return noted[0] is not None and noted[0] == noted[1]
