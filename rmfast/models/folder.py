"""What a model folder holds: which files are its weights, and what a folder that is no whole model is instead."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rmfast.errors import UserError, first_line
from rmfast.models.weights import StoredWeight

FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
"""Stem and ending of the files that transformers reads, in its order."""

OTHERS = (
    (("rank-*.safetensors",), "a checkpoint of a run of rmfast: rmfast export makes a model of it"),
    (
        ("global_step*", "zero_to_fp32.py", "*_optim_states.pt", "mp_rank_*"),
        "DeepSpeed's shards: its zero_to_fp32.py joins them into a model's weights",
    ),
    (
        ("pytorch_model_fsdp*", "*.distcp", ".metadata"),
        "shards of torch's distributed checkpoints (FSDP): accelerate merge-weights joins them",
    ),
    (
        ("consolidated*", "params.json"),
        "Meta's or Mistral's format: take the model's Hugging Face version, or convert it by transformers' scripts",
    ),
    (
        ("tf_model*", "flax_model*", "*.onnx", "onnx", "openvino*", "rust_model.ot"),
        "weights of another framework: the PyTorch ones are missing",
    ),
    (("checkpoint-*",), "a trainer's checkpoints: name one of these folders"),
    (
        ("optimizer.*", "scheduler.pt", "rng_state*", "training_args.bin"),
        "a trainer's state without the model's weights",
    ),
    (
        ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin"),
        "weights whose config.json is missing: bring it back, or download the model again",
    ),
    (
        ("*.safetensors", "*.bin", "*.pt", "*.pth"),
        "not a name that transformers reads: call it model.safetensors if it is the whole model",
    ),
)
"""What may be in a folder without weights, and how to go on; the first that is found is told."""


Reader = dict[str, StoredWeight]


def in_memory(tensor: Tensor) -> StoredWeight:
    return StoredWeight(lambda: tensor, lambda: tensor)


def refuse_adapter(path: Path) -> None:
    """Nothing, of a folder without an adapter's files.

    Raises:
        UserError: a PEFT adapter, which is no model without its base; also where full weights are beside it, as PEFT
            would then load the base and the adapter, and transformers without PEFT the full weights.
    """
    files = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
    found = [name for name in files if (path / name).is_file()]
    if not found:
        return
    adapter = read_json(path / "adapter_config.json")
    base, kind = adapter.get("base_model_name_or_path") or "its base", adapter.get("peft_type") or "PEFT"
    if any((path / f"{stem}.{ending}{index}").is_file() for stem, ending in FORMATS for index in ("", ".index.json")):
        raise UserError(
            f"{path}: holds an adapter ({found[0]}, {kind} of {base}) beside full weights, and does not say which is "
            "the model: move the adapter's files away if it is merged into them, or else merge it"
        )
    task = "CausalLM" if adapter.get("task_type") == "CAUSAL_LM" else "SequenceClassification"
    raise UserError(
        f"{path}: a PEFT adapter ({found[0]}, {kind} of {base}), not a whole model: merge it into its base, with the "
        f'head: PeftModel.from_pretrained(AutoModelFor{task}.from_pretrained("{base}"'
        f'{"" if task == "CausalLM" else ", num_labels=1"}), "{path.name}").merge_and_unload().save_pretrained(OUT), '
        "save the tokenizer there too, and give that folder"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def told(path: Path) -> str:
    """What a folder without a model holds instead, as the end of an error's line; empty where nothing is known."""
    for patterns, what in OTHERS:
        for pattern in patterns:
            for found in sorted(path.glob(pattern)) if path.is_dir() else ():
                return f"; it holds {found.name}, {what}"
    return ""


def weight_files(path: Path) -> list[Path]:
    """The files of a folder's weights, as transformers chooses them: safetensors before pickles; one file, or shards.

    Raises:
        UserError: none, not all of them, or both one file and shards, which may be two models.
    """
    for stem, ending in FORMATS:
        whole, index = path / f"{stem}.{ending}", path / f"{stem}.{ending}.index.json"
        shards = _indexed(index) if index.is_file() else _numbered(path, stem, ending)
        if shards and whole.is_file() and whole not in shards:
            named = index.name if index.is_file() else shards[0].name
            raise UserError(f"{path}: holds both {whole.name} and {named}, maybe of two models: delete one of them")
        if shards or whole.is_file():
            return shards or [whole]
    raise UserError(f"{path}: no weights (*.safetensors) in this folder{told(path)}")


def _indexed(index: Path) -> list[Path]:
    """The files that an index names."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [index.parent / Path(name).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: cannot be read as an index of weights: {first_line(error)}") from error
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{index}: {missing[0]} cannot be read: {len(missing)} of the {len(files)} files that the index names are "
            "not there; download the model again"
        )
    return files


def _numbered(path: Path, stem: str, ending: str) -> list[Path]:
    """Shards by their names, where there is no index."""
    pattern = re.compile(rf"{stem}-(\d+)-of-(\d+)\.{ending}")
    found = sorted(file for file in path.glob(f"{stem}-*.{ending}") if pattern.fullmatch(file.name))
    counts = {int(match[2]) for file in found if (match := pattern.fullmatch(file.name))}
    if found and counts != {len(found)}:
        raise UserError(f"{path}: {len(found)} shards such as {found[0].name}, which is not all of one model's")
    return found


@contextlib.contextmanager
def open_files(files: Sequence[Path]) -> Iterator[Reader]:
    """Name -> what reads it, of every weight in some files; what was not read is not in memory.

    Raises:
        UserError: a file that is damaged, or a pickle of more than tensors.
    """
    with contextlib.ExitStack() as stack:
        reader: Reader = {}
        for file in files:
            if file.suffix != ".safetensors":
                reader |= _pickled(file)
                continue
            try:
                handle = stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{file}: cannot be read as safetensors: {_pointer(file) or first_line(error)}"
                ) from error
            reader |= {
                name: StoredWeight(partial(handle.get_tensor, name), partial(handle.get_slice, name))
                for name in handle.keys()  # noqa: SIM118
            }
        yield reader


def _pickled(file: Path) -> Reader:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # every kind comes out of a file that is no pickle, or of a torn one
        raise UserError(
            f"{file}: {_pointer(file) or 'is no plain file of tensors, and pickled objects are never run'}; "
            "convert the model to safetensors"
        ) from error
    items = state.items() if isinstance(state, dict) else [("its content", state)]
    if other := [str(name) for name, value in items if not isinstance(value, Tensor)]:
        raise UserError(
            f"{file}: {other[0]} is no tensor: the file is no plain state dict; save model.state_dict() as safetensors"
        )
    return {name: in_memory(tensor) for name, tensor in state.items()}


def _pointer(file: Path) -> str:
    """Of a file that git has not fetched yet: what to do."""
    with contextlib.suppress(OSError), file.open("rb") as opened:
        if opened.read(32).startswith(b"version https://git-lfs"):
            return "it is a pointer of git-lfs; fetch the file itself (git lfs pull)"
    return ""
