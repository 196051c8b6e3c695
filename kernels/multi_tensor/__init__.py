"""Ops over lists of tensors: the optimizer's step, the gradients' norm, MetaRM's move of the weights and back.

Their implementations are "reference" (plain torch), "extension" (the compiled library of csrc/, where it was built)
and, for AdamW alone, "fused" (torch's own kernel).
"""

from rmfast.kernels.multi_tensor.op import adamw_, gradient_norm, perturb_, restore_, save

__all__ = ["adamw_", "gradient_norm", "perturb_", "restore_", "save"]
