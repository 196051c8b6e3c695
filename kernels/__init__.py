"""The ops of rmfast: torch tensors in and out, differentiable where marked so in their docstrings.

Each op has a plain-torch reference, which is its CPU path and the truth for tests, and Triton kernels.
"""

from rmfast.kernels.clipped_losses import policy_loss, value_loss
from rmfast.kernels.common import describe
from rmfast.kernels.decode_attention import decode_attention
from rmfast.kernels.difference_loss import difference_loss
from rmfast.kernels.draw_tokens import Drawn, draw_tokens, row_keys
from rmfast.kernels.gae import gae
from rmfast.kernels.info_nce import info_nce
from rmfast.kernels.linear_log_prob import linear_log_prob
from rmfast.kernels.prefix_attention import prefix_attention, prefix_layout
from rmfast.kernels.ranking_loss import ranking_loss
from rmfast.kernels.rms_norm import add_rms_norm, rms_norm
from rmfast.kernels.rope import rope, rope_tables, rotate, split_rope
from rmfast.kernels.score_head import score_head
from rmfast.kernels.sinkhorn import sinkhorn
from rmfast.kernels.swapped_prediction_loss import swapped_prediction_loss
from rmfast.kernels.swiglu import swiglu

__all__ = [
    "Drawn",
    "add_rms_norm",
    "decode_attention",
    "describe",
    "difference_loss",
    "draw_tokens",
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
    "row_keys",
    "score_head",
    "sinkhorn",
    "split_rope",
    "swapped_prediction_loss",
    "swiglu",
    "value_loss",
]
