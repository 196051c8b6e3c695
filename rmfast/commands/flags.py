"""What several commands do with their flags: models, devices and files that are written."""

import errno
import os
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from rmfast.console import say
from rmfast.data.files import remove, temporary_name, written_whole
from rmfast.data.sources import source_root
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.evaluation.scoring.foreign import ForeignModel, is_foreign, load_any, longest_sequence
from rmfast.evaluation.scoring.reader import Reader
from rmfast.evaluation.scoring.reward_model import find_folder
from rmfast.evaluation.scoring.score import Progress
from rmfast.evaluation.scoring.shared import by_trunk, load_together
from rmfast.evaluation.suites.answers import Scorer
from rmfast.models.config import DTYPES, context_window
from rmfast.models.hf import read_config
from rmfast.models.placement import check_device
from rmfast.outputs.kinds import Kind, check_kind
from rmfast.outputs.overlap import Input, Output, check_overlap
from rmfast.tasks.build.model import say_date


def check_models(paths: Sequence[str], options: Namespace) -> None:
    """Wrong paths, templates and devices, answered before any data is read."""
    for path in paths:
        is_foreign(path, options.label)
        say_date(path, load_tokenizer(find_folder(path), options.chat_template, options.template_date))
    device_of(options)


def reader(path: str, options: Namespace) -> Reader:
    """How a model reads: its tokenizer and its window."""
    folder = find_folder(path)
    hf = read_config(folder)
    window = longest_sequence(hf) if is_foreign(folder, options.label) else context_window(hf)
    return Reader(load_tokenizer(folder, options.chat_template, options.template_date), window)


def device_of(options: Namespace) -> str:
    """--device, or CUDA where it is; refused where there is no such device."""
    device: str = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        check_device(device)
    except UserError as error:
        raise UserError(f"--{error}") from None
    return device


def grouped(paths: Sequence[str], options: Namespace) -> list[list[str]]:
    """Models in their order, those of one trunk together."""
    if options.label is not None:
        return [[path] for path in paths]
    return [[str(path) for path in group] for group in by_trunk(paths)]


def load_models(paths: Sequence[str], options: Namespace, progress: Progress | None = None) -> Scorer:
    """A reward model, or one made of several that share a trunk, with a head for each; as the options of `rmfast score`
    and `rmfast eval` say. A slow one says that it is."""
    shared: dict[str, Any] = {
        "scored_token": options.scored_token,
        "chat_template": options.chat_template,
        "template_date": options.template_date,
        "tokens_per_pack": options.tokens_per_pack,
        "progress": progress,
    }
    where = device_of(options), DTYPES[options.dtype]
    if len(paths) > 1:
        say(f"{len(paths)} models share a trunk, which is computed once: {', '.join(paths)}")
        return load_together(paths, *where, **shared)
    model = load_any(paths[0], *where, label=options.label, **shared)
    if isinstance(model, ForeignModel):
        say(model.note)
    return model


def read_by(options: Namespace, *names: str) -> list[Input]:
    """What a command reads: models, its data and the files that some options name."""
    read = [Input("CKPT", find_folder(path)) for path in getattr(options, "models", ())]
    read += [Input("--data", Path(source_root(options.data)))] if "data" in options else []
    for name in names:
        given = getattr(options, name)
        paths = given if isinstance(given, list) else [given] if given else []
        paths = [path for path in paths if name != "suite" or path.endswith(".py")]  # others are rmfast's, by name
        read += [Input(f"--{name.replace('_', '-')}", Path(path)) for path in paths]
    return read


def out_file(option: str, path: str, kind: Kind, inputs: Sequence[Input]) -> Path:
    """A file to write, refused before any work is done where it could not be written, or would replace anything but an
    earlier result of its kind."""
    out = Path(path)
    if out.is_dir():
        raise UserError(f"{option} {out} is a folder; name a file")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{option} {out}: there is no folder {out.absolute().parent}")
    check_overlap([Output(option, out, "name another file")], inputs)
    check_kind(option, out, kind)
    check_writable(option, out)
    return out


def check_writable(option: str, out: Path) -> None:
    """Refuse what could not be written, by writing a byte beside it; nothing is written to a pipe or a device."""
    temporary = temporary_name(out)
    try:
        if _replaces(out):
            temporary.write_bytes(b"\n")
        elif not os.access(out, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"{option} {out}: cannot be written: {error.strerror}") from None
    finally:
        remove(temporary)


def _replaces(path: Path) -> bool:
    """Whether a file is written under another name and renamed, as all are but pipes and devices."""
    return path.is_file() or not path.exists()


def check_differ(first: tuple[str, Path], second: tuple[str, Path]) -> None:
    """Refuse two options, with their files, that name one file."""
    if os.path.realpath(first[1]) == os.path.realpath(second[1]):
        raise UserError(f"{first[0]} and {second[0]} both name {second[1]}; name two files")


def out_files(inputs: Sequence[Input], *wanted: tuple[str, str | None, Kind]) -> list[Path | None]:
    """`out_file` of several options, None for those that were not given; no two may name one file.

    Args:
        wanted: each an option, what it was given, and what the command writes there.
    """
    found: dict[str, Path] = {}
    for option, path, kind in wanted:
        if path is not None:
            out = out_file(option, path, kind, inputs)
            for before in found.items():
                check_differ(before, (option, out))
            found[option] = out
    return [found.get(option) for option, _, _ in wanted]


def write_file(path: Path, chunks: Iterable[bytes]) -> int:
    """Write a file whole or not at all; how many chunks it holds. A pipe or a device is written to."""
    count = 0
    try:
        with written_whole(path) if _replaces(path) else nullcontext(path) as target, target.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                count += 1
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return count
