"""Final norm and reward heads, on the scored rows only."""

from torch import Tensor

from rmfast.kernels.common import check, check_impl, maths_dtype
from rmfast.kernels.layers.reference import rms_norm


def score_head(hidden: Tensor, norm_weight: Tensor, head_weight: Tensor, *, eps: float, impl: str = "auto") -> Tensor:
    """RMSNorm, then M linear heads without bias. Differentiable in all three tensors.

    Args:
        hidden: [S, d], the last layer's output at the scored tokens, before the final norm.
        norm_weight: [d].
        head_weight: [M, d].
        eps: of the norm.
        impl: "auto" or "reference".

    Returns:
        [S, M] in fp32 (fp64 for fp64 input): bf16 scores would tie where fp32 ones do not.

    Raises:
        ValueError: shapes that do not fit together.
    """
    op = "score_head"
    check_impl(op, impl)
    check(hidden.dim() == 2, op, f"hidden must be [S, d], got {tuple(hidden.shape)}")
    width = hidden.shape[1]
    check(norm_weight.shape == (width,), op, f"norm_weight must be [{width}], got {tuple(norm_weight.shape)}")
    check(head_weight.dim() == 2 and head_weight.shape[1] == width, op, f"head_weight must be [M, {width}]")
    dtype = maths_dtype(hidden, norm_weight, head_weight)
    return rms_norm(hidden.to(dtype), norm_weight.to(dtype), eps) @ head_weight.to(dtype).T
