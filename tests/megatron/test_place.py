"""The parts of all ranks, cut anywhere, make each weight once; and layouts that do not fit are refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rmfast.errors import UserError
from rmfast.models.config import decoder_config
from rmfast.models.hf import build_network
from rmfast.models.lora import add_adapter
from rmfast.models.low_rank import LoraOptions
from rmfast.parallel.megatron import groups
from rmfast.parallel.megatron.groups import Layout
from rmfast.parallel.megatron.place import place_of
from rmfast.train import main
from tests.runs import arguments, write_model, write_rows
from tests.tiny import hf_config

CONFIG = hf_config("llama-biases", vocab_size=801, num_key_value_heads=4)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("cuts", [1, 3])
def test_parts_make_the_whole(ranks: int, cuts: int) -> None:
    network = build_network(CONFIG, where="", heads=2, lm=True)
    targets = ("k_proj", "v_proj", "o_proj", "gate_proj", "down_proj")  # parts of a joined layer, and whole ones
    add_adapter(network, LoraOptions(rank=3, targets=targets))
    for name, parameter in network.named_parameters():
        shape = tuple(parameter.shape)
        whole = torch.arange(parameter.numel(), dtype=torch.float64).view(shape)
        count, back = torch.zeros(shape), torch.zeros(shape, dtype=torch.float64)
        for rank in range(ranks):
            place = place_of(network.config, name, shape, ranks=ranks, rank=rank, targets=targets)
            size = place.width * max(s.local + s.count for s in place.segments)
            part = torch.full((size,), -1.0, dtype=torch.float64)
            for piece in place.pieces(0, size):
                rows = whole[piece.row : piece.row + piece.size[0]]
                piece.of(part).copy_(rows if piece.columns is None else rows[:, slice(*piece.columns)])
            assert (part >= 0).all(), name
            # As data-parallel ranks hold it: ranges that respect no row.
            edges = np.linspace(0, size, cuts + 1).astype(int).tolist()
            for begin, end in zip(edges, edges[1:], strict=False):
                for piece in place.pieces(begin, end):
                    columns = () if piece.columns is None else (slice(*piece.columns),)
                    box = (slice(piece.row, piece.row + piece.size[0]), *columns)
                    back[box] = piece.of(part[begin:end])
                    count[box] += place.part or rank == 0
        assert torch.equal(back, whole) and (count == 1).all(), name


def test_fused_products_hold_whole_heads_of_each_rank() -> None:
    config = decoder_config(CONFIG)
    rows = (config.heads + 2 * config.kv_heads) * config.head_dim
    place = place_of(config, "decoder.layers.3.qkv.weight", (rows, config.width), ranks=2, rank=1)
    each = config.heads * config.head_dim // 2
    assert [(s.local, s.whole, s.count) for s in place.segments] == [
        (0, each, each),
        (each, 3 * each, each),
        (2 * each, 5 * each, each),
    ]


@pytest.mark.parametrize(
    ("layout", "ranks", "hint"),
    [
        ({"tensor": 2, "pipeline": 2}, 6, "parallel.tensor 2 x parallel.pipeline 2 does not divide the 6 ranks"),
        ({"tensor": 3}, 3, "parallel.tensor 3 does not divide the model's 4 heads"),
        ({"pipeline": 2}, 2, "parallel.pipeline 2 x parallel.virtual 1 does not divide the model's 3 layers"),
        ({"pipeline": 3, "virtual": 2}, 3, "parallel.virtual 2 does not divide the model's 3 layers"),
        ({"pipeline": 2, "split": (2, 2)}, 2, "parallel.pipeline_split: 2 numbers that add up to 4 are not the"),
        ({"pipeline": 2, "split": (3,)}, 2, "parallel.pipeline_split: 1 numbers"),
    ],
)
def test_layouts_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, layout: dict[str, Any], ranks: int, hint: str
) -> None:
    monkeypatch.setattr(groups, "_installed", lambda name: True)
    with pytest.raises(UserError, match=hint):
        Layout(**layout).check(decoder_config(CONFIG), ranks)


def test_more_tensor_ranks_than_key_value_heads_or_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_installed", lambda name: True)
    with pytest.raises(UserError, match="does not divide the model's 2 key-value heads"):
        Layout(tensor=4).check(decoder_config(hf_config("llama")), 4)
    with pytest.raises(UserError, match="leaves a rank none of the 5 tokens"):
        Layout(tensor=4).check(decoder_config(hf_config("llama", vocab_size=5, num_key_value_heads=4)), 4)
    Layout(tensor=2).check(decoder_config(hf_config("gemma2", vocab_size=600)), 2)
    with pytest.raises(UserError, match="normalises the queries of all heads together"):
        Layout(tensor=2).check(decoder_config(hf_config("olmo2", vocab_size=600)), 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refused")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", 8)
    return folder


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ({"parallel__engine": "native", "parallel__tensor": 2}, "belong to parallel.engine megatron"),
        ({"parallel__data": "fsdp"}, "parallel.data fsdp belongs to parallel.engine native"),
        ({"parallel__cuda_graphs": True}, "parallel.cuda_graphs belongs to parallel.engine native"),
        ({"parallel__sequence": True}, "parallel.sequence shares tokens among parallel.tensor ranks"),
        ({"parallel__engine": "native", "parallel__pipeline_split": (1, 1)}, "belongs to parallel.engine megatron"),
        ({"parallel__virtual": 2}, "parallel.virtual divides the layers of parallel.pipeline ranks"),
        ({"task": "ensemble", "ensemble__mode": "heads"}, "megatron runs ensemble.mode full alone"),
    ],
)
def test_keys_that_clash(folder: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, object], hint: str) -> None:
    assert main(run_of(folder, **keys)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert hint in line
    assert not (folder / "run").exists()


def test_a_layout_without_its_package_says_what_to_install(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "_installed", lambda name: name != "psutil")
    assert main(run_of(folder)) == 2
    assert "psutil is not installed: pip install 'rmfast[megatron]'" in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_a_machine_without_a_gpu_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "_installed", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(run_of(folder)) == 2
    assert "parallel.engine megatron needs GPUs" in capsys.readouterr().err
    assert not (folder / "run").exists()


def run_of(folder: Path, **keys: object) -> list[str]:
    base: dict[str, object] = {
        "model__path": folder / "model",
        "data__train": folder / "rows.jsonl",
        "data__cache": folder / "cache",
        "run__dir": folder / "run",
        "run__max_steps": 1,
        "parallel__engine": "megatron",
    }
    return arguments(**(base | keys))
