"""What `train_throughput.py` runs in a fresh interpreter: one mode, with the cost of every step, or a step's profile.

Usage: `python benchmarks/train_throughput_worker.py JOB.json MODE OUT.json [breakdown]`.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import vs_trl_worker
from step_profile import ProfiledClock, breakdown
from vs_trl_worker import Clock, Job, peak_bytes, run_rmfast, run_trl

Mode = Literal["trl", "trl-no-checkpointing", "trl-tuned", "trl-liger", "hf-packed", "rmfast"]
# Of Liger's kernels all but this one: it would replace a reward model's forward by a language model's.
LIGER = {"fused_linear_cross_entropy": False}


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
