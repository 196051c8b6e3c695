"""Reward models that share a trunk on disk, in PPO."""

from pathlib import Path

import pytest

import rmfast
from rmfast.models.members import SharedNetwork
from rmfast.train import main
from tests.evaluation.test_shared import write_members
from tests.ppo.tiny import state_of, write_inputs
from tests.tasks.test_ppo_rewards import samples_of, several


def test_members_over_one_trunk_pay_it_once_and_score_as_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that share a trunk on disk, behind one that does not."""
    monkeypatch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
    folder = write_inputs(tmp_path)
    paths = write_members(folder / "trunk", 2)
    passes, score = [], SharedNetwork.score
    monkeypatch.setattr(SharedNetwork, "score", lambda self, pack: passes.append(1) or score(self, pack))
    assert main(several(folder, "together", "other trunk/00 trunk/01", ppo__reward_rule="worst")) == 0
    assert passes
    models, compared = [rmfast.load(path) for path in paths], 0
    for record, sample, text in samples_of(folder / "together"):
        rows = [{"prompt": record["prompt"], "responses": [text]}]
        alone = [model.score(rows)[0][0] for model in models]
        ended = sample["stop_reason"] == "eos"
        compared += ended
        assert not ended or sample["rewards"][1:] == pytest.approx(alone, abs=1e-5)
    assert compared and state_of(folder / "together")["ppo/moments"].shape == (9,)
