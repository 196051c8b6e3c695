"""A real run on real preferences by the public commands, all layers trained; or the paper's experiments likewise.

    python -m benchmarks.gpu.real {hh,alpaca,ensemble,moving} --seed N --scratch FOLDER --keep FOLDER --json OUT \\
        (--model MODEL --data DATA | --tiny)

A run that was cut off goes on from its checkpoint in --scratch; what the experiments have done is in --keep.
"""

import argparse
import contextlib
import gzip
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HH = "hh-rlhf/harmless_base_test.jsonl.gz"
ALPACA = "alpaca_eval/v1_gpt4_vs_davinci003_balanced_{}.jsonl.gz"
RMB = "rmb_sample.tar.gz"
SHARED = {"run.tensorboard": "false", "checkpoint.every": 200, "checkpoint.keep": 1, "eval.every": 1000,
          "eval.at_start": "false"}  # fmt: skip
RECIPE = {"model.dtype": "bfloat16", "optim.lr": 2e-5, "data.tokens_per_pack": 16384, "data.max_length": 1024}
TINY = {"run.max_steps": 4, "data.pairs_per_step": 8, "data.tokens_per_pack": 1024, "optim.lr": 1e-3, "run.threads": 1,
        "data.max_length": 512}  # fmt: skip


@dataclass(frozen=True)
class Ready:
    """Pairs to train and to test on, answers of many models in two parts, the decoder, and the benchmark RMB (None at
    the tiny size)."""

    hh: tuple[Path, Path]
    alpaca: tuple[Path, Path]
    model: Path
    rmb: Path | None


def prepared(folder: Path, fill: Callable[[Path], None]) -> Path:
    """A folder that is filled once, whole or not at all; other processes may do the same."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            fill(Path(scratch) / "full")
            with contextlib.suppress(OSError):  # another one was faster
                (Path(scratch) / "full").rename(folder)
    return folder


def tiny_data(folder: Path) -> None:
    """A random decoder, pairs and answers of random words."""
    from tests.runs import write_answers, write_model, write_rows

    write_model(folder / "model")
    for number, split in enumerate(("train", "test")):
        write_rows(folder / f"hh_{split}.jsonl", 80, seed=number)
        write_answers(folder / f"answers_{split}.jsonl", 5, number)


def split_hh(folder: Path, data: Path) -> None:
    """HH's rows by their own split."""
    folder.mkdir()
    with gzip.open(data / HH, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for split in ("train", "test"):
        own = [json.dumps(row) + "\n" for row in rows if row["meta"]["split"] == split]
        (folder / f"{split}.jsonl").write_text("".join(own), encoding="utf-8")


def prepare(args: argparse.Namespace) -> Ready:
    """The data and the decoder, made ready in scratch once on a machine."""
    if args.tiny:
        folder = prepared(args.scratch / "tiny", tiny_data)
        hh, answers = ((folder / f"{name}_train.jsonl", folder / f"{name}_test.jsonl") for name in ("hh", "answers"))
        return Ready(hh, answers, folder / "model", None)
    hh = prepared(args.scratch / "hh", lambda folder: split_hh(folder, args.data))

    def unpack(folder: Path) -> None:
        with tarfile.open(args.data / RMB) as archive:
            archive.extractall(folder, filter="data")

    (rmb,) = prepared(args.scratch / "rmb", unpack).iterdir()
    alpaca = args.data / ALPACA.format("train"), args.data / ALPACA.format("test")
    return Ready((hh / "train.jsonl", hh / "test.jsonl"), alpaca, args.model, rmb)


def program(module: str, *words: object) -> None:
    subprocess.run([sys.executable, "-P", "-m", module, *map(str, words)], check=True)


def train(args: argparse.Namespace, name: str, data: Ready, pairs: tuple[Path, Path], **keys: Any) -> Path:
    """The public training command; the run's folder. A run that is done stays."""
    run: Path = args.scratch / "runs" / name
    note = run / "trained"
    if note.is_file():
        return run
    where = {"run.dir": run, "run.seed": args.seed, "model.path": data.model, "data.train": pairs[0],
             "data.eval": pairs[1]}  # fmt: skip
    every = SHARED | where | keys | (TINY if args.tiny else RECIPE)
    program("rmfast.train", "configs/smollm2_hh.yaml", *(f"--{key}={value}" for key, value in every.items()))
    for folder in run.rglob("checkpoints"):  # large, and not needed once the model is there
        shutil.rmtree(folder)
    note.touch()
    return run


def evaluate(model: Path, suite: str, data: Path) -> dict[str, Any]:
    """The public evaluation command; its figures without the rows."""
    out = model / f"{suite}-{data.stem}.json"
    program("rmfast.cli", "eval", model, "--suite", suite, "--data", data, "--out", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    figures = {key: value for key, value in result.items() if isinstance(value, int | float) or key == "baseline"}
    return {"headline": result["headline"], "not_scored": result["not_scored_by_cause"], "figures": figures}


def reward(args: argparse.Namespace, data: Ready) -> dict[str, Any]:
    """A reward model of HH or AlpacaEval rows, on the test rows of both and on RMB."""
    which = args.which
    keys = {"run.epochs": 2, "data.pairs_per_step": 32} if which == "hh" else {"data.pairs_per_step": 64}
    run = train(args, f"{which}-{args.seed}", data, getattr(data, which), **keys)
    tests = {"hh": ("pairwise", data.hh[1]), "alpaca": ("pairwise", data.alpaca[1])}
    if args.tiny:
        tests = {which: tests[which]}
    if data.rmb is not None:
        tests["rmb"] = ("rmb", data.rmb)
    return {"trained_on": which, "seed": args.seed, "tests": {name: evaluate(run, *w) for name, w in tests.items()}}


def ensemble(args: argparse.Namespace, data: Ready) -> dict[str, Any]:
    """Ten members, out of sample: the strengths of HH's pairs."""
    keys = {"task": "ensemble", "ensemble.members": 10, "ensemble.folds": 5, "run.epochs": 2,
            "data.pairs_per_step": 32}  # fmt: skip
    run = train(args, "ensemble", data, data.hh, **keys)
    rows = map(json.loads, (run / "data.jsonl").read_text(encoding="utf-8").splitlines())
    mean = [value for row in rows if isinstance(value := row.get("strength_mean"), int | float)]
    return {"pairs": len(mean), "negative": sum(x < 0 for x in mean) / len(mean)}


def moving(args: argparse.Namespace, data: Ready) -> dict[str, Any]:
    """benchmarks/paper/moving.py with all layers trained: members and strengths, presets on clean and noisy labels,
    single deciles, contrastive terms, MetaRM."""
    sizes: tuple[object, ...] = ("--limit", 2299, "--prompts", 60, "--lr", 2e-5, "--tokens", 512, "--noises", 0.1, 0.3,
                                 "--sizes", 1, 3, 10)  # fmt: skip
    if args.tiny:
        sizes = ("--limit", 72, "--prompts", 4, "--lr", 0.01, "--experiments", "contrastive")
    program("benchmarks.paper.moving", "--model", data.model, "--data", data.hh[0], "--other", data.alpaca[1],
            "--samples", data.alpaca[0], "--seeds", args.seed, "--layers", 0, *sizes, "--keep", args.keep,
            "--json", args.json)  # fmt: skip
    found: dict[str, Any] = json.loads(args.json.read_text(encoding="utf-8"))
    return found


RUNS = {"hh": reward, "alpaca": reward, "ensemble": ensemble, "moving": moving}


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=RUNS)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("scratch", "keep", "json", "model", "data"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--tiny", action="store_true", help="on random words, to check the harness")
    args = parser.parse_args(arguments)
    found = RUNS[args.which](args, prepare(args))
    args.json.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
