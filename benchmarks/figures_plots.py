"""The plots of benchmarks/figures.py: bars of ratios, loss curves of both sides, memory, the roofline."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.figures_raw import load
from benchmarks.gpu.stages.kernels import joined
from benchmarks.gpu.stages.real import paper
from benchmarks.gpu.stages.steps import NAMES
from benchmarks.kernels import plots as kernel_plots

COLOURS = {
    "trl": "#8c8c8c", "trl-no-checkpointing": "#5b8db8", "trl-tuned": "#588157", "trl-liger": "#7b5ea7",
    "hf-packed": "#e0a458", "rmfast": "#c8553d",
}  # fmt: skip
FILES = {  # of the comparison on a CPU: what each file is of
    "vs_trl_cpu_shape.json": "SmolLM2's shape, 8 pairs",
    "vs_trl_cpu_shape_2rounds.json": "the same, two rounds",
    "vs_trl_cpu_smollm2.json": "SmolLM2-135M, 8 pairs",
    "vs_trl_curve_smollm2.json": "SmolLM2-135M, 4 pairs\nof at most 128 tokens",
}
CURVE = "vs_trl_curve_smollm2.json"


def bars(axes: Any, groups: dict[str, dict[str, float]], form: str) -> None:
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
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def curves(axes: Any, losses: dict[str, list[float]], title: str) -> None:
    """Loss by step; rmfast dashed on top, so that the others can be seen under it."""
    for mode, values in losses.items():
        own = mode == "rmfast"
        axes.plot(
            range(1, len(values) + 1), values, color=COLOURS[mode], label=NAMES[mode], linewidth=1.4 if own else 3.2,
            linestyle="--" if own else "-", alpha=1.0 if own else 0.55, zorder=3 if own else 2,
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss")
    axes.set_title(title, fontsize=9)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def beside_trl(results: Path, folder: Path) -> Path:
    """vs_trl_cpu.png: CPU time and memory as each file has them, and the losses of the longest run."""
    found = {label: load(results / name) for name, label in FILES.items()}
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(13, 4.2), constrained_layout=True, gridspec_kw={"width_ratios": (1.25, 1, 1.1)}
    )
    ratios = {}
    for label, result in found.items():
        own = result["summary"]["rmfast"]["cpu_seconds"]
        ratios[label] = {mode: row["cpu_seconds"] / own for mode, row in result["summary"].items()}
    bars(left, ratios, "{:.1f} x")
    left.set_xlabel("CPU time of a step, rmfast = 1")
    left.set_title("HH-RLHF rows, one CPU thread, fp32", fontsize=9)
    memory = {
        label: {mode: row["peak_gib"] for mode, row in result["summary"].items()} for label, result in found.items()
    }
    bars(middle, memory, "{:.1f}")
    middle.set_yticks([])
    middle.set_xlabel("peak memory, GiB")
    curve = load(results / CURVE)
    worst = max(curve["largest_loss_difference"].values())
    curves(right, {mode: runs[0]["loss"] for mode, runs in curve["rounds"].items()},
           f"{FILES[CURVE].replace(chr(10), ' ')}:\nlosses differ by {worst:.0e} at most")  # fmt: skip
    handles, labels = left.get_legend_handles_labels()
    right.legend(handles, labels, fontsize=8, frameon=False)
    return save(figure, folder / "vs_trl_cpu.png")


def steps(stage: dict[str, Any], folder: Path) -> Path | None:
    """steps.png: time and memory of each mode, and a panel of losses for each model and lengths."""
    done = {name: record["result"] for name, record in stage["parts"].items() if record["status"] == "done"}
    if not done:
        return None
    count = len(done)
    height = max(3.2, 0.9 + 0.3 * sum(len(result["summary"]) + 1 for result in done.values()))
    figure = plt.figure(figsize=(13, height + 3.0 * -(-count // 3)), constrained_layout=True)
    top, low = figure.subfigures(2, 1, height_ratios=(height, 3.0 * -(-count // 3)))
    left, right = top.subplots(1, 2)
    ratios, memory = {}, {}
    for name, result in done.items():
        own = result["summary"]["rmfast"]["wall_seconds"]
        ratios[name] = {mode: row["wall_seconds"] / own for mode, row in result["summary"].items()}
        memory[name] = {mode: row["peak_gib"] for mode, row in result["summary"].items()}
    bars(left, ratios, "{:.1f} x")
    left.set_xlabel("time of a step, rmfast = 1")
    bars(right, memory, "{:.1f}")
    right.set_yticks([])
    right.set_xlabel("peak memory, GiB")
    first = next(iter(stage["parts"].values()))
    top.suptitle(f"{first['device']}, torch {first['versions']['torch']}", fontsize=10)
    top.legend(*left.get_legend_handles_labels(), fontsize=8, frameon=False, ncols=3, loc="outside lower center")
    panels = low.subplots(-(-count // 3), min(count, 3), squeeze=False)
    for axes, (name, result) in zip(panels.flat, done.items(), strict=False):
        worst = max(result["largest_loss_difference"].values(), default=0.0)
        curves(axes, {mode: runs[0]["loss"] for mode, runs in result["rounds"].items()},
               f"{name}:\nlosses differ by {worst:.0e} at most")  # fmt: skip
    for axes in list(panels.flat)[count:]:
        axes.set_visible(False)
    return save(figure, folder / "steps.png")


def under_one_roof(whole: dict[str, Any]) -> dict[str, Any]:
    """With every time as it would be under the first part's limits at the same share of them, so that a plot with one
    roof shows each op's share of what its own process measured."""
    limits = whole["limits"]
    rows = []
    for row in whole["results"]:
        least = 1e3 * max(row["bytes"] / limits["bandwidth"], row["flops"] / limits["matmul"])
        rows.append(row | {"milliseconds": least / row["share_of_limit"]})
    return whole | {"results": rows}


def gpu(folder: Path, plots: Path) -> dict[str, list[Path]]:
    """What a folder of the harness's results gives, by stage: roofline and bars of kernels, steps, real runs."""
    made: dict[str, list[Path]] = {"kernels": [], "steps": [], "real": []}
    if (folder / "kernels.json").is_file():
        whole = joined(load(folder / "kernels.json")["parts"])
        if whole is not None and whole["results"]:
            plots.mkdir(parents=True, exist_ok=True)
            for name in ("roofline", "ratios"):
                getattr(kernel_plots, name)(under_one_roof(whole), plots / f"kernels_{name}.png")
                made["kernels"].append(plots / f"kernels_{name}.png")
    if (folder / "steps.json").is_file() and (path := steps(load(folder / "steps.json"), plots)):
        made["steps"].append(path)
    if (folder / "real.json").is_file():
        stage = load(folder / "real.json")
        if path := real(stage, plots):
            made["real"].append(path)
        if (found := paper(stage)) is not None:
            from benchmarks.paper import moving_plots

            moving_plots.draw(found, plots)
            made["real"] += sorted(plots.glob("moving_*.png"))
    return made


def real(stage: dict[str, Any], folder: Path) -> Path | None:
    """real.png: accuracies with their intervals, beside the better of the two rules of length."""
    found = [(f"{name} on {test}", figures["figures"]) for name, record in stage["parts"].items()
             for test, figures in record.get("result", {}).get("tests", {}).items()]  # fmt: skip
    if not found:
        return None
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.32 * len(found)), constrained_layout=True)
    for place, (_, own) in enumerate(found):
        sides = [[own["accuracy"] - own["accuracy_low"]], [own["accuracy_high"] - own["accuracy"]]]
        axes.errorbar(own["accuracy"], place, xerr=sides, fmt="o", color=COLOURS["rmfast"], capsize=3)
        axes.plot(own["baseline_accuracy"], place, "|", color="#222222", markersize=12)
    axes.axvline(0.5, color="#8c8c8c", linewidth=0.8)
    axes.set_yticks(range(len(found)), [name for name, _ in found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy with its 95 % interval; bar: the better of longer wins and shorter wins")
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, folder / "real.png")
