"""Limits that end a run of PPO: which step, what is kept of the run, and how it goes on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rmfast.checkpoint.store import list_checkpoints
from rmfast.errors import LimitReached
from rmfast.train import main
from rmfast.trainer.ppo.watch import Limits, skewness
from tests.ppo.tiny import assert_same_run, command, steps_of, write_inputs
from tests.runs import read_lines

FIGURES = {"objective/kl": 3.0, "entropy_per_token": 0.5, "cut_share": 0.25}
KEYS: dict[str, Any] = {"checkpoint__every": "null", "eval__every": "null"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmfast.report.html.policy_plots", lambda run: [])
        yield write_inputs(tmp_path_factory.mktemp("ppo"))


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(), None),
        (Limits(kl=3.0, entropy=0.5, cut=0.25), None),
        (Limits(kl=2.5), "step 7: an answer is 3 nats (KL) from the reference, above ppo.stop_kl 2.5"),
        (Limits(entropy=0.6), "step 7: a token has 0.5 nats of entropy, below ppo.stop_entropy 0.6"),
        (Limits(cut=0.2), "step 7: 25% of the answers are cut, above ppo.stop_cut 0.2"),
    ],
)
def test_a_limit_is_passed_beyond_it_alone(limits: Limits, said: str | None) -> None:
    if said is None:
        limits.check(7, FIGURES)
        return
    with pytest.raises(LimitReached) as error:
        limits.check(7, FIGURES)
    assert str(error.value).startswith(said)


def test_skewness_tells_a_right_tail_from_a_left_one() -> None:
    assert skewness(torch.tensor([0.0, 0.0, 0.0, 4.0])) == pytest.approx(2 / 3**0.5)
    assert skewness(torch.tensor([0.0, 4.0, 4.0, 4.0])) == pytest.approx(-2 / 3**0.5)
    assert skewness(torch.tensor([2.0, 2.0])) == 0.0


def test_a_run_ends_at_its_limit_with_the_step_before_saved_and_goes_on_beyond_it_to_the_same_bits(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, "whole", **KEYS)) == 0
    kl = [line["objective/kl"] for line in steps_of(folder / "whole")]
    assert kl[:2] == [0, 0] and kl[2] > 0.1
    capsys.readouterr()
    for _ in range(2):  # asked again, it stops again
        assert main(command(folder, "stopped", **KEYS, ppo__stop_kl=kl[2] / 2)) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith(
            f"rmfast: step 3: an answer is {kl[2]:.4g} nats (KL) from the reference, above ppo.stop_kl"
        )
        run = folder / "stopped"
        assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-2"]
        assert steps_of(run) == steps_of(folder / "whole")[:2] and not (run / "model").exists()
        summary = json.loads((run / "summary.json").read_text())
        assert summary["step"] == 2 and f"rmfast: {summary['stopped']}" == line
        assert (run / "report" / "report.html").is_file()
        assert len(read_lines(run / "rollouts" / "step-3.jsonl")) == 4
    assert main(command(folder, "stopped", **KEYS, ppo__stop_kl=2 * kl[2])) == 0
    assert_same_run(folder / "stopped", folder / "whole")
    assert "stopped" not in json.loads((folder / "stopped" / "summary.json").read_text())


def test_a_score_that_is_not_finite_always_ends_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "reward" / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"score.weight": weights["score.weight"] * float("nan")}, file, {"format": "pt"})
    assert main(command(folder, "broken", **KEYS, ppo__eval_prompts="[]", optim__on_nonfinite="skip")) == 1
    assert "the score of an answer is not finite: its weights are broken" in capsys.readouterr().err
    save_file(weights, file, {"format": "pt"})
