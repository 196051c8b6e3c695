"""Tiny reward models on disk, each written once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.tiny import save_hf_model

Saved = Callable[..., tuple[PreTrainedModel, Path]]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """(name of a config, **changes to it) -> the transformers model without gradients, and its folder."""
    made: dict[str, tuple[PreTrainedModel, Path]] = {}

    def get(name: str, **changes: object) -> tuple[PreTrainedModel, Path]:
        key = repr((name, sorted(changes.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(name)
            made[key] = save_hf_model(name, folder, seed=len(made), **changes), folder
        made[key][0].zero_grad()
        return made[key]

    return get
