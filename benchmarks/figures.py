"""The tables and plots of README.md, benchmarks/README.md and the GPU's page, from committed results.

    python benchmarks/figures.py [--check]

A table stands between `<!-- table: KIND FILE -->` and `<!-- end of table -->` and is made of benchmarks/results/FILE,
a figure in a sentence likewise between `<!-- figure: KIND FILE MODE -->` and `<!-- end of figure -->`; each plot is
made of the files that its title names. Results of `python -m benchmarks.gpu` lie in benchmarks/results/gpu, where they
get a page of their own, README.md. `--check` writes nothing and ends with 1 where a page is not what its files say, a
marker has no other end, or a file is missing, damaged or not what its own raw times give.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

if not __package__:  # run as a file: the repository's root instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.figures_raw import Result, load
from benchmarks.gpu.stages.kernels import joined
from benchmarks.gpu.stages.real import paper
from benchmarks.gpu.stages.steps import NAMES, without
from benchmarks.gpu.stages.tiles import gain
from rmfast.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GPU, PLOTS = RESULTS / "gpu", RESULTS / "plots"
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
BLOCK = re.compile(r"(<!-- table: (\S+) (\S+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
FIGURE = re.compile(r"(<!-- figure: (\S+) (\S+) (\S+) -->)(.*?)(<!-- end of figure -->)", re.DOTALL)
ENDS = {"table": BLOCK, "figure": FIGURE}
NOTHING = "Nothing has run on a GPU yet."


def rows(head: str, body: list[list[str]]) -> str:
    """A Markdown table under a line of column names, "a | b | c"."""
    lines = [
        f"| {head} |".replace("|  |", "| |"),
        "|" + "---|" * (head.count(" | ") + 1),
        *(f"| {' | '.join(cells)} |" for cells in body),
    ]
    return "\n".join(lines)


def done(stage: Result) -> dict[str, Result]:
    """What the finished parts of a stage gave, by part."""
    return {name: record["result"] for name, record in stage["parts"].items() if record["status"] == "done"}


def difference(result: Result, mode: str) -> str:
    found = result["largest_loss_difference"].get(mode)
    return "-" if found is None else f"{found:.0e}".replace("e-0", "e-")


def readme(result: Result) -> str:
    """The table of the first page: seconds, ratio, tokens, padding, and whether both learn the same."""
    own = result["summary"]["rmfast"]["cpu_seconds"]
    body = []
    for mode, row in result["summary"].items():
        ratio = "1" if mode == "rmfast" else f"{row['cpu_seconds'] / own:.1f} x"
        padding = f"{100 * row['padding_share']:.0f} %" if row["padding_share"] else "0"
        seconds, tokens = f"{row['cpu_seconds']:.1f}", f"{row['computed_tokens']:,.0f}"
        body.append([NAMES[mode], seconds, ratio, tokens, padding, difference(result, mode)])
    head = " | CPU seconds a step | ratio | tokens computed | of them padding | largest difference of the loss"
    return rows(head, body)


def beside_trl(result: Result) -> str:
    """A table of vs_trl.py's on a CPU."""
    own = result["summary"]["rmfast"]["cpu_seconds"]

    def share(value: float) -> str:
        return f"{100 * value:.1f} %" if value else "0"

    body = [
        [f"`{mode}`", f"{row['cpu_seconds']:.1f}", "1" if mode == "rmfast" else f"{row['cpu_seconds'] / own:.1f} x",
         f"{row['computed_tokens']:,.0f}", share(row["padding_share"]), share(row["prefix_share"]),
         f"{row['peak_gib']:.1f}"]
        for mode, row in result["summary"].items()
    ]  # fmt: skip
    return rows("mode | CPU s/step | ratio | tokens/step | padding | prefix saved | peak GiB", body)


def gpu_steps(stage: Result) -> str:
    """Whole training steps, each model and lengths: rmfast's speed, and what the others take."""
    body = []
    for name, result in done(stage).items():
        origin = stage["parts"][name]
        measured = f"{origin['device']}, torch {origin['versions']['torch']}, {origin['commit']}, {origin['when'][:10]}"
        own = result["summary"]["rmfast"]
        others = [
            "-"
            if (row := result["summary"].get(mode)) is None
            else f"{row['wall_seconds'] / own['wall_seconds']:.1f} x"
            for mode in ("trl", "trl-no-checkpointing", "trl-liger", "hf-packed")
        ]
        mfu = "-" if own["mfu"] is None else f"{100 * own['mfu']:.0f} %"
        body.append([name, f"{own['tokens_per_second']:,.0f}", mfu, f"{own['peak_gib']:.1f}", *others, measured])
    return rows(
        "model, lengths | tokens/s | MFU | peak GiB | TRL | without checkpointing | with Liger | packed transformers | "
        "measured on",
        body,
    )


def gpu_modes(stage: Result) -> str:
    """The same in full."""
    parts = []
    for name, result in done(stage).items():
        own = result["summary"]["rmfast"]["wall_seconds"]
        body = [
            [NAMES[mode], f"{row['wall_seconds']:.3f}", f"{row['wall_seconds'] / own:.2f}",
             f"{row['tokens_per_second']:,.0f}", "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %",
             f"{100 * row['share_of_product']:.1f} %", f"{100 * row['padding_share']:.0f} %",
             f"{100 * row['prefix_share']:.0f} %", f"{row['peak_gib']:.1f}", difference(result, mode)]
            for mode, row in result["summary"].items()
        ]  # fmt: skip
        body += [[NAMES.get(mode, mode), why.replace("|", "/"), *["-"] * 8] for mode, why in without(result).items()]
        head = ("mode | s/step | of rmfast's | tokens/s | MFU | of a matrix product's rate | padding | prefix saved | "
                "peak GiB | difference of the loss")  # fmt: skip
        parts.append(f"**{name}**\n\n{rows(head, body)}")
    return "\n\n".join(parts)


def gpu_breakdown(stage: Result) -> str:
    """Where a step's time goes, by kernel, and how long the device waits for the host."""
    body = []
    for name, result in done(stage).items():
        for mode, profile in result["breakdown"].items():
            span = profile["span_ms"]
            shares = [f"{group} {100 * spent / span:.0f} %" for group, spent in profile["groups"].items()]
            idle = "-" if profile["gap_ms"] is None else f"{100 * profile['gap_ms'] / span:.0f} %"
            body.append([name, mode, f"{span:.0f}", idle, ", ".join(shares[:6]) or "-"])
    return rows("model, lengths | mode | ms | device idle | of the step", body)


def gpu_kernels(stage: Result) -> str:
    """Every op: its time, its share of the limit, and the fastest of the others."""
    whole = joined(stage["parts"])
    found: dict[tuple[str, str, str], dict[str, Result]] = {}
    for row in whole["results"] if whole else ():
        found.setdefault((row["op"], row["size"], row["pass"]), {})[row["contender"]] = row
    body = []
    for (op, size, which), by in found.items():
        own = by.get("rmfast") or by["torch"]
        others = [row for row in by.values() if row is not own and row["contender"] != "base"]
        best = min(others, key=lambda row: row["milliseconds"], default=None)
        against = (
            ["-", "-"] if best is None else [best["contender"], f"{best['milliseconds'] / own['milliseconds']:.2f} x"]
        )
        share = f"{100 * own['share_of_limit']:.0f} % ({own['limit_by']})"
        body.append([f"`{op}`", size, which, f"{own['milliseconds']:.4f}", share, *against])
    return rows("op | size | pass | ms | of its limit | fastest other | rmfast is", body)


def gpu_tiles(stage: Result) -> str:
    """The winners of the tile search."""
    body = []
    for result in done(stage).values():
        for line in result["lines"]:
            held, winner = tuple(line["held"].values()), line["winner"]
            better = "-" if winner is None else gain(line)
            refused = sum(bool(row["faults"]) for row in line["tried"])
            chosen = "the same" if winner is None else str(tuple(winner.values()))
            body.append([line["name"], f"{len(line['tried'])} ({refused} refused)", str(held), chosen, better])
    return rows("line | tried | tile before | winner | gain", body)


def gpu_real(stage: Result) -> str:
    """Held-out accuracy of real runs, beside what simple rules reach on the same rows."""
    body = []
    for name, result in done(stage).items():
        for test, found in result.get("tests", {}).items():
            own = found["figures"]
            simple = f"{own['baseline']} {own['baseline_accuracy']:.3f}"
            if test == result["trained_on"]:
                simple += f", tf-idf {result['baseline']:.3f}"
            shown = ", ".join(f"{key} {value:.3f}" for key, value in found["headline"].items())
            interval = f"{own['accuracy_low']:.3f} to {own['accuracy_high']:.3f}"
            body.append([name, test, shown, interval, simple])
    out = rows("run | test rows | accuracy | 95 % interval of all edges | simple rules", body)
    for name, result in done(stage).items():
        if "negative" in result:
            below, tenths = f"{100 * result['negative']:.1f} %", ", ".join(f"{x:.2f}" for x in result["deciles"])
            out += f"\n\n{name}: out-of-sample strengths of {result['pairs']:,} pairs, {below} below 0; least, tenths, "
            out += f"most: {tenths}."
    return out


def gpu_paper(stage: Result) -> str:
    """The paper's experiments, means over seeds with 95 % intervals."""
    found = paper(stage)
    if found is None:
        return "None is done."
    from benchmarks.paper.common import report
    from benchmarks.paper.moving import SHOWN

    return f"```\n{report(found, SHOWN)}\n```"


def gpu_suite(stage: Result) -> str:
    """The tests on the device."""
    found = done(stage)
    counts = [str(sum(result[key] for result in found.values())) for key in ("passed", "failed", "skipped")]
    failed = "".join(f"\n- {each['test']}: {each['why']}" for result in found.values() for each in result["failures"])
    return rows("files | passed | failed | skipped", [[str(len(found)), *counts]]) + failed


KINDS: dict[str, Callable[[Result], str]] = {
    "readme": readme, "beside-trl": beside_trl, "gpu-steps": gpu_steps, "gpu-modes": gpu_modes,
    "gpu-breakdown": gpu_breakdown, "gpu-kernels": gpu_kernels, "gpu-tiles": gpu_tiles, "gpu-real": gpu_real,
    "gpu-paper": gpu_paper, "gpu-suite": gpu_suite,
}  # fmt: skip
PLOTTED = {"kernels": ("kernels_*.png",), "steps": ("steps.png",), "real": ("real.png", "moving_*.png")}
SECTIONS = {"suite": ("gpu-suite",), "kernels": ("gpu-kernels",), "tiles": ("gpu-tiles",),
            "steps": ("gpu-steps", "gpu-modes", "gpu-breakdown"), "real": ("gpu-real", "gpu-paper")}  # fmt: skip


def figure(result: Result, kind: str, mode: str) -> str:
    """A figure in a sentence: a mode's time as a multiple of rmfast's, memory, difference of losses, or steps."""
    summary = result["summary"]
    match kind:
        case "ratio":
            return f"{summary[mode]['cpu_seconds'] / summary['rmfast']['cpu_seconds']:.1f} x"
        case "memory":
            return f"{summary[mode]['peak_gib']:.1f} GiB"
        case "difference":
            return difference(result, mode)
        case "steps":
            return str(len(result["rounds"][mode][0]["loss"]))
    raise KeyError(kind)


def filled(text: str, results: Path, name: str = "page") -> str:
    """A page with its tables and figures made anew from a folder of results.

    Raises:
        UserError: a marker without its other end, of no known kind, or a file that cannot be used.
    """
    for what, pattern in ENDS.items():
        counts = text.count(f"<!-- {what}: "), text.count(f"<!-- end of {what} -->"), len(pattern.findall(text))
        if len(set(counts)) > 1:
            raise UserError(
                f"{name}: {counts[0]} markers begin a {what}, {counts[1]} end one, {counts[2]} fit together"
            )

    def made(match: re.Match[str], make: Callable[[Result], str]) -> str:
        path = results / match[3]
        if match[3].startswith("gpu/") and not path.is_file():
            return NOTHING
        result = load(path)
        try:
            return make(result)
        except (KeyError, TypeError, IndexError, ZeroDivisionError) as error:
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"{path}: gives no {match[2]} for {name} ({why})") from error

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}{made(match, lambda result: KINDS[match[2]](result))}\n{match[5]}"

    def inline(match: re.Match[str]) -> str:
        return f"{match[1]}{made(match, lambda result: figure(result, match[2], match[4]))}{match[6]}"

    return FIGURE.sub(inline, BLOCK.sub(table, text))


def gpu_plots(folder: Path) -> dict[str, list[Path]]:
    """The plots that lie beside a folder's results, by stage."""
    return {stage: sorted(path for form in forms for path in (folder / "plots").glob(form))
            for stage, forms in PLOTTED.items()}  # fmt: skip


def gpu_page(folder: Path, plots: dict[str, list[Path]]) -> str:
    """The page of a folder of the harness's results."""
    lines = ["# Measured on a GPU", ""]
    for stage, kinds in SECTIONS.items():
        path = folder / f"{stage}.json"
        if not path.is_file():
            continue
        lines += [f"## {stage}", f"[{stage}.json]({stage}.json): {origins(load(path)['parts'].values(), path)}.", ""]
        for kind in kinds:
            lines += [f"<!-- table: {kind} {stage}.json -->", "<!-- end of table -->", ""]
        lines += [f"![{path.stem}](plots/{path.name})\n" for path in plots.get(stage, [])]
    return filled("\n".join(lines).rstrip() + "\n", folder, str(folder / "README.md"))


def origins(records: Iterable[Result], path: Path) -> str:
    """Every device, set of versions and commit of some records, with the days."""
    found: dict[str, list[str]] = {}
    try:
        for record in records:
            versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
            found.setdefault(f"{record['device']}, {versions}; commit {record['commit']}", []).append(
                record["when"][:10]
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: a part without its origin ({error}); put the file back as it was measured") from error
    return "; and ".join(f"{name}, {' to '.join(sorted({min(days), max(days)}))}" for name, days in found.items())


def pages() -> Iterator[tuple[Path, str]]:
    """Each page with its tables as the results have them."""
    for page in PAGES:
        yield page, filled(page.read_text(encoding="utf-8"), RESULTS, page.name)


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--check", action="store_true", help="write nothing; 1 where a table differs from its file")
    add("--gpu", type=Path, default=GPU, help="folder of the harness's results (default: benchmarks/results/gpu)")
    args = parser.parse_args(arguments)
    if args.gpu != GPU and not args.gpu.is_dir():
        print(f"error: --gpu {args.gpu}: no such folder", file=sys.stderr)
        return 1
    try:
        return check(args.gpu) if args.check else write(args.gpu)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def check(gpu: Path) -> int:
    """Whether all pages are what their files say."""
    made = list(pages())
    if any(gpu.glob("*.json")):
        made.append((gpu / "README.md", gpu_page(gpu, gpu_plots(gpu))))
    old = [page for page, text in made if not page.is_file() or page.read_text(encoding="utf-8") != text]
    for page in old:
        print(f"{page}: a table or figure differs from its file; run python benchmarks/figures.py")
    return int(bool(old))


def write(gpu: Path) -> int:
    """Make all pages and plots, once everything could be read."""
    made = list(pages())
    if gpu.is_dir():
        gpu_page(gpu, {})
    from benchmarks import figures_plots

    for page, text in made:
        page.write_text(text, encoding="utf-8")
    if PAGES:
        figures_plots.beside_trl(RESULTS, PLOTS)
    if any(gpu.glob("*.json")):
        figures_plots.gpu(gpu, gpu / "plots")
        (gpu / "README.md").write_text(gpu_page(gpu, gpu_plots(gpu)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
