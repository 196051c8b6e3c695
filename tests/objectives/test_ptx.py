"""PPO-ptx: gradients of answers and demonstrations add up, and neither counts in the other's means."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmfast.data.loader import Totals, totals_of
from rmfast.data.pack import Pack, build_pack
from rmfast.data.row_kinds import demonstrations
from rmfast.data.table import GroupTable, build_table
from rmfast.models.hf import load_network
from rmfast.models.network import Network
from rmfast.objectives.base import Objective, Statistics, join_statistics
from rmfast.objectives.lm import SFTObjective
from rmfast.objectives.policy import PolicyObjective
from rmfast.objectives.ptx import PtxObjective
from rmfast.trainer.ppo.ptx import Ptx
from tests.objectives.answers import answered, dense_policy, idle, packs_of, per_answer, totals
from tests.rollout.tiny_policies import language_model
from tests.tiny import Group, assert_close_by_norm, gradients, ids, store_of

WEIGHT = 0.7


class Loader:
    """Gives one step, whatever is asked for."""

    def __init__(self, packs: list[Pack], totals: Totals) -> None:
        self.packs, self.totals = packs, totals

    def step(self, number: int) -> "Loader":
        return self


def table() -> GroupTable:
    rng = np.random.default_rng(1)
    rows = [ids(rng, n) for n in (5, 9, 3)]
    masks = [[False, *(i % 3 != 1 for i in range(1, len(row)))] for row in rows]
    store = store_of([Group([row], answer=[mask.index(True)]) for row, mask in zip(rows, masks, strict=True)])
    store = replace(store, trained=np.array([one for mask in masks for one in mask]))
    return build_table([store], kind=demonstrations())[0]


def learnt(
    network: Network, objective: Objective[Any], packs: list[Pack], counts: Totals
) -> tuple[Statistics, dict[str, Tensor]]:
    network.zero_grad()
    parts = []
    for pack in packs:
        share, statistics = objective(network(pack, objective.reads(pack)), pack, counts)
        share.backward()
        parts.append(statistics)
    return join_statistics(parts, lambda sums: sums, lambda maxima: maxima), gradients(network)


@pytest.mark.parametrize("options", [{}, {"kl": 0.3, "entropy": 0.02, "temperature": 0.7, "ids": 95}], ids=str)
def test_gradients_are_the_sum_of_those_apart(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = language_model("llama").double()
    model.save_pretrained(tmp_path)
    network = load_network(tmp_path, heads=0, lm=True, dtype=torch.float64, weights_dtype=torch.float64)[0]
    policy = PolicyObjective(**options)
    near, _ = dense_policy(model, policy.temperature, policy.ids)
    columns = {"mask": per_answer(answered(), lambda n: (torch.rand(n) > 0.2).double())}
    for name in ("old_log_prob", "reference"):
        columns[name] = [x.detach() + 0.3 * torch.randn(len(x), dtype=torch.float64) for x in near]
    columns["advantage"] = per_answer(answered(), lambda n: torch.randn(n, dtype=torch.float64))
    answers, counts = packs_of(columns, budget=26, dtype=torch.float64), totals(columns["mask"])
    data = table()
    rows = np.arange(len(data))
    shown = [build_pack(data, rows[:2], predicts="targets"), build_pack(data, rows[2:], predicts="targets")]
    ptx = Ptx(Loader(shown, totals_of(data, rows)), WEIGHT)  # type: ignore[arg-type]

    of_policy, first = learnt(network, policy, answers, counts)
    of_shown, second = learnt(network, SFTObjective(), shown, totals_of(data, rows))
    together = [*answers, idle(), *ptx.packs(3)]
    joined, both = learnt(network, ptx.objective(policy), together, counts)
    truth = {name: first[name] + WEIGHT * second[name] for name in first}
    assert_close_by_norm(both, truth, 1e-6)  # the share of a token is fp32
    assert float(joined.loss) == pytest.approx(float(of_policy.loss + WEIGHT * of_shown.loss), rel=1e-6)
    values = {name: float(value) for name, value in (joined.sums | joined.maxima).items()}
    alone = {name: float(value) for name, value in (of_policy.sums | of_policy.maxima).items()}
    metrics, expected = (
        PtxObjective(policy=policy, weight=WEIGHT).metrics(values, counts),
        policy.metrics(alone, counts),
    )
    assert metrics.pop("loss/ptx_avg") == pytest.approx(float(of_shown.loss), rel=1e-6)
    assert metrics == pytest.approx(expected)
