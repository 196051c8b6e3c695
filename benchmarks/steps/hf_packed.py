"""The mode hf-packed: transformers' model over packs of whole sequences, what OpenRLHF and ms-swift do when they pack.

Packs are planned by rmfast before the clock starts and held in pinned memory, so that none of our Python is in the
step. On a GPU attention is FlashAttention with cumulative lengths: the package flash_attn where it is installed, else
torch's build of it. On a CPU it is `sdpa` with transformers' mask.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.steps.worker import Clock, Job

VARLEN = "aten_varlen"  # the name under which transformers knows torch's FlashAttention here
ENGINES = {
    VARLEN: "FlashAttention 2 of torch (aten::_flash_attention_forward with cumulative lengths)",
    "flash_attention_2": "FlashAttention 2 of the package flash_attn",
    "sdpa": "scaled_dot_product_attention with a mask",
}


Pack = dict[str, Any]


def build_pack(sequences: list[list[int]], margins: Tensor) -> Pack:
    """Sequences of some pairs one after the other, chosen before rejected.

    Returns:
        `tokens` and `positions` int64 [1, T]; `starts` int32 [n + 1], where sequences begin, and T; `longest` of them;
        `last` int64 [n], their last tokens; `margins` float [n / 2].
    """
    lengths = [len(sequence) for sequence in sequences]
    ends = torch.tensor(lengths).cumsum(0)
    return {
        "tokens": torch.tensor([[token for sequence in sequences for token in sequence]]),
        "positions": torch.cat([torch.arange(n) for n in lengths])[None],
        "starts": torch.nn.functional.pad(ends, (1, 0)).int(),
        "longest": max(lengths),
        "last": ends - 1,
        "margins": margins,
    }


def each_tensor(pack: Pack, change: Callable[[Tensor], Tensor]) -> Pack:
    return {name: change(x) if isinstance(x, Tensor) else x for name, x in pack.items()}


def build_steps(job: Job) -> tuple[list[list[Pack]], list[Any]]:
    """The packs of each step, and the token ids of each pair."""
    from benchmarks.steps.inputs import open_table
    from rmfast.data.plan import plan_packs

    limits = {"max_length": job.max_length, "tokens_per_pack": job.tokens_per_pack}
    store, table = open_table(Path(job.rows), Path(job.model), limits)
    ids = [table.sequences_of(group) for group in range(len(table))]
    margins = torch.from_numpy(store.margin[table.index])
    steps: list[list[Pack]] = []
    for first in range(0, job.steps * job.pairs_per_step, job.pairs_per_step):
        sizes = table.sequences[first : first + job.pairs_per_step]
        plan = plan_packs(sizes, ranks=1, budget=max(job.tokens_per_pack, int(sizes.max())))[0]
        groups = [[first + i for i in pack.tolist()] for pack in plan]
        steps.append([build_pack([s for i in g for s in ids[i]], margins[g]) for g in groups])
    if job.device == "cuda":
        steps = [[each_tensor(pack, Tensor.pin_memory) for pack in packs] for packs in steps]
    return steps, ids


def varlen(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float) -> Tensor:
    """Causal FlashAttention within each sequence. q [T, heads, width], k and v [T, kv heads, width], fp16 or bf16."""
    operator = torch.ops.aten._flash_attention_forward
    out: Tensor = operator(q, k, v, starts, starts, longest, longest, 0.0, True, False, scale=scale)[0]
    return out


def varlen_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **given: Any
) -> tuple[Tensor, None]:
    """`varlen` as transformers calls attention: [1, heads, T, width] in, [1, T, heads, width] out. Queries and keys
    leave the rotation in fp32 under autocast; they are cast as transformers does for flash_attn."""
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    return varlen(q, k, v, given["cu_seq_lens_q"], given["max_length_q"], given["scaling"])[None], None


def engine_for(device: str) -> str:
    """transformers' attention that keeps packed sequences apart at the least cost here, a name in `ENGINES`."""
    if device != "cuda":
        return "sdpa"
    return VARLEN if importlib.util.find_spec("flash_attn") is None else "flash_attention_2"


def load_model(folder: str, engine: str) -> Any:
    """The model with that attention."""
    from transformers import AttentionInterface, AutoModelForSequenceClassification

    if engine == VARLEN:
        AttentionInterface.register(VARLEN, varlen_attention)  # without a mask of that name none is made
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation=engine)


def scores_of(model: Any, pack: Pack, engine: str) -> Tensor:
    """Scores [n] of a pack's sequences at their last tokens."""
    given: dict[str, Any] = {}
    if engine != "sdpa":
        given = {f"cu_seq_lens_{side}": pack["starts"] for side in "qk"}
        given |= {f"max_length_{side}": pack["longest"] for side in "qk"}
    given |= {"input_ids": pack["tokens"], "position_ids": pack["positions"], "use_cache": False}
    scores: Tensor = model.score(model.model(**given).last_hidden_state[0, pack["last"]])[:, 0]
    return scores


def run_packed(job: Job, clock: Clock) -> dict[str, Any]:
    """Train on the job's rows with TRL's optimizer settings."""
    from rmfast.trainer.schedule import learning_rate

    device, engine = torch.device(job.device), engine_for(job.device)
    steps, ids = build_steps(job)
    model = load_model(job.model, engine).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.lr, weight_decay=0.0, fused=True)
    losses: list[Tensor] = []
    norms: list[Tensor] = []
    for step, packs in enumerate(steps):
        clock.mark()
        total = torch.zeros((), device=device)
        for pack in (each_tensor(pack, lambda x: x.to(device, non_blocking=True)) for pack in packs):
            with torch.autocast(device.type, torch.bfloat16, enabled=clock.cuda):
                scores = scores_of(model, pack, engine)
            difference = scores.float().view(-1, 2).diff(dim=1)[:, 0].neg() - pack["margins"]
            loss = -torch.nn.functional.logsigmoid(difference).sum() / job.pairs_per_step
            loss.backward()
            total += loss.detach()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        rate = learning_rate(step, peak=job.lr, schedule="linear", warmup=0, total=job.steps, floor=0.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    clock.mark()
    computed = [sum(pack["tokens"].numel() for pack in packs) for packs in steps]
    return {
        "attention": ENGINES[engine],
        "loss": [loss.item() for loss in losses],
        "grad_norm": [norm.item() for norm in norms],
        "computed_tokens": computed,
        "real_tokens": computed,
        "ids": ids,
    }
