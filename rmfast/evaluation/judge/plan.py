"""Items -> the comparisons to ask for, each once, whichever items share it and whichever way round they list it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rmfast.errors import UserError
from rmfast.evaluation.judge.backend import Request
from rmfast.evaluation.judge.prompt import builtin_criteria, question, texts
from rmfast.evaluation.suites.base import Item

Orders = Literal["both", "one"]
BUILTIN = "builtin"


@dataclass(frozen=True)
class JudgeOptions:
    """What is asked.

    Attributes:
        criteria: None; BUILTIN (by the item's groups: helpfulness or harmlessness); any other text is the criteria.
        reasoning: the judge compares in words before its verdict.
        orders: "both": each vote is asked for in both orders of the answers; "one": in one, chosen by `seed` for each
            comparison.
        votes: of each comparison.
        ties: the judge may say that neither is better.
    """

    criteria: str | None = None
    reasoning: bool = True
    orders: Orders = "both"
    votes: int = 1
    ties: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """Two different answers in a fixed order; `label` is the first item's that needs it."""

    conversation: str
    answers: tuple[str, str]
    criteria: str | None
    label: str


@dataclass(frozen=True)
class Ask:
    """A question: comparison `number`, column `vote` of its votes; `swapped`: its second answer is shown first."""

    number: int
    vote: int
    swapped: bool
    request: Request


@dataclass(frozen=True)
class Plan:
    """What to ask.

    Attributes:
        edges: for every item and edge the comparison and 1 where its first answer is the better one, else -1; None
            where both answers read the same, which needs no judge: a tie.
        asks: all questions, `per_comparison` for each comparison. With both orders column 2 v is vote v in the
            comparison's order, column 2 v + 1 the same vote swapped.
    """

    comparisons: tuple[Comparison, ...]
    edges: tuple[tuple[tuple[int, int] | None, ...], ...]
    asks: tuple[Ask, ...]
    per_comparison: int


def plan(items: Sequence[Item], options: JudgeOptions, identity: Mapping[str, Any]) -> Plan:
    """All questions of the items.

    Args:
        identity: of the back end: a part of every key.

    Raises:
        UserError: an item that cannot be put in words.
    """
    numbers: dict[tuple[str, tuple[str, str], str | None], int] = {}
    comparisons: list[Comparison] = []
    edges = []
    for item in items:
        try:
            conversation, answers = texts(item.example)
        except UserError as error:
            raise UserError(f"{item.label}: {error}") from None
        criteria = builtin_criteria(item.path) if options.criteria == BUILTIN else options.criteria
        of_item: list[tuple[int, int] | None] = []
        for edge in item.example.edges:
            better, worse = answers[edge.better], answers[edge.worse]
            if better == worse:
                of_item.append(None)
                continue
            pair = (better, worse) if better < worse else (worse, better)
            key = (conversation, pair, criteria)
            if key not in numbers:
                numbers[key] = len(comparisons)
                comparisons.append(Comparison(conversation, pair, criteria, item.label))
            of_item.append((numbers[key], 1 if pair[0] == better else -1))
        edges.append(tuple(of_item))
    asks = [ask for n, comparison in enumerate(comparisons) for ask in _asks(n, comparison, options, identity)]
    per_comparison = options.votes * (2 if options.orders == "both" else 1)
    return Plan(tuple(comparisons), tuple(edges), tuple(asks), per_comparison)


def _asks(number: int, comparison: Comparison, options: JudgeOptions, identity: Mapping[str, Any]) -> list[Ask]:
    orders = (False, True) if options.orders == "both" else (_coin(comparison, options.seed),)
    asks: list[Ask] = []
    for sample in range(options.votes):
        for swapped in orders:
            shown = comparison.answers[::-1] if swapped else comparison.answers
            text = question(
                comparison.conversation,
                shown,
                criteria=comparison.criteria,
                reasoning=options.reasoning,
                ties=options.ties,
            )
            # The text tells the order, the criteria and whether ties are allowed.
            key = _digest([dict(identity), text, sample])
            asks.append(Ask(number, len(asks), swapped, Request(key, text)))
    return asks


def _coin(comparison: Comparison, seed: int) -> bool:
    """Depends on seed and texts alone, not on the other items nor on which answer is better."""
    return int(_digest([seed, comparison.conversation, comparison.answers]), 16) % 2 == 1


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
