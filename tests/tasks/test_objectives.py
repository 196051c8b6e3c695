"""The paper's values where a config has none of its own."""

from typing import Any

import pytest

from rmfast.config import Config
from rmfast.tasks.objectives import contrastive_objective, dropout, prototypes, training_data


def config(objective: dict[str, Any], **model: Any) -> Config:
    data = {"train": "t", "tokens_per_pack": 4096}
    return Config.model_validate({"model": {"path": "m"} | model, "data": data, "objective": objective})


@pytest.mark.parametrize(
    ("kind", "on", "beta", "temperature", "count"),
    [
        ("simcse", "pair", 1.0, 0.05, None),
        ("simcse", "difference", 1.0, 0.05, None),
        ("swav", "pair", 0.1, 0.1, 50),
        ("swav", "difference", 0.5, 0.1, 20),
    ],
)
def test_presets(kind: str, on: str, beta: float, temperature: float, count: int | None) -> None:
    preset = config({"contrastive": kind, "on": on})
    term = contrastive_objective(preset)
    assert term is not None
    assert (term.kind, term.on, term.beta, term.temperature) == (kind, on, beta, temperature)
    assert (term.epsilon, term.iterations, term.queue, term.freeze) == (0.05, 3, 0, 0)
    assert prototypes(preset) == count and dropout(preset) == 0.05
    assert training_data(preset).tokens_per_pack == 2048


def test_own_values_and_none() -> None:
    own = config({"contrastive": "swav", "beta": 0.0, "temperature": 0.3, "prototypes": 7, "queue": 9}, dropout=0.0)
    term = contrastive_objective(own)
    assert term is not None and (term.beta, term.temperature, term.queue) == (0.0, 0.3, 9)
    assert prototypes(own) == 7 and dropout(own) == 0.0
    plain = config({})
    assert contrastive_objective(plain) is None and prototypes(plain) is None and dropout(plain) == 0.0
    assert training_data(plain).tokens_per_pack == 4096
