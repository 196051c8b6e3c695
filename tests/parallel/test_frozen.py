"""A network that nothing trains under one process, DDP and FSDP2: it is read as one that is trained."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from rmfast.data.pack import Pack, build_pack, empty_pack
from rmfast.models.hf import load_network
from rmfast.models.network import Reads
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.replicas import DataParallel
from rmfast.parallel.world import World
from tests.rollout.tiny_policies import language_model
from tests.runs import fork_ranks
from tests.tiny import group_of, save_hf_model, table_of

DTYPES = (torch.float32, torch.bfloat16)


def packs(world: World) -> list[Pack]:
    """This rank's: the second has none of its own."""
    g = np.random.default_rng(3)
    table = table_of([group_of(g, 6, [3, 5, 2]), group_of(g, 4, [4, 2])])
    if world.rank:
        return [empty_pack()]
    return [build_pack(table, np.arange(2), predicts="all")]


def reads(pack: Pack) -> Reads:
    targets = pack.targets
    return Reads(scores=targets.rows[:0], log_prob=(targets.rows, targets.ids), temperature=0.7, entropy=True)


def found_by(folder: Path, world: World, mode: DataParallel) -> dict[str, Any]:
    """Whether frozen engines read what trained ones do, and what they hold."""
    out: dict[str, Any] = {}
    options: dict[str, Any] = {"world": world, "options": AdamWOptions(), "data_parallel": mode}
    for dtype in DTYPES:
        trained, frozen, reward = (
            load_network(folder / name, heads=heads, lm=not heads, dtype=dtype)[0]
            for name, heads in (("policy", 0), ("policy", 0), ("reward", 1))
        )
        engines = [NativeEngine(network, **options) for network in (trained, frozen.narrow(), reward.narrow())]
        policy, reference, scorer = engines
        (a,), (b,) = (engine.read(packs(world), reads) for engine in (policy, reference))
        (scores,) = scorer.score(packs(world))
        sizes = [shard.tensor.nbytes for shard in reference.state().values()]
        out[f"{dtype}"] = {
            "equal": torch.equal(a.log_prob, b.log_prob) and torch.equal(a.entropy, b.entropy),
            "read": [a.log_prob, a.entropy, scores],
            "counts": reference.parameter_counts(),
            "wrapped": [isinstance(engine.module, DistributedDataParallel) for engine in engines],
            "state": sum(sizes),
            "names": sorted(reference.state()),
            "weights": reference.weights(),
        }
    return out


def worker(folder: Path) -> None:
    with World() as world:
        for mode in ("ddp", "fsdp"):
            torch.save(found_by(folder, world, mode), folder / f"{mode}{world.rank}")


@pytest.mark.slow
def test_a_frozen_network_is_read_by_every_engine(tmp_path: Path) -> None:
    language_model("llama").save_pretrained(tmp_path / "policy")
    save_hf_model("llama", tmp_path / "reward")
    assert fork_ranks(2, partial(worker, tmp_path)) == [0, 0]
    alone = found_by(tmp_path, World(), "ddp")
    for dtype in map(str, DTYPES):
        one = alone[dtype]
        assert one["equal"] and one["counts"][1] == 0 and one["wrapped"] == [False] * 3
        assert set(one["names"]) == {"step", *(f"model/{name}" for name in one["weights"])}
        for mode in ("ddp", "fsdp"):
            first, second = (torch.load(tmp_path / f"{mode}{rank}")[dtype] for rank in range(2))
            assert first["equal"] and first["counts"] == one["counts"]
            assert first["wrapped"] == second["wrapped"] == [mode == "ddp", False, False]
            assert second["equal"] and not second["weights"]
            assert [len(tensor) for tensor in second["read"]] == [0, 0, 1]
            assert all(torch.equal(first["weights"][name], weight) for name, weight in one["weights"].items())
            # Two counters of steps; the narrow tables are whole on each rank of DDP, in parts under FSDP2.
            held = [part["state"] - 4 for part in (first, second)]
            assert sum(held) == (one["state"] - 4) * (2 if mode == "ddp" else 1)
            if mode == "ddp" or dtype == "torch.float32":  # FSDP2 rounds the layers' norms to bf16
                for ours, theirs in zip(first["read"], one["read"], strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
