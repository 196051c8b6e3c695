"""The tables of the pages: functions from a file of results to Markdown, by the names of their markers (`KINDS`)."""

from collections.abc import Callable

from benchmarks.figures_raw import Result
from benchmarks.gpu.stages.kernels import joined
from benchmarks.gpu.stages.real import paper
from benchmarks.gpu.stages.steps import NAMES, without
from benchmarks.gpu.stages.tiles import gain
from benchmarks.kernels.verify import NOT_RUN
from benchmarks.versions import SHOWN, said


def rows(head: str, body: list[list[str]]) -> str:
    """A Markdown table under a line of column names, "a | b | c"."""
    lines = [
        f"| {head} |".replace("|  |", "| |"),
        "|" + "---|" * (head.count(" | ") + 1),
        *(f"| {' | '.join(cells)} |" for cells in body),
    ]
    return "\n".join(lines)


def done(stage: Result) -> dict[str, Result]:
    """What the parts of a stage gave, by part: the finished ones, and what others had reached."""
    return {name: record["result"] for name, record in stage["parts"].items() if "result" in record}


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
    """A table of the comparison with TRL on a CPU."""
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
        own = result["summary"].get("rmfast")
        if own is None:
            continue
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
        own = result["summary"].get("rmfast", {}).get("wall_seconds")
        body = [
            [NAMES[mode], f"{row['wall_seconds']:.3f}", "-" if own is None else f"{row['wall_seconds'] / own:.2f}",
             f"{row['tokens_per_second']:,.0f}", "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %",
             f"{100 * row['share_of_product']:.1f} %", f"{100 * row['padding_share']:.0f} %",
             f"{100 * row['prefix_share']:.0f} %", f"{row['peak_gib']:.1f}",
             "-" if row["reserved_gib"] is None else f"{row['reserved_gib']:.1f}", difference(result, mode)]
            for mode, row in result["summary"].items()
        ]  # fmt: skip
        body += [[NAMES.get(mode, mode), why.replace("|", "/"), *["-"] * 9] for mode, why in without(result).items()]
        head = ("mode | s/step | of rmfast's | tokens/s | MFU | of a matrix product's rate | padding | prefix saved | "
                "peak GiB | reserved GiB | difference of the loss")  # fmt: skip
        parts.append(f"**{name}**\n\n{rows(head, body)}")
    return "\n\n".join(parts)


def gpu_breakdown(stage: Result) -> str:
    """Where a step's time goes, by kernel, and how long the device waits for the host."""
    body = []
    for name, result in done(stage).items():
        for mode, profile in result["breakdown"].items():
            if "fault" in profile:
                body.append([name, mode, "-", "-", profile["fault"].replace("|", "/")])
                continue
            step = profile["step_ms"]
            shares = [f"{group} {100 * spent / step:.0f} %" for group, spent in profile["groups"].items()]
            gap = "-" if profile["host_gap"] is None else f"{100 * profile['host_gap']:.0f} %"
            body.append([name, mode, f"{step:.0f}", gap, ", ".join(shares[:6]) or "-"])
    return rows("model, lengths | mode | ms | host gap (device idle) | of the step", body)


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
        said = whole["tests"].get(op, NOT_RUN).replace("|", "/") if whole else ""
        body.append([f"`{op}`", size, which, f"{own['milliseconds']:.4f}", share, *against, said])
    return rows("op | size | pass | ms | of its limit | fastest other | rmfast is | its tests", body)


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
    from benchmarks.paper import moving
    from benchmarks.paper.common import report

    return f"```\n{report(found, moving.SHOWN)}\n```"


def gpu_suite(stage: Result) -> str:
    """The tests on the device."""
    found = done(stage)
    counts = [str(sum(result[key] for result in found.values())) for key in ("passed", "failed", "skipped")]
    failed = "".join(f"\n- {each['test']}: {each['why']}" for result in found.values() for each in result["failures"])
    return rows("files | passed | failed | skipped", [[str(len(found)), *counts]]) + failed


def versions(result: Result) -> str:
    """What versions.py ran: a line for each environment."""
    body = []
    for name, run in result["environments"].items():
        numbers = [run.get("python", "-"), *(run.get("versions", {}).get(library, "-") for library in SHOWN)]
        tests = ", ".join(f"`{each}`" for each in run.get("tests", ())) or "-"
        failed = "".join(f"<br>{each}" for each in run.get("failed", ()))
        body.append([name, *numbers, said(run).replace("|", "/") + failed, tests, f"{run['commit']}, {run['date']}"])
    return rows(f"environment | Python | {' | '.join(SHOWN)} | outcome | tests | commit, day", body)


KINDS: dict[str, Callable[[Result], str]] = {
    "readme": readme, "beside-trl": beside_trl, "gpu-steps": gpu_steps, "gpu-modes": gpu_modes,
    "gpu-breakdown": gpu_breakdown, "gpu-kernels": gpu_kernels, "gpu-tiles": gpu_tiles, "gpu-real": gpu_real,
    "gpu-paper": gpu_paper, "gpu-suite": gpu_suite, "versions": versions,
}  # fmt: skip
