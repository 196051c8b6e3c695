"""The verdict on a run in words."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rmfast.report.run_folder import Row, number

SHOWN = 10  # steps that are named


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if np.isfinite(share) else "unknown"


def accuracy_line(metrics: Row) -> str:
    """Accuracy and its interval, as in "61.2 % (95 % interval 57.9 to 64.4 %)"."""
    low, high = number(metrics, "accuracy_low"), number(metrics, "accuracy_high")
    interval = f" (95 % interval {100 * low:.1f} to {percent(high)})" if np.isfinite(low + high) else ""
    return percent(number(metrics, "accuracy")) + interval


def baseline(metrics: Row) -> tuple[str, float]:
    """The rule to beat and its accuracy: the better rule of length or, where lengths are unknown, a coin."""
    share = number(metrics, "baseline_accuracy")
    return (f'"{metrics.get("baseline", "length")}"', share) if np.isfinite(share) else ("a fair coin", 0.5)


def clears_baseline(metrics: Row) -> bool:
    """Whether the accuracy's whole interval is above the baseline, and no score is broken."""
    return number(metrics, "accuracy_low") > baseline(metrics)[1] and not number(metrics, "nonfinite") > 0


def verdict(metrics: Row) -> str:
    """In plain words, whether the interval of the accuracy clears the baseline; broken scores come first."""
    broken = number(metrics, "nonfinite")
    if broken > 0:
        return f"{broken:,.0f} scores are not finite: the model is broken, its pairs count as lost."
    rule, share = baseline(metrics)
    low, high = number(metrics, "accuracy_low"), number(metrics, "accuracy_high")
    if not np.isfinite(low + high):
        return "The accuracy is unknown: no held-out pair was scored."
    beat = f"{rule} ({percent(share)})"
    if low > share:
        return f"The whole interval is above {beat}: the model ranks better than that rule."
    if high < share:
        return f"The whole interval is below {beat}: that rule ranks better than the model."
    return f"The interval does not clear {beat}: the model may be no better than that rule. More pairs would tell."


def final_summary(
    metrics: Row | None,
    *,
    model: Path,
    report: Path | None,
    checkpoints: Path | None = None,
    data: str | None = None,
    name: str = "held-out",
) -> str:
    """The console's final summary of a run.

    Args:
        metrics: `pairwise_metrics` of the final model on the held-out set called `name`; None without such a set.
        model: the exported model's folder.
        report: folder of the plots and report.html; None where none was written.
        checkpoints: folder of the checkpoints.
        data: source of held-out pairs, for the line to type next.
    """
    if metrics is None:
        lines = ["No held-out pairs were given (data.eval): nothing tells how well this model ranks."]
    else:
        pairs = number(metrics, "edges")
        scope = f" on {pairs:,.0f} {'pair' if pairs == 1 else 'pairs'}" if np.isfinite(pairs) else ""
        lines = [f"Accuracy on {name}: {accuracy_line(metrics)}{scope}", verdict(metrics)]
    source = shlex.quote(data) if data else "PAIRS.jsonl"
    out = shlex.quote(str(model.parent / "pairwise.json"))
    command = f"eval {shlex.quote(str(model))} --suite pairwise --data {source} --out {out}"
    return closing(lines, command, model=model, report=report, checkpoints=checkpoints)


def sft_summary(
    metrics: Row | None, *, model: Path, report: Path | None, checkpoints: Path | None = None, data: str | None = None
) -> str:
    """The console's final summary of a run of supervised fine-tuning. Arguments are those of `final_summary`."""
    if metrics is None:
        lines = [
            "No held-out demonstrations were given (data.eval): nothing tells how well this model predicts others."
        ]
    else:
        low, high = number(metrics, "perplexity_low"), number(metrics, "perplexity_high")
        scope = f"{number(metrics, 'tokens'):,.0f} tokens of {number(metrics, 'rows'):,.0f} demonstrations"
        lines = [
            f"Perplexity on held-out: {number(metrics, 'perplexity'):.3f} (95 % interval {low:.3f} to {high:.3f}) on "
            f"{scope}",
            f"Likeliest token: right in {percent(number(metrics, 'mean_token_accuracy'))}",
        ]
    source = shlex.quote(data) if data else "PROMPTS.jsonl"
    out = shlex.quote(str(model.parent / "samples.jsonl"))
    command = f"sample {shlex.quote(str(model))} --data {source} --limit 8 --out {out}"
    return closing(lines, command, model=model, report=report, checkpoints=checkpoints)


def skipped_line(steps: Sequence[int]) -> str:
    """What is said of the steps that were left out; empty where there are none."""
    if not steps:
        return ""
    named = ", ".join(map(str, steps[:SHOWN])) + (", ..." if len(steps) > SHOWN else "")
    what = f"{len(steps):,} steps were" if len(steps) > 1 else "1 step was"
    return f"{what} left out, as loss or gradient was not finite (optim.on_nonfinite): {named}"


def closing(lines: Sequence[str], command: str, *, model: Path, report: Path | None, checkpoints: Path | None) -> str:
    """A final summary of some lines: where everything is, and the command of rmfast to type next."""
    places = ["", f"Model    {model}"]
    if checkpoints is not None:
        places.append(f"States   {checkpoints} (the same command goes on from the newest)")
    if report is not None:
        places.append(f"Report   {report / 'report.html'} (plots beside it)")
    return "\n".join([*lines, *places, f"Next     {_command()} {command}"])


def _command() -> str:
    """How to type `rmfast` here: beside this Python where it is not on the path."""
    if shutil.which("rmfast"):
        return "rmfast"
    beside = Path(sys.executable).with_name("rmfast")
    return shlex.quote(os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside))
