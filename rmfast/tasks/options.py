"""What several commands do with their options: models, devices and files that are written."""

import os
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from rmfast.data.columns import Columns, read_columns
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.evaluation.answers import Reader
from rmfast.evaluation.foreign import ForeignModel, is_foreign, load_any, longest_sequence
from rmfast.evaluation.reward_model import RewardModel, find_folder
from rmfast.evaluation.score import Progress
from rmfast.models.config import DTYPES, context_window
from rmfast.models.hf import read_config
from rmfast.trainer.log import say


def check_models(paths: Sequence[str], options: Namespace) -> None:
    """Wrong paths, templates and devices, answered before any data is read."""
    for path in paths:
        is_foreign(path, options.label)
        load_tokenizer(find_folder(path), options.chat_template)
    try:
        if torch.device(device_of(options)).type not in ("cpu", "cuda"):
            raise UserError(f"--device {options.device}: models run on cpu or cuda")
        torch.empty(0, device=device_of(options))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {options.device}: {str(error).splitlines()[0]}") from None


def reader(path: str, options: Namespace) -> Reader:
    """How a model reads: its tokenizer and its window."""
    folder = find_folder(path)
    hf = read_config(folder)
    window = longest_sequence(hf) if is_foreign(folder, options.label) else context_window(hf)
    return Reader(load_tokenizer(folder, options.chat_template), window)


def columns_of(options: Namespace) -> Columns:
    """--columns."""
    try:
        return read_columns(options.columns)
    except ValueError as error:
        raise UserError(f"--columns {error}") from None


def device_of(options: Namespace) -> str:
    """--device, or CUDA where it is."""
    return options.device or ("cuda" if torch.cuda.is_available() else "cpu")


def load_model(path: str, options: Namespace, progress: Progress | None = None) -> RewardModel | ForeignModel:
    """A reward model, as the options of `rmfast score` and `rmfast eval` say; a slow one says that it is."""
    model = load_any(
        path,
        device_of(options),
        DTYPES[options.dtype],
        label=options.label,
        scored_token=options.scored_token,
        chat_template=options.chat_template,
        tokens_per_pack=options.tokens_per_pack,
        progress=progress,
    )
    if isinstance(model, ForeignModel):
        say(model.note)
    return model


def out_file(path: str, source: str, option: str = "--out") -> Path:
    """A file to write, refused before any work is done where it could not be written or would replace the data."""
    out, data = Path(path), Path(source)
    if out.exists() and data.exists() and (out.samefile(data) or data.resolve() in out.resolve().parents):
        raise UserError(f"{option} {out} would overwrite the data, {source}; name another file")
    if out.is_dir():
        raise UserError(f"{option} {out} is a folder; name a file")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{option} {out}: there is no folder {out.absolute().parent}")
    return out


def write_file(path: Path, chunks: Iterable[bytes]) -> int:
    """Write a file aside and rename it; how many chunks it holds. A pipe or a device is written to."""
    real = path.is_file() or not path.exists()
    aside = path.with_name(f".{path.name}.partial") if real else path
    count = 0
    try:
        with aside.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                count += 1
        if real:
            os.replace(aside, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return count
