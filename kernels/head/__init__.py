"""What is read from the last hidden states: scores, and log-probabilities without full logits."""

from rmfast.kernels.head.log_prob import linear_log_prob
from rmfast.kernels.head.score import score_head

__all__ = ["linear_log_prob", "score_head"]
