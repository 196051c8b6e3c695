"""Runs that train an adapter: the same on one process, DDP and FSDP2, resumed to the bit, and only over their trunk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rmfast.checkpoint.store import list_checkpoints, read_weights
from rmfast.train import main
from tests.runs import Case, arguments, final_weights, launch, read_lines, write_model, write_rows

pytestmark = pytest.mark.usefixtures("no_plots")

SETUPS: dict[str, dict[str, object]] = {
    "all targets": {"model__lora_rank": 3, "data__tokens_per_pack": 64, "objective__lm": 0.5},
    "bf16, dropout, recomputed": {
        "model__dtype": "bfloat16",
        "model__lora_targets": ("q_proj", "v_proj", "gate_proj"),
        "model__lora_dropout": 0.1,
        "model__recompute": "selective",
        "data__tokens_per_pack": 4096,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", 20)
    return folder


def command(folder: Path, run: str, setup: str = "all targets", **more: object) -> list[str]:
    keys: dict[str, object] = {
        "model__path": folder / "model",
        "model__adapter": "lora",
        "data__train": folder / "rows.jsonl",
        "data__cache": folder / "cache",
        "data__pairs_per_step": 6,
        "run__dir": folder / run,
        "run__max_steps": 4,
        "run__tensorboard": False,
        "optim__lr": 5e-3,
        "checkpoint__every": 2,
        "parallel__timeout_minutes": 1,
    }
    return arguments(**(keys | SETUPS[setup] | more))


def results(run: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    return read_lines(run / "metrics.jsonl"), load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_two_ranks_repeat_one_process_and_a_killed_run_goes_on_to_the_bit(folder: Path) -> None:
    modes = ("ddp", "fsdp")
    cases = [
        Case(f"{i}-{m}", command(folder, f"{i}-{m}", s, parallel__data=m)) for i, s in enumerate(SETUPS) for m in modes
    ]
    killed = {m: command(folder, f"killed-{m}", "bf16, dropout, recomputed", parallel__data=m) for m in modes}
    more = [Case(f"{name}-{m}", words, "step:3" * (name == "k")) for m, words in killed.items() for name in ("k", "r")]
    codes = launch(folder / "two", [*cases, *more], ranks=2)
    for i, setup in enumerate(SETUPS):
        assert main(command(folder, f"{i}-1", setup)) == 0
        steps, adapter = results(folder / f"{i}-1")
        for mode in modes:
            assert codes[f"{i}-{mode}"] == [0, 0], (folder / "two" / f"{i}-{mode}-0.log").read_text()
            theirs, weights = results(folder / f"{i}-{mode}")
            assert weights.keys() == adapter.keys() and len(theirs) == len(steps) == 4
            if setup == "all targets":  # under the other, ranks draw other masks
                assert [line["loss"] for line in theirs] == pytest.approx([line["loss"] for line in steps], rel=1e-5)
                for key, weight in adapter.items():
                    assert (weights[key] - weight).abs().max() <= 1e-5 * weight.abs().max(), (mode, key)
    for mode in modes:
        assert -9 in codes[f"k-{mode}"] and codes[f"r-{mode}"] == [0, 0]
        steps, weights = results(folder / f"1-{mode}")
        again, resumed = results(folder / f"killed-{mode}")
        assert [line["loss"] for line in again] == [line["loss"] for line in steps]
        assert all(torch.equal(weight, weights[key]) for key, weight in resumed.items())


def test_a_resumed_run_is_the_uninterrupted_one(folder: Path) -> None:
    assert main(command(folder, "whole", model__lora_dropout=0.2)) == 0
    codes = launch(folder / "one", [Case("k", command(folder, "parts", model__lora_dropout=0.2), "step:4")])
    assert codes["k"] == [-9]
    assert main(command(folder, "parts", model__lora_dropout=0.2)) == 0
    (steps, weights), (again, resumed) = (results(folder / name) for name in ("whole", "parts"))
    assert [line["loss"] for line in again] == [line["loss"] for line in steps]
    assert all(torch.equal(weight, weights[key]) for key, weight in resumed.items())
    assert all(torch.equal(w, final_weights(folder / "whole")[k]) for k, w in final_weights(folder / "parts").items())


def test_a_checkpoint_holds_what_is_trained_and_knows_its_trunk(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model")
    assert main(command(folder, str(tmp_path / "run"), model__path=model)) == 0
    first = capsys.readouterr().out
    names = set(read_weights(list_checkpoints(tmp_path / "run" / "checkpoints")[-1]))
    assert {name for name in names if ".adapters.default." not in name} == {"head.weight"}
    before = load_file(model / "model.safetensors")
    after = final_weights(tmp_path / "run")
    changed = {key for key in after if key in before and not torch.equal(after[key], before[key])}
    assert changed == {key for key in before if "_proj" in key}
    assert "3,104 of 283,840 weights are trained" in first
    write_model(tmp_path / "other", seed=1)
    (tmp_path / "model" / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    assert main(command(folder, str(tmp_path / "run"), model__path=model, run__max_steps=5)) == 2
    assert (
        "model.path: its weights are not those that the checkpoint's adapter was trained on" in capsys.readouterr().err
    )
    again = command(folder, str(tmp_path / "run"), model__path=model, model__lora_rank=4)
    assert main(again) == 2
    assert "began with model.lora_rank 3, now it is 4" in capsys.readouterr().err
