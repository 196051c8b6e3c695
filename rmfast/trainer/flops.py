"""Work that the maths of a step needs, and the share of the device's peak that it got."""

from dataclasses import dataclass

import torch

from rmfast.data.loader import Totals
from rmfast.models.config import DecoderConfig

# Dense peaks in FLOP/s, bf16 and fp32, from the vendor's data sheets. The first that the device's name contains counts.
PEAKS = {
    "GB200": (2500e12, 80e12),
    "B200": (2250e12, 75e12),
    "H200 NVL": (835e12, 60e12),
    "H100 NVL": (835e12, 60e12),
    "H100 PCIe": (756e12, 51e12),
    "H200": (990e12, 67e12),
    "H100": (990e12, 67e12),
    "A100": (312e12, 19.5e12),
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak of a device for matrix products in a dtype; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peaks = next((peaks for key, peaks in PEAKS.items() if key in name), (None, None))
    return peaks[(torch.bfloat16, torch.float32).index(dtype)]


@dataclass(frozen=True)
class Work:
    """What steps of a model cost.

    Args:
        first_trained: layers below it run forward only.
        adapted: see `step_flops`.
        peak: FLOP/s of all ranks' devices together; None where it is not known.
    """

    decoder: DecoderConfig
    first_trained: int = 0
    adapted: bool = False
    peak: float | None = None

    def flops(self, totals: Totals, *, lm: bool = False) -> float:
        """See `step_flops`."""
        return step_flops(self.decoder, totals, first_trained=self.first_trained, adapted=self.adapted, lm=lm)


def step_flops(
    config: DecoderConfig, totals: Totals, *, first_trained: int = 0, adapted: bool = False, lm: bool = False
) -> float:
    """FLOPs of a step's forward and backward: matrix products and visible attention, prompts once, nothing recomputed.

    The last layer counts queries, output projection and MLP at the scored tokens only (not under an LM loss).

    Args:
        first_trained: layers below it run forward only.
        adapted: adapters alone are trained, so that matrices have no gradient; the adapters' small products are
            not counted.
    """
    keys_values = 2 * config.width * config.kv_heads * config.head_dim
    rest = config.layer_parameters - keys_values
    total = 0.0
    for layer in range(config.layers):
        passes = 3 if layer >= first_trained else 1  # a backward is twice a forward
        of_matrices = 2 if adapted else passes  # by their inputs alone
        trimmed = layer == config.layers - 1 and not lm
        tokens = totals.responses if trimmed else totals.stored_tokens
        matrices = 2 * (keys_values * totals.stored_tokens + rest * tokens)
        attention = 0 if trimmed else 4 * config.heads * config.head_dim * totals.visible
        total += of_matrices * matrices + passes * attention
    if lm:
        total += (2 if adapted else 3) * 2 * config.width * config.vocabulary * totals.lm_tokens
    return total
