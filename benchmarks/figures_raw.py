"""Files of results, read for tables and plots: what they sum up must be what their raw times give.

Medians, ratios and shares are computed again from the rounds, so that no summary and no time can be changed alone.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.steps.figures import differences, summarise
from rmfast.errors import UserError

Result = dict[str, Any]
Said = Iterator[tuple[str, float, float]]  # what a file says of something, and what its raw figures give


def of_modes(result: Result) -> Said:
    """Training steps side by side, as steps/compare.py writes them."""
    rounds, step = result["rounds"], result.get("step")
    # Files without a warm-up are of a time when one step warmed up and means were taken over the others.
    first, middle = (1, fmean) if result["settings"].get("warm_up") is None else (result["settings"]["warm_up"], median)
    if step is None:
        whole = max(fmean(runs[0]["real_tokens"][first:]) for runs in rounds.values())
        step = {"flops": 0.0, "tokens": 0.0, "sequence_tokens": whole}
    product = max((each["matmul"] for each in result.get("limits", ())), default=1.0)
    pairs = result["settings"]["pairs_per_step"]
    found = summarise(rounds, pairs=pairs, step=step, product=product, peak=None, first=first, middle=middle)
    for mode, row in result["summary"].items():
        yield from (
            (f"{mode}, {key}", row[key], raw) for key, raw in found[mode].items() if raw is not None and key in row
        )
    for mode, difference in differences(rounds).items():
        yield f"{mode}, largest difference of a loss", result["largest_loss_difference"][mode], difference


def of_kernels(result: Result) -> Said:
    """Ops, as kernels/run.py writes them."""
    torch = {(r["op"], r["size"], r["pass"]): r for r in result["results"] if r["contender"] == "torch"}
    for row in result["results"]:
        where = (row["op"], row["size"], row["pass"])
        label = ", ".join((*where, row["contender"]))
        yield f"{label}, milliseconds", row["milliseconds"], median(row["rounds"])
        yield f"{label}, speed", row["speed_of_torch"], median(torch[where]["rounds"]) / median(row["rounds"])


def of_tiles(result: Result) -> Said:
    """The tile search."""
    for line in result["lines"]:
        for row in line["tried"]:
            if "rounds" in row:
                yield f"{line['name']}, {row['tile']}", row["milliseconds"], median(row["rounds"])
        for which in ("held", "winner"):
            for row in line["tried"] if line[f"{which}_milliseconds"] is not None else ():
                if row["tile"] == line[which]:
                    yield f"{line['name']}, {which}", line[f"{which}_milliseconds"], row["milliseconds"]


def of_adapters(result: Result) -> Said:
    """Steps with adapters beside PEFT's, as lora_cost.py writes them."""
    for name, steps in result["steps"].items():
        ours = steps["seconds"]["rmfast"]
        for way, each in steps["seconds"].items():
            yield f"{name}, {way}, cpu_seconds", steps["cpu_seconds"][way], median(each)
            if way in steps["rmfast_share"]:
                share = median(a / b for a, b in zip(ours, each, strict=True))
                yield f"{name}, {way}, rmfast_share", steps["rmfast_share"][way], share


def of_members(result: Result) -> Said:
    """Members over one trunk, as ensemble_top.py writes them."""
    full, alone, trunk, members = (result["seconds"][way] for way in ("full", "alone", "trunk", "members"))
    ours = [a + b for a, b in zip(trunk, members, strict=True)]
    for way, each in (result["seconds"] | {"ensemble": ours}).items():
        yield f"{way}, cpu_seconds", result["cpu_seconds"][way], median(each)
    share = median(a / b for a, b in zip(ours, full, strict=True))
    yield "share_of_one_full_member", result["share_of_one_full_member"], share
    times = median(result["settings"]["members"] * b / a for a, b in zip(ours, alone, strict=True))
    yield "times_less_than_one_after_another", result["times_less_than_one_after_another"], times


def of_iterations(result: Result) -> Said:
    """Iterations of PPO side by side, as ppo/compare.py writes them."""
    for mode, found in result["modes"].items():
        yield f"{mode}, cpu_seconds", found["cpu_seconds"], median(one["cpu_seconds"] for one in found["iterations"])
        most = max(one["peak_bytes"] for one in found["iterations"])
        yield f"{mode}, working_bytes", found["working_bytes"], most - found["imported_bytes"] - found["state_bytes"]


def of_preparation(result: Result) -> Said:
    """Data made ready side by side, as prepare.py writes it."""
    for side, parts in result["median"].items():
        for part, seconds in parts.items():
            each = [
                sum(one[p] for p in parts if p != "all") if part == "all" else one[part]
                for one in result["rounds"][side]
            ]
            yield f"{side}, {part}", seconds, median(each)
    for name, of in result["command_medians"].items():
        for side, seconds in of.items():
            yield f"{name}, {side}", seconds, median(result["commands"][name][side])


def of_servers(result: Result) -> Said:
    """Reward servers side by side, as serve/compare.py writes them."""
    for name, row in result["throughput"].items():
        per = {side: round(row["texts"] / median(each), 2) for side, each in row["cpu_seconds"].items()}
        for side, found in per.items():
            yield f"{name}, {side}, rewards a CPU second", row["rewards_per_cpu_second"][side], found
        yield f"{name}, ratio", row["ratio"], round(per["rmfast"] / per["padded"], 2)


RAW = {"kernels": of_kernels, "tiles": of_tiles, "steps": of_modes}


def said(result: Result) -> Said:
    """All that a file says and can be computed again."""
    if "parts" not in result:
        kinds = {
            "command_medians": of_preparation, "rounds": of_modes,
            "steps": of_adapters, "share_of_one_full_member": of_members, "modes": of_iterations,
            "throughput": of_servers,
        }  # fmt: skip
        yield from next((raw(result) for key, raw in kinds.items() if key in result), ())
        return
    for name, record in result["parts"].items():
        if "result" in record and result["stage"] in RAW:
            for what, value, raw in RAW[result["stage"]](record["result"]):
                yield f"{name}: {what}", value, raw


def load(path: Path) -> Result:
    """A file of results.

    Raises:
        UserError: it is not there, no result, or its figures are not what its raw times give.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or result.get("parts", True) in ({}, None, []):
            raise UserError(f"{path}: holds no results; put the file back as it was measured")
        for what, value, raw in said(result):
            if abs(value - raw) > 1e-6 * abs(raw) + 1e-12:
                raise UserError(f"{path}: {what}: the file says {value:.6g}, its raw figures give {raw:.6g}")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; put the file back, or take its table out of the page") from error
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path}: damaged or no result ({why}); put the file back as it was measured") from error
    return result
