"""What one or several reward models answer to the items of a suite."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rmfast.data.clock import fixed_date
from rmfast.data.example import BadRow, Example
from rmfast.data.notes import Note, Notes, add_notes
from rmfast.data.tokenise import Encoded
from rmfast.errors import UserError
from rmfast.evaluation.combine import Rule, ballot, combine, standardise
from rmfast.evaluation.scoring.reader import Reader
from rmfast.evaluation.suites.base import Item, Result, Unscored
from rmfast.evaluation.suites.shared import results_of, share

Floats = NDArray[np.float64]


class Scorer(Protocol):
    """A loaded reward model."""

    def score_examples(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Scores [N, M] of each example's N responses by M heads."""
        ...


@dataclass(frozen=True)
class Answers:
    """Results of the items that could be judged, and beside them, item by item:

    Attributes:
        unscored: items that could not.
        lengths: [N] of the responses, in `unit`.
        votes: [M, E] each member's or sample's gap; None where there is one member and one sample.
        figures: what else is known of this model, for people.
        notes: on the items that were judged.
        template_date: what chat templates that read the clock were given; None where none does.
    """

    results: list[Result]
    unscored: list[Unscored]
    lengths: list[Floats]
    unit: str
    votes: list[Floats] | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    notes: Notes = field(default_factory=dict)
    template_date: str | None = None


@dataclass(frozen=True)
class Usable:
    """The items that every model can read, the others, and what the readers know of them (see `Answers`).

    Lengths are those of the first tokenizer, counted from where the prompt ends.
    """

    items: list[Item]
    unscored: list[Unscored]
    lengths: list[Floats]
    notes: Notes
    template_date: str | None

    def answers(
        self, results: list[Result], votes: list[Floats] | None = None, figures: dict[str, Any] | None = None
    ) -> Answers:
        """What models say of the items, with all that the readers know."""
        return Answers(
            results, self.unscored, self.lengths, "tokens", votes, figures or {}, self.notes, self.template_date
        )


def usable(items: Sequence[Item], readers: Sequence[Reader]) -> Usable:
    """Read all items.

    Raises:
        UserError: no item is left.
    """
    bad: dict[int, BadRow] = {}
    lengths: list[Floats] = []
    notes: list[dict[Note, None]] = [dict.fromkeys(item.example.notes) for item in items]
    shared = share(items)
    for number, reader in enumerate(readers):
        encoded = reader.read(shared.examples)
        for i, item in enumerate(items):
            tokens = encoded[shared.group[i]]
            places = shared.places[i]
            if isinstance(tokens, BadRow) or tokens.notes:  # of some item in the group: maybe not of this one
                tokens, places = reader.read([item.example])[0], tuple(range(len(item.example.responses)))
            if isinstance(tokens, BadRow):
                bad.setdefault(i, tokens)
            else:
                notes[i] |= dict.fromkeys(tokens.notes)
            if number == 0:
                lengths.append(np.empty(0) if isinstance(tokens, BadRow) else _lengths(tokens)[list(places)])
    left = [i for i in range(len(items)) if i not in bad]
    unscored = [
        Unscored(items[i].label, items[i].part, items[i].path, why.cause, why.detail) for i, why in sorted(bad.items())
    ]
    if not left:
        first = f"; the first: {unscored[0].label}: {unscored[0].cause}: {unscored[0].detail}" if unscored else ""
        raise UserError(f"no row can be used, of {len(items)}{first}")
    counted: Notes = {}
    add_notes(counted, ((items[i].label, note) for i in left for note in notes[i]))
    dates = {fixed_date(reader.tokenizer.chat_template) for reader in readers} - {None}
    return Usable(
        [items[i] for i in left],
        unscored,
        [lengths[i] for i in left],
        counted,
        ", ".join(sorted(filter(None, dates))) or None,
    )


def _lengths(encoded: Encoded) -> Floats:
    return np.array([len(ids) for ids in encoded.ids], dtype=np.float64) - np.array(encoded.answer_start)


def answers_of_models(
    items: Sequence[Item],
    readers: Sequence[Reader],
    models: Iterable[Callable[[], Scorer]],
    *,
    rule: Rule = "mean",
    k: float = 1.0,
    standardised: bool = False,
) -> Answers:
    """Every head of every model is a member; together they answer by the rule (see `combine`).

    Args:
        readers: of the models, in their order.
        models: load a model each; one is in memory at a time.

    Raises:
        UserError: no item can be judged.
    """
    read = usable(items, readers)
    items = read.items
    shared = share(items)
    sizes = np.cumsum([len(example.responses) for example in shared.examples])[:-1]
    heads = [np.concatenate(load().score_examples(shared.examples)).T for load in models]
    members = np.concatenate(heads).astype(np.float64)
    if standardised:
        members = standardise(members)
    each = [results_of(items, shared, np.split(member, sizes)) for member in members]
    votes = [np.stack([results[i].gaps for results in each]) for i in range(len(items))]
    if len(members) == 1:
        return read.answers(each[0])
    if rule == "majority":
        results = [Result(item, ballot(v)) for item, v in zip(items, votes, strict=True)]
    else:
        results = results_of(items, shared, np.split(combine(members, rule, k), sizes))
    alone = [float(np.mean([gap > 0 for v in votes for gap in v[m]])) for m in range(len(members))]
    return read.answers(results, votes, {"members": alone})
