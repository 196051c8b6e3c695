"""The table of docs/slurm.md: the plan's first choice of layout by model and number of GPUs.

python tests/launch/layout_table.py
"""

import sys
from dataclasses import replace
from pathlib import Path

from rmfast.launch.cost import Layout, Workload
from rmfast.launch.hardware import GPUS
from rmfast.launch.layouts import plans
from rmfast.models.config import DecoderConfig, decoder_config
from rmfast.models.hf import read_config

SHAPES = Path(__file__).resolve().parents[2] / "configs" / "shapes"
COUNTS = (1, 8, 32, 64, 256, 1024)
GROUPS, GROUP, PACK = 2048, 400, 8192  # prompt groups of a step, tokens of a group and of a pack


def models() -> dict[str, DecoderConfig]:
    """Llama 3's shapes; 1B is Llama 3.2's."""
    found = {
        size: decoder_config(read_config(path := SHAPES / f"llama3-{size.lower()}"), str(path))
        for size in ("8B", "70B")
    }
    small = replace(found["8B"], width=2048, ffn=8192, layers=16, heads=32, kv_heads=8, head_dim=64)
    return {"1B": small} | found


def name(layout: Layout) -> str:
    """TP2 PP4x2 DP4: two tensor ranks, four stages of two runs of layers each, four data ranks."""
    if layout.engine == "fsdp" or layout.world == 1:
        words = "FSDP" if layout.world > 1 else "as it is"
    elif layout.engine == "ddp":
        words = "DDP"
    else:
        sizes = {"TP": layout.tensor, "PP": layout.pipeline, "DP": layout.data}
        parts = {what: f"{what}{size}" for what, size in sizes.items() if size > 1}
        if layout.virtual > 1:
            parts["PP"] += f"x{layout.virtual}"
        words = " ".join(parts.values())
    return words if layout.recompute == "none" else f"{words}, {layout.recompute}"


def table() -> str:
    """In Markdown."""
    load = Workload(GROUPS * GROUP, 2 * GROUPS, PACK, GROUPS * GROUP * GROUP // 2)
    rows = [["model", *(f"{count:,} GPU" + "s" * (count > 1) for count in COUNTS)], ["---"] * (len(COUNTS) + 1)]
    for model, config in models().items():
        fits = [plans(config, count, GPUS["h100"], load)[0] for count in COUNTS]
        rows.append([model, *(name(fit[0].layout) if fit else "does not fit" for fit in fits)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
