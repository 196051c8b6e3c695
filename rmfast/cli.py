"""The command `rmfast`: data report, eval, score, export. Training is `torchrun rmfast/train.py CONFIG.yaml`."""

import argparse
import sys
from collections.abc import Sequence

from rmfast.errors import RunError, UserError


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    root = argparse.ArgumentParser(prog="rmfast", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="look at preference data")
    report = data.add_subparsers(dest="what", required=True, metavar="WHAT").add_parser(
        "report", help="what a source holds: rows, bad rows by cause, lengths, shared prompts, identical pairs"
    )
    report.add_argument("sources", nargs="+", metavar="PATH", help="file, folder or datasets name")
    report.add_argument("--model", metavar="PATH", help="whose tokenizer counts tokens (default: bytes)")
    report.add_argument("--chat-template", metavar="PATH", help="jinja file in place of the tokenizer's template")
    report.add_argument("--max-length", type=positive, default=1024, help="what counts as over-long (default 1024)")

    evaluate = commands.add_parser("eval", help="evaluate a reward model on a suite")
    evaluate.add_argument("model", metavar="CKPT", help="Hugging Face folder, run folder or checkpoint")
    evaluate.add_argument("--suite", choices=["pairwise"], default="pairwise", help="what is measured")
    evaluate.add_argument("--data", required=True, metavar="PATH", help="file, folder or datasets name")
    evaluate.add_argument("--out", metavar="FILE.json", help="where all figures go")
    _scoring(evaluate)

    score = commands.add_parser("score", help="write the reward of every response; with several models, strengths too")
    score.add_argument("models", nargs="+", metavar="CKPT", help="Hugging Face folder, run folder or checkpoint")
    score.add_argument("--data", required=True, metavar="PATH", help="file, folder or datasets name")
    score.add_argument("--out", required=True, metavar="FILE.jsonl", help="the rows with their rewards")
    _scoring(score)

    export = commands.add_parser("export", help="write a checkpoint as a Hugging Face folder, and check its scores")
    export.add_argument("model", metavar="CKPT", help="checkpoint, run folder or Hugging Face folder")
    export.add_argument("--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    export.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    export.add_argument("--chat-template", metavar="PATH", help="jinja file in place of the tokenizer's template")
    return root


def _scoring(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    command.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights and maths")
    command.add_argument("--tokens-per-pack", type=positive, default=16384, help="tokens of a forward pass")
    command.add_argument("--chat-template", metavar="PATH", help="jinja file in place of the tokenizer's template")


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 2 for the user's errors, 1 for a result that must not be used."""
    options = parser().parse_args(arguments)
    # After parsing: these import torch.
    from rmfast.tasks import commands

    run = {"data": commands.report, "eval": commands.evaluate, "score": commands.score, "export": commands.export}
    try:
        run[options.command](options)
    except (UserError, RunError) as error:
        print(f"rmfast: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
