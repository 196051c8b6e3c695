"""Safetensors files that are written from the tensors' memory, with their checksum."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rmfast.outputs.checksums import Checksum, SummedFile

DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the format, in the order in which `safetensors.torch.save_file` lays tensors out."""
ALIGNMENT = 8  # of the first tensor's bytes


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Checksum:
    """Write the file that `safetensors.torch.save_file` would write, byte for byte, without a copy of it in memory.

    Args:
        tensors: on the CPU, contiguous; some may share memory, which each of them then has in the file.

    Returns:
        The checksum of the file.
    """
    order = list(DTYPES)
    placed = sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0]))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in placed:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as opened:
        file = SummedFile(opened)
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in placed:
            if tensor.numel():
                file.write(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
    return file.checksum
