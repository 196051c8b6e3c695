"""RMSNorm and reward heads in plain torch, with the maths in the dtype of its inputs."""

from torch import Tensor

from rmfast.kernels.rms_norm.reference import rms_norm


def score_head(hidden: Tensor, norm_weight: Tensor, head_weight: Tensor, eps: float) -> Tensor:
    return rms_norm(hidden, norm_weight, eps) @ head_weight.T
