"""What rmfast plan says of a rank's memory, beside what torch holds: one training step of every case, on every rank.

    python tests/launch/memory.py [--case NAME ...] [--out FILE.json]

Starts torchrun by itself. Without a GPU, kernels run in Triton's interpreter, megatron-core on the tests' stand-in for
torch.cuda, and every tensor that an operation makes is counted until it is freed. On GPUs torch's allocator counts.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import LlamaConfig

if not __package__:  # run as a file: the repository's root instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.origin import ROOT, commit, device_name, write_json
from benchmarks.runs import open_random
from rmfast.commands.plan import keys
from rmfast.config import load_config
from rmfast.launch.cost import Layout, Workload, memory
from rmfast.launch.layouts import Plan
from rmfast.models.config import decoder_config
from rmfast.parallel.optimizer import local
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import open_world
from tests.interpreter import remember_builtins
from tests.megatron.standin import install
from tests.tiny import Peak

SHAPES: dict[str, dict[str, int]] = {  # every size another
    "table": {  # an embedding whose gradient shows, and packs that are long beside the width
        "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    },
    "matrix": {  # matrices whose gradients show
        "vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64,
    },
}  # fmt: skip
GROUP = (32, 16, 16)  # tokens of a prompt and its two responses
GROUPS = {"table": 8, "matrix": 5}  # of a pack
PACKS = {"table": 4, "matrix": 3}  # of a data rank in a step
LAYOUTS = {
    "native": Layout("ddp", 1),
    "ddp2": Layout("ddp", 2),
    "fsdp2": Layout("fsdp", 2),
    "dp2": Layout("megatron", 2),
    "tp2": Layout("megatron", 1, tensor=2),
    "tp2 sp": Layout("megatron", 1, tensor=2, sequence=True),
    "pp2": Layout("megatron", 1, pipeline=2),
    "pp2 interleaved": Layout("megatron", 1, pipeline=2, virtual=2),
    "tp2 pp2 sp": Layout("megatron", 1, tensor=2, pipeline=2, sequence=True),
    "tp2 dp2": Layout("megatron", 2, tensor=2),
}
CASES = {
    f"{shape} {name} {recompute}": (shape, replace(layout, recompute=recompute))
    for shape in SHAPES
    for name, layout in LAYOUTS.items()
    for recompute in ("none", "selective", "full")
}


def llama(sizes: dict[str, int]) -> LlamaConfig:
    return LlamaConfig(**sizes, bos_token_id=None, eos_token_id=2, pad_token_id=0, architectures=["LlamaForCausalLM"])


def write_model(folder: Path, sizes: dict[str, int]) -> None:
    """A model folder with the quickstart's tokenizer and no weights: runs start from random ones."""
    shutil.copytree(ROOT / "configs" / "quickstart" / "decoder", folder)
    llama(sizes).save_pretrained(folder)


def layout_keys(layout: Layout) -> list[str]:
    """The config's keys of a layout."""
    plain = layout.world == 1 and layout.recompute == "none"
    return [] if plain else keys(Plan(layout, {}, {})).split()


def workload(shape: str, layout: Layout) -> Workload:
    pack, packs = GROUPS[shape] * sum(GROUP), PACKS[shape] * layout.data
    return Workload(tokens=pack * packs, responses=2 * GROUPS[shape] * packs, pack=pack, visible=1)


def measured(shape: str, layout: Layout, folder: Path, world: World) -> dict[str, float]:
    """Bytes on this rank: weights, gradients and moments, and what a step needs beside them."""
    cuda = world.device.type == "cuda"
    load = workload(shape, layout)
    words = ["--data.train", "random", "--model.path", str(folder), "--model.from_scratch", "true"]
    words += ["--model.dtype", "bfloat16", "--model.kernels", "triton", "--data.tokens_per_pack", str(load.pack)]
    groups = load.tokens // sum(GROUP)
    run = open_random(load_config([*words, *layout_keys(layout)]), world, np.tile(GROUP, (2 * groups, 1)), groups)
    engine, learner = run.engine, run.pairs
    assert all(len(learner.loader.build(number).packs) == PACKS[shape] for number in range(2))
    with contextlib.nullcontext() if cuda else Peak():
        learner.gradients(0)
    engine._drop_gradients()
    optimizer = engine.optimizer
    kept = {
        "weights": list(optimizer.parameters.values()),
        "gradients": list(optimizer.gradients().values()),  # those that are held between steps
        "optimizer": [t for moments in optimizer.state().values() for t in moments.values()],
    }
    out = {name: float(bytes_of(tensors)) for name, tensors in kept.items()}
    if cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        learner.gradients(1)
        return out | {"step": float(torch.cuda.max_memory_allocated() - before)}
    with contextlib.ExitStack() as stack:
        peak = stack.enter_context(Peak([t for tensors in kept.values() for t in tensors]))
        if layout.engine == "megatron":
            from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup as Buckets

            for name in ("start_grad_sync", "finish_grad_sync"):
                stack.enter_context(mock.patch.object(Buckets, name, peak.looking_away(getattr(Buckets, name))))
        learner.gradients(1)
    return out | {"step": float(peak.peak)}


def bytes_of(tensors: Iterable[Any]) -> int:
    """Of this process's storages, each counted once."""
    found = {local(t).untyped_storage()._cdata: local(t).untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def worker(names: list[str], folder: Path) -> None:
    """Every case on as many ranks as there are."""
    install()  # nothing where there is CUDA
    if "TRITON_INTERPRET" in os.environ:
        remember_builtins()
    world = open_world(load_config(["--model.path", str(folder / "table"), "--data.train", "x", "--run.threads", "1"]))
    with world:
        for name in names:
            write_json(folder / f"{name}-{world.rank}.json", measured(*CASES[name], folder / CASES[name][0], world))


def run_cases(names: list[str]) -> dict[str, list[dict[str, float]]]:
    """What each rank measured, by case. Cases of as many ranks share their processes."""
    found: dict[str, list[dict[str, float]]] = {}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    if torch.cuda.is_available():
        del environment["TRITON_INTERPRET"]
    with tempfile.TemporaryDirectory() as base:
        for shape, sizes in SHAPES.items():
            write_model(Path(base) / shape, sizes)
        for ranks in sorted({CASES[name][1].world for name in names}):
            these = [name for name in names if CASES[name][1].world == ranks]
            start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
            words = [*start, str(Path(__file__).resolve()), "--worker", base, "--case", *these]
            subprocess.run(words, check=True, env=environment)
            for name in these:
                found[name] = [json.loads((Path(base) / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]
    return found


def compare(name: str, ranks: list[dict[str, float]]) -> dict[str, Any]:
    """The fullest rank beside the plan, which is for it."""
    shape, layout = CASES[name]
    planned = memory(decoder_config(llama(SHAPES[shape])), layout, workload(shape, layout))
    del planned["reserve"]
    fullest = max(ranks, key=lambda rank: sum(rank.values()))
    total = sum(fullest.values())
    step = sum(planned[term] for term in ("copies", "activations", "working"))
    step += 0.0 if fullest["gradients"] else planned["gradients"]  # those that are made within the step
    return {
        "layout": asdict(layout),
        "planned": planned,
        "measured": ranks,
        "total": total,
        "ratio": sum(planned.values()) / total,
        "step_ratio": step / fullest["step"],
    }


def main(arguments: list[str]) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        worker(options.case, options.worker)
        return 0
    found = {name: compare(name, ranks) for name, ranks in run_cases(options.case).items()}
    print("| case | planned MB | measured | ratio | of what the step needs alone |\n|---|---|---|---|---|")
    for name, one in found.items():
        print(f"| {name} | {sum(one['planned'].values()) / 1e6:.2f} | {one['total'] / 1e6:.2f} | {one['ratio']:.3f} | "
              f"{one['step_ratio']:.3f} |")  # fmt: skip
    if options.out:
        device = device_name("cuda") if torch.cuda.is_available() else "cpu"
        about = {"device": device, "torch": torch.__version__, "commit": commit()}
        write_json(options.out, {"about": about, "cases": found})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
