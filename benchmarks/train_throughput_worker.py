"""What `train_throughput.py` runs in a fresh interpreter: one mode, with the cost of every step, or a step's profile.

Usage: `python benchmarks/train_throughput_worker.py JOB.json MODE OUT.json [breakdown]`.
"""

import importlib.util
import json
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import vs_trl_worker
from vs_trl_worker import Clock, Job, peak_bytes, run_rmfast, run_trl

Mode = Literal["trl", "trl-no-checkpointing", "trl-tuned", "trl-liger", "hf-packed", "rmfast"]
# Of Liger's kernels all but this one: it would replace a reward model's forward by a language model's.
LIGER = {"fused_linear_cross_entropy": False}
TOP = 25
GROUPS = {  # the first pattern that a device kernel's name matches
    "matrix products": r"gemm|cutlass|nvjet|xmma|cublas|matmul",
    "attention": r"attention|flash|fmha",
    "rmfast's other kernels": (
        r"^(rms_norm|rope|swiglu|score_head|linear_log_prob|ranking_loss|difference_loss|gae|policy_loss|value_loss"
        r"|masked_mean|info_nce|normalize|sinkhorn|swapped)(_\w+)?_kernel"
    ),
    "optimizer": r"adam|multi_tensor|foreach|lpnorm",
    "copies": r"^mem(cpy|set)|copy",
}


class ProfiledClock(Clock):
    """Profiles the last step."""

    last: "ProfiledClock | None" = None

    def __init__(self, steps: int, cuda: bool) -> None:
        super().__init__(steps, cuda)
        kinds = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if cuda else [])
        self.profile = torch.profiler.profile(activities=kinds)
        ProfiledClock.last = self

    def mark(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        super().mark()
        if len(self.wall) == self.steps:
            self.profile.start()
        elif len(self.wall) == self.steps + 1:
            self.profile.stop()


def busy(spans: list[tuple[float, float]]) -> tuple[float, int]:
    """Time covered by spans, and how many stretches they form."""
    covered, stretches, end = 0.0, 0, float("-inf")
    for start, stop in sorted(spans):
        if start > end:
            stretches += 1
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered, stretches


def group_of(kernel: str) -> str:
    """The group of `GROUPS` that a device kernel's name belongs to."""
    return next((g for g, pattern in GROUPS.items() if re.search(pattern, kernel, re.IGNORECASE)), "other kernels")


def breakdown(clock: ProfiledClock) -> dict[str, Any]:
    """Milliseconds of the profiled step by device kernel, and the device's idle time; by operator on a CPU."""
    span = 1e3 * (clock.wall[-1] - clock.wall[-2])
    spent: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    gap, gaps = None, 0
    if clock.cuda:
        device = [e for e in clock.profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        device = [e for e in device if not getattr(e, "is_user_annotation", False)]
        for event in device:
            spent[event.name] += (event.time_range.end - event.time_range.start) / 1e3
            counts[event.name] += 1
        covered, gaps = busy([(e.time_range.start, e.time_range.end) for e in device])
        gap = max(span - covered / 1e3, 0.0)
    else:
        for average in clock.profile.key_averages():
            spent[average.key] += average.self_cpu_time_total / 1e3
            counts[average.key] += average.count
    groups: dict[str, float] = defaultdict(float)
    for name, milliseconds in spent.items() if clock.cuda else []:
        groups[group_of(name)] += milliseconds
    top = sorted(spent, key=lambda name: -spent[name])[:TOP]
    return {
        "kind": "device kernel" if clock.cuda else "operator",
        "span_ms": span,
        "gap_ms": gap,
        "gaps": gaps,
        "groups": dict(sorted(groups.items(), key=lambda item: -item[1])),
        "top": [{"name": name, "ms": spent[name], "count": counts[name]} for name in top],
    }


def run_trl_with(job: Job, *, checkpointing: bool, **more: Any) -> dict[str, Any]:
    """vs_trl's run of TRL with more of its config set."""
    import trl

    config = trl.RewardConfig
    with mock.patch.object(trl, "RewardConfig", lambda **given: config(**given, **more)):
        return run_trl(job, checkpointing=checkpointing)


def attention_of_packs(cuda: bool) -> str:
    """transformers' attention that keeps packed sequences apart at the least cost here."""
    if cuda and importlib.util.find_spec("flash_attn") is not None:
        return "flash_attention_2"
    return "flex_attention" if cuda else "sdpa"


def run_packed(job: Job) -> dict[str, Any]:
    """transformers' model over packs of whole sequences, scored at their last tokens, with TRL's optimizer settings."""
    from transformers import AutoModelForSequenceClassification
    from vs_trl_inputs import open_table

    from rmfast.data.plan import plan_packs
    from rmfast.parallel.schedule import learning_rate

    cuda = job.device == "cuda"
    device = torch.device(job.device)
    limits = {"max_length": job.max_length, "tokens_per_pack": job.tokens_per_pack}
    store, table = open_table(Path(job.rows), Path(job.model), limits)
    ids = [table.sequences_of(group) for group in range(len(table))]
    margins = torch.from_numpy(store.margin[table.index])
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        job.model, dtype=torch.float32, attn_implementation=attention_of_packs(cuda)
    ).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.lr, weight_decay=0.0, fused=True)
    clock = vs_trl_worker.Clock(job.steps, cuda)
    losses: list[torch.Tensor] = []
    norms: list[torch.Tensor] = []
    computed: list[int] = []
    for step in range(job.steps):
        clock.mark()
        rows = range(step * job.pairs_per_step, (step + 1) * job.pairs_per_step)
        sizes = table.sequences[list(rows)]
        budget = max(job.tokens_per_pack, int(sizes.max()))
        total = torch.zeros((), device=device)
        for pack in plan_packs(sizes, ranks=1, budget=budget)[0]:
            pairs = [rows[i] for i in pack.tolist()]
            sequences = [sequence for pair in pairs for sequence in ids[pair]]
            lengths = torch.tensor([len(sequence) for sequence in sequences])
            tokens = torch.tensor([[token for sequence in sequences for token in sequence]]).to(device)
            positions = torch.cat([torch.arange(int(n)) for n in lengths])[None].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                hidden = model.model(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
                scores = model.score(hidden[0, (lengths.cumsum(0) - 1).to(device)])
            difference = scores.float().view(-1, 2).diff(dim=1)[:, 0].neg() - margins[pairs].to(device)
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
        computed.append(int(sizes.sum()))
    clock.mark()
    return clock.seconds() | {
        "loss": [loss.item() for loss in losses],
        "grad_norm": [norm.item() for norm in norms],
        "computed_tokens": computed,
        "real_tokens": computed,
        "peak_bytes": peak_bytes(cuda),
        "ids": ids,
    }


def run(job: Job, mode: str) -> dict[str, Any]:
    """Steps of a mode."""
    if mode == "rmfast":
        return run_rmfast(job)
    if mode == "hf-packed":
        return run_packed(job)
    if mode == "trl-liger":
        return run_trl_with(job, checkpointing=False, use_liger_kernel=True, liger_kernel_config=LIGER)
    return run_trl(job, checkpointing=mode == "trl")


def main(job_file: str, mode: str, out: str, profile: str | None = None) -> None:
    """Entry point."""
    job = Job(**json.loads(Path(job_file).read_text()))
    if job.threads:
        torch.set_num_threads(job.threads)
    with mock.patch.object(vs_trl_worker, "Clock", ProfiledClock if profile else Clock):
        result = run(job, mode)
    if profile:
        assert ProfiledClock.last is not None
        result["breakdown"] = breakdown(ProfiledClock.last)
    result["threads"] = torch.get_num_threads()
    aside = Path(out).with_suffix(".partial")
    aside.write_text(json.dumps(result))
    os.replace(aside, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
