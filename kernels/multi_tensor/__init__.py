"""Ops over lists of tensors: the optimizer's step, the gradients' norm, MetaRM's move of the weights and back.

Their implementations are "reference" (plain torch), "csrc" (the compiled library of csrc/, where it was built) and, for
AdamW and the norm, "torch" (its fused kernel) and "apex" (NVIDIA's, where it is installed).
"""

from rmfast.kernels.multi_tensor.op import (
    adamw_,
    describe_backend,
    first_backend,
    gradient_norm,
    perturb_,
    refusal,
    restore_,
    save,
)

__all__ = [
    "adamw_",
    "describe_backend",
    "first_backend",
    "gradient_norm",
    "perturb_",
    "refusal",
    "restore_",
    "save",
]
