"""Every generator with what its cases are given to: flaws of how they ended."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rmfast.cli import main
from rmfast.config import load_config
from rmfast.data.example import BadRow
from rmfast.data.rows import parse_row
from rmfast.data.tokenise import encode
from rmfast.data.tokenizer import byte_tokenizer, load_tokenizer
from rmfast.errors import UserError
from rmfast.models.hf import load_network
from rmfast.report.html import report_page
from rmfast.report.policy.outcome import trains_policy
from rmfast.report.policy.plots import policy_plots
from rmfast.report.run_folder import Run, read_run
from rmfast.report.run_plots import all_plots
from rmfast.train import main as train
from tests.odd.commands import odd_commands
from tests.odd.configs import odd_configs
from tests.odd.files import odd_json
from tests.odd.outcome import outcome
from tests.odd.rows import odd_rows


@dataclass
class Seen:
    """How many cases ended in which way, and those that ended wrongly."""

    ended: Counter[str] = field(default_factory=Counter)
    flaws: list[str] = field(default_factory=list)

    def add(self, case: object, run: Callable[[], object], *, usage: bool = False) -> None:
        """Count how a case ends."""
        end = outcome(run, usage=usage)
        self.ended["flaw" if end.flaw else "done" if end.code == 0 else "refused"] += 1
        if end.flaw:
            self.flaws.append(f"{case!r:.500}: {end.flaw}")


def rows(seed: int, count: int) -> Seen:
    """Rows of every kind, read and tokenised."""
    seen, tokenizer = Seen(), byte_tokenizer()

    def read(kind, row) -> int:
        try:
            found = encode(tokenizer, [parse_row(row, kind=kind)])[0]
        except BadRow as bad:
            found = bad
        if isinstance(found, BadRow):
            raise UserError(str(found))
        return 0

    for kind, row in odd_rows(seed, count):
        seen.add(row, lambda kind=kind, row=row: read(kind, row))
    return seen


def configs(seed: int, count: int, folder: Path) -> Seen:
    """Config files and the words behind them."""
    seen, file = Seen(), folder / "odd.yaml"
    for text, words in odd_configs(seed, count):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        seen.add((text, words), lambda words=words: load_config([str(file), *words]) and 0)
    return seen


def commands(seed: int, count: int, folder: Path) -> Seen:
    """Commands over what `write_inputs` wrote."""
    seen = Seen()
    for words in odd_commands(seed, count, folder):
        run = train if words[0] == "train" else main
        arguments = words[1:] if words[0] == "train" else words
        seen.add(words, lambda run=run, arguments=arguments: run(arguments), usage=run is main)
    return seen


def models(seed: int, count: int, folder: Path) -> Seen:
    """config.json and tokenizer_config.json of a model folder."""
    seen, model = Seen(), folder / "odd-model"
    for name, load in (("config.json", load_network), ("tokenizer_config.json", load_tokenizer)):
        shutil.copytree(folder / "one", model, dirs_exist_ok=True)
        for text in _odd_files(model / name, seed, count // 2):
            seen.add(text, lambda load=load: load(model) and 0)
    return seen


def results(seed: int, count: int, folder: Path) -> Seen:
    """Results of an evaluation, compared with a good one."""
    seen, file = Seen(), folder / "odd.json"
    shutil.copy(folder / "result.json", file)
    for text in _odd_files(file, seed, count):
        seen.add(text, lambda: main(["compare", str(file), str(folder / "result.json")]))
    return seen


def runs(seed: int, count: int, folder: Path) -> Seen:
    """Logs of a run folder, of which a page is made."""
    seen, run = Seen(), folder / "odd-run"
    run.mkdir(exist_ok=True)
    row = {"step": 1, "loss": 0.7, "accuracy": 0.5, "grad_norm": 1.0, "num_tokens": 10, "skipped": True}
    lines = {"metrics.jsonl": row, "eval.jsonl": {"step": 1, "name": "x", "eval_accuracy": 0.5, "eval_edges": 3}}
    for name, line in lines.items():
        for text in odd_json([line, line | {"step": 2}], seed, count // 2):
            (run / name).write_text(text.replace("}, {", "}\n{").strip("[]"))
            seen.add(text, lambda: _report(read_run(run)))
    return seen


def _report(run: Run) -> int:
    """Everything of a report but its pictures' pixels."""
    policy_plots(run) if trains_policy(run) else all_plots(run)
    report_page(run, [])
    return 0


def _odd_files(file: Path, seed: int, count: int) -> Iterator[str]:
    """What a file of JSON holds in each case; it is as it was afterwards."""
    good = file.read_bytes()
    for text in odd_json(json.loads(good), seed, count):
        file.write_text(text)
        yield text
    file.write_bytes(good)
