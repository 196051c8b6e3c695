"""Peaks of devices, by which MFU is counted, and the work of steps."""

import pytest
import torch

from rmfast.data.loader import Totals
from rmfast.models.config import decoder_config
from rmfast.trainer.flops import peak_flops, step_flops
from tests.tiny import hf_config


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H200", 990e12, 67e12),
        ("NVIDIA H200 NVL", 835e12, 60e12),
        ("NVIDIA H100 80GB HBM3", 990e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H100 NVL", 835e12, 60e12),
        ("NVIDIA B200", 2250e12, 75e12),
        ("NVIDIA GB200", 2500e12, 80e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA L4", None, None),
    ],
)
def test_the_peak_is_that_of_the_card_and_not_of_its_family(
    name: str, bf16: float | None, fp32: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    card = torch.device("cuda")
    assert (peak_flops(card, torch.bfloat16), peak_flops(card, torch.float32)) == (bf16, fp32)
    assert peak_flops(torch.device("cpu"), torch.float32) is None


def test_a_step_of_adapters_has_no_gradients_of_matrices() -> None:
    """Of the work of full training that is a third, but for attention, which has no weights."""
    config = decoder_config(hf_config("llama"))
    totals = Totals(
        groups=1, edges=1, responses=2, weight=1, lm_tokens=5, sequence_tokens=9, stored_tokens=9, visible=0
    )
    for lm in (False, True):
        assert step_flops(config, totals, adapted=True, lm=lm) == step_flops(config, totals, lm=lm) * 2 / 3
    seen = Totals(groups=1, edges=1, responses=2, weight=1, lm_tokens=5, sequence_tokens=9, stored_tokens=9, visible=40)
    attention = 3 * 4 * config.heads * config.head_dim * 40 * (config.layers - 1)
    assert step_flops(config, seen, adapted=True) == step_flops(config, totals, adapted=True) + attention
