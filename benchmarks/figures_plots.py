"""The plots of benchmarks/figures.py: bars of ratios and memory, loss curves, the roofline, accuracies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.figures_raw import Result, load
from benchmarks.gpu.stages.kernels import joined
from benchmarks.gpu.stages.real import paper
from benchmarks.gpu.stages.steps import NAMES
from benchmarks.kernels import plots as kernel_plots
from benchmarks.paper import moving_plots

COLOURS = {
    "trl": "#8c8c8c", "trl-no-checkpointing": "#5b8db8", "trl-tuned": "#588157", "trl-liger": "#7b5ea7",
    "hf-packed": "#e0a458", "rmfast-graphs": "#8d1c06", "rmfast": "#c8553d",
}  # fmt: skip
FILES = {  # of the comparison on a CPU: what each file is of
    "vs_trl_cpu_shape.json": "SmolLM2's shape, 8 pairs",
    "vs_trl_cpu_shape_2rounds.json": "the same, two rounds",
    "vs_trl_cpu_smollm2.json": "SmolLM2-135M, 8 pairs",
    "vs_trl_curve_smollm2.json": "SmolLM2-135M, 4 pairs\nof at most 128 tokens",
}


def bars(axes: Any, groups: dict[str, dict[str, float]], form: str, label: str) -> None:
    """A group of bars for each name, one for each mode that it has, the first mode on top."""
    at, places, seen = 0.0, [], set()
    for values in groups.values():
        start = at
        for mode, value in values.items():
            axes.barh(at, value, 0.8, color=COLOURS[mode], label=None if mode in seen else NAMES[mode])
            axes.text(value, at, " " + form.format(value), va="center", size=8)
            seen.add(mode)
            at += 1
        places.append((start + at - 1) / 2)
        at += 0.7
    axes.set_yticks(places, list(groups), fontsize=8)
    axes.set_xlabel(label)
    axes.invert_yaxis()
    axes.margins(x=0.15)


def curves(axes: Any, result: Result, name: str) -> None:
    """Loss by step; rmfast dashed on top, so that the others can be seen under it."""
    for mode, runs in result["rounds"].items():
        losses, ours = runs[0]["loss"], mode == "rmfast"
        axes.plot(
            range(1, len(losses) + 1), losses, color=COLOURS[mode], linewidth=1.4 if ours else 3.2,
            linestyle="--" if ours else "-", alpha=1.0 if ours else 0.55, zorder=3 if ours else 2,
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss")
    worst = max(result["largest_loss_difference"].values(), default=0.0)
    axes.set_title(f"{name}:\nlosses differ by {worst:.0e} at most", fontsize=9)
    axes.grid(color="#e5e5e5", linewidth=0.6)


def side_by_side(results: dict[str, Result], seconds: str, drawn: Sequence[str], title: str, path: Path) -> Path:
    """Time and memory of all modes of some results, and the losses of those that are `drawn`."""
    below = -(-(len(drawn) - 1) // 3)
    height = max(4.2, 0.9 + 0.3 * sum(len(result["summary"]) + 1 for result in results.values()))
    figure, grid = plt.subplots(
        1 + below, 3, figsize=(13, height + 3.2 * below), constrained_layout=True, squeeze=False,
        gridspec_kw={"width_ratios": (1.25, 1, 1.1), "height_ratios": (height, *[3.2] * below)},
    )  # fmt: skip
    ratios = {}
    for name, result in results.items():
        base = result["summary"]["rmfast"][seconds]
        ratios[name] = {mode: row[seconds] / base for mode, row in result["summary"].items()}
    memory = {name: {mode: row["peak_gib"] for mode, row in r["summary"].items()} for name, r in results.items()}
    left, middle, *right = grid.flat
    what = "CPU time" if seconds == "cpu_seconds" else "time"
    bars(left, ratios, "{:.1f} x", f"{what} of a step, rmfast = 1")
    left.set_title(title, fontsize=9)
    bars(middle, memory, "{:.1f}", "peak memory, GiB")
    middle.set_yticks([])
    for axes, name in zip(right, drawn, strict=False):
        curves(axes, results[name], name.replace("\n", " "))
    for axes in right[len(drawn) :]:
        axes.set_visible(False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, frameon=False, ncols=4, loc="outside lower center")
    return save(figure, path)


def save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def beside_trl(results: Path, folder: Path) -> Path:
    """vs_trl_cpu.png: CPU time and memory as each file has them, and the losses of the longest run."""
    found = {label: load(results / name) for name, label in FILES.items()}
    title = "HH-RLHF rows, one CPU thread, fp32"
    return side_by_side(found, "cpu_seconds", list(found)[-1:], title, folder / "vs_trl_cpu.png")


def under_one_roof(whole: Result) -> Result:
    """With every time as it would be under the first part's limits at the same share of them, so that a plot with one
    roof shows each op's share of what its own process measured."""
    limits = whole["limits"]
    rows = []
    for row in whole["results"]:
        least = 1e3 * max(row["bytes"] / limits["bandwidth"], row["flops"] / limits["matmul"])
        rows.append(row | {"milliseconds": least / row["share_of_limit"]})
    return whole | {"results": rows}


def gpu(folder: Path, plots: Path) -> None:
    """What a folder of the harness's results gives: roofline and bars of kernels, steps, real runs."""
    plots.mkdir(parents=True, exist_ok=True)
    if (folder / "kernels.json").is_file():
        whole = joined(load(folder / "kernels.json")["parts"])
        if whole is not None and whole["results"]:
            for name in ("roofline", "ratios"):
                getattr(kernel_plots, name)(under_one_roof(whole), plots / f"kernels_{name}.png")
    if (folder / "steps.json").is_file():
        parts = load(folder / "steps.json")["parts"]
        done = {name: record["result"] for name, record in parts.items() if record["status"] == "done"}
        done = {name: result for name, result in done.items() if "rmfast" in result["summary"]}
        if done:
            first = next(iter(parts.values()))
            title = f"{first['device']}, torch {first['versions']['torch']}"
            side_by_side(done, "wall_seconds", list(done), title, plots / "steps.png")
    if (folder / "real.json").is_file():
        stage = load(folder / "real.json")
        real(stage, plots / "real.png")
        if (found := paper(stage)) is not None:
            moving_plots.draw(found, plots)


def real(stage: Result, path: Path) -> None:
    """Accuracies with their intervals, beside the better of the two rules of length."""
    found = {f"{name} on {test}": found["figures"] for name, record in stage["parts"].items()
             for test, found in record.get("result", {}).get("tests", {}).items()}  # fmt: skip
    if not found:
        return
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.32 * len(found)), constrained_layout=True)
    for place, one in enumerate(found.values()):
        sides = [[one["accuracy"] - one["accuracy_low"]], [one["accuracy_high"] - one["accuracy"]]]
        axes.errorbar(one["accuracy"], place, xerr=sides, fmt="o", color=COLOURS["rmfast"], capsize=3)
        axes.plot(one["baseline_accuracy"], place, "|", color="#222222", markersize=12)
    axes.axvline(0.5, color="#8c8c8c", linewidth=0.8)
    axes.set_yticks(range(len(found)), list(found), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy with its 95 % interval; bar: the better of longer wins and shorter wins")
    save(figure, path)
