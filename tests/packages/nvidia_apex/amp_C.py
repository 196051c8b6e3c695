"""apex's CUDA kernels. Their arguments have no names in Python: all are given by position."""

import torch
from torch import Tensor


def _launched(depth: int, flag: Tensor, tensor_lists: list[list[Tensor]], dtype: torch.dtype) -> list[list[Tensor]]:
    """The checks of multi_tensor_apply, and what its launches reach: none comes after an empty last tensor."""
    assert len(tensor_lists) == depth and tensor_lists[0]
    assert flag.dtype == torch.int32 and flag.numel() == 1
    for tensors in tensor_lists:
        assert len(tensors) == len(tensor_lists[0])
        for tensor, like in zip(tensors, tensor_lists[0], strict=True):
            assert tensor.dtype == dtype and tensor.is_contiguous() and tensor.numel() == like.numel()
            assert tensor.device == tensor_lists[0][0].device
    return tensor_lists if tensor_lists[0][-1].numel() else [[] for _ in tensor_lists]


def multi_tensor_adam_capturable(
    chunk_size: int,
    noop_flag: Tensor,
    tensor_lists: list[list[Tensor]],
    lr: Tensor,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: Tensor,
    mode: int,
    bias_correction: int,
    weight_decay: float,
    inv_scale: Tensor,
    /,
) -> None:
    assert chunk_size == 2048 * 32 and mode in (0, 1) and bias_correction in (0, 1)
    assert lr.dtype == inv_scale.dtype == torch.float32 and step.dtype == torch.int32
    lists = _launched(4, noop_flag, tensor_lists, torch.float32)
    if noop_flag.item() == 1:
        return
    correction1 = 1 - beta1 ** step.double() if bias_correction else torch.ones(())
    correction2 = 1 - beta2 ** step.double() if bias_correction else torch.ones(())
    for g, p, m, v in zip(*lists, strict=True):
        g.mul_(inv_scale)
        grad = g + weight_decay * p if mode == 0 else g
        m.copy_(beta1 * m + (1 - beta1) * grad)
        v.copy_(beta2 * v + (1 - beta2) * grad * grad)
        update = m / correction1.float() / ((v / correction2.float()).sqrt() + epsilon)
        p.sub_(lr * (update if mode == 0 else update + weight_decay * p))


def multi_tensor_l2norm(
    chunk_size: int, noop_flag: Tensor, tensor_lists: list[list[Tensor]], per_tensor: bool | None, /
) -> tuple[Tensor, Tensor]:
    assert chunk_size == 2048 * 32 and not per_tensor
    (tensors,) = _launched(1, noop_flag, tensor_lists, tensor_lists[0][0].dtype)
    total = torch.zeros(1, device=tensor_lists[0][0].device)
    for tensor in tensors:
        total += tensor.float().square().sum()
    if not total.isfinite():
        noop_flag.fill_(1)
    return total.sqrt(), torch.empty(0)
