"""The ops of rmfast: torch tensors in and out, differentiable where marked so in their docstrings.

Each op has a plain-torch reference, which is its CPU path and the truth for tests.
"""

from rmfast.kernels.attention import prefix_attention, prefix_layout
from rmfast.kernels.head import linear_log_prob, score_head
from rmfast.kernels.layers import add_rms_norm, rms_norm, rope, swiglu
from rmfast.kernels.ranking import ranking_loss

__all__ = [
    "add_rms_norm",
    "linear_log_prob",
    "prefix_attention",
    "prefix_layout",
    "ranking_loss",
    "rms_norm",
    "rope",
    "score_head",
    "swiglu",
]
