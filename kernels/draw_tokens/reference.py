"""The draw in plain torch, on any device and over vocabulary shards. Nothing waits for the device."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from rmfast.kernels.draw_tokens import noise, threshold
from rmfast.kernels.draw_tokens.options import Options

BLOCK = 256


def draw(
    logits: Tensor,
    keys: Tensor,
    positions: Tensor,
    seen: Tensor | None,
    options: Options,
    first: int,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """logits [R, V] fp32, of ids with a weight alone -> tokens, log_prob, behaviour_log_prob.

    Each rank finds the best of its slice; then six numbers a row of each rank decide.
    """
    raw, scores = blocks(logits), blocks(adjusted(logits, seen, options))
    if options.temperature:
        keep = threshold.kept(scores, options, group)
        scores = scores if keep is None else scores.masked_fill(~keep, -torch.inf)
        masses = log_masses(scores)
        value, place = race(scores, masses, keys[:, None], positions[:, None], first)
    else:
        masses = log_masses(scores)
        value, place = first_max(scores.flatten(1))
    found = [value, first + place, at(raw.flatten(1), place), at(scores.flatten(1), place)]
    found += [log_masses(raw).logsumexp(1), masses.logsumexp(1)]
    token, logit, score, raw_normaliser, normaliser = best_of_ranks(found, group)
    log_prob, behaviour = logit - raw_normaliser, score - (normaliser if options.temperature else score)
    good = log_prob.isfinite() & behaviour.isfinite()
    nan = log_prob.new_full((), torch.nan)
    return (
        torch.where(good, token, 0).long(),
        torch.where(good, log_prob, nan).float(),
        torch.where(good, behaviour, nan).float(),
    )


def blocks(x: Tensor) -> Tensor:
    """[R, V] -> [R, B, 256], at least one block, filled up with -inf."""
    missing = max(-x.shape[1] % BLOCK, BLOCK - x.shape[1])
    return (pad(x, (0, missing), value=-torch.inf) if missing else x).unflatten(1, (-1, BLOCK))


def adjusted(logits: Tensor, seen: Tensor | None, options: Options) -> Tensor:
    """After the penalty and the temperature (none for greedy draws)."""
    penalty = options.repetition_penalty
    if seen is not None and penalty != 1:
        logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    return logits / options.temperature if options.temperature not in (0, 1) else logits


def log_masses(scores: Tensor) -> Tensor:
    """log of the sum of exp over each block [R, B, 256], fp64 [R, B]; exponentials and their sum are in fp32."""
    top = scores.amax(2, keepdim=True)
    top = torch.where(top == -torch.inf, 0, top)
    return (scores - top).exp().sum(2).double().log() + top.squeeze(2).double()


def first_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of each row, fp64, and where it is first."""
    place = x.argmax(1)
    return at(x, place), place


def at(x: Tensor, place: Tensor) -> Tensor:
    return x.gather(1, place[:, None]).squeeze(1).double()


def race(scores: Tensor, masses: Tensor, keys: Tensor, positions: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The best block's perturbed log-mass in these scores [R, B, 256], and the place of the best id in that block."""
    rows, count, _ = scores.shape
    block = torch.arange(count, device=scores.device)
    index = first // BLOCK + block
    value, best = first_max(masses + noise.gumbel(keys, positions, noise.BLOCKS, index))
    within = scores.gather(1, best[:, None, None].expand(rows, 1, BLOCK)).squeeze(1).double()
    place = best[:, None] * BLOCK + torch.arange(BLOCK, device=scores.device)
    _, offset = first_max(within + noise.gumbel(keys, positions, noise.IDS, first + place))
    return value, best * BLOCK + offset


def best_of_ranks(found: Sequence[Tensor], group: dist.ProcessGroup | None) -> Sequence[Tensor]:
    """Token, logit and score of the rank whose value is largest (the lowest id among equal ones), and both normalisers
    over all ranks; [R] each, fp64."""
    here = torch.stack([x.double() for x in found])
    every = [here] if group is None else [torch.empty_like(here) for _ in range(dist.get_world_size(group))]
    if group is not None:
        dist.all_gather(every, here, group=group)
    value, token, logit, score, raw_normaliser, normaliser = torch.stack(every, 1)
    rank = torch.where(value == value.amax(0), -token, -torch.inf).argmax(0, keepdim=True)
    chosen = [x.gather(0, rank).squeeze(0) for x in (token, logit, score)]
    return *chosen, raw_normaliser.logsumexp(0), normaliser.logsumexp(0)
