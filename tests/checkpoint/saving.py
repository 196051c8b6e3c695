"""Checkpoints of a few tensors, for tests of what writes and reads them."""

import json
from pathlib import Path
from typing import Any

import torch

from rmfast.checkpoint.saver import Saver
from rmfast.outputs.checksums import sealed
from rmfast.parallel.engine import Shard
from rmfast.parallel.world import World


def state_of(step: int, world: World | None = None) -> dict[str, Shard]:
    """Rows 0 to 7 hold the step's number; of more processes each has some."""
    rows = torch.arange(8.0)[:, None] + 100 * step
    world = world or World()
    part = rows.tensor_split(world.size)[world.rank]
    return {"model/w": Shard(part, int(part[0, 0]) - 100 * step, (8, 1)), "steps": Shard(torch.tensor([1.0]), 0, (1,))}


def write_extras(folder: Path) -> None:
    (folder / "config.json").write_text("{}\n")
    (folder / "templates").mkdir()
    (folder / "templates" / "chat.jinja").write_text("{{ messages }}\n")


def saver(folder: Path, world: World | None = None, **more: Any) -> Saver:
    folder.mkdir(exist_ok=True)
    return Saver(folder, world or World(), **({"extras": write_extras, "keep": 9} | more))


def save_steps(folder: Path, *steps: int, world: World | None = None, **more: Any) -> Saver:
    """Checkpoints of some steps, written one after another."""
    made = saver(folder, world, **more)
    for step in steps:
        made.save(step, state_of(step, world), {"step": step, "seen": 10 * step})
        assert made.wait() == ""
    return made


def edit_manifest(path: Path, seal: bool = False, **changed: Any) -> None:
    """Change values of a checkpoint's manifest, as an editor would."""
    file = path / "manifest.json"
    values = json.loads(file.read_text()) | changed
    file.write_text(json.dumps(sealed({k: v for k, v in values.items() if k != "crc32"}) if seal else values))
