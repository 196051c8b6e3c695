"""Files of tensors are safetensors', byte for byte, and their checksum is that of the file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmfast.models.tensor_file import DTYPES, write_tensors
from rmfast.outputs.checksums import file_checksum

KINDS = {f"kind {i}": torch.arange(-3, 4).to(dtype) for i, dtype in enumerate(DTYPES)}
TENSORS = {
    **KINDS,
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "no row": torch.zeros(3, 0, dtype=torch.bfloat16),
    'a "name" with é': torch.randn(3, 5, 2),
}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize("names", [list(TENSORS), list(reversed(TENSORS)), ["scalar"], []])
def test_a_file_is_that_of_safetensors(tmp_path: Path, names: list[str], metadata: dict[str, str] | None) -> None:
    tensors = {name: TENSORS[name] for name in names}
    save_file(tensors, tmp_path / "theirs", metadata=metadata)
    checksum = write_tensors(tmp_path / "ours", tensors, metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert checksum == file_checksum(tmp_path / "ours")


def test_tensors_that_share_memory_are_each_written(tmp_path: Path) -> None:
    whole = torch.randn(4, 3, requires_grad=True)
    write_tensors(tmp_path / "file", {"a": whole, "b": whole, "part": whole[1:3]})
    read = load_file(tmp_path / "file")
    assert torch.equal(read["a"], whole) and torch.equal(read["b"], whole) and torch.equal(read["part"], whole[1:3])
