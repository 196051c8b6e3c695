"""The tables of the pages: functions from a file of results to Markdown, by the names of their markers (`KINDS`)."""

from collections import Counter
from collections.abc import Callable
from statistics import fmean

from benchmarks.figures_raw import Result
from benchmarks.gpu.stages.steps import NAMES
from benchmarks.versions import SHOWN, said


def rows(head: str, body: list[list[str]]) -> str:
    """A Markdown table under a line of column names, "a | b | c"."""
    lines = [
        f"| {head} |".replace("|  |", "| |"),
        "|" + "---|" * (head.count(" | ") + 1),
        *(f"| {' | '.join(cells)} |" for cells in body),
    ]
    return "\n".join(lines)


def difference(result: Result, mode: str) -> str:
    found = result["largest_loss_difference"].get(mode)
    return "-" if found is None else f"{found:.0e}".replace("e-0", "e-")


def share(value: float, digits: int) -> str:
    return f"{100 * value:.{digits}f} %" if value else "0"


def of_modes(result: Result, cells: Callable[[str, Result], list[str]]) -> list[list[str]]:
    """Each mode's CPU seconds, as a multiple of rmfast's, and its tokens, between the first and the other cells."""
    base = result["summary"]["rmfast"]["cpu_seconds"]
    body = []
    for mode, row in result["summary"].items():
        first, *others = cells(mode, row)
        ratio = "1" if mode == "rmfast" else f"{row['cpu_seconds'] / base:.1f} x"
        body.append([first, f"{row['cpu_seconds']:.1f}", ratio, f"{row['computed_tokens']:,.0f}", *others])
    return body


def readme(result: Result) -> str:
    """The table of the first page: whether both learn the same, too."""
    body = of_modes(result, lambda mode, r: [NAMES[mode], share(r["padding_share"], 0), difference(result, mode)])
    head = " | CPU seconds a step | ratio | tokens computed | of them padding | largest difference of the loss"
    return rows(head, body)


def beside_trl(result: Result) -> str:
    """A comparison with TRL on a CPU."""

    def cells(mode: str, row: Result) -> list[str]:
        shares = (share(row[key], 1) for key in ("padding_share", "prefix_share"))
        return [f"`{mode}`", *shares, f"{row['peak_gib']:.1f}"]

    head = "mode | CPU s/step | ratio | tokens/step | padding | prefix saved | peak GiB"
    return rows(head, of_modes(result, cells))


def gpu_steps(stage: Result) -> str:
    """Whole training steps, each model and lengths: rmfast's speed, and what the others take."""
    body = []
    for name, origin in stage["parts"].items():
        summary = origin.get("result", {}).get("summary", {})
        if (base := summary.get("rmfast")) is None:
            continue
        measured = f"{origin['device']}, torch {origin['versions']['torch']}, {origin['commit']}, {origin['when'][:10]}"
        modes = ("trl", "trl-no-checkpointing", "trl-liger", "hf-packed")
        others = [f"{summary[mode]['wall_seconds'] / base['wall_seconds']:.1f} x" if mode in summary else "-"
                  for mode in modes]  # fmt: skip
        mfu = "-" if base["mfu"] is None else share(base["mfu"], 0)
        body.append([name, f"{base['tokens_per_second']:,.0f}", mfu, f"{base['peak_gib']:.1f}", *others, measured])
    others = "TRL | without checkpointing | with Liger | packed transformers"
    return rows(f"model, lengths | tokens/s | MFU | peak GiB | {others} | measured on", body)


def sampling(result: Result) -> str:
    """Sampling beside transformers: each workload's modes, rmfast first; sweeps of continuous batching left out."""
    body = []
    for name, modes in result["workloads"].items():
        flops, base = modes["flops"], modes["rmfast"]["cpu_seconds"]
        for mode, row in modes.items():
            if mode == "flops" or mode.startswith("continuous, "):
                continue
            cpu, cache = row["cpu_seconds"], row.get("keys_and_values")
            batch = f", {row['batch']} tokens a step" if "batch" in row else ""
            body.append([
                name, f"`{mode}`{batch}", f"{cpu:.0f}", "1" if mode == "rmfast" else f"{cpu / base:.1f} x",
                f"{row['tokens'] / cpu:,.0f}", share(flops / cpu / row["matmul"], 0),
                f"{cache / 1e9:.2f}" if cache else "-", f"{row['peak_bytes'] / 1e9:.1f}",
            ])  # fmt: skip
    head = "workload | mode | CPU s | ratio | tokens/s | of the matmul rate | keys and values, GB | peak GB"
    return rows(head, body)


def versions(result: Result) -> str:
    """What versions.py ran: a line for each environment."""
    body = []
    for name, run in result["environments"].items():
        numbers = [run.get("python", "-"), *(run.get("versions", {}).get(library, "-") for library in SHOWN)]
        tests = ", ".join(f"`{each}`" for each in run.get("tests", ())) or "-"
        files = Counter(each.partition("::")[0] for each in run.get("failed", ()))
        failed = "".join(f"<br>{file} ({count})" for file, count in files.items())
        body.append([name, *numbers, said(run).replace("|", "/") + failed, tests, f"{run['commit']}, {run['date']}"])
    return rows(f"environment | Python | {' | '.join(SHOWN)} | outcome | tests | commit, day", body)


def adapters_time(result: Result) -> str:
    """A step with adapters beside PEFT's."""
    body = []
    for name, steps in result["steps"].items():
        for way, seconds in steps["cpu_seconds"].items():
            of = steps["rmfast_share"].get(way)
            body.append([name, way, f"{seconds:.2f}", "1" if of is None else f"{1 / of:.2f} x"])
    return rows("lengths | way | CPU s/step | ratio", body)


def adapters_memory(result: Result) -> str:
    """What training holds beside activations, with adapters and without."""
    kinds = ("weights", "copies", "gradients", "optimizer")
    body = []
    for way, sizes in result["bytes"].items():
        body.append([way, *(f"{size / 1e6:,.0f} MB" for size in (*map(sizes.get, kinds), sum(sizes.values())))])
    return rows(f" | {' | '.join(kinds)} | together", body)


def members(result: Result) -> str:
    """Members over one trunk, beside one that is fully trained and others one after another."""
    seconds, settings = result["cpu_seconds"], result["settings"]
    count, top = settings["members"], settings["top_layers"]
    ways = {
        f"one member, all {settings['layers']} layers": seconds["full"],
        f"{count} members, top {top} layers, one after another": count * seconds["alone"],
        f"{count} members, top {top} layers, over one trunk": seconds["ensemble"],
        "of which the trunk's states": seconds["trunk"],
    }
    return rows("way | CPU s/step", [[way, f"{value:.1f}"] for way, value in ways.items()])


def members_memory(result: Result) -> str:
    """What they hold beside activations."""
    body, top = [], result["settings"]["top_layers"]
    names = {"ensemble": "members over one trunk", "full": "one member, all layers"}
    for way, sizes in result["bytes"].items():
        weights = sizes["weights"] + sizes.get("trunk", 0)
        parts = (weights, sizes["gradients"], sizes["moments"], weights + sizes["gradients"] + sizes["moments"])
        name = names.get(way, f"one member, top {top} layers")
        body.append([name, *(f"{size / 1e6:,.0f} MB" for size in parts)])
    return rows(" | weights | gradients | moments | together", body)


def ppo_optimum(result: Result) -> str:
    """How near policies came to their known optimum, run by run."""
    body = [
        [
            name,
            ", ".join(f"{100 * run['missing']:.1f} %" for run in runs),
            ", ".join(f"{run['variation']:.3f}" for run in runs),
        ]
        for name, runs in result["results"].items()
    ]
    return rows("run | of the possible gain, missing | total variation", body)


def ppo_beside_trl(result: Result) -> str:
    """Iterations of PPO by each trainer, and how much more than rmfast's they took."""
    ours = result["modes"]["rmfast"]
    body = [
        [
            mode,
            f"{found['cpu_seconds']:.0f}",
            f"{found['cpu_seconds'] / ours['cpu_seconds']:.1f} x",
            f"{found['working_bytes'] / 1e9:.1f} GB",
        ]
        for mode, found in result["modes"].items()
    ]
    return rows("trainer | CPU s/iteration | of rmfast's | memory above weights, gradients and moments", body)


def ppo_study(result: Result) -> str:
    """What each way to train a policy gained, over its seeds: its reward and gold at the end less at the start,
    and in how many seeds gold's intervals of start and end are apart."""
    methods: dict[str, list[list[Result]]] = {}
    for name, run in result["runs"].items():
        methods.setdefault(name.rpartition(", seed ")[0], []).append(run["curve"])
    body = []
    for method, curves in methods.items():
        ends = [(curve[0], curve[-1]) for curve in curves]
        gains = {key: [last[key] - first[key] for first, last in ends] for key in ("reward", "gold")}
        rises = sum(last["gold_low"] > first["gold_high"] for first, last in ends)
        falls = sum(last["gold_high"] < first["gold_low"] for first, last in ends)
        body.append([
            method, str(len(curves)), f"{fmean(last['kl'] for _, last in ends):.1f}",
            *(f"{fmean(each):+.2f} ({', '.join(f'{gain:+.2f}' for gain in each)})" for each in gains.values()),
            f"up in {rises}, down in {falls}",
        ])  # fmt: skip
    return rows("policy | seeds | KL | its reward | gold | gold, apart from its start", body)


def prepare(result: Result) -> str:
    """What preparing data takes, by part, beside TRL and an earlier commit."""
    names = {"trl": "TRL's `RewardTrainer`", "before": f"rmfast, {result['before']}", "rmfast": "rmfast"}
    ours, body = result["median"]["rmfast"], []
    for side in (side for side in names if side in result["median"]):
        parts = result["median"][side]
        seconds = [f"{parts[part]:.1f}" for part in ("imports", "tokenizer", "data", "all")]
        body.append([names[side], *seconds, f"{ours['data'] / parts['data']:.2f}"])
    return rows(" | imports | tokenizer | data | together | rmfast's share of its data", body)


def without_model(result: Result) -> str:
    """What commands that need no model take, beside an earlier commit."""
    body = [
        [f"`rmfast {name}`", f"{times['before']:.2f}", f"{times['rmfast']:.2f}"]
        for name, times in result["command_medians"].items()
    ]
    return rows(f"command | {result['before']} | now", body)


def serve_throughput(result: Result) -> str:
    """Rewards a CPU second of two servers."""
    names = {"samples": "4 answers to each prompt", "pairs": "2 answers to each prompt", "single": "1 answer"}
    body = []
    for name, row in result["throughput"].items():
        per = row["rewards_per_cpu_second"]
        gap = f"{row['largest_difference']:.0e}".replace("e-0", "e-")
        body.append(
            [
                names[name],
                str(row["texts"]),
                *(f"{per[side]:.2f}" for side in ("padded", "rmfast")),
                f"{row['ratio']:.1f} x",
                gap,
            ]
        )
    return rows("in random order | texts | padded | `rmfast serve` | ratio | largest difference of a reward", body)


def serve_load(result: Result) -> str:
    """A minute of 200 clients."""
    body = []
    names = {"tiny": "2 layers, width 64", "model": "SmolLM2-135M"}
    for side in (side for side in names if side in result):
        row = result[side]
        memory, late = row["memory_mb"], row["latency_seconds"]
        odd = f"{sum(row['misbehaved'].values()):,}"
        counts = [f"{row['answers']:,}", str(row["wrong"]), str(len(row["failed"])), odd]
        times = [f"{late['p50']:.1f}", f"{late['p99']:.1f}", f"{row['server_cpu_seconds']:.1f}"]
        body.append([names[side], *counts, *times, ", ".join(f"{one:.0f}" for one in memory)])
    head = "model | answers | wrong | failed | misbehaved | p50, s | p99, s | server's CPU s | MB, each 10 s"
    return rows(head, body)


def megatron_ppo(result: Result) -> str:
    """How far PPO under layouts is from one native process, run by run."""
    body = []
    for name, found in result["results"].items():
        apart = dict(found["apart"])
        weights, critic = apart.pop("weights"), apart.pop("critic weights", None)
        norms = max(value for key, value in apart.items() if "norm" in key)
        losses = max(value for key, value in apart.items() if "norm" not in key)
        shown = [f"{value:.0e}" for value in (losses, norms, weights)] + ["" if critic is None else f"{critic:.0e}"]
        body.append([name, f"{len(found['differing'])} answers", *shown])
    return rows("run | differ | losses, KL, rewards | gradient norms | policy | critic", body)


KINDS: dict[str, Callable[[Result], str]] = {
    "readme": readme, "beside-trl": beside_trl, "gpu-steps": gpu_steps, "sampling": sampling,
    "versions": versions, "adapters-time": adapters_time, "adapters-memory": adapters_memory,
    "members": members, "members-memory": members_memory, "ppo-optimum": ppo_optimum,
    "ppo-beside-trl": ppo_beside_trl, "ppo-study": ppo_study,
    "prepare": prepare, "without-model": without_model,
    "serve-throughput": serve_throughput, "serve-load": serve_load,
    "megatron-ppo": megatron_ppo,
}  # fmt: skip
