"""benchmarks/packed_baseline.py: packs of whole sequences score as the sequences alone, by an engine that was tried."""

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("packed_baseline")


def attend_apart(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float) -> Tensor:
    """What torch's FlashAttention with cumulative lengths computes, in fp32."""
    lengths = starts.diff().tolist()
    assert starts.dtype == torch.int32 and max(lengths) == longest
    attend = torch.nn.functional.scaled_dot_product_attention
    parts = zip(*(x.transpose(0, 1).float().split(lengths, 1) for x in (q, k, v)), strict=True)
    outs = [attend(*part, is_causal=True, scale=scale, enable_gqa=True) for part in parts]
    return torch.cat(outs, 1).transpose(0, 1).to(q.dtype)


def test_packs_through_flash_attention_score_as_the_sequences_alone(
    packed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    shape = LlamaConfig(**sizes, num_key_value_heads=2, num_hidden_layers=2, num_labels=1, initializer_range=0.5)
    AutoModelForSequenceClassification.from_config(shape).save_pretrained(tmp_path)
    sequences = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [1]]
    pack = packed.build_pack(sequences, torch.zeros(2), pin=False)
    kinds: list[torch.dtype] = []
    monkeypatch.setattr(packed, "varlen", lambda q, *more: (kinds.append(q.dtype), attend_apart(q, *more))[1])
    flash = packed.load_model(str(tmp_path), packed.VARLEN)
    found = packed.scores_of(flash, pack, packed.VARLEN)
    assert len(kinds) == 2  # once a layer
    plain = packed.load_model(str(tmp_path), "sdpa")
    alone = [packed.scores_of(plain, packed.build_pack([s], torch.zeros(0), pin=False), "sdpa") for s in sequences]
    torch.testing.assert_close(found, torch.cat(alone))
    torch.testing.assert_close(packed.scores_of(plain, pack, "sdpa"), torch.cat(alone))
    with torch.autocast("cpu", torch.bfloat16):
        packed.scores_of(flash, pack, packed.VARLEN)
    assert kinds[-1] == torch.bfloat16


def test_the_engine_of_packs_is_tried_out_first(packed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert not packed.varlen_works(4, 2, 16, cpu)  # this build has no such kernel for a CPU
    monkeypatch.setattr(packed, "varlen", attend_apart)
    assert packed.varlen_works(4, 2, 16, cpu)
    monkeypatch.setattr(packed, "varlen", lambda *given: attend_apart(*given[:-1], scale=1.3 * given[-1]))
    assert not packed.varlen_works(4, 2, 16, cpu)
    config = SimpleNamespace(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    monkeypatch.setattr(packed.importlib.util, "find_spec", lambda name: None)
    for works, engine in ((True, packed.VARLEN), (False, "flex_attention")):
        asked: list[Any] = []
        monkeypatch.setattr(packed, "varlen_works", lambda *shape, works=works, to=asked: (to.append(shape), works)[1])
        assert packed.engine_for(config, torch.device("cuda")) == engine and engine in packed.ENGINES
        assert asked == [(4, 2, 16, torch.device("cuda"))]
