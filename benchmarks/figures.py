"""The tables and plots of README.md, benchmarks/README.md, docs and the GPU's page, from committed results.

    python benchmarks/figures.py [--check]

A table is between `<!-- table: KIND FILE -->` and `<!-- end of table -->` and is made of benchmarks/results/FILE,
a figure in a sentence likewise between `<!-- figure: KIND FILE MODE -->` and `<!-- end of figure -->`; each plot is
made of the files that its title names. Results of `python -m benchmarks.gpu` belong into benchmarks/results/gpu, where
they get a page of their own, README.md. `--check` writes nothing and ends with 1 where a page is not what its files
say, a marker has no other end, or a file is missing, damaged or not what its own raw times give.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

if not __package__:  # run as a file: the repository's root instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.figures_raw import Result, load
from benchmarks.figures_tables import KINDS, difference
from benchmarks.gpu.plan import LINES
from rmfast.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GPU, PLOTS = RESULTS / "gpu", RESULTS / "plots"
DOCS = ("benchmarks/README.md", "docs/versions.md", "docs/lora.md", "docs/ppo.md", "docs/serve.md", "docs/megatron.md")
PAGES = (ROOT / "README.md", *(ROOT / page for page in DOCS))
BLOCK = re.compile(r"(<!-- table: (\S+) (\S+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
FIGURE = re.compile(r"(<!-- figure: (\S+) (\S+) (\S+) -->)(.*?)(<!-- end of figure -->)", re.DOTALL)
NOTHING = "Nothing has run on a GPU yet."
PLOTS_OF = {"kernels": ("kernels_*.png",), "steps": ("steps.png",)}
UNFIT = (KeyError, TypeError, IndexError, ZeroDivisionError)  # what comes of a file that lacks something


def figure(result: Result, kind: str, mode: str) -> str:
    """A figure in a sentence: a mode's time as a multiple of rmfast's, memory, difference of losses, or steps; a side's
    time of preparing data as a multiple of rmfast's."""
    if kind == "data":
        return f"{result['median'][mode]['data'] / result['median']['rmfast']['data']:.1f} x"
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
    """A page with its tables and figures made again from a folder of results.

    Raises:
        UserError: a marker without its other end, of no known kind, or a file that cannot be used.
    """
    for what, pattern in {"table": BLOCK, "figure": FIGURE}.items():
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
        except UNFIT as error:
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"{path}: gives no {match[2]} for {name} ({why})") from error

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}{made(match, lambda result: KINDS[match[2]](result))}\n{match[5]}"

    def inline(match: re.Match[str]) -> str:
        return f"{match[1]}{made(match, lambda result: figure(result, match[2], match[4]))}{match[6]}"

    return FIGURE.sub(inline, BLOCK.sub(table, text))


def gpu_page(folder: Path) -> str:
    """The page of a folder of the harness's results, with the plots that are beside them."""
    text = ["# Measured on a GPU", ""]
    for stage, lines in LINES.items():
        path = folder / f"{stage}.json"
        if not path.is_file():
            continue
        result = load(path)
        text += [f"## {stage}", f"[{stage}.json]({stage}.json): {origins(result['parts'].values(), path)}.", ""]
        try:
            text += ["```", *lines(result["parts"]), "```", ""]
        except UNFIT as error:
            raise UserError(f"{path}: gives no page ({type(error).__name__}: {error})") from error
        found = [plot for form in PLOTS_OF.get(stage, ()) for plot in sorted((folder / "plots").glob(form))]
        text += [f"![{plot.stem}](plots/{plot.name})\n" for plot in found]
    return "\n".join(text).rstrip() + "\n"


def origins(records: Iterable[Result], path: Path) -> str:
    """Every device, set of versions and commit of some records, with the days."""
    found: dict[str, list[str]] = {}
    try:
        for record in records:
            versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
            what = f"{record['device']}, {versions}; commit {record['commit']}"
            found.setdefault(what, []).append(record["when"][:10])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: a part without its origin ({error}); put the file back as it was measured") from error
    return "; and ".join(f"{name}, {' to '.join(sorted({min(days), max(days)}))}" for name, days in found.items())


def pages(gpu: Path) -> dict[Path, str]:
    """Each page as the results have it."""
    made = {page: filled(page.read_text(encoding="utf-8"), RESULTS, page.name) for page in PAGES}
    if any(gpu.glob("*.json")):
        made[gpu / "README.md"] = gpu_page(gpu)
    return made


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
        made = pages(args.gpu)  # before anything is written
        if not args.check:
            from benchmarks import figures_plots

            if PAGES:
                figures_plots.beside_trl(RESULTS, PLOTS)
            if any(args.gpu.glob("*.json")):
                figures_plots.gpu(args.gpu, args.gpu / "plots")
            made = pages(args.gpu)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    old = [page for page, text in made.items() if not page.is_file() or page.read_text(encoding="utf-8") != text]
    for page in old:
        if args.check:
            print(f"{page}: a table or figure differs from its file; run python benchmarks/figures.py")
        else:
            page.write_text(made[page], encoding="utf-8")
    return int(args.check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
