"""DDP and FSDP2 on 2 and 3 gloo ranks, as torchrun starts them, take the steps that one process takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rmfast.train import main
from tests.runs import Case, arguments, final_weights, launch, read_lines, write_model, write_rows

SETUPS: dict[str, dict[str, object]] = {
    # Fewer packs than ranks: all but one run a pack without work.
    "one pair a step": {"data__pairs_per_step": 1},
    "several packs, LM loss, untied head": {"data__tokens_per_pack": 64, "objective__lm": 0.5, "model__dropout": 0.0},
    "frozen layer, two heads": {"model__top_layers": 1, "model__heads": 2, "objective__center": 0.01},
    "contrast of pairs, several packs": {
        "objective__contrastive": "simcse",
        "objective__temperature": 0.5,
        "model__dropout": 0.0,
        "data__tokens_per_pack": 120,
    },
    "contrast of differences, prototypes and a queue": {
        "objective__contrastive": "swav",
        "objective__on": "difference",
        "objective__views": "response",
        "objective__queue": 30,
        "objective__prototypes": 8,
        "model__dropout": 0.0,
        "data__tokens_per_pack": 80,
    },
    # FSDP2 gives the single row of the head to the first rank: the others train nothing.
    "head only": {"model__top_layers": 0, "optim__weight_decay": 0.1},
}

KILLED = ("several packs, LM loss, untied head", "contrast of differences, prototypes and a queue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", 20)
    return folder


def command(folder: Path, name: str, run: str, **more: object) -> list[str]:
    keys: dict[str, object] = {
        "model__path": folder / "model",
        "data__train": folder / "rows.jsonl",
        "data__cache": folder / "cache",
        "data__pairs_per_step": 6,
        "run__dir": folder / run,
        "run__max_steps": 6,
        "run__tensorboard": False,
        "optim__lr": 1e-3,
        "parallel__timeout_minutes": 1,
    }
    return arguments(**(keys | SETUPS[name] | more))


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, tuple[list[dict[str, Any]], dict[str, Tensor]]]:
    """Steps and final weights of each setup in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
        for name in SETUPS:
            assert main(command(folder, name, f"{name}-1")) == 0
    return {name: results(folder / f"{name}-1") for name in SETUPS}


def results(run: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    return read_lines(run / "metrics.jsonl"), final_weights(run)


@pytest.mark.slow
def test_three_ranks_repeat_one_process(
    folder: Path, alone: dict[str, tuple[list[dict[str, Any]], dict[str, Tensor]]]
) -> None:
    ranks = 3
    cases = [
        Case(f"{name}-{mode}-{ranks}", command(folder, name, f"{name}-{mode}-{ranks}", parallel__data=mode))
        for mode in ("ddp", "fsdp")
        for name in SETUPS
    ]
    # The same once more, killed and resumed. Two addends commute, so it takes three ranks to see that the order of
    # sums is the same in the first step after a resume and in a later one.
    killed = KILLED
    more = []
    for i, name in enumerate(killed):
        again = [*command(folder, name, f"killed-{i}"), *arguments(checkpoint__every=2)]
        more += [Case(f"killed-{i}", again, "step:4"), Case(f"resumed-{i}", again)]
    codes = launch(folder / f"launch-{ranks}", [*cases, *more], ranks=ranks)
    for i, name in enumerate(killed):
        assert -9 in codes[f"killed-{i}"] and codes[f"resumed-{i}"] == [0] * ranks
        assert "resumed from step 2" in (folder / f"launch-{ranks}" / f"resumed-{i}-0.log").read_text()
        uninterrupted = results(folder / f"{name}-ddp-{ranks}")
        steps, weights = results(folder / f"killed-{i}")
        for key in ("step", "loss", "grad_norm", "margin"):
            assert [line[key] for line in steps] == [line[key] for line in uninterrupted[0]]
        assert all(torch.equal(weight, uninterrupted[1][name]) for name, weight in weights.items())
    for case in cases:
        log = (folder / f"launch-{ranks}" / f"{case.name}-0.log").read_text()
        assert codes[case.name] == [0] * ranks, log
        assert f"{ranks} x cpu" in log
        (expected, expected_weights), (steps, weights) = alone[case.name.split("-")[0]], results(folder / case.name)
        assert len(steps) == len(expected) == 6
        for one, many in zip(expected, steps, strict=True):
            for key in ("loss", "grad_norm"):
                assert many[key] == pytest.approx(one[key], rel=1e-5), (case.name, key, one["step"])
            # Sums of many signed terms: rounding is measured against the terms' size.
            for key in ("mean_reward", "min_reward", "max_reward", "margin"):
                assert many[key] == pytest.approx(one[key], rel=1e-5, abs=1e-5), (case.name, key, one["step"])
            for key in ("accuracy", "num_tokens", "pairs", "learning_rate"):
                assert many[key] == one[key]
        assert weights.keys() == expected_weights.keys()
        for name, weight in weights.items():
            scale = expected_weights[name].abs().max()
            assert (weight - expected_weights[name]).abs().max() <= 1e-5 * scale, (case.name, name)
    idle = read_lines(folder / f"one pair a step-ddp-{ranks}" / "metrics.jsonl")[0]
    assert idle["padding_share"] == pytest.approx((ranks - 1) / (ranks - 1 + idle["num_computed_tokens"]))


def test_the_setups_train_what_they_say(
    folder: Path, alone: dict[str, tuple[list[dict[str, Any]], dict[str, Tensor]]]
) -> None:
    before = final_weights_of_base(folder)
    for name, expected in (
        ("one pair a step", {"model.embed_tokens.weight", "model.layers.0.", "model.layers.1.", "model.norm.weight"}),
        ("frozen layer, two heads", {"model.layers.1.", "model.norm.weight"}),
        ("head only", set()),
    ):
        after = alone[name][1]
        changed = {key for key, weight in before.items() if not torch.equal(weight, after[key])}
        assert changed == {key for key in before if any(key.startswith(start) for start in expected)}, name
    assert alone["frozen layer, two heads"][1]["score.weight"].shape == (2, 32)


def final_weights_of_base(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {k: v for k, v in load_file(folder / "model" / "model.safetensors").items() if k != "lm_head.weight"}
