"""Section sft: what a resolved config repeats, and every key that task sft does not use as its line."""

from pathlib import Path

import pytest
import yaml

from rmfast.config import load_config
from rmfast.config.unused import UNUSED
from rmfast.errors import UserError

BASE = {"task": "sft", "model": {"path": "model"}, "data": {"train": "rows.jsonl"}}


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return str(path)


def test_turns(base: str) -> None:
    assert load_config([base]).sft.turns == "all"
    assert load_config([base, "--sft.turns", "last"]).dump()["sft"] == {"turns": "last"}
    with pytest.raises(UserError, match=r"command line: sft\.turns: input should be 'all' or 'last', got 'first'"):
        load_config([base, "--sft.turns", "first"])


def test_the_shipped_config() -> None:
    config = load_config([str(Path(__file__).parents[1] / "configs" / "sft_hh.yaml")])
    assert config.task == "sft" and config.data.eval


LINES = {
    "objective.lm": ("0.1", "objective.lm is for reward models, and task sft trains none"),
    "objective.contrastive": ("simcse", "objective.contrastive is for reward models, and task sft trains none"),
    "denoise.flip": ("0.1", "denoise.flip is for preferences, and task sft has none"),
    "data.denoise": ("flip", "data.denoise is for preferences, and task sft has none"),
    "model.heads": ("2", "model.heads counts reward heads, and a language model has none"),
    "model.top_layers": ("0", "model.top_layers 0 trains the reward head alone, and task sft has none"),
    "eval.suites": ("rmb=x", "eval.suites are for reward models: task sft is evaluated on data.eval"),
}


@pytest.mark.parametrize("key", LINES)
def test_keys_that_would_do_nothing_are_refused_by_name(base: str, key: str) -> None:
    value, line = LINES[key]
    with pytest.raises(UserError) as caught:
        load_config([base, f"--{key}", value])
    assert str(caught.value) == f"command line: {line}"


def test_no_key_is_unused_twice() -> None:
    assert UNUSED["sft"].keys() < UNUSED["ppo"].keys() | {"data.denoise"}
