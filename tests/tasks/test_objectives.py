"""The paper's values where a config has none of its own."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rmfast.config import Config, DataConfig
from rmfast.errors import UserError
from rmfast.parallel.world import World
from rmfast.tasks.build.objective import contrastive_objective, dropout, prototypes, training_views
from rmfast.tasks.build.tables import make_table
from tests.tiny import Group, group_of, store_of


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
    assert training_views(preset) == "pass"
    assert training_views(config({"contrastive": kind, "views": "response"})) == "response"


def test_own_values_and_none() -> None:
    own = config({"contrastive": "swav", "beta": 0.0, "temperature": 0.3, "prototypes": 7, "queue": 9}, dropout=0.0)
    term = contrastive_objective(own)
    assert term is not None and (term.beta, term.temperature, term.queue) == (0.0, 0.3, 9)
    assert prototypes(own) == 7 and dropout(own) == 0.0
    plain = config({})
    assert contrastive_objective(plain) is None and prototypes(plain) is None and dropout(plain) == 0.0
    assert training_views(plain) is None


def usable(data: DataConfig, views: Any, *groups: Group) -> int:
    """Groups that a run would train on."""
    store = store_of(groups)
    store = replace(store, meta=store.meta | {"max_id": 95, "split": ""})
    return len(make_table([store], data, 96, "train", World(), views=views))


def test_a_pack_holds_two_views(capsys: pytest.CaptureFixture[str]) -> None:
    g = np.random.default_rng(0)
    small, large = group_of(g, 20, [4, 6], [(0, 1)]), group_of(g, 24, [5, 3], [(0, 1)])  # 30 and 32 tokens
    # Both views of `large` take 64 tokens, or 40 where the prompt lies there once.
    for views, tokens, kept in (
        (None, 32, 2), (None, 31, 1), ("pass", 64, 2), ("pass", 63, 1), ("response", 40, 2), ("response", 39, 0)
    ):  # fmt: skip
        data = DataConfig.model_validate({"train": "t", "tokens_per_pack": tokens, "max_length": 30})
        if not kept:
            with pytest.raises(
                UserError, match="no usable row .* 2 of those left out .* data.tokens_per_pack 40 holds"
            ):
                usable(data, views, small, large)
            continue
        assert usable(data, views, small, large) == kept
        said = capsys.readouterr().out
        assert ("1 longer than a pack" in said) == (kept == 1)
        explained = "1 of those left out do not fit into a pack in the two views of objective.contrastive"
        assert (explained in said) == (kept == 1 and views is not None)
        if explained in said:
            assert f"(objective.views {views}): data.tokens_per_pack 64 holds all, it is 63" in said


def test_rows_over_a_length_that_gave_way_to_the_views_are_explained_too(capsys: pytest.CaptureFixture[str]) -> None:
    g = np.random.default_rng(0)
    small, large = group_of(g, 20, [4, 6], [(0, 1)]), group_of(g, 40, [5, 3], [(0, 1)])
    sections = {"model": {"path": "m"}, "data": {"train": "t", "tokens_per_pack": 64}}
    for objective, kept in (({}, 2), ({"contrastive": "simcse"}, 1)):
        own = Config.model_validate(sections | {"objective": objective})
        assert usable(own.data, training_views(own), small, large) == kept
        said = capsys.readouterr().out
        assert ("1 over-long" in said and "data.tokens_per_pack 96 holds all, it is 64" in said) == (kept == 1)
    # Nothing is said of rows that are too long by themselves.
    data = DataConfig.model_validate({"train": "t", "tokens_per_pack": 96, "max_length": 30})
    assert usable(data, "pass", small, large) == 1
    said = capsys.readouterr().out
    assert "1 over-long" in said and "views" not in said
    data = DataConfig.model_validate({"train": "t", "tokens_per_pack": 64, "max_length": 64, "over_long": "error"})
    with pytest.raises(UserError, match=r"tokens_per_pack 64 \(with the two views .* it takes 96 tokens\)"):
        usable(data, "pass", small, large)
