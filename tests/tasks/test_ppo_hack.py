"""A reward model with a planted error, which a policy exploits or does not: what KL is for, and what `ppo.gold` shows.

A gold reward gives 0.25 for each x of an answer up to the third, and takes 0.3 for each beyond, 0.5 from the sixth on;
the proxy that policies are trained against is gold + 0.5 for each x beyond the third, so that it is highest at five and
more. All answers are known, and means over them are exact.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rmfast.report.policy.collapse import find_collapse
from rmfast.report.run_folder import Run, number, read_run
from rmfast.train import main
from tests.ppo.exact import read_steps
from tests.ppo.folders import APART, answers_of, tokenizer_of, write_policy, write_reward_model
from tests.runs import arguments, read_lines

pytestmark = pytest.mark.usefixtures("no_plots")

LONGEST = 7
ANSWERS, TOKENIZER = answers_of("x", LONGEST), tokenizer_of("x")
COUNT = torch.tensor([ids.count(TOKENIZER.convert_tokens_to_ids("x")) for ids in ANSWERS.ids]).double()
BEYOND = (COUNT - 3).clamp(min=0)
GOLD = 0.25 * COUNT.clamp(max=3) - 0.3 * BEYOND - 0.2 * (COUNT - 5).clamp(min=0)
PROXY = GOLD + 0.5 * BEYOND


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy whose answers are short, both reward models, and a prompt that is asked again and again."""
    return write_setting(tmp_path_factory.mktemp("hack"), "x", LONGEST, {"proxy": PROXY, "gold": GOLD})


def write_setting(folder: Path, letters: str, longest: int, tables: Mapping[str, Tensor]) -> Path:
    """A policy, a reward model for each table, and prompts."""
    write_policy(folder / "policy", letters, [APART], spread=0.5, cut_share=0.1, longest=longest)
    for name, table in tables.items():
        write_reward_model(folder / name, letters, {APART: table}, longest=longest)
    (folder / "prompts.jsonl").write_text(f'{{"prompt": "{APART}"}}\n' * 32)
    return folder


def train(folder: Path, run: str, proxies: str, *, kl: float = 0.0, steps: int, longest: int, **more: object) -> Run:
    """A run against some reward models."""
    keys: dict[str, object] = {
        "task": "ppo",
        "run__dir": folder / run,
        "run__max_steps": steps,
        "run__tensorboard": False,
        "model__path": folder / "policy",
        "data__max_length": 16,
        "data__tokens_per_pack": 512,
        "data__cache": folder / "cache",
        "optim__lr": 2e-3,
        "optim__schedule": "constant",
        "ppo__preset": "ppo",
        "ppo__kl": kl,
        "ppo__reward": "PROXIES",
        "ppo__gold": folder / "gold",
        "ppo__prompts": folder / "prompts.jsonl",
        "ppo__eval_prompts": folder / "prompts.jsonl",
        "ppo__prompts_per_step": 1,
        "ppo__samples": 64,
        "ppo__minibatches": 1,
        "ppo__epochs": 1,
        "ppo__lam": 1,
        "ppo__value_clip": 0,
        "ppo__critic_lr": 1e-2,
        "ppo__max_new_tokens": longest,
    }
    words = arguments(**keys | more)
    place = words.index("PROXIES")
    assert main([*words[:place], *(str(folder / name) for name in proxies.split()), *words[place + 1 :]]) == 0
    return read_run(folder / run)


def test_without_kl_a_policy_exploits_the_reward_model_and_with_kl_it_does_not(folder: Path) -> None:
    start = mean(folder / "policy", GOLD)
    exploits = train(folder, "exploits", "proxy", steps=24, longest=LONGEST, eval__every=8)
    held = train(folder, "held", "proxy", kl=0.2, steps=24, longest=LONGEST, eval__every=8)
    assert mean(folder / "exploits" / "model", PROXY) > 0.9 * float(PROXY.max())
    assert mean(folder / "exploits" / "model", GOLD) < start < mean(folder / "held" / "model", GOLD)
    for name in ("exploits", "held"):
        before, *_, after = read_lines(folder / name / "eval.jsonl")
        assert after["eval_reward_low"] > before["eval_reward_high"]
        assert after["eval_gold"] == pytest.approx(mean(folder / name / "model", GOLD), abs=0.2)
    marked = find_collapse(exploits)
    assert marked is not None and marked.began < 24 and find_collapse(held) is None


def test_the_least_of_three_proxies_that_plant_different_tokens_is_not_exploited(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Gold gives 0.25 for each <pad> up to the third and takes 0.3 for each other letter; the proxy of a letter gives
    0.9 for it beside that. All three letters at once, which the least one rewards, are worth less than <pad> three
    times."""
    answers, tokenizer = answers_of("xyz", 4), tokenizer_of("xyz")

    def count(letter: str) -> Tensor:
        return torch.tensor([ids.count(tokenizer.convert_tokens_to_ids(letter)) for ids in answers.ids]).double()

    gold = 0.25 * count("<pad>").clamp(max=3) - 0.3 * (count("x") + count("y") + count("z"))
    tables = {"gold": gold} | {letter: gold + 0.9 * count(letter) for letter in "xyz"}
    folder = write_setting(tmp_path_factory.mktemp("three"), "xyz", 4, tables)
    one = train(folder, "one", "x", steps=12, longest=4)
    three = train(folder, "three", "x y z", steps=12, longest=4, ppo__reward_rule="worst")
    start = mean(folder / "policy", gold, "xyz", 4)
    assert mean(folder / "one" / "model", gold, "xyz", 4) < start - 0.3
    assert mean(folder / "three" / "model", gold, "xyz", 4) > start + 0.5
    assert find_collapse(one) is not None and find_collapse(three) is None


@pytest.mark.slow
def test_five_runs_without_a_plant_raise_no_alarm(folder: Path) -> None:
    """Against reward models that are gold but for a small error of each answer, with and without KL."""
    for seed in range(5):
        error = 0.05 * torch.randn(len(GOLD), generator=torch.Generator().manual_seed(seed)).double()
        write_reward_model(folder / f"honest-{seed}", "x", {APART: GOLD + error}, longest=LONGEST)
    for seed in range(5):
        run = train(
            folder, f"run-{seed}", f"honest-{seed}", steps=12, longest=LONGEST, kl=0.05 * (seed % 2), eval__every=4,
            run__seed=seed,
        )  # fmt: skip
        assert number(run.evals["eval"][-1], "gold") > number(run.evals["eval"][0], "gold")
        assert find_collapse(run) is None


def mean(policy: Path, values: Tensor, letters: str = "x", longest: int = LONGEST) -> float:
    """Of a value [A] of each answer, over the policy's."""
    prompt = tokenizer_of(letters)(APART)["input_ids"]
    answers = answers_of(letters, longest)
    steps = read_steps(AutoModelForCausalLM.from_pretrained(policy), prompt, answers)
    return float((answers.log_prob(steps).exp() * values).sum())
