"""Samples from the weights that an engine trains, by DDP and FSDP2 on two gloo ranks with unequal work, and by one."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rmfast.data.loader import rank_packs, totals_of
from rmfast.models.hf import load_network
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.replicas import DataParallel
from rmfast.parallel.world import World
from rmfast.rollout.decoding import engine_decoding, network_decoding
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.sampler import Sampler
from tests.rollout.tiny_policies import requests, sampled
from tests.runs import fork_ranks
from tests.tiny import VOCABULARY, group_of, save_hf_model, table_of

MODES: tuple[DataParallel, ...] = ("ddp", "fsdp")
PROMPTS = requests((4, 9, 2, 7, 5, 3, 8))


def draws(folder: Path, world: World, mode: DataParallel, dtype: torch.dtype) -> list[dict[int, list[list[int]]]]:
    """This rank's samples by prompt, before a step of training and after it: rank 0 has five prompts of seven."""
    network, _ = load_network(folder, dtype=dtype, lm=True)
    engine = NativeEngine(network, world=world, options=AdamWOptions(), data_parallel=mode)
    here = [i for i in range(len(PROMPTS)) if world.size == 1 or (i < 5) == (world.rank == 0)]
    out = []
    for _ in range(2):
        with engine_decoding(engine, VOCABULARY) as model:
            sampler = Sampler(model, SampleOptions(max_new_tokens=16), ends=(7, 30), rows=4)
            found = sampled(sampler, [PROMPTS[i] for i in here], 2)
        out.append({i: [draft.ids.tolist() for draft in drafts] for i, drafts in zip(here, found, strict=True)})
        step(engine, world)
    return out


def step(engine: NativeEngine, world: World) -> None:
    g = np.random.default_rng(0)
    table = table_of([group_of(g, 5, [4, 2], [(0, 1)]) for _ in range(6)])
    rows = np.arange(len(table))
    packs, _ = rank_packs(table, rows, ranks=world.size, rank=world.rank, budget=48, predicts="chosen")
    engine.forward_backward(packs, RewardObjective(lm=0.5), totals_of(table, rows))
    engine.optimizer_step(0.03)


def worker(folder: Path, out: Path) -> None:
    with World() as world:
        for mode in MODES:
            torch.save(draws(folder, world, mode, torch.float32), out / f"{mode}{world.rank}")


def test_two_ranks_draw_what_one_draws(tmp_path: Path) -> None:
    save_hf_model("llama", tmp_path / "model", tie_word_embeddings=True)
    assert fork_ranks(2, lambda: worker(tmp_path / "model", tmp_path)) == [0, 0]
    alone = draws(tmp_path / "model", World(), "ddp", torch.float32)
    assert alone[0] != alone[1]  # the step changed the weights
    for mode in MODES:
        parts = [torch.load(tmp_path / f"{mode}{rank}") for rank in range(2)]
        for number in range(2):
            assert parts[0][number] | parts[1][number] == alone[number]


def test_bf16_draws_from_weights_cast_once(tmp_path: Path) -> None:
    """What an engine samples with fp32 weights is what a model stored in bf16 samples."""
    save_hf_model("llama", tmp_path / "model", tie_word_embeddings=True)
    fp32, _ = load_network(tmp_path / "model", dtype=torch.bfloat16, lm=True)
    bf16, _ = load_network(tmp_path / "model", dtype=torch.bfloat16, weights_dtype=torch.bfloat16, lm=True)
    with torch.no_grad():
        for network in (fp32, bf16):
            for weight in network.parameters():
                weight.fill_(1.0) if weight.dim() == 1 else None  # a norm's is read as it is stored
    engine = NativeEngine(fp32, world=World(), options=AdamWOptions())
    with engine_decoding(engine, VOCABULARY) as model:
        assert all(pool.dtype == torch.bfloat16 for pool in model.pool(3).layers.values())
        found, want = (
            sampled(Sampler(each, SampleOptions(max_new_tokens=16), ends=()), PROMPTS, 2)
            for each in (model, network_decoding(bf16, VOCABULARY))
        )
    for row, other in zip(found, want, strict=True):
        assert [draft.ids.tolist() for draft in row] == [draft.ids.tolist() for draft in other]


def test_a_cpu_widens_a_narrow_table_once(tmp_path: Path) -> None:
    """For all steps of a call: its logits are fp32, its weights bf16."""
    save_hf_model("llama", tmp_path / "model", tie_word_embeddings=True)
    network, _ = load_network(tmp_path / "model", dtype=torch.bfloat16, weights_dtype=torch.bfloat16, lm=True)
    table = network._table().weight
    widened = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and args[0].shape == table.shape:
                widened.append(kwargs)
            return func(*args, **(kwargs or {}))

    model = network_decoding(network.eval(), VOCABULARY)
    with Watch():
        sampled(Sampler(model, SampleOptions(max_new_tokens=4), ends=(), rows=3), PROMPTS[:4], 1)
    assert [kwargs["dtype"] for kwargs in widened] == [torch.float32]
