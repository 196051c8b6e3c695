"""The draw of tokens: checks and the choice of an implementation."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rmfast.kernels.common import check
from rmfast.kernels.draw_tokens import csrc, reference
from rmfast.kernels.draw_tokens.options import Options

IMPLEMENTATIONS = ("auto", "csrc", "reference")
NARROW = (torch.float32, torch.bfloat16, torch.float16)


class Drawn(NamedTuple):
    """What was drawn for each row. Where a row's logits give no distribution, both figures are nan and the token 0.

    Args:
        tokens: int64 [R].
        log_prob: fp32 [R], of softmax(logits) alone. behaviour_log_prob: of the distribution that was drawn from.
    """

    tokens: Tensor
    log_prob: Tensor
    behaviour_log_prob: Tensor


@torch.no_grad()
def draw_tokens(
    logits: Tensor,
    keys: Tensor,
    positions: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seen: Tensor | None = None,
    size: int | None = None,
    first: int = 0,
    group: dist.ProcessGroup | None = None,
    impl: str = "auto",
) -> Drawn:
    """A token of each row, drawn exactly from softmax of its logits after the penalty, the temperature and the filters.

    A Gumbel race in two levels: the best block of 256 ids by log-mass + noise, then the best id in it by score + noise.
    The noise is a function of (key, position, level, index), so the token of a row is the same in any batch, by any
    implementation and over any number of ranks, save where the best two perturbed values agree to 1e-5. No gradients;
    on a GPU nothing waits for the device. Sources: Gumbel 1954; Maddison et al. 2014; Salmon et al. 2011; order and
    rules of the filters as transformers' processors have them.

    Args:
        logits: [R, V], fp32, bf16 or fp16 (widened to fp32). With `group`, this rank's slice of the vocabulary.
        keys: int64 [R], of `row_keys`. positions: int64 [R], which draw of the row this is.
        temperature: 0 is greedy: the largest score, the lowest id among equal ones.
        top_k: 0 keeps all. Equal scores are kept or left together, here and in the filters below.
        top_p: in (0, 1]; of the distribution that top-k leaves, a token is kept while the mass above it is less.
        min_p: in [0, 1]; tokens with less than this share of the largest probability are left.
        repetition_penalty: scores of ids in `seen` are divided by it, negative ones multiplied.
        seen: bool [R, V], ids that are in the prompt or the answer so far.
        size: ids that the tokenizer has; those beyond have no weight and are in no normaliser. None: all have.
        first: the id of the first column, a multiple of 256.
        group: ranks that hold slices of the vocabulary, each of whole blocks of 256 ids but the last.
        impl: "csrc" (the compiled library: on a CPU, without a group), "reference" (plain torch) or "auto": csrc where
            it was built and can.

    Raises:
        ValueError: shapes, dtypes or options that are not as above, or an implementation that cannot run.
    """
    op = "draw_tokens"
    options = Options(temperature, top_k, top_p, min_p, repetition_penalty)
    options.check(op)
    check(
        logits.dim() == 2 and logits.shape[1] > 0 and logits.dtype in NARROW, op,
        lambda: f"logits must be fp32, bf16 or fp16 [R, V], got {logits.dtype} {list(logits.shape)}",
    )  # fmt: skip
    rows, width = logits.shape
    for name, x in (("keys", keys), ("positions", positions)):
        check(
            x.shape == (rows,) and x.dtype == torch.int64, op,
            f"{name} must be int64 [{rows}], got {x.dtype} {list(x.shape)}",
        )  # fmt: skip
    check(repetition_penalty == 1 or seen is not None, op, "repetition_penalty needs seen, the ids that it is for")
    if seen is not None:
        check(
            seen.shape == logits.shape and seen.dtype == torch.bool, op,
            f"seen must be bool {list(logits.shape)}, got {seen.dtype} {list(seen.shape)}",
        )  # fmt: skip
    check(size is None or size > 0, op, f"size must be positive, got {size}")
    block = reference.BLOCK
    check(first >= 0 and first % block == 0, op, f"first must be a multiple of {block} from 0 on, got {first}")
    check(impl in IMPLEMENTATIONS, op, f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")

    count = width if size is None else min(max(size - first, 0), width)
    logits, seen = logits[:, :count].float(), None if seen is None else seen[:, :count]
    if impl != "reference" and not torch.compiler.is_compiling():
        reason = csrc.refusal(logits, seen, group)
        if reason is None:
            return Drawn(*csrc.draw(logits, keys, positions, seen, options, first))
        check(impl == "auto", op, f"impl='csrc' is not possible: {reason}")
    return Drawn(*reference.draw(logits, keys, positions, seen, options, first, group))
