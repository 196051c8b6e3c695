"""CPU time of making preference data ready for training, beside TRL and beside another commit, at the same time.

    python -m benchmarks.prepare --trl PYTHON --before COMMIT --json FILE [--rows 40000] [--rounds 3]
        [--model FOLDER] [--data FILE]

The rows are FILE's again and again, the words of each turn in another order each time, so that no two are the same; at
the rate at which FILE itself goes on to bring new words (Heaps' law, fitted to its halves) words are respelt. PYTHON is
an interpreter with TRL. In each round all sides prepare the rows at once, each in a new process and a new cache, so
that what else the machine does comes into all of them; the token ids have to be the same. Then `rmfast data report`
over the quickstart's rows and `rmfast --help`, of both commits in turns.
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.origin import ROOT, origin, write_json
from rmfast.data.example import BadRow
from rmfast.data.sources import read_rows

WORKER = ROOT / "benchmarks" / "prepare_worker.py"
SHIPPED = "configs/quickstart/train.jsonl.gz"
PARTS = ("imports", "tokenizer", "data")
Row = dict[str, Any]


def mixed(row: Row, change: Callable[[str], str]) -> Row:
    """A pair of messages with every text changed."""
    sides = {name: row[name] for name in ("prompt", "chosen", "rejected")}
    for name, side in sides.items():
        turns = [{"role": "assistant", "content": side}] if isinstance(side, str) else side
        sides[name] = [{"role": turn["role"], "content": change(turn["content"])} for turn in turns]
    return sides


def words_of(rows: list[Row]) -> set[str]:
    """The distinct words of pairs of messages."""
    texts: list[str] = []
    for row in rows:
        mixed(row, lambda text: texts.append(text) or text)  # type: ignore[func-returns-value]
    return {word for text in texts for word in text.split()}


def new_words(rows: list[Row], count: int) -> tuple[float, float]:
    """How many new words each of `count` rows brings beyond those of `rows`, and the exponent of Heaps' law."""
    half, whole = len(words_of(rows[::2])), len(words_of(rows))
    exponent = math.log2(whole / half)
    return max(0.0, whole * (count / len(rows)) ** exponent - whole) / count, exponent


def made_rows(rows: list[Row], count: int, seed: int) -> Iterator[Row]:
    """`count` pairs that differ, of the same words."""
    draw = random.Random(seed)
    rate = new_words(rows, count)[0] / (sum(len(row["prompt"]) + 2 for row in rows) / len(rows))  # in each text

    def change(text: str) -> str:
        words = text.split(" ")
        draw.shuffle(words)
        for _ in range(int(rate) + (draw.random() < rate % 1)):
            at = draw.randrange(len(words))
            words[at] = respelt(words[at], draw)
        return " ".join(words)

    for number in range(count):
        yield mixed(rows[number % len(rows)], change)


def respelt(word: str, draw: random.Random) -> str:
    """A word with its letters in another order and two more."""
    letters = re.sub(r"[^a-z]", "", word.lower()) + draw.choice("aeiou") + draw.choice("lnrst")
    return "".join(draw.sample(letters, len(letters)))


def start(python: str, tree: Path, *words: str) -> subprocess.Popen[str]:
    """A process with the code of a checkout."""
    env = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([python, *words], cwd=tree, env=env, stdout=subprocess.PIPE, text=True)


def run(python: str, tree: Path, *words: str) -> tuple[str, float]:
    """What a process prints with the code of a checkout, and its CPU seconds."""
    before = os.times()
    process = start(python, tree, *words)
    out, _ = process.communicate()
    after = os.times()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return out, sum(after[2:4]) - sum(before[2:4])


def measure(args: argparse.Namespace, before: Path, file: Path) -> dict[str, list[dict[str, Any]]]:
    """What each side took in each round."""
    sides = {"rmfast": (sys.executable, ROOT, "rmfast"), "before": (sys.executable, before, "rmfast")}
    if args.trl:
        sides["trl"] = (args.trl, ROOT, "trl")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(args.rounds):
        words = str(file), str(args.model.resolve()), str(args.workers)
        started = {name: start(python, tree, str(WORKER), side, *words) for name, (python, tree, side) in sides.items()}
        for name, process in started.items():
            out, _ = process.communicate()
            if process.returncode:
                raise SystemExit(f"{name} ended with {process.returncode}")
            found[name].append(json.loads(out.splitlines()[-1]))
            print(number, name, found[name][-1], flush=True)
    ids = {(one["rows"], one["ids"]) for rounds in found.values() for one in rounds}
    if len(ids) > 1:
        raise SystemExit(f"the sides' token ids differ: {ids}")
    return found


def commands(before: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of commands that need no model, of both commits."""
    asked = {"data report": ["data", "report", str(ROOT / SHIPPED)], "--help": ["--help"]}
    found: dict[str, dict[str, list[float]]] = {name: {"rmfast": [], "before": []} for name in asked}
    for _ in range(rounds):
        for name, words in asked.items():
            for side, tree in (("rmfast", ROOT), ("before", before)):
                found[name][side].append(run(sys.executable, tree, "-m", "rmfast.cli", *words)[1])
    return found


def medians(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """By side and part, and of the parts' sum, CPU seconds."""
    table = {name: {part: median(one[part] for one in rounds) for part in PARTS} for name, rounds in found.items()}
    sums = {name: median(sum(one[part] for part in PARTS) for one in rounds) for name, rounds in found.items()}
    return {name: parts | {"all": sums[name]} for name, parts in table.items()}


def main() -> None:
    """The command at the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--before", required=True, metavar="COMMIT", help="the commit to compare with")
    add("--trl", metavar="PYTHON", help="an interpreter that has TRL; without, TRL is left out")
    add("--data", default=SHIPPED, metavar="FILE", help="pairs of messages")
    add("--model", type=Path, default=ROOT / "configs" / "quickstart" / "decoder", metavar="FOLDER", help="tokenizer")
    add("--rows", type=int, default=40_000)
    add("--rounds", type=int, default=3)
    add("--workers", type=int, default=1, help="processes that tokenise")
    add("--seed", type=int, default=0)
    add("--json", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    read = [row for _, _, row in read_rows(args.data) if not isinstance(row, BadRow)]
    rows = [row for row in read if {"prompt", "chosen", "rejected"} <= row.keys() and isinstance(row["prompt"], list)]
    with tempfile.TemporaryDirectory() as folder:
        tree, file = Path(folder, "before"), Path(folder, "rows.jsonl")
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), args.before], check=True)
        try:
            with file.open("w", encoding="utf-8") as out:
                out.writelines(json.dumps(row) + "\n" for row in made_rows(rows, args.rows, args.seed))
            each, exponent = new_words(rows, args.rows)
            data = {"rows": args.rows, "of": len(rows), "new_words_per_row": each, "heaps_exponent": exponent}
            found = measure(args, tree, file)
            more = commands(tree, args.rounds)
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)
    theirs = {}
    if args.trl:
        names = "import json, trl, transformers; print(json.dumps([trl.__version__, transformers.__version__]))"
        theirs = dict(zip(("trl", "transformers"), json.loads(run(args.trl, ROOT, "-c", names)[0]), strict=True))
    result = {
        "what": "CPU seconds of one process (and its workers) until preference data is tokenised and kept",
        "model": args.model.name, "data": data, "workers": args.workers, "before": args.before,
        "versions_of_trl": theirs, "median": medians(found), "rounds": found, "commands": more,
        "command_medians": {name: {side: median(times) for side, times in of.items()} for name, of in more.items()},
    }  # fmt: skip
    write_json(args.json, origin() | result)


if __name__ == "__main__":
    main()
