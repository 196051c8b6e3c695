"""The tiny models that are served."""

from pathlib import Path

import pytest

import rmfast
from rmfast.evaluation.scoring.reward_model import RewardModel
from tests.scoring import save_reward_model


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("served") / "one")


@pytest.fixture(scope="package")
def model(folder: Path) -> RewardModel:
    return rmfast.load(folder, tokens_per_pack=512)


@pytest.fixture(scope="package")
def other(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return rmfast.load(save_reward_model(tmp_path_factory.mktemp("served") / "two", "qwen3", seed=5))
