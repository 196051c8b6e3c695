"""What two gloo ranks hold and compute under DDP and FSDP2: gradients in DDP's buckets alone, and the same scores."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rmfast.data.loader import rank_packs, totals_of
from rmfast.models.hf import load_network
from rmfast.objectives.meta import DifferenceObjective
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.replicas import DataParallel
from rmfast.parallel.world import World
from tests.figures import sums
from tests.runs import fork_ranks
from tests.tiny import assert_close_by_norm, group_of, save_hf_model, table_of

OBJECTIVE = RewardObjective(center=0.01, lm=0.5)


def engine_of(folder: Path, world: World, mode: DataParallel, dtype: torch.dtype) -> NativeEngine:
    network, _ = load_network(folder, dtype=dtype, lm=True)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.startswith("decoder.layers") and weight.dim() == 1:
                weight.fill_(1.0)  # FSDP rounds the layers' norms: to no other number
            elif name in ("norm.weight", "head.weight"):
                weight.add_(0.3 * torch.randn(weight.shape, generator=draw))
    return NativeEngine(network, world=world, options=AdamWOptions(clip=0.5), data_parallel=mode)


def untied(folder: Path, world: World) -> NativeEngine:
    """With an LM head of its own."""
    network, _ = load_network(folder.parent / "untied", lm=True, from_scratch=True)
    return NativeEngine(network, world=world, options=AdamWOptions(), data_parallel="ddp")


def steps(engine: NativeEngine, world: World) -> dict[str, Any]:
    """Statistics and gradients of two steps of several packs a rank, and scores afterwards."""
    g = np.random.default_rng(0)
    table = table_of([group_of(g, int(g.integers(3, 9)), [4, 2], [(0, 1)]) for _ in range(12)])
    rows = np.arange(len(table))
    packs, _ = rank_packs(table, rows, ranks=world.size, rank=world.rank, budget=48, predicts="chosen")
    same, _ = rank_packs(table, rows, ranks=1, rank=0, budget=48)
    out: dict[str, Any] = {"packs": len(packs), "before": torch.cat(engine.score(same)), "sums": [], "grads": []}
    for _ in range(2):
        out["sums"].append(sums(engine.forward_backward(packs, OBJECTIVE, totals_of(table, rows))))
        grads = {name: p.grad for name, p in engine.network.named_parameters() if p.grad is not None}
        out["grads"].append({n: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for n, g in grads.items()})
        engine.optimizer_step(1e-3)
    before = engine.weights()
    out["after"] = torch.cat(engine.score(same))
    exported = engine.weights()
    return out | {"kept": all(torch.equal(exported[name], weight) for name, weight in before.items())}


def meta_step(engine: NativeEngine, world: World) -> dict[str, Tensor]:
    """Gradients of a loss that leaves the LM head out, at the second of two steps."""
    g = np.random.default_rng(1)
    table = table_of([group_of(g, int(g.integers(3, 9)), [4, 2, 3], []) for _ in range(8)])
    rows = np.arange(len(table))
    packs, _ = rank_packs(table, rows, ranks=world.size, rank=world.rank, budget=48)
    for _ in range(2):
        engine._drop_gradients()
        engine.forward_backward(packs, DifferenceObjective(), totals_of(table, rows))
    return {name: p.grad.clone() for name, p in engine.network.named_parameters() if p.grad is not None}


def storages(engine: NativeEngine) -> dict[int, int]:
    """Bytes of the memory that gradients have, by its address."""
    parts = [p.grad.untyped_storage() for p in engine.network.parameters() if p.grad is not None]
    return {part.data_ptr(): part.nbytes() for part in parts}


def worker(folder: Path, out: Path) -> None:
    """One rank's part of the test below."""
    found: dict[str, Any] = {}
    with World() as world:
        for mode in ("ddp", "fsdp"):
            for dtype in (torch.float32, torch.bfloat16):
                engine = engine_of(folder, world, mode, dtype)
                places = [storages(engine)]
                result = steps(engine, world)
                if isinstance(engine.module, DistributedDataParallel):
                    places.append(storages(engine))
                    size = 4 * sum(p.numel() for p in engine.network.parameters())
                    result |= {"stay": places[0] == places[1], "bytes": sum(places[1].values()) / size}
                    options = ("gradient_as_bucket_view", "broadcast_buffers", "find_unused_parameters")
                    result |= {name: getattr(engine.module, name) for name in options}
                found[f"{mode} {dtype}"] = result
                del engine
        engine = untied(folder, world)
        grads = meta_step(engine, world)
        assert isinstance(engine.module, DistributedDataParallel)
        # How many ranks used each weight, as DDP summed it up; it reads that on the host where one of them did not.
        found["meta"] = {"grads": grads, "used": engine.module.reducer._get_local_used_map().tolist()}
        del engine
        if world.main:
            torch.save(found, out)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("replicas")
    save_hf_model("llama", folder / "model", tie_word_embeddings=True)
    save_hf_model("llama", folder / "untied")
    assert fork_ranks(2, partial(worker, folder / "model", folder / "found")) == [0, 0]
    return folder / "model", torch.load(folder / "found")


@pytest.mark.slow
def test_ddp_holds_gradients_once_and_sends_no_buffers(found: tuple[Path, dict[str, Any]]) -> None:
    for dtype in ("torch.float32", "torch.bfloat16"):
        one = found[1][f"ddp {dtype}"]
        assert one["packs"] > 1 and one["gradient_as_bucket_view"] and not one["broadcast_buffers"]
        # All gradients are parts of the buckets, from before the first step on; a bucket's end may be padded.
        assert one["stay"] and 1.0 <= one["bytes"] < 1.01
        assert one["find_unused_parameters"]  # keeps the order of sums from the first step on


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "dtype", "count", "tolerance"),
    [
        ("ddp", torch.float32, 2, 1e-5),
        ("fsdp", torch.float32, 2, 1e-5),
        ("ddp", torch.bfloat16, 2, 2e-2),
        ("fsdp", torch.bfloat16, 1, 2e-2),  # the second step's norms in layers are no longer numbers of bf16
    ],
    ids=str,
)
def test_two_ranks_have_the_gradients_of_one(
    found: tuple[Path, dict[str, Any]], mode: str, dtype: torch.dtype, count: int, tolerance: float
) -> None:
    alone = steps(engine_of(found[0], World(), "ddp", dtype), World())
    many = found[1][f"{mode} {dtype}"]
    for step in range(count):
        torch.testing.assert_close(many["sums"][step], alone["sums"][step], rtol=tolerance, atol=tolerance)
        assert_close_by_norm(many["grads"][step], alone["grads"][step], tolerance)


@pytest.mark.slow
def test_ddp_reads_nothing_of_the_device_where_a_step_leaves_a_weight_out(found: tuple[Path, dict[str, Any]]) -> None:
    """The LM head in MetaRM's first half: each rank has a gradient of it, of zeros."""
    used, grads = found[1]["meta"]["used"], found[1]["meta"]["grads"]
    assert len(used) == len(grads) and set(used) == {2}
    alone = meta_step(untied(found[0], World()), World())
    assert not grads["lm_head.weight"].any() and "lm_head.weight" not in alone
    assert_close_by_norm({name: grads[name] for name in alone}, alone, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_whole_weights_are_the_masters_also_after_a_forward_pass(
    found: tuple[Path, dict[str, Any]], mode: DataParallel
) -> None:
    assert all(found[1][f"{mode} torch.{dtype}"]["kept"] for dtype in ("float32", "bfloat16"))


@pytest.mark.slow
def test_scores_of_ddp_and_fsdp_are_equal_in_bf16(found: tuple[Path, dict[str, Any]]) -> None:
    """The final norm and the reward head are read in fp32 by both."""
    ddp, fsdp = found[1]["ddp torch.bfloat16"], found[1]["fsdp torch.bfloat16"]
    torch.testing.assert_close(fsdp["before"], ddp["before"], rtol=1e-6, atol=1e-6)
    assert not torch.equal(ddp["before"], ddp["after"]), "training changed nothing"
