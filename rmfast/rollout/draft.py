"""What sampling takes and gives, as token ids."""

from dataclasses import dataclass

import numpy as np

from rmfast.rollout.options import StopReason


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt to sample from: its token ids, int [P], and the number of its draws in the noise (any 64 bits)."""

    ids: np.ndarray
    draw_number: int


@dataclass(frozen=True, eq=False)
class Draft:
    """A sample as token ids: `ids` int32 [L], with raw log-probabilities and those of the distribution that was drawn
    from, fp32 [L]. See `Drawn`."""

    ids: np.ndarray
    stop_reason: StopReason
    log_prob: np.ndarray
    behaviour_log_prob: np.ndarray
