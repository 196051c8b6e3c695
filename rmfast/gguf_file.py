"""A GGUF file, or all parts of a split one: its keys and its tensors by llama.cpp's names."""

import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmfast.errors import UserError, first_line

_TOKENIZER = ("tokenizer.ggml.model", "tokenizer.ggml.pre")
"""Keys of the tokenizer that are kept beside its token ids; its vocabulary is transformers' to read."""
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of a GGUF file; it is dequantised, to fp32, whenever it is read. Indexed like a safetensors slice."""

    where: str
    """File and name, for errors."""
    data: Any
    kind: Any
    shape: tuple[int, ...]
    heads: int = 0
    """Of a query or key whose rows llama.cpp has permuted for its way of rotating; 0: not permuted."""

    def read(self) -> Tensor:
        from gguf import dequantize

        try:
            values = dequantize(self.data, self.kind)
        except NotImplementedError:  # what the gguf package raises for a storage type that it lacks
            raise UserError(f"{self.where} is stored as {self.kind.name}, which the gguf package cannot read") from None
        tensor = torch.from_numpy(np.array(values, dtype=np.float32))
        if self.heads:
            tensor = tensor.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        return tensor

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: Any) -> Tensor:
        return self.read()[index]


@dataclass(frozen=True)
class GGUFModel:
    """What is in a GGUF file, or in all parts of a split one: keys and tensors by llama.cpp's names."""

    keys: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def open_gguf(path: Path) -> GGUFModel:
    """All parts of a file; the last one that was opened is remembered, since its keys take seconds to read.

    Raises:
        UserError: no whole GGUF file, or one of its parts is missing.
    """
    name = _PART.fullmatch(path.name)
    files = [path]
    if name:
        files = [path.with_name(f"{name[1]}-{i:05d}-of-{name[3]}.gguf") for i in range(1, int(name[3]) + 1)]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; a split model is read from all its parts")
    return _parsed(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=1)
def _parsed(files: tuple[tuple[Path, int, int], ...]) -> GGUFModel:
    first, *others = (_read_part(file) for file, _, _ in files)
    path, count = files[0][0], first.keys.get("split.count", 1)
    if count != len(files):
        raise UserError(f"{path}: is one of {count} parts; they must be named NAME-00001-of-{count:05d}.gguf and so on")
    for other in others:
        first.tensors.update(other.tensors)
    expected = first.keys.get("split.tensors.count", len(first.tensors))
    if expected != len(first.tensors):
        raise UserError(f"{path}: its parts hold {len(first.tensors)} tensors, not {expected}")
    return first


def _read_part(path: Path) -> GGUFModel:
    try:
        from gguf import GGUFEndian, GGUFReader
    except ImportError:
        raise UserError(f"{path}: reading GGUF needs the package gguf: pip install 'rmfast[gguf]'") from None
    try:
        reader = GGUFReader(path)
        keys = {
            name: _value(field)
            for name, field in reader.fields.items()
            if not name.startswith("tokenizer.") or name.endswith("_token_id") or name in _TOKENIZER
        }
        tensors = {
            t.name: GGUFTensor(f"{path}: tensor {t.name}", t.data, t.tensor_type, tuple(reversed(t.shape.tolist())))
            for t in reader.tensors
        }
    except Exception as error:  # whatever comes of bytes that are no GGUF
        raise UserError(f"{path}: is no whole GGUF file: {first_line(error)}") from error
    if (reader.endianess == GGUFEndian.BIG) != (sys.byteorder == "big"):
        raise UserError(f"{path}: was written for machines of the other byte order; convert the model again")
    return GGUFModel(keys, tensors)


def _value(field: Any) -> Any:
    """A key's value; of a float the shortest number that is it in fp32, as it was before it was written."""
    value = field.contents()
    return float(str(np.float32(value))) if isinstance(value, float) else value


def first_part(path: Path) -> Path:
    """Of a file that is split into parts the first, which has the keys; other files as they are."""
    name = _PART.fullmatch(path.name)
    return path.with_name(f"{name[1]}-00001-of-{name[3]}.gguf") if name and name[2] != "00001" else path
