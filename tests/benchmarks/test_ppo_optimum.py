"""benchmarks/ppo_optimum.py: what its cases are trained for, its planted mistakes, and how it goes on after a kill."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from benchmarks import ppo_optimum
from benchmarks.ppo_mistakes import cut_answers_scored_as_if_ended, mean_over_each_answer, no_kl_at_the_eos
from benchmarks.ppo_optimum import ALL, CASES, ONCE
from rmfast.rollout.policy import end_ids
from rmfast.trainer.ppo import learner
from rmfast.trainer.ppo.experience import AdvantageOptions, Experience, Read
from rmfast.trainer.ppo.rewards import RewardOptions, Scored
from tests.ppo.folders import PAD, tokenizer_of

CUT = torch.tensor([False, True])


def experience() -> Experience:
    """Of an answer of two tokens that ended and one of three that was cut; all log-ratios are 1, scores 10 and 20."""
    answers: Any = SimpleNamespace(lengths=torch.tensor([2, 3]), cut=CUT, groups=torch.tensor([0, 0]))
    scored = Scored(
        torch.tensor([10.0, 20.0]).double(), torch.ones(2, dtype=torch.bool), None, torch.tensor([[10.0], [20.0]])
    )
    log_ratio = torch.ones(5, dtype=torch.float64)
    read = Read(old_log_prob=log_ratio, entropy=log_ratio, reference=0 * log_ratio)
    return learner.experience(answers, scored, read, AdvantageOptions(estimator="reinforce"), kl=1.0)


def test_without_a_mistake() -> None:
    assert experience().rewards.tolist() == [-1, 9, -1, -1, 19]
    assert experience().advantage.tolist() == [8, 9, 17, 18, 19]


def test_no_kl_at_the_eos_and_the_last_token_of_a_cut_answer_keeps_it() -> None:
    with no_kl_at_the_eos():
        assert experience().rewards.tolist() == [-1, 10, -1, -1, 19]


def test_a_mean_over_each_answers_tokens() -> None:
    with mean_over_each_answer():
        assert experience().advantage.tolist() == pytest.approx([8 / 2, 9 / 2, 17 / 3, 18 / 3, 19 / 3])


def test_cut_answers_scored_as_if_they_had_ended() -> None:
    def scores() -> list[float]:
        options = RewardOptions(max_new_tokens=3)
        raw, lengths = torch.tensor([[10.0], [20.0]]), torch.tensor([2, 3])
        return learner.score_answers(raw, lengths, CUT, torch.zeros(2), options).scores.tolist()

    with cut_answers_scored_as_if_ended():
        assert scores() == [10, 20]
    assert scores() == [10, 0]


def test_what_answers_of_cases_are_trained_for() -> None:
    for name, case in ALL.items():
        raw, scores = case.rewards(0)
        if case.longest == 1:
            kept = [ids != (PAD,) for ids in case.answers.ids]
            assert sum(kept) == 7 and torch.equal(scores[kept], raw[kept]) and scores.count_nonzero() == 7
        else:
            cut = case.answers.cut
            assert len(raw) == 31 and torch.equal(scores[~cut], raw[~cut]), name
            assert set(scores[cut].tolist()) == {-0.5 if "penalty" in name else 0.0}, name


def test_all_answers_of_one_token_end_but_the_padding(tmp_path: Path) -> None:
    CASES["k2 in the loss, answers of one token"].write(tmp_path, 0)
    folder = tmp_path / "policy"
    assert end_ids(folder, AutoConfig.from_pretrained(folder), tokenizer_of("abcdef")) == set(range(1, 8))


def test_cut_answers_get_the_offset_of_all_scores(tmp_path: Path) -> None:
    command = CASES["gae, scores + 10, a critic that learns nothing"].command(tmp_path, 0)
    assert command[command.index("--ppo.truncated") + 1] == "penalty"
    assert float(command[command.index("--ppo.truncated_score") + 1]) == 10
    command = CASES["gae"].command(tmp_path, 0)
    assert command[command.index("--ppo.truncated") + 1] == "zero" and "--ppo.truncated_score" not in command


def test_a_file_of_this_commit_is_gone_on_with_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, near = tmp_path / "found.json", {"missing": 0.01, "variation": 0.02}
    ran = []

    def run(case: object, seed: int, folder: Path) -> dict[str, float]:
        ran.append(seed)
        return near if case in CASES.values() else {"missing": 0.5, "variation": 0.02}

    def main(*more: str) -> object:
        ran.clear()
        monkeypatch.setattr("sys.argv", ["ppo_optimum", "--json", str(file), *more])
        with pytest.raises(SystemExit) as ended:
            ppo_optimum.main()
        return ended.value.code

    monkeypatch.setattr(ppo_optimum, "run", run)
    monkeypatch.setattr(ppo_optimum, "commit", lambda: "a")
    monkeypatch.setattr(ppo_optimum, "origin", lambda: {"commit": "a"})
    rloo = [name for name in ALL if "rloo" in name]
    assert main("--only", "rloo", "--seeds", "1") == 0 and ran == [0] * len(rloo)
    assert main() == 0 and len(ran) == sum(1 if name in ONCE else 3 for name in ALL) - len(rloo)
    found = json.loads(file.read_text())["results"]
    assert {name: len(runs) for name, runs in found.items()} == {name: 1 if name in ONCE else 3 for name in ALL}
    assert main() == 0 and not ran
    monkeypatch.setattr(ppo_optimum, "commit", lambda: "b")
    assert main("--only", "gae, penalty") == 0 and len(ran) == 3 * sum("gae, penalty" in name for name in ALL)


@pytest.mark.parametrize(("name", "result"), [("rloo", (0.06, 0.01)), ("rloo", (0.01, 0.11)), ("KL half", (0.05, 0.1))])
def test_what_is_not_as_it_should_be_is_named(
    name: str, result: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dict(zip(("missing", "variation"), result, strict=True))
    monkeypatch.setattr(ppo_optimum, "run", lambda *_: found)
    monkeypatch.setattr("sys.argv", ["ppo_optimum", "--only", name])
    with pytest.raises(SystemExit, match=f"not as it should be: .*{name}"):
        ppo_optimum.main()
