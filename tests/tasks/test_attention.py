"""Which engine attends: what the config says, or the faster one on rank 0, or what a resumed run began with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmfast.config import Config
from rmfast.data.plan import StepPlan
from rmfast.errors import UserError
from rmfast.models.config import decoder_config
from rmfast.models.hf import load_network
from rmfast.parallel.world import World
from rmfast.tasks import attention
from rmfast.tasks.attention import choose_attention
from tests.tiny import group_of, hf_config, pack_of, save_hf_model, table_of


def config(**changes: dict[str, Any]) -> Config:
    sections: dict[str, dict[str, Any]] = {"model": {"path": "m"}, "data": {"train": "t", "tokens_per_pack": 40}}
    for name, keys in changes.items():
        sections[name] = sections.get(name, {}) | keys
    return Config.model_validate(sections)


def choose(config: Config, family: str = "llama", saved: str | None = None) -> str:
    g = np.random.default_rng(0)
    table = table_of([group_of(g, n, [4, 2], [(0, 1)]) for n in (3, 9, 20, 5)])
    plan = StepPlan([len(table)], (1.0,), groups_per_step=4, seed=0)
    return choose_attention(config, decoder_config(hf_config(family)), table, plan, World(), saved)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """As on a GPU where flash attention is faster; what was tried."""
    calls: list[tuple[Any, ...]] = []

    def faster(*arguments: Any) -> str:
        calls.append(arguments)
        return "flash"

    monkeypatch.setattr(attention.flash, "refusal", lambda device, dtype, head_dim: None)
    monkeypatch.setattr(attention, "faster_engine", faster)
    return calls


def test_the_faster_one_on_the_fullest_pack_of_the_first_step(tried: list[tuple[Any, ...]]) -> None:
    assert choose(config(model={"dtype": "bf16"})) == "flash"
    [(layout, heads, kv_heads, head_dim, dtype, _)] = tried
    assert (heads, kv_heads, head_dim, dtype) == (4, 2, 8, torch.bfloat16)
    assert layout.shape == (4, 35)  # the other pack holds 26 tokens


def test_what_is_not_tried(tried: list[tuple[Any, ...]]) -> None:
    assert choose(config(model={"attention": "flash"})) == "flash"
    assert choose(config(model={"attention": "kernel", "kernels": "triton"})) == "triton"
    assert choose(config(model={"kernels": "reference"})) == "reference"
    assert choose(config(parallel={"cuda_graphs": True})) == "auto"
    assert choose(config(), "mistral-window") == "auto"
    assert choose(config(), saved="triton") == "triton"
    assert not tried


def test_refused_where_it_cannot_be_had() -> None:
    assert choose(config()) == "auto"
    with pytest.raises(UserError, match="model.attention: flash is not possible: it needs fp16 or bf16"):
        choose(config(model={"attention": "flash"}))
    with pytest.raises(UserError, match="it needs CUDA tensors, got cpu"):
        choose(config(model={"attention": "flash", "dtype": "bf16"}))


@pytest.mark.parametrize(("family", "flash"), [("llama", 2), ("qwen2-windows", 1), ("qwen3", 2)])
def test_where_the_decoder_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, flash: int) -> None:
    """In layers without a window over whole packs; the last layer computes scored rows only."""
    save_hf_model(family, tmp_path / "model")
    network, _ = load_network(tmp_path / "model")
    seen: list[str] = []

    def attend(q: Tensor, *_: Tensor, rows: Tensor | None = None, window: int | None, impl: str) -> Tensor:
        seen.append(impl)
        assert impl != "flash" or (rows is None and window is None)
        return q

    monkeypatch.setattr("rmfast.models.decoder.prefix_attention", attend)
    network.decoder.attend_with("flash")
    g = np.random.default_rng(0)
    network(pack_of([group_of(g, 9, [8, 7], [(0, 1)])]))
    assert seen.count("flash") == flash and len(seen) == 3
