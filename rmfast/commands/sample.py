"""rmfast sample: answers of a language model to the prompts of a file."""

import math
import re
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rmfast.commands.flags import device_of, out_file, read_by, write_file
from rmfast.commands.keep import check_reward_models, keep_best, report_folder
from rmfast.commands.words import columns_of
from rmfast.console import clock, say
from rmfast.data.columns import uses_line
from rmfast.data.notes import note_lines
from rmfast.data.row_kinds import PROMPTS
from rmfast.data.sources import split_note
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reader import Reader
from rmfast.evaluation.scoring.reward_model import find_folder
from rmfast.evaluation.scoring.rows import ReadRow, bad_line, columns_used, noted, read_file, readable
from rmfast.jsonio import json_line
from rmfast.models.config import DTYPES
from rmfast.outputs.kinds import BEST, BEST_WORST, SAMPLED, SCORED
from rmfast.outputs.lock import FolderLock, Words
from rmfast.outputs.overlap import Input
from rmfast.parallel.agree import all_or_none
from rmfast.parallel.gather import gather_launchers
from rmfast.parallel.world import World
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.policy import Policy, draw_numbers, load_policy
from rmfast.rollout.records import flaw, record, sampled_row, settings
from rmfast.rollout.sample_file import SampleFile
from rmfast.tasks.build.model import say_date

SECONDS = 10.0
"""Between lines of progress."""
MEND = "give another --out, or remove the file"


def sample(options: Namespace) -> None:
    """rmfast sample"""
    out, report = _outputs(options)
    drawing = sample_options(options)
    with World() as world, ExitStack() as claim:
        policy = _load(options, world)
        rows = _prompts(options, policy)
        requests = draw_numbers(policy.encode([row.example for row in rows if row.example]))
        known = settings(policy.network, DTYPES[options.dtype], requests, options.n, drawing, policy.ends)
        whole = out.with_name(f"{out.stem}.samples.jsonl")
        launchers = gather_launchers(world)

        def begin() -> None:
            if world.main:
                lock = FolderLock(whole.parent, launchers=launchers, file=whole, words=Words("--out", ""))
                claim.callback(lock.release)
                for line in (*lock.notes(), *_join(whole, known)):
                    say(line)

        all_or_none(world, begin)
        with SampleFile(whole, known, MEND) as file:
            found = _found(file, len(requests), options.n)
        world.barrier()
        todo = [i for i in range(len(requests)) if i not in found][world.rank :: world.size]
        if world.main:
            _say_begin(options, rows, policy, len(requests), len(found), whole)
        with world.apart() as show_life, SampleFile(_file_of(whole, world.rank), known, MEND) as file:
            watch = _Watch(len(todo) * options.n, options.max_new_tokens, world.main, show_life)
            for place, drafts in policy.sampler(drawing).sample([requests[i] for i in todo], options.n, watch):
                samples = [policy.finish(requests[todo[place]], draft, drawing) for draft in drafts]
                file.add(todo[place], record(samples))
            watch.end()
        if world.main:
            _join(whole, known)
            with SampleFile(whole, known, MEND) as file:
                examples = [row.example for row in rows if row.example]
                pairs = zip(examples, file.records(), strict=True)
                sampled = [sampled_row(policy.tokenizer, example, kept["samples"]) for example, kept in pairs]
            reasons = Counter(reason for row in sampled for reason in row["stop_reasons"])
            ended = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
            say(f"{reasons.total():,} samples of {len(sampled):,} prompts ({ended}), with their token ids: {whole}")
            if options.reward:
                keep_best(options, sampled, out, report)
            else:
                write_file(out, (f"{json_line(row)}\n".encode() for row in sampled))
                say(f"{len(sampled):,} rows: {out}")


def sample_options(options: Namespace) -> SampleOptions:
    """How tokens are drawn, from a command's flags."""
    return SampleOptions(
        max_new_tokens=options.max_new_tokens, temperature=options.temperature, top_p=options.top_p,
        top_k=options.top_k, min_p=options.min_p, repetition_penalty=options.repetition_penalty, seed=options.seed,
        stop=tuple(options.stop),
    )  # fmt: skip


def _outputs(options: Namespace) -> tuple[Path, Path | None]:
    """The file and the folder that are written to, once the flags are known to fit together."""
    if not options.reward:
        for name, default in (("keep", None), ("combine", None), ("k", None), ("standardise", False)):
            if getattr(options, name) != default:
                raise UserError(f"--{name} is for the rewards of --reward, and there is none")
    if (options.gold is None) != (options.report is None) or (options.gold and not options.reward):
        raise UserError("--report draws the rewards of --reward against those of --gold: give all three, or neither")
    if options.keep == "best-worst" and options.n == 1:
        raise UserError("--keep best-worst makes pairs of a prompt's samples: give --n of at least 2")
    check_reward_models(options)
    kind = (
        {None: BEST, "best": BEST, "best-worst": BEST_WORST, "all": SCORED}[options.keep] if options.reward else SAMPLED
    )
    inputs = read_by(options, "chat_template", "reward", "gold")
    inputs.append(Input("MODEL", find_folder(options.model)))
    out = out_file("--out", options.out, kind, inputs)
    return out, None if options.report is None else report_folder(options.report, inputs)


def _load(options: Namespace, world: World) -> Policy:
    device = str(world.device) if world.size > 1 else device_of(options)
    policy = load_policy(
        options.model, device, DTYPES[options.dtype], chat_template=options.chat_template,
        template_date=options.template_date, rows=options.rows,
        memory=None if options.memory is None else options.memory * 1e9, tokens_per_pack=options.tokens_per_pack,
    )  # fmt: skip
    if world.main:
        say_date(options.model, policy.tokenizer)
    return policy


def _prompts(options: Namespace, policy: Policy) -> list[ReadRow]:
    """The rows of --data, those that the model cannot answer marked as bad."""
    reader = Reader(policy.tokenizer, policy.window, answer=1)
    rows = readable(read_file(options.data, columns_of(options), PROMPTS, "train"), reader)
    usable = [place for place, row in enumerate(rows, 1) if row.example]
    return rows if options.limit is None else rows[: usable[: options.limit][-1]]


def _join(file: Path, known: dict[str, Any]) -> list[str]:
    """Add what other processes left in files of theirs: any of them, for a crash may have come between two.

    Returns:
        Lines that say what was damaged.
    """
    of_process = re.compile(rf"{re.escape(file.stem)}\.\d+\.jsonl")
    with SampleFile(file, known, MEND) as whole:
        for other in sorted(file.parent.iterdir()):
            if of_process.fullmatch(other.name):
                whole.absorb(other, known, MEND)
        return whole.notes


def _found(file: SampleFile, prompts: int, n: int) -> set[int]:
    """Prompts that have their samples in a file, which a person may have edited."""
    for number in file.found:
        why = flaw(file.record(number), n) if number in range(prompts) else f"there are {prompts:,} prompts, from 0 on"
        if why:
            raise UserError(f"{file.path}: the line of number {number}: {why}; {MEND}")
    return set(file.found)


def _file_of(file: Path, rank: int) -> Path:
    return file.with_name(f"{file.stem}.{rank}.jsonl") if rank else file


def _say_begin(
    options: Namespace, rows: Sequence[ReadRow], policy: Policy, prompts: int, found: int, file: Path
) -> None:
    say(f"columns: {uses_line(columns_used(rows))}")
    if split := split_note(options.data, "train"):
        say(split)
    if line := bad_line(rows, "used"):
        say(line)
    for line in note_lines(noted(rows)):
        say(line)
    if options.repetition_penalty != 1.0:
        say(
            "a repetition penalty draws from a distribution that changes with the text before: no policy's, so that "
            "what is learnt from the samples is not what was drawn"
        )
    ends = ", ".join(repr(policy.tokenizer.convert_ids_to_tokens(i)) for i in sorted(policy.ends))
    say(f"{prompts:,} prompts, {options.n} samples each of at most {options.max_new_tokens:,} tokens; ends: {ends}")
    if found:
        say(f"{found:,} prompts have their samples in {file}")


class _Watch:
    """Lines of progress: what is drawn, how fast, and the time that is left.

    Args:
        samples: how many there will be. longest: tokens of each, at most. speaks: whether lines are printed.
        each: called as often as a line is due, printed or not.
    """

    def __init__(self, samples: int, longest: int, speaks: bool, each: Callable[[], object]) -> None:
        self.total, self.longest, self.speaks, self.each = samples, longest, speaks, each
        self.began = self.said = time.monotonic()
        self.tokens = 0

    def __call__(self, tokens: int, samples: int) -> None:
        self.tokens, now = tokens, time.monotonic()
        if now - self.said < SECONDS:
            return
        self.said = now
        self.each()
        if not self.speaks:
            return
        rate = tokens / (now - self.began)
        left = self._left(samples, rate)
        say(f"{samples:,} of {self.total:,} samples ended, {tokens:,} tokens, {rate:,.0f} tokens/s, {left}")

    def _left(self, samples: int, rate: float) -> str:
        """From the mean length of a sample: all tokens so far for each that has ended (of lengths that are exponential,
        some of them not known yet, the likeliest mean). Those that end first are short: alone they promise too much."""
        mean = self.tokens / samples if samples else math.inf
        bound = "" if mean <= self.longest else "at most "
        return f"left {bound}{clock((self.total * min(mean, self.longest) - self.tokens) / rate)}"

    def end(self) -> None:
        seconds = time.monotonic() - self.began
        if self.speaks and self.tokens:
            say(f"{self.tokens:,} tokens in {clock(seconds)}, {self.tokens / seconds:,.0f} tokens/s")
