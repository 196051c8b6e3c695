"""The plots of benchmarks/figures.py: bars of ratios and memory, loss curves, the roofline."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.figures_raw import Result, load
from benchmarks.gpu.stages.kernels import joined
from benchmarks.gpu.stages.steps import NAMES

COLOURS = {
    "trl": "#8c8c8c", "trl-no-checkpointing": "#5b8db8", "trl-tuned": "#588157", "trl-liger": "#7b5ea7",
    "hf-packed": "#e0a458", "rmfast-graphs": "#8d1c06", "rmfast": "#c8553d", "torch": "#8c8c8c", "compile": "#5b8db8",
    "liger": "#588157", "flex": "#7b5ea7", "flash + merge": "#3d405b",
}  # fmt: skip
FILES = {  # of the comparison on a CPU: what each file is of
    "vs_trl_cpu_shape.json": "SmolLM2's shape, 8 pairs",
    "vs_trl_cpu_shape_2rounds.json": "the same, two rounds",
    "vs_trl_cpu_smollm2.json": "SmolLM2-135M, 8 pairs",
    "vs_trl_curve_smollm2.json": "SmolLM2-135M, 4 pairs\nof at most 128 tokens",
}


def bars(axes: Any, groups: dict[str, dict[str, float]], form: str, label: str) -> None:
    """A group of bars for each name, one for each mode or contender that it has, the first on top."""
    at, places, seen = 0.0, [], set()
    for values in groups.values():
        start = at
        for name, value in values.items():
            said = None if name in seen else NAMES.get(name, name)
            axes.barh(at, value, 0.8, color=COLOURS.get(name, "#b56576"), label=said)
            axes.text(value, at, " " + form.format(value), va="center", size=8)
            seen.add(name)
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


def ppo_study(results: Path, folder: Path) -> Path:
    """ppo_study.png: gold and the policy's own reward over KL, a line for each run, gold's interval at its end."""
    runs = load(results / "ppo_study.json")["runs"]
    methods = list(dict.fromkeys(name.rpartition(", seed ")[0] for name in runs))
    figure, grid = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for axes, key, label in zip(grid, ("reward", "gold"), ("the reward that trains it", "gold"), strict=True):
        for name, run in runs.items():
            method, curve = name.rpartition(", seed ")[0], run["curve"]
            colour = ("#c8553d", "#5b8db8", "#588157")[methods.index(method)]
            kl, values = ([line[one] for line in curve] for one in ("kl", key))
            said = method if name == next(each for each in runs if each.startswith(method + ", seed")) else None
            axes.plot(kl, values, color=colour, marker="o", markersize=3, linewidth=1.2, label=said)
            last = curve[-1]
            spread = [[last[key] - last[f"{key}_low"]], [last[f"{key}_high"] - last[key]]]
            axes.errorbar(last["kl"], last[key], spread, color=colour, capsize=3, linewidth=0.8)
        axes.set(xlabel="KL from the reference, nats an answer", ylabel=label)
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*grid[0].get_legend_handles_labels(), fontsize=8, frameon=False, ncols=3, loc="outside lower center")
    return save(figure, folder / "ppo_study.png")


def roofline(result: Result, path: Path) -> None:
    """Bytes per second of each op over the ops' arithmetic intensity, under what the device did in the same run; shares
    of each op's own limits where it has some. rmfast's kernels, or plain torch where there is no GPU."""
    ours = "rmfast" if any(row["contender"] == "rmfast" for row in result["results"]) else "torch"
    rows, limits = [row for row in result["results"] if row["contender"] == ours], result["limits"]
    figure, axes = plt.subplots(figsize=(9, 5.5), constrained_layout=True)
    ridge = limits["matmul"] / limits["bandwidth"]

    def roof(x: float) -> float:
        return min(limits["bandwidth"] * x, limits["matmul"]) / 1e12

    # An op without matrix products is drawn at one operation a byte, where only the bandwidth counts.
    points = [(max(row["flops"] / row["bytes"], 1.0), row) for row in rows]
    xs = [0.5, ridge, 4 * max([ridge, *(x for x, _ in points)])]
    axes.plot(xs, list(map(roof, xs)), color="#222222", linewidth=1.5)
    names = enumerate(dict.fromkeys(row["op"] for row in rows))
    for (at, name), (which, marker) in product(names, (("forward", "o"), ("forward+backward", "s"))):
        found = [(x, row["share_of_limit"] * roof(x)) for x, row in points if (row["op"], row["pass"]) == (name, which)]
        axes.scatter(
            *zip(*found, strict=True) if found else ((), ()),
            color=plt.get_cmap("tab20")(at % 20),
            s=34,
            marker=marker,
            edgecolor="white",
            linewidth=0.6,
            label=name if marker == "o" else None,
            zorder=3,
        )
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte (no products: 1)", ylabel="TFLOP/s (no products: TB/s)")
    copy, matmul = limits["bandwidth"] / 1e9, limits["matmul"] / 1e12
    said = f"{ours} on {result['device']}: copy {copy:.0f} GB/s, {limits['dtype']} matmul {matmul:.1f} TFLOP/s"
    axes.set_title(f"{said}\ncircle: forward; square: forward and backward", fontsize=9)
    axes.grid(True, which="major", color="#e5e5e5", linewidth=0.6)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(figure, path)


def ratios(result: Result, path: Path) -> None:
    """Speed of every contender as a multiple of plain torch's, a group of bars for each op, size and pass."""
    groups: dict[str, dict[str, float]] = {}
    for row in result["results"]:
        groups.setdefault(f"{row['op']}  {row['size']}  {row['pass']}", {})[row["contender"]] = row["speed_of_torch"]
    count = len(result["results"])
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.2 * count), constrained_layout=True)
    bars(axes, groups, "{:.2f}", "speed as a multiple of plain torch (more is better)")
    axes.axvline(1.0, color="#222222", linewidth=0.8)
    axes.set_title(f"{result['device']}, torch {result['versions']['torch']}", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save(figure, path)


def kernels(result: Result, folder: Path, start: str = "") -> None:
    """roofline.png and ratios.png of a result of kernels/run.py."""
    if not result["results"]:
        print("no results, no pictures")
        return
    roofline(result, folder / f"{start}roofline.png")
    ratios(result, folder / f"{start}ratios.png")


def gpu(folder: Path, plots: Path) -> None:
    """What a folder of the harness's results gives: roofline and bars of kernels, and steps."""
    plots.mkdir(parents=True, exist_ok=True)
    found = {path.stem: load(path) for path in folder.glob("*.json")}
    if "kernels" in found and (whole := joined(found["kernels"]["parts"])) is not None:
        kernels(whole, plots, "kernels_")
    parts = found["steps"]["parts"] if "steps" in found else {}
    done = {name: record["result"] for name, record in parts.items() if record["status"] == "done"}
    if done := {name: result for name, result in done.items() if "rmfast" in result["summary"]}:
        first = next(iter(parts.values()))
        title = f"{first['device']}, torch {first['versions']['torch']}"
        side_by_side(done, "wall_seconds", list(done), title, plots / "steps.png")
