"""Policies and critics on two gloo ranks under DDP and FSDP2 take the steps of one process; first ratios are 1."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rmfast.data.pack import Pack
from rmfast.models.hf import load_network
from rmfast.objectives.policy import PolicyObjective, ValueObjective
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.replicas import DataParallel
from rmfast.parallel.world import World
from tests.figures import maxima, sums
from tests.objectives.answers import Columns, answered, idle, packs_of, per_answer, split, totals
from tests.rollout.tiny_policies import language_model
from tests.runs import fork_ranks
from tests.tiny import assert_close_by_norm, hf_model

POLICY = PolicyObjective(clip=0.1, clip_high=0.2, kl=0.2, kl_estimator="k3", entropy=0.01, temperature=0.7)
CRITIC = ValueObjective(clip=0.1, shift=0.3, scale=0.5)
SHARED, IDLE = "several packs a rank", "a rank without work"
BUDGET = 26
STEPS = 2


def packs_of_rank(columns: Columns, world: World, case: str) -> list[Pack]:
    """As many on every rank."""
    if case == SHARED:
        return packs_of(columns, budget=BUDGET, ranks=world.size, rank=world.rank, dtype=torch.float32)
    packs = packs_of(columns, budget=BUDGET, dtype=torch.float32)
    return [idle() for _ in packs] if world.rank else packs


def columns_of(policy: NativeEngine, reference: NativeEngine, critic: NativeEngine, case: str) -> Columns:
    """What PPO has beside its tokens, read over the packs that are trained on; of other ranks' answers only noise."""
    world, g = policy.world, torch.Generator().manual_seed(0)
    packs = packs_of_rank({}, world, case)

    def column(engine: NativeEngine, objective: Any, name: str) -> list[Tensor]:
        read = engine.read(packs, objective.reads)
        values = [objective.values(o) if name == "values" else getattr(o, name) for o in read]
        found = {i: x for pack, v in zip(packs, values, strict=True) for i, x in split(pack, v).items()}
        return [found.get(i, noise) for i, noise in enumerate(normal())]

    def normal() -> list[Tensor]:
        return per_answer(answered(), lambda n: torch.randn(n, generator=g))

    values = column(critic, CRITIC, "values")
    return {
        "old_log_prob": column(policy, POLICY, "log_prob"),
        "reference": column(reference, POLICY, "log_prob"),
        "old_value": values,
        "returns": [v + e for v, e in zip(values, normal(), strict=True)],
        "advantage": normal(),
        "mask": per_answer(answered(), lambda n: (torch.rand(n, generator=g) > 0.2).float()),
    }


def steps(folder: Path, world: World, mode: DataParallel, dtype: torch.dtype, case: str) -> dict[str, Any]:
    """Statistics and gradients of updates over the same answers."""
    options: dict[str, Any] = {"world": world, "options": AdamWOptions(clip=1.0), "data_parallel": mode}
    policy, reference, critic = (
        load_network(folder / name, heads=heads, lm=not heads, dtype=dtype)[0]
        for name, heads in (("policy", 0), ("policy", 0), ("critic", 1))
    )
    engines = [NativeEngine(network, **options) for network in (policy, reference.narrow(), critic)]
    columns = columns_of(*engines, case)  # type: ignore[call-arg, arg-type]
    packs = packs_of_rank(columns, world, case)
    return {
        "packs": sum(len(pack.groups) > 0 for pack in packs),
        "policy": updates(engines[0], POLICY, packs, columns),
        "critic": updates(engines[2], CRITIC, packs, columns),
    }


def updates(engine: NativeEngine, objective: Any, packs: list[Pack], columns: Columns) -> dict[str, Any]:
    out: dict[str, Any] = {"sums": [], "maxima": [], "grads": []}
    for _ in range(STEPS):
        statistics = engine.forward_backward(packs, objective, totals(columns["mask"]))
        out["names"] = list(statistics.sums)
        out["sums"].append(sums(statistics))
        out["maxima"].append(maxima(statistics) if statistics.maxima else None)
        grads = {name: p.grad for name, p in engine.network.named_parameters() if p.grad is not None}
        out["grads"].append({n: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for n, g in grads.items()})
        engine.optimizer_step(5e-3)
    return out


CASES = [(torch.float32, SHARED), (torch.float32, IDLE), (torch.bfloat16, SHARED)]


def worker(folder: Path) -> None:
    with World() as world:
        for mode in ("ddp", "fsdp"):
            found = {(str(dtype), case): steps(folder, world, mode, dtype, case) for dtype, case in CASES}
            torch.save(found, folder / f"{mode}{world.rank}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policies")
    language_model("llama", tie_word_embeddings=True).save_pretrained(folder / "policy")
    hf_model("llama").save_pretrained(folder / "critic")
    assert fork_ranks(2, partial(worker, folder)) == [0, 0]
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    found = steps(folder, World(), "ddp", torch.float32, SHARED)
    first_is_exact(found)
    return found


def first_is_exact(found: dict[str, Any]) -> None:
    """The first ratio is 1 and the first KL is 0, to the bit; later ones are not."""
    names, gaps = found["policy"]["names"], found["policy"]["maxima"]
    first, last = (dict(zip(names, found["policy"]["sums"][i], strict=True)) for i in (0, -1))
    assert gaps[0].tolist() == [0.0] and gaps[-1] > 0.02
    for name in ("approx_kl", "clipped", "ratio_gap", "kl_loss"):
        assert first[name] == 0 != last[name], name
    assert first["tokens"] > 10 and first["entropy"] > 0 and first["policy_loss"] != 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_ranks_take_the_steps_of_one(folder: Path, alone: dict[str, Any], mode: str) -> None:
    parts = [torch.load(folder / f"{mode}{rank}") for rank in range(2)]
    for dtype, case in CASES:
        first, second = (part[str(dtype), case] for part in parts)
        assert first["packs"] > 1 and (second["packs"] == 0) == (case == IDLE)
        first_is_exact(first)
        if dtype == torch.bfloat16:
            continue
        for part in ("policy", "critic"):
            ours, truth = first[part], alone[part]
            for step in range(STEPS):
                torch.testing.assert_close(ours["sums"][step], truth["sums"][step], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(second[part]["sums"][step], ours["sums"][step], rtol=0, atol=0)
                assert_close_by_norm(ours["grads"][step], truth["grads"][step], 1e-4 if step else 1e-5)
