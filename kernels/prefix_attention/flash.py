"""The second engine: two calls of varlen flash attention, merged by log-sum-exp. Maths in README.md.

The calls are those of the package flash_attn where it is installed, else torch's.
"""

from collections.abc import MutableMapping
from itertools import accumulate
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from rmfast.kernels.common import maths_dtype
from rmfast.kernels.prefix_attention import flash_package, flash_torch
from rmfast.kernels.prefix_attention.layout import Segments, parse_layout

MAX_HEAD_DIM = 256


class FlashLengths(NamedTuple):
    """What both calls must know of a pack; tensors lie on the layout's device."""

    segments: Tensor
    """int32 [N + 1]: where prefixes and responses begin and the last one ends, for queries and keys of call 1."""
    cross_q: Tensor
    """int32 [M + 1]: the same for the queries of call 2, in which responses see the prefix of their group."""
    cross_k: Tensor
    """int32 [M + 1]: and for its keys."""
    longest: int
    longest_q: int
    longest_k: int
    """Lengths of the longest sequence of `segments`, `cross_q` and `cross_k`; 2 or more."""
    responds: Tensor
    """bool [T]: tokens that see a prefix in call 2. The others have no keys there."""
    answered: Tensor
    """bool [T]: tokens of a prefix that are seen in call 2. The others have no queries there."""
    shares: bool
    """Whether any token responds; call 2 is left out otherwise."""


def _crossings(groups: list[Segments]) -> list[tuple[int, int]]:
    """(queries, keys) of the sequences of call 2. Prefix and responses of a group lie one after the other in both, so
    the prefix's queries go without keys and the responses' keys without queries: nothing is gathered."""
    pairs = []
    for group in groups:
        answered = sum(group.responses)
        pairs += [(group.prefix, 0), (answered, group.prefix), (0, answered)]
    return [pair for pair in pairs if any(pair)]


def _lengths(layout: Tensor, groups: list[Segments]) -> FlashLengths:
    segments = [n for group in groups for n in (group.prefix, *group.responses) if n]
    queries, keys = zip(*_crossings(groups), strict=True) if groups else ((), ())
    starts = [[0, *accumulate(lengths)] for lengths in (segments, queries, keys)]
    table = torch.tensor([n for row in starts for n in row], dtype=torch.int32)
    if layout.is_cuda:
        table = table.pin_memory().to(layout.device, non_blocking=True)
    start, prefix_end, _, last = layout
    token = torch.arange(layout.shape[1], device=layout.device)
    # A call whose longest query sequence is 1 takes a decoding path, which holds that every sequence has one query.
    longest, longest_q, longest_k = (max((2, *lengths)) for lengths in (segments, queries, keys))
    segment_starts, cross_q, cross_k = table.split([len(row) for row in starts])
    return FlashLengths(
        segment_starts,
        cross_q,
        cross_k,
        longest,
        longest_q,
        longest_k,
        responds=(token >= prefix_end) & (prefix_end > start),
        answered=(token < prefix_end) & (last > prefix_end),
        shares=any(group.prefix and group.responses for group in groups),
    )


_known: MutableMapping[Tensor, tuple[int | None, FlashLengths]] = WeakTensorKeyDictionary()


def flash_lengths(layout: Tensor, host: Tensor | None = None) -> FlashLengths:
    """Lengths of a pack's sequences, worked out on the host once and remembered as long as the layout tensor lives.

    How many sequences a pack has must be known on the host, so the first call for a CUDA layout waits for the device;
    calls for the same tensor object after that (all layers, their backward) do not. Who still has the CPU layout that
    the tensor was copied from gives it as `host` before the first layer: then nothing waits.
    """
    version = None if layout.is_inference() else layout._version  # a layout that is written again is read again
    known = _known.get(layout)
    if known is None or known[0] != version:
        known = version, _lengths(layout, parse_layout(layout if host is None else host))
        _known[layout] = known
    return known[1]


def provider() -> ModuleType:
    """Whose calls are taken."""
    return flash_torch if flash_package.missing() is not None else flash_package


def describe() -> str:
    """Whose calls are taken, with the version, for a run's log; why not flash_attn's, where it is installed."""
    missing = flash_package.missing()
    words: str = provider().describe()
    return words if missing in (None, flash_package.ABSENT) else f"{words}: {missing}"


def refusal(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    rows: bool = False,
    window: int | None = None,
    softcap: float | None = None,
) -> str | None:
    """Why this engine cannot take such inputs, or None."""
    if rows:
        return "it computes all tokens, not some rows"
    if window is not None:
        return "it has no window"
    if softcap is not None:
        return "it has no softcap"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it needs fp16 or bf16, got {dtype}"
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        return f"head_dim must be a multiple of 8 and at most {MAX_HEAD_DIM}, got {head_dim}"
    if device.type != "cuda":
        return f"it needs CUDA tensors, got {device.type}"
    if provider() is flash_torch and not torch.backends.cuda.is_flash_attention_available():
        return f"this build of torch has no flash attention, and {flash_package.missing()}"
    if torch.cuda.get_device_properties(device).major < 8:
        return "it needs an Ampere GPU or a newer one"
    return None


def _ready(x: Tensor) -> Tensor:
    """The kernels read 16 bytes at a time, along the head dimension."""
    pieces = 16 // x.element_size()
    whole = x.stride(2) == 1 and not any(n % pieces for n in x.stride()[:2]) and x.data_ptr() % 16 == 0
    return x if whole else x.clone(memory_format=torch.contiguous_format)


def flash_attention_fwd(q: Tensor, k: Tensor, v: Tensor, layout: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output [T, Hq, D] and log-sum-exp of all visible logits [Hq, T]."""
    if not q.numel():
        return q.new_empty(q.shape), q.new_empty((q.shape[1], len(q)), dtype=maths_dtype(q))
    n = flash_lengths(layout)
    q, k, v = _ready(q), _ready(k), _ready(v)
    forward = provider().forward
    out, lse = forward(q, k, v, n.segments, n.segments, n.longest, n.longest, True, scale)
    if n.shares:
        above, above_lse = forward(q, k, v, n.cross_q, n.cross_k, n.longest_q, n.longest_k, False, scale)
        above_lse = above_lse.masked_fill(~n.responds, -torch.inf)
        total = torch.logaddexp(lse, above_lse)
        share, above_share = ((part - total).exp().T.unsqueeze(-1) for part in (lse, above_lse))
        # Products and sum in the log-sum-exp's dtype, one rounding.
        torch.addcmul(out * share, above, above_share, out=out)
        lse = total
    return out.contiguous(), lse


def flash_attention_bwd(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, layout: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous. Both calls get the merged `out` and `lse`."""
    if not q.numel():
        return q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    n = flash_lengths(layout)
    inputs = (grad.contiguous(), _ready(q), _ready(k), _ready(v), out, lse)
    backward = provider().backward
    sums = backward(*inputs, n.segments, n.segments, n.longest, n.longest, True, scale)
    if n.shares:
        parts = backward(*inputs, n.cross_q, n.cross_k, n.longest_q, n.longest_k, False, scale)
        for total, part, real in zip(sums, parts, (n.responds, n.answered, n.answered), strict=True):
            total.add_(part.masked_fill_(~real[:, None, None], 0))
    dq, dk, dv = (x.contiguous() for x in sums)
    return dq, dk, dv
