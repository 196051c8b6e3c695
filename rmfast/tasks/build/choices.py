"""What computes a run's steps: attention, the optimizer, CUDA graphs. The config decides, never a measurement."""

import torch

from rmfast.config import Config
from rmfast.errors import UserError
from rmfast.kernels import describe
from rmfast.kernels.multi_tensor import describe_backend
from rmfast.kernels.prefix_attention import flash
from rmfast.models.config import DTYPES, DecoderConfig
from rmfast.parallel.optimizer import optimizer_backend


def check_choices(config: Config, device: torch.device, decoder: DecoderConfig) -> None:
    """Find out before any data is read whether a device has what is asked for.

    Raises:
        UserError: it has not; the line names the key and the reason.
    """
    attention_impl(config, device, decoder)
    optimizer_backend(config.optim.backend, device)
    if config.parallel.cuda_graphs and device.type != "cuda":
        raise UserError("parallel.cuda_graphs: there is no GPU here")


def attention_impl(config: Config, device: torch.device, decoder: DecoderConfig) -> str:
    """What attends over whole packs: model.attention.

    Raises:
        UserError: flash attention is asked for and cannot be had.
    """
    model = config.model
    if model.attention != "flash":
        return model.kernels
    refusal = flash.refusal(device, DTYPES[model.dtype], decoder.head_dim)
    if refusal is None and decoder.attention_cap is not None:
        refusal = "its logits have a soft cap"
    if refusal is None and all(window is not None for window in decoder.windows):
        refusal = "every layer has a sliding window"
    if refusal is not None:
        raise UserError(f"model.attention: flash is not possible: {refusal}")
    return "flash"


def choices(config: Config, device: torch.device) -> dict[str, str]:
    """What computes a run's steps, in words and with versions: for its first lines and its summary.json."""
    model = config.model
    attention = flash.describe() if model.attention == "flash" else describe(device, model.kernels)
    return {
        "attention": f"{model.attention}, {attention}",
        "optimizer": describe_backend(config.optim.backend, device),
        "cuda_graphs": "on" if config.parallel.cuda_graphs else "off",
    }


def choices_line(config: Config, device: torch.device) -> str:
    """`choices` in one line."""
    return "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in choices(config, device).items())
