"""Ask a judge for every comparison that items need, and turn its votes into results."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.errors import RunError
from rmfast.evaluation.judge.backend import Answer, Backend, Failure
from rmfast.evaluation.judge.figures import SAID, SILENT, UNREADABLE, answer_figures, order_figures
from rmfast.evaluation.judge.log import AnswerLog
from rmfast.evaluation.judge.plan import Ask, JudgeOptions, Plan, plan
from rmfast.evaluation.judge.prompt import read_verdict
from rmfast.evaluation.judge.votes import vote_curves
from rmfast.evaluation.metrics import Floats
from rmfast.evaluation.suites.base import Item, Result

EVERY = 30.0  # seconds between lines of progress


@dataclass(frozen=True)
class Judged:
    """What a judge says of items.

    Attributes:
        results: one for each item, without rewards; gaps are (votes for - votes against) / votes asked, nan where
            none of them was answered.
        votes: of each item [E, asked]: 1 for the better answer, -1 against it or unreadable, 0 a tie, nan no answer.
        figures: of the judge, for JSON; see `judge_items`.
    """

    results: list[Result]
    votes: list[Floats]
    figures: dict[str, Any]


def judge_items(
    items: Sequence[Item], backend: Backend, options: JudgeOptions, log: Path | None, say: Callable[[str], None]
) -> Judged:
    """Judge every edge of the items; a comparison that several edges share is asked for once.

    Args:
        log: answers in it are not asked for again, new ones are added; None keeps nothing.
        say: prints a line.

    Returns:
        Figures: judge; comparisons; identical (edges between equal answers: ties, not asked for); questions; from_log;
        answers, cut_off, parse_failures, ties, no_answers, no_answers_by_cause, comparisons_without_answer, their
        unanswered (labels, at most 20), retries, tokens; first_shown, consistency and accuracy_by_order (see
        `order_figures`); votes_of_each, orders; votes (accuracy of each part's items by the number of votes).

    Raises:
        UserError: an item that a judge cannot read, a log that is none, an endpoint that never answers.
        RunError: an endpoint that stops answering; the answers so far are in the log.
    """
    work = plan(items, options, backend.identity)
    with AnswerLog(log) as answers:
        known = {key: answers.known[key] for ask in work.asks if (key := ask.request.key) in answers.known}
        todo = [ask for ask in work.asks if ask.request.key not in known]
        say(
            f"Judge {backend.name}: {len(work.comparisons):,} comparisons of {len(items):,} items, "
            f"{len(work.asks):,} questions" + (f", {len(known):,} of them answered in {log}" if known else "")
        )
        new, failures = _ask(work, todo, backend, answers, say)
    said, state, swapped = _read(work, known | new, options)
    votes = _votes(work, said, state)
    figures = {
        "judge": backend.name,
        "comparisons": len(work.comparisons),
        "identical": sum(edge is None for edges in work.edges for edge in edges),
        "questions": len(work.asks),
        "from_log": len(known),
        **answer_figures([*known.values(), *new.values()], list(failures.values())),
        "parse_failures": int((state == UNREADABLE).sum()),
        "ties": int(((state == SAID) & (said == 0)).sum()),
        **_unanswered(work, state),
        **order_figures(work, said, state, swapped),
        "votes_of_each": options.votes,
        "orders": options.orders,
        "votes": vote_curves(items, votes, both=options.orders == "both", seed=options.seed),
    }
    _report(figures, failures, work, log, say)
    return Judged([Result(item, _gaps(of_item)) for item, of_item in zip(items, votes, strict=True)], votes, figures)


def _ask(
    work: Plan, todo: Sequence[Ask], backend: Backend, log: AnswerLog, say: Callable[[str], None]
) -> tuple[dict[str, Answer], dict[str, Failure]]:
    """New answers and failures by key."""
    asks = {ask.request.key: ask for ask in todo}
    new: dict[str, Answer] = {}
    failures: dict[str, Failure] = {}
    start = spoken = time.monotonic()
    try:
        for request, answer in backend.ask([ask.request for ask in todo]) if todo else ():
            if isinstance(answer, Failure):
                failures[request.key] = answer
            else:
                ask = asks[request.key]
                new[request.key] = answer
                about = {"judge": backend.name, "item": work.comparisons[ask.number].label, "swapped": ask.swapped}
                log.add(request.key, answer, about)
            if (now := time.monotonic()) - spoken > EVERY:
                spoken, done = now, len(new) + len(failures)
                left = (len(todo) - done) * (now - start) / done
                say(
                    f"judge: {done:,} of {len(todo):,} questions, {len(failures):,} without an answer, "
                    f"about {left / 60:.0f} minutes left"
                )
    except RunError as error:
        keep = f"{len(log.known):,} answers are in {log.path}; run the same command again to go on"
        lost = "its answers are lost: name a file by --judge-log and a run can go on where it stopped"
        answered = f"{len(new):,} of {len(todo):,} questions were answered"
        raise RunError(f"{error}. {answered}; {keep if log.path else lost}") from error
    missing = asks.keys() - new.keys() - failures.keys()
    assert not missing, f"the back end left out {len(missing)} questions"
    return new, failures


def _read(work: Plan, answers: dict[str, Answer], options: JudgeOptions) -> tuple[Floats, np.ndarray, np.ndarray]:
    """What was said for each comparison, [C, asked]; see `order_figures`."""
    shape = (len(work.comparisons), work.per_comparison)
    said, state, swapped = np.zeros(shape), np.full(shape, SILENT, dtype=np.int8), np.zeros(shape, dtype=np.bool_)
    for ask in work.asks:
        place = ask.number, ask.vote
        swapped[place] = ask.swapped
        if ask.request.key not in answers:
            continue
        verdict = read_verdict(answers[ask.request.key].text, ties=options.ties)
        state[place] = UNREADABLE if verdict is None else SAID
        if verdict in ("A", "B"):
            said[place] = 1.0 if (verdict == "A") != ask.swapped else -1.0
    return said, state, swapped


def _votes(work: Plan, said: Floats, state: np.ndarray) -> list[Floats]:
    """Votes of each item, [E, asked]."""
    votes = []
    for edges in work.edges:
        of_item = np.zeros((len(edges), work.per_comparison))
        for row, edge in zip(of_item, edges, strict=True):
            if edge is not None:
                number, sign = edge
                row[:] = sign * said[number]
                row[state[number] == UNREADABLE] = -1.0
                row[state[number] == SILENT] = np.nan
        votes.append(of_item)
    return votes


def _gaps(votes: Floats) -> Floats:
    """(For - against) / asked, [E]; nan where nothing was answered."""
    silent = np.isnan(votes).all(1)
    return np.where(silent, np.nan, np.nan_to_num(votes, nan=0.0).sum(1) / votes.shape[1])


def _unanswered(work: Plan, state: np.ndarray) -> dict[str, Any]:
    silent = np.flatnonzero((state == SILENT).all(1))
    labels = [work.comparisons[n].label for n in silent[:20]]
    return {"comparisons_without_answer": len(silent), "unanswered": labels}


def _report(
    figures: dict[str, Any], failures: dict[str, Failure], work: Plan, log: Path | None, say: Callable[[str], None]
) -> None:
    """What went wrong, in lines."""
    if figures["parse_failures"]:
        cut = f" ({figures['cut_off']:,} answers were cut off: raise --max-tokens)" if figures["cut_off"] else ""
        say(
            f"{figures['parse_failures']:,} of {figures['answers']:,} answers hold no verdict{cut}; "
            "each counts against the better answer"
        )
    if failures:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in figures["no_answers_by_cause"].items())
        key, first = next(iter(failures.items()))
        label = next(work.comparisons[ask.number].label for ask in work.asks if ask.request.key == key)
        again = f"; run again with the same --judge-log {log} to ask for them" if log else ""
        say(
            f"{len(failures):,} of {figures['questions']:,} questions got no answer ({causes}); first: {label}: "
            f"{first.cause}: {first.detail}; {figures['comparisons_without_answer']:,} comparisons have none at all "
            f"and are lost{again}"
        )
