"""A table and a plot from the points of a scaling sweep.

    python benchmarks/scaling/collect.py FOLDER

writes FOLDER/scaling.md and FOLDER/scaling.png from FOLDER/weak-*.json and FOLDER/strong-*.json.

Efficiency is tokens a second and rank, over those of the smallest size of the same mode. For strong scaling that is the
step's time times ranks, the smallest size's over this one's, for both train the same batch.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

SAME = ("model", "weights", "dtype", "lengths", "device", "tokens_per_pack")
HEAD = "scaling | ranks | nodes | groups a step | step s | tokens/s | efficiency | MFU | memory GiB | layout"

Points = dict[str, list[dict[str, Any]]]


def read_points(folder: Path) -> Points:
    """Points by mode, fewest ranks first, each with its efficiency.

    Raises:
        ValueError: there are none, or they are not of one model, data and device.
    """
    points: Points = {}
    for mode in ("weak", "strong"):
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{mode}-*.json"))]
        found.sort(key=lambda point: point["ranks"])
        for point in found:
            rates = [p["tokens_per_second"] / p["ranks"] for p in (point, found[0])]
            point["efficiency"] = rates[0] / rates[1]
        if found:
            points[mode] = found
    if not points:
        raise ValueError(f"{folder}: holds no weak-*.json and no strong-*.json")
    flat = [point for found in points.values() for point in found]
    for key in SAME:
        if len({point[key] for point in flat}) > 1:
            raise ValueError(f"{folder}: its points differ in {key}: {sorted({str(point[key]) for point in flat})}")
    if len({point["groups"] for point in points.get("strong", [])}) > 1:
        raise ValueError(f"{folder}: its strong points differ in their global batch (groups)")
    return points


def table(points: Points) -> str:
    """Markdown: a line a point."""
    first = next(iter(points.values()))[0]
    lines = [
        f"{first['model']} ({first['weights'] / 1e9:.2f} B weights), {first['dtype']}, {first['device']}, "
        f"lengths {first['lengths']}, packs of {first['tokens_per_pack']:,} tokens; torch {first['torch']}, "
        f"commit {first['commit'] or 'unknown'}\n",
        f"| {HEAD} |",
        "|" + "---|" * (HEAD.count("|") + 1),
    ]
    for mode, found in points.items():
        for p in found:
            mfu = "-" if p["mfu"] is None else f"{p['mfu']:.1%}"
            layout = ", ".join(str(v) for v in p["parallel"].values() if not isinstance(v, bool))
            lines.append(
                f"| {mode} | {p['ranks']} | {p['nodes']} | {p['groups']} | {p['step_seconds']:.3f} | "
                f"{p['tokens_per_second']:,.0f} | {p['efficiency']:.1%} | {mfu} | {p['memory_gib']:.1f} | {layout} |"
            )
    return "\n".join(lines) + "\n"


def plot(points: Points, path: Path) -> None:
    """Tokens a second beside the ideal line, and efficiency, over ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (rate, share) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for (mode, found), colour in zip(points.items(), ("tab:blue", "tab:orange"), strict=False):
        ranks, rates = [p["ranks"] for p in found], [p["tokens_per_second"] for p in found]
        rate.plot(ranks, rates, "o-", color=colour, label=f"{mode} scaling")
        rate.plot(
            ranks, [rates[0] / ranks[0] * n for n in ranks], "--", color=colour, alpha=0.5, label=f"{mode}, ideal"
        )
        share.plot(ranks, [100 * p["efficiency"] for p in found], "o-", color=colour, label=f"{mode} scaling")
    rate.set_yscale("log", base=2)
    share.set_ylim(bottom=0)
    for axes, label in ((rate, "tokens a second"), (share, "efficiency (%)")):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="ranks", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def main(arguments: list[str]) -> int:
    """Entry point; 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    try:
        points = read_points(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    (folder / "scaling.md").write_text(table(points), encoding="utf-8")
    plot(points, folder / "scaling.png")
    print(table(points))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
