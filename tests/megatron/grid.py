"""Layouts and objectives that the megatron engine is compared over, and how a run is compared with another."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.runs import Case, arguments, final_weights, launch, read_lines

WHOLE = os.environ.get("RMFAST_GRID") == "whole"
"""RMFAST_GRID=whole pytest tests/megatron: every layout with every objective, over 20 steps."""
STEPS = 20 if WHOLE else 5

LAYOUTS: dict[str, tuple[int, dict[str, object]]] = {
    "tp2": (2, {"parallel__tensor": 2}),
    "tp2 sp": (2, {"parallel__tensor": 2, "parallel__sequence": True}),
    "pp2": (2, {"parallel__pipeline": 2}),
    "pp2 interleaved": (2, {"parallel__pipeline": 2, "parallel__virtual": 2}),
    "pp2 uneven": (2, {"parallel__pipeline": 2, "parallel__pipeline_split": (3, 1)}),
    "dp2": (2, {}),
    "dp4": (4, {}),
    "tp2 pp2": (4, {"parallel__tensor": 2, "parallel__pipeline": 2}),
    "pp2 dp2": (4, {"parallel__pipeline": 2}),
    "tp2 pp2 sp": (4, {"parallel__tensor": 2, "parallel__pipeline": 2, "parallel__sequence": True}),
    "tp2 dp2": (4, {"parallel__tensor": 2}),
    "tp2 dp2 sp": (4, {"parallel__tensor": 2, "parallel__sequence": True}),
    "pp4": (4, {"parallel__pipeline": 4}),
    "pp2 dp2 interleaved": (4, {"parallel__pipeline": 2, "parallel__virtual": 2}),
}

OBJECTIVES: dict[str, dict[str, object]] = {
    "plain": {"model__path": "odd", "data__eval": "eval.jsonl"},
    "center": {"model__path": "qwen3", "objective__center": 0.01, "optim__weight_decay": 0.1},
    "frozen": {"model__top_layers": 2, "model__heads": 2, "data__tokens_per_pack": 90},
    "top": {"model__top_layers": 1, "objective__center": 0.01, "data__tokens_per_pack": 90},
    "lm": {"model__path": "tied", "objective__lm": 0.5, "data__tokens_per_pack": 64},
    "sft": {"task": "sft", "model__path": "odd", "data__eval": "eval.jsonl", "data__tokens_per_pack": 64},
    "lora": {
        "model__adapter": "lora",
        "model__lora_rank": 4,
        "model__lora_targets": ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
        "data__tokens_per_pack": 90,
    },
    "lora sft": {"task": "sft", "model__path": "tied", "model__adapter": "lora", "data__tokens_per_pack": 64},
    "simcse": {"objective__contrastive": "simcse", "objective__temperature": 0.5, "data__tokens_per_pack": 120},
    "swav": {
        "objective__contrastive": "swav",
        "objective__on": "difference",
        "objective__views": "response",
        "objective__queue": 30,
        "objective__prototypes": 8,
        "objective__lm": 0.1,  # an untied table
        "data__tokens_per_pack": 80,
    },
    "meta": {"task": "meta", "meta__eta": 0.01, "meta__k": 3, "meta__check_every": 2, "data__tokens_per_pack": 100},
    "meta swav": {  # the difference loss leaves the LM head and the prototypes out
        "task": "meta",
        "meta__eta": 0.01,
        "meta__k": 3,
        "objective__contrastive": "swav",
        "objective__prototypes": 8,
        "objective__lm": 0.1,
        "data__tokens_per_pack": 100,
    },
}

COVER = [
    ("tp2", "plain"),
    ("tp2", "center"),
    ("tp2", "swav"),
    ("tp2 sp", "plain"),
    ("tp2 sp", "center"),
    ("tp2 sp", "lm"),
    ("tp2 sp", "frozen"),
    ("tp2 sp", "meta"),
    ("tp2 sp", "lora"),
    ("pp2", "lm"),
    ("pp2", "swav"),
    ("pp2", "top"),
    ("pp2 interleaved", "simcse"),
    ("pp2 interleaved", "lm"),
    ("pp2 interleaved", "meta"),
    ("pp2 interleaved", "top"),
    ("pp2 interleaved", "sft"),
    ("dp2", "center"),
    ("dp2", "meta"),
    ("dp2", "meta swav"),
    ("dp2", "frozen"),
    ("tp2 pp2 sp", "swav"),
    ("tp2 pp2 sp", "lm"),
    ("tp2 pp2", "meta"),
    ("tp2 pp2", "lora sft"),
    ("pp2 dp2", "lm"),
    ("pp2 dp2", "frozen"),
    ("tp2 dp2", "simcse"),
    ("tp2 dp2", "swav"),
]
ALL = [(x, o) for x in LAYOUTS for o in OBJECTIVES]
PAIRS = ALL if WHOLE else COVER


def command(folder: Path, objective: str, run: str, layout: str | None = None, **more: object) -> list[str]:
    """A run of an objective under a layout; None: native."""
    keys: dict[str, object] = {
        "model__path": "llama",
        "model__dropout": 0.0,
        "data__train": "rows.jsonl",
        "data__cache": folder / "cache",
        "data__pairs_per_step": 6,
        "run__dir": folder / run,
        "run__max_steps": STEPS,
        "run__tensorboard": False,
        "optim__lr": 1e-3,
        "optim__schedule": "constant",
        "parallel__timeout_minutes": 2,
    }
    keys |= OBJECTIVES[objective]
    if keys.get("task") == "sft":
        keys["data__max_length"] = keys["data__tokens_per_pack"]
    if keys.get("task") == "meta":
        keys["meta__data"] = folder / "prompts.jsonl"
    if layout is not None:
        keys |= {"parallel__engine": "megatron"} | LAYOUTS[layout][1]
    keys |= more
    for name in {"model__path", "data__eval", "data__train"} & keys.keys():
        keys[name] = folder / str(keys[name])
    return arguments(**keys)


def launch_pairs(folder: Path, ranks: int, more: Sequence[Case]) -> dict[str, list[int]]:
    """Run the pairs of layouts and objectives for a number of ranks, then other cases; see `launch`."""
    pairs = [Case(f"{o} {x}", command(folder, o, f"{o} {x}", x)) for x, o in PAIRS if LAYOUTS[x][0] == ranks]
    every = [*pairs, *more]
    size = 7 if WHOLE else 21  # a launch ends after five minutes, also where others use the machine
    codes = {}
    for start in range(0, len(every), size):
        codes |= launch(folder / f"launch-{ranks}-{start}", every[start : start + size], ranks=ranks)
    return codes


def assert_same_steps(lines: Sequence[dict[str, Any]], truth: Sequence[dict[str, Any]], name: str) -> None:
    """Losses and what is logged beside them agree to rounding."""
    assert [line["step"] for line in lines] == [line["step"] for line in truth], name
    for many, one in zip(lines, truth, strict=True):
        for key in ("loss", "ranking_loss", "contrastive_loss", "lm_loss", "difference_loss", "difference_loss_after"):
            assert (key in many) == (key in one), (name, key)
            if key in one:
                assert many[key] == pytest.approx(one[key], abs=1e-4), (name, key, one["step"])
        assert many["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4), (name, one["step"])
        for key in ("mean_reward", "min_reward", "max_reward", "margin", "entropy"):
            assert (key in many) == (key in one), (name, key)
            if key in one:
                assert many[key] == pytest.approx(one[key], rel=1e-4, abs=1e-4), (name, key, one["step"])
        for key in ("accuracy", "num_tokens", "pairs", "rows", "trained_tokens", "learning_rate"):
            assert many.get(key) == one.get(key), (name, key)


def weights_apart(
    run: Path, truth: Path, read: Callable[[Path], dict[str, Tensor]] = final_weights
) -> dict[str, float]:
    """How far two runs' final weights are apart by norm, relative: over "all" of them together, and each."""
    ours, theirs = read(run), read(truth)
    assert ours.keys() == theirs.keys()
    squares = {
        n: (float((ours[n] - w).double().square().sum()), float(w.double().square().sum())) for n, w in theirs.items()
    }
    squares["all"] = (sum(apart for apart, _ in squares.values()), sum(size for _, size in squares.values()))
    return {name: (apart / size) ** 0.5 if apart else 0.0 for name, (apart, size) in squares.items()}


def assert_same_weights(run: Path, truth: Path) -> None:
    """Within 1e-5 over all weights together, 1e-3 for each of them, relative and by norm."""
    apart = weights_apart(run, truth)
    assert apart.pop("all") <= 1e-5, run.name
    for name, distance in apart.items():
        assert distance <= 1e-3, (run.name, name)


def assert_same_run(run: Path, truth: Path) -> None:
    """Steps, final weights, an adapter, and the evaluations that both made: a run that was gone on with has more."""
    assert_same_steps(read_lines(run / "metrics.jsonl"), read_lines(truth / "metrics.jsonl"), run.name)
    assert_same_weights(run, truth)
    if (truth / "adapter").exists():
        ours, theirs = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (run, truth))
        assert ours.keys() == theirs.keys()
        for name, weight in theirs.items():
            assert float((ours[name] - weight).norm()) <= 1e-3 * max(float(weight.norm()), 1e-3), (run.name, name)
    if (truth / "eval.jsonl").exists():
        found, expected = (read_lines(path / "eval.jsonl") for path in (run, truth))
        steps = {line["step"] for line in expected}
        for ours, theirs in zip([line for line in found if line["step"] in steps], expected, strict=True):
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                close = value if isinstance(value, str | None) else pytest.approx(value, rel=1e-4, abs=1e-4)
                assert ours[key] == close, (run.name, key)


def print_table(folder: Path) -> None:
    """What the runs of a test session differ by from one native process, for each pair: python -m tests.megatron.grid
    FOLDER, after pytest --basetemp; FOLDER is its megatron0."""
    print(
        f"{'layout':16}{'objective':11}{'steps':>6}{'loss':>9}{'norm, rel':>11}{'weights, rel':>14}{'worst weight':>14}"
    )
    for layout, objective in ALL:
        run, truth = folder / f"{objective} {layout}", folder / f"{objective} native"
        if not (run / "model").is_dir():
            continue
        lines = list(zip(read_lines(run / "metrics.jsonl"), read_lines(truth / "metrics.jsonl"), strict=True))
        loss = max(abs(many["loss"] - one["loss"]) for many, one in lines)
        norm = max(abs(many["grad_norm"] / one["grad_norm"] - 1) for many, one in lines)
        apart = weights_apart(run, truth)
        whole = apart.pop("all")
        figures = f"{loss:9.1e}{norm:11.1e}{whole:14.1e}{max(apart.values()):14.1e}"
        print(f"{layout:16}{objective:11}{len(lines):6}{figures}")


if __name__ == "__main__":
    print_table(Path(sys.argv[1]))
