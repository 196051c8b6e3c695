"""Log-probability and entropy of a linear layer's softmax."""

from rmfast.kernels.linear_log_prob.op import linear_log_prob

__all__ = ["linear_log_prob"]
