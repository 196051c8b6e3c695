"""What the heads of an ensemble learn from in one step, in one piece of memory, so that a device gets it in one copy.

Shapes: M members, d width, F rows of features, U distinct responses and E edges (the most of any member) of a step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from rmfast.data.edge_columns import Edges
from rmfast.data.plan import StepPlan

ALIGNED = 256  # bytes: where an allocator too would let a tensor begin


@dataclass(frozen=True, kw_only=True)
class HeadData:
    """What heads learn from: `features` fp32 [F, d] (may be memory-mapped), `place` int64 [R], the row in it of each
    response of the training table, and the table's edges, group by group."""

    features: np.ndarray
    place: np.ndarray
    edges: Edges


@dataclass(frozen=True, kw_only=True)
class HeadMember:
    """A member's steps: `plan` over its groups, `groups` [G], their rows in the training table, `total` steps, and the
    learning rate of each."""

    plan: StepPlan
    groups: np.ndarray
    total: int
    rate: Callable[[int], float]

    def edges(self, step: int, start: np.ndarray) -> np.ndarray:
        """Numbers of a step's edges, int64; none once the member has finished.

        Args:
            start: of each group's edges in the table.
        """
        rows = self.groups[self.plan.step(step)[1]].tolist() if step < self.total else []
        return np.concatenate([np.empty(0, np.int64), *(np.arange(start[g], start[g + 1]) for g in rows)])


@dataclass(frozen=True)
class HeadBatch:
    """Edges of one step for all members, [M, E] each, padded with edges of weight 0.

    `features` fp32 [U, d] are the step's distinct responses, which `better` and `worse` index. `active` bool [M]
    says which members have not finished. All are views of `buffer`, uint8.
    """

    buffer: Tensor
    features: Tensor
    better: Tensor
    worse: Tensor
    margin: Tensor
    target: Tensor
    weight: Tensor
    counted: Tensor  # bool [M, E]: edges that are no padding
    active: Tensor

    def to(self, device: torch.device) -> "HeadBatch":
        """The batch on a device; the copy from pinned memory does not wait."""
        if device.type == "cpu":
            return self
        buffer = self.buffer.to(device, non_blocking=True)
        tensors = [getattr(self, field.name) for field in fields(self)[1:]]
        starts = [tensor.storage_offset() * tensor.element_size() for tensor in tensors]
        return HeadBatch(
            buffer,
            *(
                buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                for start, tensor in zip(starts, tensors, strict=True)
            ),
        )


def head_batch(taken: Sequence[np.ndarray], data: HeadData, *, active: np.ndarray, pin: bool) -> HeadBatch:
    """A step's batch on the CPU.

    Args:
        taken: numbers of each member's edges. pin: in page-locked memory.
    """
    widest = max(1, max(map(len, taken)))
    edge = np.zeros((len(taken), widest), dtype=np.int64)
    counted = np.zeros(edge.shape, dtype=bool)
    for m, edges in enumerate(taken):
        edge[m, : len(edges)], counted[m, : len(edges)] = edges, True
    e = data.edges
    ends = np.stack((e.better[edge], e.worse[edge]))
    # Padding points at a response that is there anyway.
    ends[:, ~counted] = ends[:, counted][:, :1]
    needed, place = np.unique(ends, return_inverse=True)
    better, worse = place.reshape(ends.shape)
    arrays = {
        "features": data.features[data.place[needed]].astype(np.float32, copy=False),
        "better": better,
        "worse": worse,
        "margin": e.margin[edge].astype(np.float32),
        "target": e.target[edge].astype(np.float32),
        "weight": np.where(counted, e.weight[edge], 0.0).astype(np.float32),
        "counted": counted,
        "active": active,
    }
    sizes = [-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays.values()]
    buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pin)
    tensors = {}
    for (name, array), part in zip(arrays.items(), buffer.split(sizes), strict=True):
        values = torch.from_numpy(np.ascontiguousarray(array))
        tensors[name] = part[: array.nbytes].view(values.dtype).view(values.shape).copy_(values)
    return HeadBatch(buffer, **tensors)
