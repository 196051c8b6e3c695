"""Where a model that is loaded is to compute, and in which numbers: checked before its weights are read."""

import torch

from rmfast.errors import UserError, first_line


def check_device(device: str | torch.device) -> None:
    """Refuse what is no device that models run on, or one that is not here.

    Raises:
        UserError: a line that begins with "device".
    """
    try:
        known = torch.device(device).type in ("cpu", "cuda")
    except (RuntimeError, TypeError):
        known = False
    if not known:
        raise UserError(f"device {device!s}: models run on cpu or cuda (cuda:1 for the second GPU)")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!s}: {first_line(error)}") from None


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse what is no dtype of weights.

    Raises:
        UserError: a line that begins with "dtype".
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize == 1:
        raise UserError(f"dtype must be torch.float32, torch.bfloat16, torch.float16 or torch.float64, got {dtype!r}")
