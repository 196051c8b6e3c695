"""Look at preference data, sample, evaluate and export reward models, plan and launch runs.

Training is another command: torchrun rmfast/train.py CONFIG.yaml
"""

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from rmfast.commands.serve_words import serve_limits
from rmfast.commands.words import WordParser, amount, count, date, machines, port, positive, positive_amount, template
from rmfast.config import DenoiseConfig
from rmfast.data.clock import DEFAULT_DATE
from rmfast.data.denoise import PRESETS
from rmfast.environment import end_with_launcher, nobody_reads, prepare
from rmfast.evaluation.combine import RULES
from rmfast.outputs.failure import ending

CONFIG = "YAML files and --section.key value, as for training"
SOURCE = "file, folder or datasets name"
MODEL = "Hugging Face folder, run folder or checkpoint"


def parser() -> ArgumentParser:
    """The commands and their options. `run` of what is parsed is the function that does it, in rmfast.commands."""
    root = WordParser(prog="rmfast", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    looks = _named(commands, "data", "look at preference data").add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )
    holds = "what a source holds: rows, bad rows by cause, lengths, shared prompts, identical pairs"
    _report(_named(looks, "report", holds))
    _denoise(_named(looks, "denoise", "what treating edges by their strength does to the data"))
    _evaluate(_named(commands, "eval", "evaluate a reward model, several as one, or a judge, on a suite"))
    _sample(_named(commands, "sample", "draw answers of a language model, and keep the best by a reward model"))
    _score(_named(commands, "score", "write the reward of every response; with several models, strengths too"))
    _serve(_named(commands, "serve", "answer with rewards over HTTP: OpenRLHF's, vLLM's and a protocol of its own"))
    _compare(_named(commands, "compare", "diagnostics of results of eval, several side by side"))
    _export(_named(commands, "export", "write a checkpoint as a Hugging Face folder, and check its scores"))
    _doctor(_named(commands, "doctor", "say whether a run folder is whole, and what the run would go on from"))
    _plan(_named(commands, "plan", "which layouts of N GPUs fit a run, and what a step would take"))
    launch = _named(commands, "launch", "write the scripts that a scheduler takes")
    _slurm(_named(launch.add_subparsers(dest="what", required=True, metavar="WHAT"), "slurm", "write sbatch files"))
    return root


def _named(commands: Any, name: str, text: str) -> ArgumentParser:
    """A command that its list and its page describe with one text."""
    added: ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    return added


def _report(command: ArgumentParser) -> None:
    command.set_defaults(run="data.report")
    add = command.add_argument
    add("sources", nargs="+", metavar="PATH", help=SOURCE)
    add("--model", metavar="PATH", help="model whose tokenizer counts tokens (default: bytes are counted)")
    _template(command)
    _columns(command)
    add("--max-length", type=positive, default=1024, help="tokens above which a row is over-long (1024)")
    add = command.add_mutually_exclusive_group().add_argument
    add("--samples", type=positive, metavar="K", help="read the sources as MetaRM does: K responses of each prompt")
    add("--prompts", action="store_true", help="read the sources as prompts to sample from, without their answers")
    learnt = "read the sources as demonstrations to learn; last: of conversations the last answer alone"
    add("--demonstrations", nargs="?", const="all", choices=["all", "last"], help=learnt)


def _denoise(command: ArgumentParser) -> None:
    command.set_defaults(run="denoise.preview")
    add = command.add_argument
    add("sources", nargs="+", metavar="PATH", help=f"{SOURCE}, with strengths")
    _columns(command)
    add("--preset", "--data.denoise", choices=list(PRESETS), help="treatment of the paper (default: baseline)")
    for name, field in DenoiseConfig.model_fields.items():
        flags = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}", f"--denoise.{name}"))
        values: Any = {"drop": 2, "smooth_slice": "+"}.get(name, 1)
        add(*flags, dest=f"denoise.{name}", nargs=values, metavar="VALUE", help=field.description)
    add("--examples", type=int, default=2, choices=range(100), metavar="N", help="rows shown of each kind (2)")
    add("--out", metavar="FILE.jsonl", help="write the denoised data: a row for each edge")
    add("--plot", metavar="FILE.png", help="write the histogram of strengths")


def _evaluate(command: ArgumentParser) -> None:
    command.set_defaults(run="evaluate.evaluate")
    add = command.add_argument
    add("models", nargs="*", metavar="CKPT", help=MODEL)
    known = "pairwise (default), best-of-n, rmb, reward-bench, reward-bench-2, rm-bench"
    suite = f"{known}, or a .py file that defines SUITE (docs/evaluation.md)"
    add("--suite", default="pairwise", metavar="NAME", help=suite)
    add("--data", required=True, metavar="PATH", help="the suite's file or folder, or datasets name")
    add("--out", metavar="FILE.json", help="write all figures and rows")
    add("--name", help="name of the model in the result (default: its folder)")
    _combining(add)
    _scoring(command)
    judge_flags(command)


def judge_flags(command: ArgumentParser) -> None:
    """The flags that `make_judge` reads, beside those of every command that scores, and --out."""
    about = "a language model that says which answer is better"
    add = command.add_argument_group("generative judges", about).add_argument
    add("--judge", metavar="DIR", help="a causal language model: Hugging Face folder or GGUF")
    add("--endpoint", metavar="URL", help="an OpenAI-compatible server, such as http://localhost:8000/v1")
    add("--judge-model", metavar="NAME", help="name of the model at --endpoint")
    add("--criteria", default="none", metavar="none|builtin|FILE", help="what makes an answer better (none)")
    add("--reasoning", action="store_true", default=True, help="compare in words first (default)")
    add("--no-reasoning", action="store_false", dest="reasoning", help="a verdict and nothing else")
    add("--orders", choices=["both", "one"], default="both", help="orders of the answers in each vote (both)")
    add("--votes", type=positive, default=1, metavar="K", help="votes for each comparison; the majority decides (1)")
    add("--temperature", type=amount, help="sampling temperature (default: 0 for one vote, 1 for more)")
    add("--max-tokens", type=positive, help="longest answer of the judge (default: 1024, 64 without reasoning)")
    add("--allow-ties", action="store_true", help="the judge may say that neither is better; ties lose")
    add("--concurrency", type=positive, default=8, metavar="N", help="requests at once (8)")
    add("--timeout", type=positive_amount, default=120.0, metavar="SECONDS", help="time-out of a request (120)")
    add("--retries", type=count, default=5, metavar="N", help="further tries of a failed request (5)")
    add("--requests-per-minute", type=positive_amount, metavar="N", help="requests a minute, at most (no limit)")
    log = "every answer is kept there, and the same command resumes from it (default: a file beside --out)"
    add("--judge-log", metavar="FILE.jsonl", help=log)
    add("--seed", type=count, default=0, help="decides orders and a local judge's samples (0)")


def _score(command: ArgumentParser) -> None:
    command.set_defaults(run="score.score")
    add = command.add_argument
    add("models", nargs="+", metavar="CKPT", help=MODEL)
    add("--data", required=True, metavar="PATH", help=SOURCE)
    add("--out", required=True, metavar="FILE.jsonl", help="the rows with their rewards")
    _scoring(command)


def _serve(command: ArgumentParser) -> None:
    command.set_defaults(run="serve.serve")
    add = command.add_argument
    add("models", nargs="+", metavar="CKPT", help=MODEL)
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    add("--port", type=port, default=5000, metavar="N", help="port to listen on (5000); 0: any that is free")
    add("--name", type=str, metavar="NAME", help="what clients call the model (default: CKPT as it is typed)")
    add("--token-file", metavar="FILE", help="its line is the bearer token that clients need (default: none)")
    add("--combine", choices=RULES, help="how several models, or the heads of one, become one (default: mean)")
    add("--k", type=amount, help="standard deviations that --combine mean-k-std takes off (default 1)")
    serve_limits(command)
    _device(command)
    _template(command)
    _label(command)
    _scored_token(command)


def _sample(command: ArgumentParser) -> None:
    command.set_defaults(run="sample.sample")
    add = command.add_argument
    add("model", metavar="MODEL", help="causal language model: Hugging Face folder or GGUF file")
    add("--data", required=True, metavar="PROMPTS", help=f"{SOURCE}, whose prompts are taken")
    add("--out", required=True, metavar="FILE.jsonl", help="the prompts with their answers")
    add("--limit", type=positive, metavar="K", help="only the first K prompts")
    many = "samples of each prompt (1); torchrun takes --n for one of its options, but not --samples"
    add("--n", "--samples", dest="n", type=positive, default=1, metavar="N", help=many)
    add("--max-new-tokens", type=positive, default=256, metavar="N", help="longest answer (256)")
    add("--temperature", type=amount, default=1.0, metavar="T", help="logits are divided by it; 0: greedy (1)")
    add("--top-p", type=amount, default=1.0, metavar="P", help="only the likeliest tokens that hold P (1: off)")
    add("--top-k", type=count, default=0, metavar="K", help="only the K likeliest tokens (0: off)")
    add(
        "--min-p", type=amount, default=0.0, metavar="P", help="only tokens P times as likely as the likeliest (0: off)"
    )
    penalty = "divides the logits of tokens that were there before (1: off)"
    add("--repetition-penalty", type=positive_amount, default=1.0, metavar="X", help=penalty)
    add("--stop", type=str, action="append", default=[], metavar="TEXT", help="a text that ends an answer; repeatable")
    add("--seed", type=count, default=0, help="of the noise (0)")
    add("--rows", type=positive, default=256, metavar="N", help="samples that are decoded at once (256)")
    memory = "gigabytes of keys and values, at most (default: half of what is free)"
    add("--memory", type=positive_amount, metavar="GB", help=memory)
    tokens = "token budget of the prompts that are computed at once (2048)"
    add("--tokens-per-pack", type=positive, default=2048, metavar="N", help=tokens)
    _device(command)
    _columns(command)
    _template(command)
    add = command.add_argument_group("best of N", "reward models choose among the answers").add_argument
    add("--reward", nargs="+", default=[], metavar="CKPT", help="the reward models; the best answer is kept")
    _combining(add)
    kept = "best: prompt and completion (default); best-worst: a preference pair; all: the rows with rewards"
    add("--keep", choices=["best", "best-worst", "all"], help=kept)
    add("--gold", metavar="CKPT", help="a reward model that chooses nothing, to compare with")
    add("--report", metavar="DIR", help="write proxy against gold over N: figures, plots and a page")
    _label(command)
    _scored_token(command)


def _compare(command: ArgumentParser) -> None:
    command.set_defaults(run="compare.compare")
    add = command.add_argument
    add("results", nargs="+", metavar="RESULT.json", help="files of eval --out, on the same rows")
    add("--suite", metavar="FILE.py", help="the results' suite, where it is not a built-in one")
    candidates = "files of rmfast score on the same rows, one for each result"
    add("--candidates", nargs="+", metavar="A.jsonl", help=candidates)
    add("--gold", metavar="GOLD.jsonl", help="the gold scorer's rewards of those rows")
    add("--out", metavar="FILE.json", help="write all figures")
    add("--html", metavar="PAGE.html", help="write one self-contained page")


def _export(command: ArgumentParser) -> None:
    command.set_defaults(run="export.export")
    add = command.add_argument
    add("model", metavar="CKPT", help="checkpoint, run folder or Hugging Face folder")
    add("--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="dtype of the weights (float32)")
    _template(command)
    _label(command)


def _doctor(command: ArgumentParser) -> None:
    command.set_defaults(run="doctor.doctor")
    command.add_argument("run_folder", metavar="RUN", help="run folder; nothing in it is changed")


def _plan(command: ArgumentParser) -> None:
    command.set_defaults(run="plan.plan")
    add = command.add_argument
    add("config", nargs="+", metavar="CONFIG", help=CONFIG)
    add("--gpus", type=machines, required=True, metavar="N", help="number of GPUs")
    gpu = "h100 (default), h200, a100, or a file of rates that benchmarks/scaling/ceilings.py measured"
    add("--gpu", default="h100", metavar="KIND", help=gpu)
    add(
        "--tokens-per-group",
        type=positive,
        metavar="N",
        help="tokens of a prompt group, for ppo of a prompt (those of the data)",
    )
    add("--show", type=positive, default=8, metavar="N", help="layouts shown (8)")
    add("--out", metavar="FILE.json", help="write all layouts with all terms")


def _slurm(command: ArgumentParser) -> None:
    command.set_defaults(run="launch.slurm")
    add = command.add_argument
    add("config", nargs="+", metavar="CONFIG", help=CONFIG)
    add("--nodes", type=machines, default=1, metavar="N", help="nodes of the job (1)")
    add("--gpus-per-node", type=int, default=8, choices=range(65), metavar="N", help="GPUs of a node (8); 0: the CPU")
    add("--time", required=True, metavar="12:00:00", help="limit of one start")
    add("--partition", metavar="NAME", help="Slurm's partition")
    add("--account", metavar="NAME", help="Slurm's account")
    add("--mem", metavar="SIZE", help="memory of each node")
    add("--cpus-per-task", type=positive, metavar="N", help="cores of each node")
    add(
        "--sbatch",
        type=str,
        action="append",
        default=[],
        metavar="=--OPTION",
        help="another option of sbatch; repeatable",
    )
    add(
        "--setup",
        type=str,
        action="append",
        default=[],
        metavar="LINE",
        help="shell line before the training; repeatable",
    )
    add("--job-name", metavar="NAME", help="name of the job (default: the run folder's)")
    add("--logs", default=".", metavar="DIR", help="folder of the jobs' logs (default: where they are submitted)")
    add("--lead", type=positive, default=300, metavar="S", help="seconds to save and end before the limit (300)")
    add("--restarts", type=positive, default=100, metavar="N", help="starts after the first, at most (100)")
    add("--idle-restarts", type=positive, default=3, metavar="N", help="starts in a row without a checkpoint (3)")
    add = command.add_mutually_exclusive_group().add_argument
    array, sizes = "a job for each member of an ensemble, K at once", "a weak and a strong measurement at each size"
    add("--array", nargs="?", type=positive, const=0, metavar="K", help=array)
    add("--scaling", nargs="+", type=machines, metavar="NODES", help=sizes)
    command.add_argument("--out", metavar="FILE.sbatch", help="write the script there (default: print it)")
    command.add_argument("--submit", action="store_true", help="hand the script to sbatch")


def _columns(command: ArgumentParser) -> None:
    words = "meaning of other columns: THEIRS=OURS, a layout (orca, alpaca, ...) or ignore (docs/data.md)"
    command.add_argument("--columns", "--data.columns", nargs="+", default=(), metavar="WORD", help=words)


def _scoring(command: ArgumentParser) -> None:
    add = command.add_argument
    _columns(command)
    _device(command)
    tokens = "token budget of a forward pass, or of a local judge's batch (16384)"
    add("--tokens-per-pack", type=positive, default=16384, metavar="N", help=tokens)
    _template(command)
    _label(command)
    _scored_token(command)


def _combining(add: Callable[..., Any]) -> None:
    add("--combine", choices=RULES, help="how several models, or the heads of one, become one (default: mean)")
    add("--k", type=amount, help="standard deviations that --combine mean-k-std takes off (default 1)")
    add("--standardise", action="store_true", help="bring each member to mean 0 and std 1 on the data first")


def _device(command: ArgumentParser) -> None:
    add = command.add_argument
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="dtype of weights and arithmetic (float32)")


def _scored_token(command: ArgumentParser) -> None:
    token = "token that is scored: a response's last (default), or as transformers the last that is no pad token"
    command.add_argument("--scored-token", choices=["last", "transformers"], help=token)


def _label(command: ArgumentParser) -> None:
    text = 'label of a classifier that is the reward, by name or number; "ensemble": all labels, as heads'
    command.add_argument("--label", metavar="NAME", help=text)


def _template(command: ArgumentParser) -> None:
    add = command.add_argument
    add("--chat-template", type=template, metavar="PATH", help="jinja file that replaces the tokenizer's template")
    clock = f"date for a template that reads the clock (default: as the model was trained, else {DEFAULT_DATE})"
    add("--template-date", type=date, metavar="YYYY-MM-DD", help=clock)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 2 for the user's errors, 1 for a result that must not be used."""
    root = parser()
    options, more = root.parse_known_args(arguments)
    options.more, options.words = more, list(sys.argv[1:] if arguments is None else arguments)
    if more and options.command not in ("plan", "launch"):  # whose config takes keys
        root.error(f"unrecognized arguments: {' '.join(more)}")
    prepare()
    end_with_launcher()
    module, _, name = options.run.partition(".")
    command = getattr(import_module(f"rmfast.commands.{module}"), name)  # after parsing: it imports torch
    try:
        command(options)
        if sys.stdout is not None:  # as it is after a shell's >&-
            sys.stdout.flush()  # a closed pipe shows here rather than at the interpreter's exit
    except BrokenPipeError:
        if not nobody_reads():
            raise
        return 128 + 13  # as a shell says of a program that SIGPIPE has ended
    except KeyboardInterrupt:
        print("rmfast: interrupted", file=sys.stderr)
        return 128 + 2
    except Exception as error:
        if (end := ending(error)) is None:
            raise
        print(f"rmfast: {end[1]}", file=sys.stderr)
        return end[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
