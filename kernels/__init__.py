"""The ops of rmfast: torch tensors in and out, differentiable where marked so in their docstrings.

Each op has a plain-torch reference, which is its CPU path and the truth for tests, and Triton kernels.
"""

from rmfast.kernels.attention import prefix_attention, prefix_layout
from rmfast.kernels.common import describe
from rmfast.kernels.contrastive import info_nce, sinkhorn, swapped_prediction_loss
from rmfast.kernels.head import linear_log_prob, score_head
from rmfast.kernels.layers import add_rms_norm, rms_norm, rope, rope_tables, rotate, split_rope, swiglu
from rmfast.kernels.meta import difference_loss
from rmfast.kernels.policy import gae, policy_loss, value_loss
from rmfast.kernels.ranking import ranking_loss

__all__ = [
    "add_rms_norm",
    "describe",
    "difference_loss",
    "gae",
    "info_nce",
    "linear_log_prob",
    "policy_loss",
    "prefix_attention",
    "prefix_layout",
    "ranking_loss",
    "rms_norm",
    "rope",
    "rope_tables",
    "rotate",
    "score_head",
    "sinkhorn",
    "split_rope",
    "swapped_prediction_loss",
    "swiglu",
    "value_loss",
]
