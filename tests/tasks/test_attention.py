"""What attends over whole packs: what the config says, or one line that says why it cannot."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmfast.config import Config
from rmfast.errors import UserError
from rmfast.kernels.prefix_attention import flash
from rmfast.models.config import decoder_config
from rmfast.models.hf import load_network
from rmfast.tasks.build.choices import attention_impl
from tests.tiny import group_of, hf_config, pack_of, save_hf_model


def config(**changes: dict[str, Any]) -> Config:
    sections: dict[str, dict[str, Any]] = {"model": {"path": "m"}, "data": {"train": "t", "tokens_per_pack": 40}}
    for name, keys in changes.items():
        sections[name] = sections.get(name, {}) | keys
    return Config.model_validate(sections)


def choose(config: Config, family: str = "llama") -> str:
    return attention_impl(config, torch.device("cpu"), decoder_config(hf_config(family)))


def test_what_the_config_says_and_no_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "refusal", lambda device, dtype, head_dim: None)
    assert choose(config(model={"attention": "flash"})) == "flash"
    assert choose(config(model={"kernels": "triton"})) == "triton"
    assert choose(config(model={"kernels": "reference"})) == "reference"
    assert choose(config()) == "auto"


def test_refused_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="model.attention: flash is not possible: it needs fp16 or bf16"):
        choose(config(model={"attention": "flash"}))
    with pytest.raises(UserError, match="it needs CUDA tensors, got cpu"):
        choose(config(model={"attention": "flash", "dtype": "bf16"}))
    monkeypatch.setattr(flash, "refusal", lambda device, dtype, head_dim: None)
    with pytest.raises(UserError, match="every layer has a sliding window"):
        choose(config(model={"attention": "flash"}), "mistral-window")


@pytest.mark.parametrize(("family", "flash"), [("llama", 2), ("qwen2-windows", 1), ("qwen3", 2)])
def test_where_the_decoder_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, flash: int) -> None:
    """In layers without a window over whole packs; the last layer computes scored rows only."""
    save_hf_model(family, tmp_path / "model")
    network, _ = load_network(tmp_path / "model", attention="flash")
    seen: list[str] = []

    def attend(q: Tensor, *_: Tensor, rows: Tensor | None = None, window: int | None, impl: str, **__: None) -> Tensor:
        seen.append(impl)
        assert impl != "flash" or (rows is None and window is None)
        return q

    monkeypatch.setattr("rmfast.models.decoder.prefix_attention", attend)
    g = np.random.default_rng(0)
    network.score(pack_of([group_of(g, 9, [8, 7], [(0, 1)])]))
    assert seen.count("flash") == flash and len(seen) == 3
