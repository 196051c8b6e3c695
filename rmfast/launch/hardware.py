"""What GPUs can do: data sheets, or a file of what was measured on a machine."""

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from rmfast.errors import UserError
from rmfast.paths import whole_text


@dataclass(frozen=True)
class Gpu:
    """One GPU and its links; bytes and FLOPs a second, in one direction.

    Attributes:
        memory: bytes. matrix: dense bf16 matmuls. single: fp32 matmuls, without TF32. bandwidth: of its memory.
        node: GPUs that NVLink joins. nvlink: within a node. network: between nodes, each GPU's share.
        matrix_share: of that rate that a step's matmuls reach. link_share: of its links' rate. Both are assumptions
            where rates are a data sheet's, and 1 where they were measured.
    """

    memory: float
    matrix: float
    single: float
    bandwidth: float
    nvlink: float
    network: float
    node: int = 8
    matrix_share: float = 0.6
    link_share: float = 0.8


GPUS = {  # SXM boards; network: one NDR (H) or HDR (A) InfiniBand port a GPU
    "h100": Gpu(memory=80e9, matrix=990e12, single=67e12, bandwidth=3.35e12, nvlink=450e9, network=50e9),
    "h200": Gpu(memory=141e9, matrix=990e12, single=67e12, bandwidth=4.8e12, nvlink=450e9, network=50e9),
    "a100": Gpu(memory=80e9, matrix=312e12, single=19.5e12, bandwidth=2.04e12, nvlink=300e9, network=25e9),
}
SHARES = ("matrix_share", "link_share")
ABOUT = "about"  # key of a file that may hold anything: where its numbers come from


def find_gpu(name: str) -> Gpu:
    """One of `GPUS`, or what a JSON file says by the names of `Gpu`.

    Raises:
        UserError: no GPU of that name, or the file does not describe one.
    """
    if name in GPUS:
        return GPUS[name]
    path = Path(name)
    known = f"--gpu knows {', '.join(GPUS)} and files like those of benchmarks/scaling/ceilings.py"
    try:
        values = json.loads(whole_text(path))
    except OSError as error:
        raise UserError(f"--gpu {name}: {error.strerror or error}; {known}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--gpu {name}: is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--gpu {name}: holds no JSON object; {known}")
    values = {key: value for key, value in values.items() if key != ABOUT}
    names = {field.name: field.default is MISSING for field in fields(Gpu)}
    if unknown := sorted(values.keys() - names.keys()):
        raise UserError(f"--gpu {name}: unknown key {unknown[0]}; known: {', '.join(names)}, {ABOUT}")
    if lacking := [key for key, needed in names.items() if needed and key not in values]:
        raise UserError(f"--gpu {name}: lacks {', '.join(lacking)}")
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise UserError(f"--gpu {name}: {key} must be a positive number, got {value!r}")
        low, high = (1, 1e6) if key == "node" else (1e-3, 1) if key in SHARES else (1e3, 1e21)
        if not low <= value <= high:
            raise UserError(f"--gpu {name}: {key} must be between {low:g} and {high:g}, got {str(value)[:20]}")
    if values.get("node", 1) != int(values.get("node", 1)):
        raise UserError(f"--gpu {name}: node must be a whole number, got {values['node']!r}")
    return Gpu(**values)
