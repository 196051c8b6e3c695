"""What a judge's answers say of the judge: order, ties, what it failed to say. Pure numpy."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmfast.evaluation.judge.backend import Answer, Failure
from rmfast.evaluation.judge.plan import Plan
from rmfast.evaluation.metrics import Floats, accuracy_interval

SAID, UNREADABLE, SILENT = 0, 1, 2  # a verdict; an answer without one; no answer


def share(flags: NDArray[np.bool_], groups: NDArray[np.intp]) -> dict[str, float | int | None]:
    """Share of flags [n] with its 95 % interval over groups [n]; null without flags."""
    if not flags.size:
        return {"count": 0, "share": None, "low": None, "high": None}
    low, high = accuracy_interval(flags, groups)
    return {"count": int(flags.size), "share": float(flags.mean()), "low": low, "high": high}


def order_figures(plan: Plan, said: Floats, state: NDArray[np.int8], swapped: NDArray[np.bool_]) -> dict[str, Any]:
    """Position bias, consistency and accuracy by order.

    Args:
        said: [C, asked] 1 for the comparison's first answer, -1 for its second, 0 for neither; 0 where not SAID.
        state: [C, asked] SAID, UNREADABLE or SILENT.
        swapped: [C, asked] whether the second answer was shown first.

    Returns:
        first_shown: share of verdicts, without ties, for the answer that was shown first; 0.5 is no bias where both
            orders were asked.
        consistency: of votes with a verdict in both orders, the share in which both name the same answer; null with
            one order.
        accuracy_by_order: share of answers that name the better answer where it was shown first, and second; ties and
            what cannot be read are wrong, what was not answered does not count. Each comparison counts once for each
            way round that items list it.
    """
    number = np.broadcast_to(np.arange(len(said))[:, None], said.shape)
    chosen = (state == SAID) & (said != 0)
    first = np.where(swapped, -said, said) > 0
    figures: dict[str, Any] = {"first_shown": share(first[chosen], number[chosen]), "consistency": None}
    if said.size and (swapped[:, 0] != swapped[:, -1]).all():
        both = (state[:, 0::2] == SAID) & (state[:, 1::2] == SAID)
        same = said[:, 0::2] == said[:, 1::2]
        figures["consistency"] = share(same[both], number[:, 0::2][both])
    ways = sorted({edge for edges in plan.edges for edge in edges if edge is not None})
    rows = np.array([n for n, _ in ways], dtype=np.intp)
    signs = np.array([sign for _, sign in ways])[:, None]
    better_first, heard = (signs > 0) != swapped[rows], state[rows] != SILENT
    right = said[rows] == signs
    figures["accuracy_by_order"] = {
        name: share(right[heard & where], number[rows][heard & where])
        for name, where in (("better_first", better_first), ("better_second", ~better_first))
    }
    return figures


def answer_figures(answers: Iterable[Answer], failures: Sequence[Failure]) -> dict[str, Any]:
    """Counts of answers and of questions without one, and the tokens that the endpoint says were used."""
    answers = list(answers)
    counted = [a for a in answers if a.prompt_tokens is not None or a.completion_tokens is not None]
    return {
        "answers": len(answers),
        "cut_off": sum(a.finish == "length" for a in answers),
        "no_answers": len(failures),
        "no_answers_by_cause": dict(Counter(f.cause for f in failures).most_common()),
        "retries": sum(a.tries - 1 for a in answers) + sum(f.tries - 1 for f in failures),
        "tokens": {
            "answers": len(counted),
            "prompt": sum(a.prompt_tokens or 0 for a in counted),
            "completion": sum(a.completion_tokens or 0 for a in counted),
        },
    }


def summary(figures: dict[str, Any]) -> list[str]:
    """The figures in lines for people."""
    order = figures["accuracy_by_order"]
    lines = [
        f"Judge {figures['judge']}: {figures['answers']:,} answers on {figures['comparisons']:,} comparisons, "
        f"{figures['parse_failures']:,} without a verdict, {figures['ties']:,} ties, "
        f"{figures['no_answers']:,} questions without an answer",
        f"Position: {_percent(figures['first_shown'])} of verdicts for the answer shown first; answers right with the "
        f"better one first {_percent(order['better_first'])}, second {_percent(order['better_second'])}",
    ]
    if figures["consistency"] is not None:
        lines.append(f"Same answer named in both orders: {_percent(figures['consistency'])}")
    for part, curve in figures["votes"].items():
        if len(curve) > 1:
            points = ", ".join(f"{n + 1}: {curve[n]:.1%}" for n in sorted({*range(0, len(curve), 2), len(curve) - 1}))
            lines.append(f"{part}, accuracy by the number of votes: {points}")
    if (tokens := figures["tokens"])["answers"]:
        lines.append(f"Tokens: {tokens['prompt']:,} read, {tokens['completion']:,} written")
    return lines


def _percent(part: dict[str, Any]) -> str:
    if part["share"] is None:
        return "-"
    return f"{part['share']:.1%} [{part['low']:.1%}, {part['high']:.1%}]"
