"""Real runs on real preferences, all layers trained, by the public commands; and the paper's experiments likewise.

They time nothing that is reported, so they run side by side.
"""

import json
import math
import shutil
import tarfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.data import Ready, prepare
from benchmarks.gpu.parts import Call, Part, Settings
from benchmarks.gpu.results import replaced

SEEDS = (0, 1, 2)
KEPT = "kept.tar.gz"  # what the experiments have done so far, small: rows and strengths
PACK_EVERY = 20.0  # seconds
CURVE = 200  # points of a loss curve that are kept
RECIPE = {"model.dtype": "bfloat16", "optim.lr": 2e-5, "data.tokens_per_pack": 16384, "eval.at_start": "false"}
TINY = {"run.max_steps": 4, "data.pairs_per_step": 8, "data.tokens_per_pack": 1024, "optim.lr": 1e-3, "run.threads": 1,
        "eval.at_start": "false"}  # fmt: skip
BASELINES = {"hh": 0.615, "alpaca": 0.67}
"""Test accuracy of tf-idf bigrams of the difference of the answers with a logistic regression on the same rows."""
_lock = threading.Lock()


def train(call: Call, name: str, data: Ready, pairs: Path, held_out: Path, seed: int, **keys: Any) -> Path:
    """The public training command; the run's folder. A run that was cut off goes on, one that is done stays."""
    run = call.folder("real") / name
    note = run / "trained"
    if note.is_file():
        return run
    tiny = call.settings.tiny
    own = {
        "run.dir": run, "run.seed": seed, "run.tensorboard": "false", "model.path": data.model, "data.train": pairs,
        "data.eval": held_out,
    }  # fmt: skip
    every = {
        "data.max_length": 512 if tiny else 1024,
        "checkpoint.every": 200,
        "checkpoint.keep": 1,
        "eval.every": 1000,
    }
    words = [
        word for key, value in (every | own | keys | (TINY if tiny else RECIPE)).items() for word in (f"--{key}", value)
    ]
    call.python("rmfast.train", "configs/smollm2_hh.yaml", *words)
    for folder in run.rglob("checkpoints"):  # large, and not needed once the model is there
        shutil.rmtree(folder)
    note.touch()
    return run


def evaluate(call: Call, models: list[Path], suite: str, data: Path) -> dict[str, Any]:
    """The public evaluation command; its figures without the rows."""
    out = models[0] / f"{suite}-{data.stem}.json"
    call.python("rmfast.cli", "eval", *models, "--suite", suite, "--data", data, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    figures = {key: value for key, value in result.items() if isinstance(value, int | float) or key == "baseline"}
    cells = [cell for cell in result["cells"] if len(cell["path"]) <= 1]
    kept = ("headline", "not_scored_by_cause")
    return {key: result[key] for key in kept} | {"figures": figures, "cells": cells}


def metrics_of(run: Path) -> dict[str, Any]:
    """The run's loss curve and speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line and "step_seconds" in line]
    every = math.ceil(len(steps) / CURVE)
    last = steps[-1]
    names = ("tokens_per_second", "pairs_per_second", "mfu", "padding_share", "prefix_saved_share", "memory_gib")
    return {"steps": len(steps), "loss": [line["loss"] for line in steps[::every]], "every": every,
            "last": {name: last[name] for name in names if name in last}}  # fmt: skip


def reward(which: str, seed: int, call: Call) -> dict[str, Any]:
    """A reward model of HH or AlpacaEval rows, on the test rows of both and on RMB."""
    data = prepare(call)
    pairs, held_out = (data.hh_train, data.hh_test) if which == "hh" else (data.alpaca_train, data.alpaca_test)
    keys = {"run.epochs": 2, "data.pairs_per_step": 32} if which == "hh" else {"data.pairs_per_step": 64}
    run = train(call, f"{which}-{seed}", data, pairs, held_out, seed, **keys)
    tests = {"hh": ("pairwise", data.hh_test), "alpaca": ("pairwise", data.alpaca_test)}
    if call.settings.tiny:
        tests = {which: tests[which]}
    if data.rmb is not None:
        tests["rmb"] = ("rmb", data.rmb)
    return {"trained_on": which, "seed": seed, "baseline": BASELINES[which]} | metrics_of(run) | {
        "tests": {name: evaluate(call, [run], *where) for name, where in tests.items()}
    }  # fmt: skip


def ensemble(call: Call) -> dict[str, Any]:
    """Ten members, out of sample: the strengths of HH's pairs, and what the members are worth together."""
    data = prepare(call)
    keys = {"task": "ensemble", "ensemble.members": 10, "ensemble.folds": 5, "run.epochs": 2,
            "data.pairs_per_step": 32}  # fmt: skip
    run = train(call, "ensemble", data, data.hh_train, data.hh_test, 0, **keys)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    mean = sorted(float(row["strength_mean"]) for row in rows if isinstance(row.get("strength_mean"), int | float))
    deciles = [mean[min(i * len(mean) // 10, len(mean) - 1)] for i in range(11)]
    return {"summary": summary, "pairs": len(mean), "negative": sum(x < 0 for x in mean) / len(mean),
            "deciles": deciles}  # fmt: skip


def moving(seed: int, call: Call) -> dict[str, Any]:
    """benchmarks/paper/moving.py with all layers trained: members and strengths, presets on clean and noisy labels,
    single deciles, contrastive terms, MetaRM. What it has done is kept with the results and goes on from there."""
    data = prepare(call)
    unpack(call)
    keep = call.folder("moving") / f"seed-{seed}"
    out = keep / "result.json"
    sizes = ["--limit", 72, "--prompts", 4, "--lr", 0.01, "--layers", 0, "--experiments", "contrastive"]
    if not call.settings.tiny:
        sizes = ["--limit", 2299, "--prompts", 60, "--lr", 2e-5, "--layers", 0, "--tokens", 512,
                 "--noises", 0.1, 0.3, "--sizes", 1, 3, 10]  # fmt: skip
    over = threading.Event()
    keeper = threading.Thread(target=pack_often, args=(call, over))
    keeper.start()
    try:
        call.python("benchmarks.paper.moving", "--model", data.model, "--data", data.hh_train, "--other",
                    data.alpaca_test, "--samples", data.alpaca_train, "--seeds", seed, *sizes, "--keep", keep,
                    "--json", out)  # fmt: skip
    finally:
        over.set()
        keeper.join()
        pack(call)
    return json.loads(out.read_text(encoding="utf-8"))


def pack_often(call: Call, over: threading.Event) -> None:
    """Pack while the experiments run, so that a harness that is killed loses little."""
    while not over.wait(PACK_EVERY):
        pack(call)


def whole(path: Path) -> bool:
    """Whether a file is written to its end: not while an experiment still writes it."""
    try:
        json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else np.load(path)
    except (ValueError, EOFError):
        return False
    return True


def pack(call: Call) -> None:
    """Put what the experiments have done into the folder of results, where anything is new."""
    folder = call.folder("moving")
    with _lock:
        found = sorted([*folder.glob("seed-*/*-*.json"), *folder.glob("seed-*/strengths-*.npy")])
        names = [str(path.relative_to(folder)) for path in found if whole(path)]
        kept = call.settings.out / KEPT
        if kept.is_file():
            with tarfile.open(kept) as archive:
                if archive.getnames() == names:
                    return
        with replaced(kept) as partial, tarfile.open(partial, "w:gz") as archive:
            for name in names:
                archive.add(folder / name, name)


def unpack(call: Call) -> None:
    """Take it from there, on a machine that has nothing of it."""
    kept, folder = call.settings.out / KEPT, call.folder("moving")
    with _lock:
        if kept.is_file() and not any(folder.iterdir()):
            with tarfile.open(kept) as archive:
                archive.extractall(folder, filter="data")


def parts(settings: Settings) -> list[Part]:
    """Reward models by data and seed, the ensemble, the experiments by seed."""
    needs = ("cuda", "training", "model", "data")
    if settings.tiny:
        return [Part("real", "hh seed 0", 60.0, partial(reward, "hh", 0), shared=True),
                Part("real", "moving seed 0", 60.0, partial(moving, 0), shared=True)]  # fmt: skip
    return [
        *(Part("real", f"hh seed {s}", 110.0, partial(reward, "hh", s), True, needs) for s in SEEDS),
        *(Part("real", f"alpaca seed {s}", 240.0, partial(reward, "alpaca", s), True, needs) for s in SEEDS),
        Part("real", "ensemble", 300.0, ensemble, True, needs, keeps=True),
        *(Part("real", f"moving seed {s}", 420.0, partial(moving, s), True, needs, keeps=True) for s in SEEDS),
    ]


def paper(stage: dict[str, Any]) -> dict[str, Any] | None:
    """The experiments of all seeds as one result of benchmarks/paper/moving.py; None where none is done."""
    found = [record["result"] for name, record in stage["parts"].items()
             if name.startswith("moving") and record["status"] == "done"]  # fmt: skip
    if not found:
        return None
    out = found[0] | {"seeds": [seed for result in found for seed in result["seeds"]]}
    for name in [name for name, value in out.items() if isinstance(value, list) and name != "seeds"]:
        out[name] = [row for result in found for row in result[name]]
    return out


def lines(records: dict[str, dict[str, Any]]) -> list[str]:
    """Test accuracies with their intervals, and the ensemble's strengths."""
    out = []
    for name, record in records.items():
        result = record.get("result", {})
        for test, found in result.get("tests", {}).items():
            f = found["figures"]
            if test == "rmb":
                shown = ", ".join(f"{key} {value:.3f}" for key, value in found["headline"].items())
            else:
                shown = (f"{f['accuracy']:.3f} [{f['accuracy_low']:.3f}, {f['accuracy_high']:.3f}]; {f['baseline']} "
                         f"{f['baseline_accuracy']:.3f}")  # fmt: skip
            out.append(f"  {name:<18} on {test:<8}{shown}")
        if "negative" in result:
            out.append(f"  {name:<18} {result['pairs']} strengths, {result['negative']:.1%} below 0")
    return out
