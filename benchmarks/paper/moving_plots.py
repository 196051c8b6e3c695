"""The figures of benchmarks/paper/moving.py, from the rows of a result.

python -m benchmarks.paper.moving_plots RESULT.json FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.paper.common import Rows, by, paired

COLOURS = ("#888888", "#d9822b", "#2a6fbb", "#7b5ea7", "#3a8f5c")
CURVES = 3  # readings of a training from which on they are drawn as curves
PANELS: dict[str, tuple[tuple[str, ...], str | None, dict[str, str]]] = {
    "detection": (("noise", "strength", "members", "epoch"), None,
                  {"auc": "AUC of -strength for planted flips", "negative": "share of strengths < 0"}),
    "presets": (("preset",), "baseline",
                {"clean": "clean test labels", "noisy": "noisy test labels", "agreed": "agreed test labels",
                 "memorised": "share of planted flips learnt"}),
    "deciles": (("decile",), None, {"accuracy": "test accuracy, one decile alone", "planted": "share planted"}),
    "strongest": (("treatment",), "plain", {"train_loss": "strongest decile: training loss", "test_loss": "test loss",
                                            "accuracy": "test accuracy"}),
    "contrastive": (("term",), "none", {"overlap": "cosine of better and worse", "accuracy": "test accuracy",
                                        "other": "accuracy elsewhere"}),
    "meta": (("ascent",), "plain", {"spread": "mean |difference|, new samples",
                                    "relative": "the same / that of test pairs", "accuracy": "test accuracy",
                                    "other": "accuracy elsewhere"}),
}  # fmt: skip
"""Of each experiment: what its rows are told apart by, the base of comparisons, and a panel for each value."""


def draw(result: dict[str, Any], folder: Path) -> None:
    """moving_NAME.png of each experiment that the result has."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (keys, base, panels) in PANELS.items():
        if name not in result:
            continue
        rows = result[name]
        epochs = sorted({row["epoch"] for row in rows}) if "epoch" not in keys and "epoch" in rows[0] else [None]
        figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.4), layout="constrained")
        for panel, (value, title) in zip(axes, panels.items(), strict=True):
            if len(epochs) >= CURVES:
                curves(panel, rows, keys[0], value)
            else:
                points(panel, rows, keys, base, value, epochs)
            panel.set_title(title, fontsize=9)
        if epochs != [None]:
            axes[-1].legend(fontsize=8, frameon=False)
        figure.savefig(folder / f"moving_{name}.png", dpi=100)
        plt.close(figure)


def points(axes: Any, rows: Rows, keys: tuple[str, ...], base: str | None, value: str, epochs: list[Any]) -> None:
    """Means and intervals; those of the difference from the base, seed by seed, and a line at it where there is one."""
    for e, epoch in enumerate(epochs):
        now = rows if epoch is None else [row for row in rows if row["epoch"] == epoch]
        found = by(now, keys, value)
        half = [width for _, width in found.values()]
        colour = COLOURS[2 - (len(epochs) - 1 - e)]
        if base is not None:
            less = paired(now, (), keys[0], base, value)
            half = [0.0 if key == (base,) else less[key][1] for key in found]
            axes.axhline(found[base,][0], color=colour, lw=0.6)
        x = np.arange(len(found)) + 0.16 * (e - (len(epochs) - 1) / 2)
        axes.errorbar(x, [mean for mean, _ in found.values()], half, fmt="o", capsize=3, color=colour,
                      label=f"epoch {epoch}")  # fmt: skip
    axes.set_xticks(range(len(found)), [" ".join(map(str, key)) for key in found], rotation=45, ha="right", fontsize=8)


def curves(axes: Any, rows: Rows, key: str, value: str) -> None:
    """A value over epochs: the mean of each name, and its seeds as thin lines (an interval of three is no picture)."""
    for name, colour in zip(dict.fromkeys(row[key] for row in rows), COLOURS, strict=False):
        named = [row for row in rows if row[key] == name]
        for seed in dict.fromkeys(row["seed"] for row in named):
            line = [(row["epoch"], row[value]) for row in named if row["seed"] == seed]
            axes.plot(*zip(*line, strict=True), color=colour, lw=0.6, alpha=0.6)
        found = by(named, ("epoch",), value)
        axes.plot([epoch for (epoch,) in found], [mean for mean, _ in found.values()], color=colour, label=name)
    axes.set_xlabel("epoch")


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
