"""The command `rmfast`: data report, denoise; eval, compare, score, export; plan, launch.

Training: `torchrun rmfast/train.py CONFIG.yaml`.
"""

import argparse
import os
import select
import sys
from collections.abc import Sequence
from typing import Any

from rmfast.commands.judge import add_flags
from rmfast.config import DenoiseConfig
from rmfast.data.clock import DEFAULT_DATE, iso_date
from rmfast.data.denoise import PRESETS
from rmfast.environment import prepare
from rmfast.errors import RunError, UserError

RULES = ("mean", "median", "worst", "mean-k-std", "majority")  # of rmfast.evaluation.combine, which imports torch
LABEL = 'of a classifier of several labels, the one that is the reward, by name or number; "ensemble": all, as heads'


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    root = argparse.ArgumentParser(prog="rmfast", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="look at preference data")
    looks = data.add_subparsers(dest="what", required=True, metavar="WHAT")
    report = looks.add_parser(
        "report", help="what a source holds: rows, bad rows by cause, lengths, shared prompts, identical pairs"
    )
    report.add_argument("sources", nargs="+", metavar="PATH", help="file, folder or datasets name")
    report.add_argument("--model", metavar="PATH", help="whose tokenizer counts tokens (default: bytes)")
    _template(report)
    _columns(report)
    report.add_argument("--max-length", type=positive, default=1024, help="what counts as over-long (default 1024)")
    report.add_argument(
        "--samples", type=positive, metavar="K", help="the sources are MetaRM's: K responses of a prompt"
    )
    _denoise(looks.add_parser("denoise", help="what treating edges by their strength does to the data"))

    evaluate = commands.add_parser("eval", help="evaluate a reward model, several as one, or a judge, on a suite")
    evaluate.add_argument("models", nargs="*", metavar="CKPT", help="Hugging Face folder, run folder or checkpoint")
    evaluate.add_argument(
        "--suite",
        default="pairwise",
        metavar="NAME",
        help="pairwise (default), best-of-n, rmb, reward-bench, reward-bench-2, rm-bench, or a .py file that defines "
        "SUITE (docs/evaluation.md)",
    )
    evaluate.add_argument("--data", required=True, metavar="PATH", help="the suite's file or folder, or datasets name")
    evaluate.add_argument("--out", metavar="FILE.json", help="where all figures and rows go")
    evaluate.add_argument("--name", help="what the result calls the model (default: its folder)")
    evaluate.add_argument(
        "--combine", choices=RULES, help="how several models, or the heads of one, become one (default: mean)"
    )
    evaluate.add_argument("--k", type=non_negative, help="of mean-k-std (default 1)")
    evaluate.add_argument(
        "--standardise", action="store_true", help="each member to mean 0 and std 1 on the data first"
    )
    _scoring(evaluate)
    add_flags(evaluate)

    score = commands.add_parser("score", help="write the reward of every response; with several models, strengths too")
    score.add_argument("models", nargs="+", metavar="CKPT", help="Hugging Face folder, run folder or checkpoint")
    score.add_argument("--data", required=True, metavar="PATH", help="file, folder or datasets name")
    score.add_argument("--out", required=True, metavar="FILE.jsonl", help="the rows with their rewards")
    _scoring(score)
    _compare(commands)

    export = commands.add_parser("export", help="write a checkpoint as a Hugging Face folder, and check its scores")
    export.add_argument("model", metavar="CKPT", help="checkpoint, run folder or Hugging Face folder")
    export.add_argument("--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    export.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    _template(export)
    export.add_argument("--label", metavar="NAME", help=LABEL)

    plan = commands.add_parser("plan", help="which layouts of N GPUs fit a run, and what a step would take")
    plan.add_argument("config", nargs="+", metavar="CONFIG", help="as torchrun rmfast/train.py takes it, keys included")
    plan.add_argument("--gpus", type=positive, required=True, help="how many")
    plan.add_argument(
        "--gpu",
        default="h100",
        metavar="KIND",
        help="h100 (default), h200, a100, or a file of rates that benchmarks/scaling/ceilings.py measured",
    )
    plan.add_argument("--tokens-per-group", type=positive, help="of a prompt group (default: measured on data.train)")
    plan.add_argument("--show", type=positive, default=8, help="layouts shown (default 8)")
    plan.add_argument("--out", metavar="FILE.json", help="all layouts with all terms")

    launch = commands.add_parser("launch", help="write the scripts that a scheduler takes")
    _slurm(launch.add_subparsers(dest="what", required=True, metavar="WHAT").add_parser("slurm", help="sbatch files"))
    return root


def _slurm(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("config", nargs="+", metavar="CONFIG", help="as torchrun rmfast/train.py takes it, keys included")
    add("--nodes", type=positive, default=1, help="(default 1)")
    add("--gpus-per-node", type=int, default=8, choices=range(65), metavar="N", help="(default 8); 0: the CPU")
    add("--time", required=True, metavar="12:00:00", help="limit of one start")
    add("--partition", metavar="NAME")
    add("--account", metavar="NAME")
    add("--mem", metavar="SIZE", help="of a node")
    add("--cpus-per-task", type=positive, metavar="N", help="of a node")
    add("--sbatch", action="append", default=[], metavar="=--OPTION", help="a further option of sbatch; repeatable")
    add("--setup", action="append", default=[], metavar="LINE", help='shell line, as "source env.sh"; repeatable')
    add("--job-name", metavar="NAME", help="(default: the run folder's)")
    add("--logs", default=".", metavar="DIR", help="folder of the jobs' logs (default: where they are submitted)")
    add("--lead", type=positive, default=300, metavar="S", help="seconds to save and end before the limit (300)")
    add("--restarts", type=positive, default=100, metavar="N", help="starts after the first, at most (100)")
    add("--idle-restarts", type=positive, default=3, metavar="N", help="those in a row that make no checkpoint (3)")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument(
        "--array",
        nargs="?",
        type=positive,
        const=0,
        metavar="K",
        help="a job for each member of an ensemble, K at once",
    )
    kind.add_argument(
        "--scaling", nargs="+", type=positive, metavar="NODES", help="a weak and a strong measurement at each size"
    )
    add("--out", metavar="FILE.sbatch", help="(default: print)")
    add("--submit", action="store_true", help="hand it to sbatch")


def _compare(commands: Any) -> None:
    command = commands.add_parser("compare", help="what results of eval say beside accuracies; several side by side")
    command.add_argument("results", nargs="+", metavar="RESULT.json", help="files of eval --out, on the same rows")
    command.add_argument("--suite", metavar="FILE.py", help="their suite, where it is not one of rmfast's own")
    command.add_argument(
        "--candidates", nargs="+", metavar="A.jsonl", help="files of rmfast score on the same rows, one for each result"
    )
    command.add_argument("--gold", metavar="GOLD.jsonl", help="the gold scorer's rewards of those rows")
    command.add_argument("--out", metavar="FILE.json", help="where all figures go")
    command.add_argument("--html", metavar="PAGE.html", help="write one self-contained page")


def _denoise(command: argparse.ArgumentParser) -> None:
    command.add_argument("sources", nargs="+", metavar="PATH", help="file, folder or datasets name, with strengths")
    _columns(command)
    command.add_argument("--preset", "--data.denoise", choices=list(PRESETS), help="of Part II; default: baseline")
    for name, field in DenoiseConfig.model_fields.items():
        flags = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}", f"--denoise.{name}"))
        count: Any = {"drop": 2, "smooth_slice": "+"}.get(name, 1)
        command.add_argument(*flags, dest=f"denoise.{name}", nargs=count, metavar="VALUE", help=field.description)
    command.add_argument(
        "--examples", type=int, default=2, choices=range(100), metavar="N", help="rows shown of a kind (2)"
    )
    command.add_argument("--out", metavar="FILE.jsonl", help="write the treated data: a row for each edge")
    command.add_argument("--plot", metavar="FILE.png", help="write the histogram of strengths")


def _columns(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--columns",
        "--data.columns",
        nargs="+",
        default=(),
        metavar="WORD",
        help="what columns of other names are: THEIRS=OURS, a layout (orca, alpaca, ...) or ignore (docs/data.md)",
    )


def _scoring(command: argparse.ArgumentParser) -> None:
    _columns(command)
    command.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    command.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights and maths")
    command.add_argument(
        "--tokens-per-pack",
        type=positive,
        default=16384,
        help="tokens of a forward pass; of a local judge's batch (default %(default)s)",
    )
    _template(command)
    command.add_argument("--label", metavar="NAME", help=LABEL)
    command.add_argument(
        "--scored-token",
        choices=["last", "transformers"],
        help="of a response: its last (default), or as transformers the last that is no pad token",
    )


def _template(command: argparse.ArgumentParser) -> None:
    command.add_argument("--chat-template", metavar="PATH", help="jinja file in place of the tokenizer's template")
    command.add_argument(
        "--template-date",
        type=date,
        metavar="YYYY-MM-DD",
        help=f"given to a template that reads the clock (default: as the model was trained, else {DEFAULT_DATE})",
    )


def date(text: str) -> str:
    """A date as YYYY-MM-DD, for argparse."""
    try:
        return iso_date(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def non_negative(text: str) -> float:
    """A finite number of at least 0, for argparse."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 2 for the user's errors, 1 for a result that must not be used."""
    options, more = parser().parse_known_args(arguments)
    options.more, options.words = more, list(sys.argv[1:] if arguments is None else arguments)
    if more and options.command not in ("plan", "launch"):  # whose config takes keys
        parser().error(f"unrecognized arguments: {' '.join(more)}")
    # After parsing: these import torch.
    prepare()
    from rmfast.commands import compare, data, denoise, evaluate, export, launch, plan, score

    looks = {"report": data.report, "denoise": denoise.preview}
    run = {
        "data": lambda o: looks[o.what](o),
        "eval": evaluate.evaluate,
        "score": score.score,
        "compare": compare.compare,
        "export": export.export,
        "plan": plan.plan,
        "launch": launch.slurm,
    }
    try:
        run[options.command](options)
        if sys.stdout is not None:  # which a shell's >&- leaves it
            sys.stdout.flush()  # a pipe that nobody reads shows here rather than at the interpreter's exit
    except (UserError, RunError) as error:
        print(f"rmfast: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 128 + 13  # as a shell says of a program that SIGPIPE has ended
    return 0


def _nobody_reads() -> bool:
    """Whether standard output's reader is gone, as `head` is after its lines; what is still unprinted goes nowhere
    then, or Python would complain of it at its end."""
    if sys.stdout is None:
        return False
    out = sys.stdout.fileno()
    look = select.poll()
    look.register(out, 0)
    if not look.poll(0):  # an error or a hang-up
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return True


if __name__ == "__main__":
    sys.exit(main())
