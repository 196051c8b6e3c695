"""Pictures of a result of run.py: `python -m benchmarks.kernels.plots RESULT.json FOLDER`."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Row = dict[str, Any]
COLOURS = {"torch": "#8c8c8c", "compile": "#5b8db8", "rmfast": "#c8553d", "base": "#e0a458"}
OTHERS = ("#588157", "#7b5ea7", "#3d405b", "#b56576")


def colour(label: str, seen: dict[str, str]) -> str:
    if label not in seen:
        others = sum(name not in COLOURS for name in seen)
        seen[label] = COLOURS.get(label) or OTHERS[others % len(OTHERS)]
    return seen[label]


def ours(rows: list[Row]) -> str:
    """The contender that stands for this checkout: rmfast's kernels, or plain torch where there is no GPU."""
    return "rmfast" if any(row["contender"] == "rmfast" for row in rows) else "torch"


def roofline(result: dict[str, Any], path: Path) -> None:
    """Bytes per second of each op over the ops' arithmetic intensity, under what the device did in the same run."""
    rows = [r for r in result["results"] if r["contender"] == ours(result["results"])]
    limits = result["limits"]
    figure, axes = plt.subplots(figsize=(9, 5.5), constrained_layout=True)
    ridge = limits["matmul"] / limits["bandwidth"]
    # An op without matrix products is drawn at one operation a byte, where only the bandwidth counts.
    points = [(max(r["flops"] / r["bytes"], 1.0), r) for r in rows]
    low, high = 0.5, 4 * max([ridge, *(x for x, _ in points)])
    xs = [low, ridge, high]
    axes.plot(xs, [min(limits["bandwidth"] * x, limits["matmul"]) / 1e12 for x in xs], color="#222222", linewidth=1.5)
    names = list(dict.fromkeys(r["op"] for _, r in points))
    palette = plt.get_cmap("tab20")
    for name in names:
        for which, marker in (("forward", "o"), ("forward+backward", "s")):
            own = [(x, r) for x, r in points if r["op"] == name and r["pass"] == which]
            axes.scatter(
                [x for x, _ in own],
                [x * r["bytes"] / (1e-3 * r["milliseconds"]) / 1e12 for x, r in own],
                color=palette(names.index(name) % 20),
                marker=marker,
                s=34,
                edgecolor="white",
                linewidth=0.6,
                label=name if which == "forward" else None,
                zorder=3,
            )
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte (no products: 1)", ylabel="TFLOP/s (no products: TB/s)")
    copy, product = limits["bandwidth"] / 1e9, limits["matmul"] / 1e12
    axes.set_title(
        f"{ours(rows)} on {result['device']}: copy {copy:.0f} GB/s, {limits['dtype']} matmul {product:.1f} TFLOP/s",
        fontsize=10,
    )
    axes.grid(True, which="major", color="#e5e5e5", linewidth=0.6)
    axes.text(0.99, 0.02, "circle: forward; square: forward and backward", transform=axes.transAxes, ha="right", size=8)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def ratios(result: dict[str, Any], path: Path) -> None:
    """Speed of every contender as a multiple of plain torch's, a group of bars for each op, size and pass."""
    rows = result["results"]
    groups = list(dict.fromkeys((r["op"], r["size"], r["pass"]) for r in rows))
    labels = list(dict.fromkeys(r["contender"] for r in rows))
    seen: dict[str, str] = {}
    height = 0.8 / max(len(labels), 1)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.16 * len(groups) * max(len(labels), 2)), constrained_layout=True)
    for i, label in enumerate(labels):
        found = {(r["op"], r["size"], r["pass"]): r["speed_of_torch"] for r in rows if r["contender"] == label}
        at = [(g + (i - (len(labels) - 1) / 2) * height, found[key]) for g, key in enumerate(groups) if key in found]
        axes.barh([y for y, _ in at], [x for _, x in at], height, color=colour(label, seen), label=label)
        for y, x in at:
            axes.text(x, y, f" {x:.2f}", va="center", size=6.5)
    axes.axvline(1.0, color="#222222", linewidth=0.8)
    axes.set_yticks(range(len(groups)), [f"{op}  {size}  {which}" for op, size, which in groups], fontsize=7.5)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlabel("speed as a multiple of plain torch (more is better)")
    axes.set_title(f"{result['device']}, torch {result['versions']['torch']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=140)
    plt.close(figure)


def draw(result: dict[str, Any], folder: Path) -> None:
    """roofline.png and ratios.png in a folder that is made if it is not there."""
    if not result["results"]:
        print("no results, no pictures")
        return
    folder.mkdir(parents=True, exist_ok=True)
    roofline(result, folder / "roofline.png")
    ratios(result, folder / "ratios.png")


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
