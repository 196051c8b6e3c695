"""Trains tiny policies whose optimum is known, and reads by transformers how near the exported ones come.

    python -m benchmarks.ppo_optimum [--only WORD ...] [--seeds 3] [--json FILE]

Three tokens and all 31 answers of at most 4 of them, random rewards of spread 2 beta, half of the reference's answers
cut; or eight tokens and answers of one. The optimum is the closed form where KL is in the reward, the fixed point by
backward induction where it is in the loss. Over all answers: the distance of a policy's J = E[R] - beta KL from the
optimum's, as a share of what is between the reference's and that; and the total variation to the optimum. Bounds: 0.05
and 0.1. Mistakes are planted too, and must miss one of them. Exits with 1 where something is not as it should be.
The same command goes on after a kill: results of the same commit in FILE are not made again.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.origin import ROOT, commit, origin, write_json
from benchmarks.ppo_mistakes import Mistake, cut_answers_scored_as_if_ended, mean_over_each_answer, no_kl_at_the_eos
from rmfast.train import main as train

sys.path.insert(0, str(ROOT))

from tests.ppo.exact import Answers, loss_optimum, objective, optimum, read_steps, total_variation  # noqa: E402
from tests.ppo.folders import APART, PAD, answers_of, tokenizer_of, write_policy, write_reward_model  # noqa: E402
from tests.ppo.test_exact import BETA, random_rewards  # noqa: E402
from tests.runs import arguments  # noqa: E402

MISSING, VARIATION = 0.05, 0.1
SHARED: dict[str, object] = {
    "task": "ppo", "run__tensorboard": False, "run__max_steps": 160, "data__max_length": 64, "checkpoint__every": 1000,
    "ppo__preset": "ppo", "ppo__prompts_per_step": 1, "ppo__samples": 128, "ppo__minibatches": 1, "ppo__epochs": 1,
    "ppo__whiten": False, "ppo__clip": 0.5, "ppo__kl": BETA, "rollout__memory": 0.1,
    "optim__lr": 1e-3, "optim__schedule": "cosine", "optim__warmup": 16, "optim__betas": (0.9, 0.98), "optim__clip": 0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """A policy to train, and what it is to reach.

    Args:
        keys: of its config, beyond `SHARED`. mistake: planted while it trains.
        letters, longest: of its answers. Where they have one token, all ids end them but the padding's.
        spread: of the reference's logits; 0 for a uniform one.
        cut_score: what cut answers are trained for.
        offset: added to all scores, which moves no optimum.
        kl_in_loss: whether the optimum is that of KL in the loss.
    """

    keys: Mapping[str, object]
    mistake: Mistake = nullcontext
    letters: str = "a"
    longest: int = 4
    spread: float = 0.0
    cut_score: float = 0.0
    offset: float = 0.0
    kl_in_loss: bool = False

    @property
    def answers(self) -> Answers:
        return answers_of(self.letters, self.longest)

    def rewards(self, seed: int) -> tuple[Tensor, Tensor]:
        """Raw scores of all answers, and what they are trained for: both [A], without the offset."""
        answers = self.answers
        raw = random_rewards(answers, seed)
        cut = torch.tensor([ids == (PAD,) for ids in answers.ids]) if self.longest == 1 else answers.cut
        return raw, torch.where(cut, self.cut_score, raw)

    def write(self, folder: Path, seed: int) -> None:
        """The inputs of a run: policy, reward model and prompt."""
        longest, cut_share = self.longest, None if self.longest == 1 else 0.5
        write_policy(
            folder / "policy", self.letters, [APART],
            spread=self.spread, cut_share=cut_share, longest=longest, seed=seed,
        )  # fmt: skip
        if longest == 1:
            ends = {"eos_token_id": [*range(PAD + 1, self.answers.vocabulary)]}
            (folder / "policy" / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
        raw, _ = self.rewards(seed)
        write_reward_model(folder / "reward", self.letters, {APART: raw + self.offset}, longest=longest)
        (folder / "prompts.jsonl").write_text(json.dumps({"prompt": APART}) + "\n", encoding="utf-8")

    def command(self, folder: Path, seed: int) -> list[str]:
        """The arguments of a run in the folder of its inputs."""
        paths = {
            "model__path": folder / "policy", "ppo__reward": folder / "reward", "data__cache": folder / "cache",
            "ppo__prompts": folder / "prompts.jsonl", "run__dir": folder / "run",
        }  # fmt: skip
        rest: dict[str, object] = {"run__seed": seed, "ppo__max_new_tokens": self.longest, "ppo__truncated": "zero"}
        if cut_score := self.cut_score + self.offset:
            rest |= {"ppo__truncated": "penalty", "ppo__truncated_score": cut_score}
        return arguments(**{**SHARED, **paths, **rest, **self.keys})

    def compared(self, folder: Path, seed: int) -> dict[str, float]:
        """Of a run's exported policy the share of the possible gain that is missing, and the total variation."""
        answers, prompt = self.answers, tokenizer_of(self.letters)(APART)["input_ids"]
        policy, reference = (
            read_steps(AutoModelForCausalLM.from_pretrained(path).eval(), prompt, answers)
            for path in (folder / "run" / "model", folder / "policy")
        )
        found, start, (_, scores) = answers.log_prob(policy), answers.log_prob(reference), self.rewards(seed)
        in_loss = self.kl_in_loss and self.longest > 1
        best = loss_optimum(answers, reference, scores, BETA) if in_loss else optimum(start, scores, BETA)
        at_found, at_best, at_start = (float(objective(x, start, scores, BETA)) for x in (found, best, start))
        gap = abs(at_best - at_found)  # the fixed point of KL in the loss is no maximum of J
        return {"missing": gap / (at_best - at_start), "variation": total_variation(found, best)}


K2 = {"ppo__advantage": "rloo", "ppo__kl_in": "loss", "ppo__samples": 256}  # noise does not end at its optimum
K3 = {"ppo__kl_estimator": "k3", "ppo__epochs": 2, "run__max_steps": 100}  # a second update's gradient is not k2's
RLOO = Case(keys={"ppo__advantage": "rloo"})
GAE = Case(keys={
    "ppo__advantage": "gae", "ppo__lam": 1.0, "ppo__critic": "policy", "ppo__value_clip": 0, "ppo__critic_lr": 5e-3,
})  # fmt: skip
BLIND = replace(GAE, offset=10.0, keys={**GAE.keys, "ppo__critic_lr": 1e-12, "ppo__whiten": True})
SUMS = Case(offset=1.5, keys={"ppo__advantage": "reinforce"})
ONE = Case(letters="abcdef", longest=1, spread=1.0, kl_in_loss=True, keys={**K2, "ppo__samples": 128})

CASES = {
    "rloo": RLOO,
    "rloo, penalty": replace(RLOO, cut_score=-0.5),
    "rloo, random reference": replace(RLOO, spread=1.0),
    "rloo, penalty, random reference": replace(RLOO, cut_score=-0.5, spread=1.0),
    "gae": GAE,
    "gae, penalty": replace(GAE, cut_score=-0.5),
    "gae, random reference": replace(GAE, spread=1.0),
    "gae, penalty, random reference": replace(GAE, cut_score=-0.5, spread=1.0),
    "k2 in the loss": Case(kl_in_loss=True, keys={**K2, "ppo__samples": 384}),
    "k3 in the loss": Case(kl_in_loss=True, keys={**K2, **K3}),
    "k3 in the loss, random reference": Case(kl_in_loss=True, spread=1.0, keys={**K2, **K3}),
    "k2 in the loss, answers of one token": ONE,
    "k3 in the loss, answers of one token": replace(ONE, keys={**ONE.keys, **K3}),
    "gae, scores + 10, a critic that learns nothing": BLIND,
    "reinforce, scores + 1.5": SUMS,
}
PLANTED = {
    "planted: KL twice": replace(RLOO, keys={**RLOO.keys, "ppo__kl_in": "both"}),
    "planted: KL half": replace(RLOO, keys={**RLOO.keys, "ppo__kl": BETA / 2}),
    "planted: no KL at the eos": replace(RLOO, mistake=no_kl_at_the_eos),
    "planted: cut answers scored as if they had ended": replace(RLOO, mistake=cut_answers_scored_as_if_ended),
    "planted: lambda 0.95 (scores + 10, a critic that learns nothing)": replace(
        BLIND, keys={**BLIND.keys, "ppo__lam": 0.95}
    ),
    "planted: a mean over each answer's tokens (reinforce, scores + 1.5)": replace(SUMS, mistake=mean_over_each_answer),
}
"""With lambda 1 any critic will do, and with a baseline all advantages are 0 at the optimum, however they are weighed:
the last two mistakes are planted where neither is so."""
ALL = CASES | PLANTED
ONCE = {"gae, scores + 10, a critic that learns nothing", "reinforce, scores + 1.5", *PLANTED}
"""Runs of one seed: the mistakes, and what the last two are to be compared with."""


def run(case: Case, seed: int, folder: Path) -> dict[str, float]:
    """Train, and compare the exported policy with the optimum."""
    began = time.process_time()
    case.write(folder, seed)
    with case.mistake(), patch("rmfast.tasks.build.training.write_report"):  # plots take seconds
        if train(case.command(folder, seed)):
            raise SystemExit("the run failed")
    return {**case.compared(folder, seed), "cpu_seconds": time.process_time() - began}


def is_near(result: Mapping[str, Any]) -> bool:
    """Whether a policy came within both bounds."""
    return result["missing"] <= MISSING and result["variation"] <= VARIATION


def begun(path: Path | None) -> dict[str, list[dict[str, Any]]]:
    """The results in a file that this commit made."""
    if path is None or not path.is_file():
        return {}
    found, now = json.loads(path.read_text(encoding="utf-8"))["results"], commit()
    return {name: runs for name, runs in found.items() if all(each["commit"] == now for each in runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="cases whose names hold one of these words")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each case (3); of planted mistakes there is one")
    parser.add_argument("--json", type=Path, help="where the results go")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = begun(args.json)
    chosen = [name for name in ALL if not args.only or any(word in name for word in args.only)]
    for seed, name in product(range(args.seeds), chosen):
        of_case = results.setdefault(name, [])
        if len(of_case) > seed or (seed and name in ONCE):
            continue
        with tempfile.TemporaryDirectory() as folder:
            of_case.append({**run(ALL[name], seed, Path(folder)), "commit": commit()})
        print(f"{name}, seed {seed}: {of_case[-1]}", file=sys.stderr, flush=True)
        if args.json:
            bounds = {"missing": MISSING, "variation": VARIATION}
            write_json(args.json, {"origin": origin(), "bounds": bounds, "results": results})
    wrong = [name for name, runs in results.items() if any(is_near(each) != (name in CASES) for each in runs)]
    sys.exit(f"not as it should be: {'; '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
