"""PPO's objectives against plain softmaxes in fp64, each answer run alone, and each term written out by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rmfast.models.hf import load_network
from rmfast.models.network import Network, Outputs
from rmfast.objectives.base import Statistics, join_statistics
from rmfast.objectives.policy import PolicyObjective, ValueObjective
from tests.objectives.answers import (
    answered,
    dense_policy,
    dense_values,
    each_answer,
    idle,
    packs_of,
    per_answer,
    totals,
)
from tests.rollout.tiny_policies import language_model
from tests.tiny import assert_close_by_norm, gradients, hf_gradients, hf_model

WHOLE, PARTS = 1000, 26  # tokens of a pack: all answers in one, and several packs
FP64: dict[str, Any] = {"dtype": torch.float64, "weights_dtype": torch.float64}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "k2": {"clip": 0.1, "kl": 0.3, "entropy": 0.02, "temperature": 0.7},
    "k3": {"clip_high": 0.5, "kl": 0.2, "kl_estimator": "k3", "temperature": 1.4, "ids": 95, "impl": "triton"},
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def noise(scale: float) -> list[Tensor]:
    return per_answer(answered(), lambda n: scale * torch.randn(n, dtype=torch.float64))


def masks() -> list[Tensor]:
    """Tokens without a part in it: some, and all of one answer."""
    mask = per_answer(answered(), lambda n: (torch.rand(n) > 0.2).double())
    mask[4] = torch.zeros_like(mask[4])
    return mask


def hidden_by(mask: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    """Values that are nan where the mask is 0."""
    return [torch.where(m != 0, v.detach(), torch.nan) for m, v in zip(mask, values, strict=True)]


def ours(
    objective: PolicyObjective | ValueObjective, network: Network, columns: dict[str, list[Tensor]], budget: int
) -> tuple[Tensor, Statistics, dict[str, float]]:
    """The loss of all packs, whose gradients are added up, statistics and metrics."""
    parts, loss = [], torch.zeros(())
    packs = packs_of(columns, budget=budget, dtype=torch.float64)
    assert (len(packs) == 1) == (budget == WHOLE)
    for pack in [*packs, idle()]:
        share, statistics = objective(network(pack, objective.reads(pack)), pack, totals(columns["mask"]))
        share.backward()
        loss = loss + share.detach()
        parts.append(statistics)
    joined = join_statistics(parts, lambda sums: sums, lambda maxima: maxima)
    values = {name: float(value) for name, value in (joined.sums | joined.maxima).items()}
    torch.testing.assert_close(joined.loss, loss)
    return loss, joined, objective.metrics(values, totals(columns["mask"]))


@pytest.mark.parametrize(("name", "budget"), [("plain", WHOLE), ("k2", PARTS), ("k3", PARTS)])
def test_the_policy(tmp_path: Path, name: str, budget: int) -> None:
    objective = PolicyObjective(**OPTIONS[name])
    model = language_model("qwen3").double()
    model.save_pretrained(tmp_path)
    network = load_network(tmp_path, heads=0, lm=True, **FP64)[0]
    log_prob, entropy = dense_policy(model, objective.temperature, objective.ids)
    mask, drawn, far = masks(), noise(0.3), noise(0.5)
    old = [x.detach() + e for x, e in zip(log_prob, drawn, strict=True)]
    reference = [x.detach() + e for x, e in zip(log_prob, far, strict=True)]
    advantage = noise(1.0)
    columns = {"old_log_prob": old, "reference": reference, "advantage": advantage}
    columns = {key: hidden_by(mask, values) for key, values in columns.items()} | {"mask": mask}
    if not objective.kl:
        del columns["reference"]

    chosen = torch.cat(mask) != 0
    x, h, o, r, a = (torch.cat(values)[chosen] for values in (log_prob, entropy, old, reference, advantage))
    count, high = len(x), objective.clip if objective.clip_high is None else objective.clip_high
    rho = (x - o).exp()
    free, held = -a * rho, -a * rho.clamp(1 - objective.clip, 1 + high)
    surrogate = torch.maximum(free, held).sum() / count
    gap = x - r
    each = 0.5 * gap**2 if objective.kl_estimator == "k2" else rho * (torch.exp(-gap) - 1 + gap)
    truth = surrogate + objective.kl * each.sum() / count - objective.entropy * h.sum() / count
    truth.backward()

    loss, statistics, metrics = ours(objective, network, columns, budget)
    torch.testing.assert_close(loss, truth.detach(), rtol=1e-6, atol=1e-6)
    assert_close_by_norm(gradients(network), hf_gradients(model, network), 1e-5)
    clipped = held > free
    assert 0 < clipped.sum() < (rho.detach() - 1 < -objective.clip).sum() + (rho.detach() - 1 > high).sum()
    expected = {
        "loss/policy_avg": surrogate,
        "policy/approxkl_avg": 0.5 * ((x - o) ** 2).mean(),
        "policy/clipfrac_avg": clipped.double().mean(),
        "policy/entropy_avg": h.mean(),
        "val/ratio": rho.mean(),
        "val/ratio_var": rho.var(unbiased=False),
        "loss/kl_avg": each.mean(),
    }
    if not objective.kl:
        del expected["loss/kl_avg"]
    assert metrics == pytest.approx({key: value.item() for key, value in expected.items()}, rel=1e-5)
    assert statistics.maxima["ratio_gap_max"].item() == pytest.approx((rho - 1).abs().max().item(), rel=1e-5)
    assert statistics.sums["tokens"] == count
    assert not any(value.requires_grad for value in statistics.sums.values())


@pytest.mark.parametrize(
    ("options", "budget"), [({"clip": 0.2}, PARTS), ({"shift": -0.4, "scale": 1.7, "impl": "triton"}, WHOLE)]
)
def test_the_critic(tmp_path: Path, options: dict[str, Any], budget: int) -> None:
    objective = ValueObjective(**options)
    model = hf_model("qwen2").double()
    model.save_pretrained(tmp_path)
    network = load_network(tmp_path, **FP64)[0]
    values = [(score - objective.shift) / objective.scale for score in dense_values(model)]
    mask = masks()
    old = [x.detach() + e for x, e in zip(values, noise(0.3), strict=True)]
    returns = [x.detach() + e for x, e in zip(values, noise(1.0), strict=True)]
    columns = {"old_value": hidden_by(mask, old), "returns": hidden_by(mask, returns), "mask": mask}

    chosen = torch.cat(mask) != 0
    v, o, r = (torch.cat(column)[chosen] for column in (values, old, returns))
    free = held = (v - r) ** 2
    if objective.clip is not None:
        held = (torch.maximum(torch.minimum(v, o + objective.clip), o - objective.clip) - r) ** 2
    truth = 0.5 * torch.maximum(free, held).mean()
    truth.backward()

    loss, statistics, metrics = ours(objective, network, columns, budget)
    torch.testing.assert_close(loss, truth.detach(), rtol=1e-6, atol=1e-6)
    assert_close_by_norm(gradients(network), hf_gradients(model, network), 1e-5)
    clipped = (held > free).double().mean().item()
    assert (clipped > 0) == (objective.clip is not None)
    assert metrics == pytest.approx({"loss/value_avg": truth.item(), "val/clipfrac_avg": clipped}, rel=1e-5)
    assert statistics.sums["tokens"] == len(v)
    torch.testing.assert_close(
        objective.values(Outputs(torch.tensor([[1.0, 3.0]]))),
        (torch.tensor([2.0]) - objective.shift) / objective.scale,
    )


def test_answers_share_tokens_that_are_read_several_times() -> None:
    pack = packs_of({}, budget=WHOLE, dtype=torch.float32)[0]
    assert len(pack.targets.rows.unique()) < len(pack.targets.rows) - 8
    assert len(pack.targets.rows) == sum(len(sequence) - begin for sequence, begin in each_answer(answered()))


@pytest.mark.parametrize("kl_estimator", ["k2", "k3"])
def test_what_takes_no_part_may_be_anything(kl_estimator: Any) -> None:
    """Masked tokens and targets of padding: outputs, columns and all."""
    objective = PolicyObjective(kl=0.1, kl_estimator=kl_estimator, entropy=0.1)
    mask = per_answer(answered(), torch.ones)
    columns = {"mask": mask} | {name: noise(0.5) for name in ("old_log_prob", "reference", "advantage")}
    (pack,) = packs_of(columns, budget=WHOLE, dtype=torch.float32)
    count = len(pack.targets.ids)
    log_prob, entropy = torch.randn(2, count)
    out = [torch.arange(count) % 5 == 0, torch.arange(count) % 7 == 3]
    results = []
    for bad in (0.5, torch.nan, torch.inf):
        leaves = [log_prob.clone().requires_grad_(), entropy.clone().requires_grad_()]
        damaged = {name: column.masked_fill(out[0] | out[1], bad) for name, column in pack.targets.beside.items()}
        damaged["mask"] = torch.ones(count).masked_fill(out[0], 0.0)
        ids = pack.targets.ids.masked_fill(out[1], -1)
        changed = replace(pack, targets=replace(pack.targets, ids=ids, beside=damaged))
        with torch.no_grad():
            for leaf in leaves:
                leaf[out[0] | out[1]] = bad
        loss, statistics = objective(Outputs(torch.empty(0, 0), leaves[0], entropy=leaves[1]), changed, totals(mask))
        results.append([*torch.autograd.grad(loss, leaves), *statistics.sums.values(), *statistics.maxima.values()])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))
    assert results[0][0].isfinite().all() and not results[0][0][out[0] | out[1]].any()


@pytest.mark.parametrize("objective", [PolicyObjective(kl=0.1, entropy=0.1), ValueObjective(clip=0.2)])
def test_a_pack_without_work_adds_nothing(objective: PolicyObjective | ValueObjective) -> None:
    leaves = [torch.empty(0, 1).requires_grad_(), *(torch.empty(0).requires_grad_() for _ in range(2))]
    outputs = Outputs(leaves[0], leaves[1], entropy=leaves[2])
    loss, statistics = objective(outputs, idle(), replace(totals(masks()), lm_tokens=0))
    loss.backward()
    assert loss.item() == 0 and not any(value.any() for value in (statistics.sums | statistics.maxima).values())
    metrics = objective.metrics({name: float(value) for name, value in statistics.sums.items()}, totals(masks()))
    assert all(value == (name == "val/ratio") for name, value in metrics.items())


def test_what_is_not_finite_shows() -> None:
    mask = per_answer(answered(), torch.ones)
    columns = {"mask": mask} | {name: noise(0.5) for name in ("old_log_prob", "advantage", "old_value", "returns")}
    (pack,) = packs_of(columns, budget=WHOLE, dtype=torch.float32)
    bad = torch.randn(len(pack.targets.ids))
    bad[3] = torch.nan
    for objective in (PolicyObjective(), ValueObjective(clip=0.2)):
        loss, statistics = objective(Outputs(bad[:, None], bad, entropy=bad), pack, totals(mask))
        assert loss.isnan() and statistics.loss.isnan()


def test_a_ratio_near_one_keeps_its_digits() -> None:
    """The variance of ratios that differ from 1 by a thousand roundings of fp32."""
    mask = per_answer(answered(), torch.ones)
    columns = {"mask": mask, "old_log_prob": per_answer(answered(), torch.zeros), "advantage": noise(1.0)}
    (pack,) = packs_of(columns, budget=WHOLE, dtype=torch.float32)
    log_ratio = 1e-4 * torch.randn(len(pack.targets.ids))
    objective = PolicyObjective()
    _, statistics = objective(Outputs(torch.empty(0, 0), log_ratio, entropy=log_ratio), pack, totals(mask))
    metrics = objective.metrics({name: float(value) for name, value in statistics.sums.items()}, totals(mask))
    ratio = log_ratio.double().exp()
    assert metrics["val/ratio"] - 1 == pytest.approx(ratio.mean().item() - 1, rel=1e-5)
    assert metrics["val/ratio_var"] == pytest.approx(ratio.var(unbiased=False).item(), rel=1e-5)
