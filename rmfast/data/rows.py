"""One row of preference data -> one `Example`: a prompt, its responses and the preference edges between them.

Formats (each with prompts and responses as texts or messages, in the shapes of `rmfast.data.messages`):

- `prompt`, `chosen`, `rejected`; or `chosen`, `rejected` alone, which then hold the prompt too (implicit prompt);
- a prompt of messages with string answers, which then are assistant turns;
- `chosen` or `rejected` as a list of several answers: each chosen over each rejected one;
- `prompt`, `responses`, best first, unless `edges` ([[better, worse], ...]), `ranks` (lower is better, ties give no
  edge) or `scores` (higher is better) say otherwise;
- ready token ids: `chosen_ids`, `rejected_ids` (see `rmfast.data.ids`), with `prompt_ids` joined in front.

Optional columns `margin`, `target`, `weight`, `strength_mean`, `strength_std` hold a number, or a list of one per edge;
`tools` and `chat_template_kwargs` go to the chat template. Columns of other names: see `rmfast.data.columns`.

What a row says twice is used once where it agrees and is a bad row where it does not. Rows as prompts to sample from:
see `rmfast.data.prompt_rows`; as demonstrations, `rmfast.data.demonstration_rows`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from rmfast.data.beside import IDS_ALONE, text_of
from rmfast.data.columns import AS_NAMED, BY_NAME, EDGE_COLUMNS, Columns, is_rank
from rmfast.data.contents import check_contents, check_turns
from rmfast.data.demonstration_rows import best_answer, demonstrated, parse_demonstration
from rmfast.data.edges import Pair, check_pairs, pair_order, ranked_pairs, read_edges
from rmfast.data.example import (
    CONTRADICTION,
    EMPTY,
    MISSING_COLUMN,
    NO_EDGE,
    WRONG_TYPE,
    BadRow,
    Edge,
    Example,
    UnmappedColumn,
    bad,
    is_messages,
)
from rmfast.data.ids import has_ids, read_ids
from rmfast.data.layouts import layouts_with_answers
from rmfast.data.messages import several, template_arguments
from rmfast.data.notes import Note
from rmfast.data.parts import joined_prompt, settle
from rmfast.data.prompt_rows import parse_prompt
from rmfast.data.repeats import repeated_prompts
from rmfast.data.row_kinds import PAIRS, RowKind
from rmfast.errors import UserError

RATED_OTHERWISE = "ratings beside the pair prefer the rejected answer; the pair is taken"

_BESIDE = frozenset((*EDGE_COLUMNS, "tools", "chat_template_kwargs", "system", "history", "user", "input"))
"""Columns that are read whatever the others are."""
_TEXTS = frozenset(("prompt", "chosen", "rejected"))
_PAIR = _TEXTS | _BESIDE
_NONE: frozenset[str] = frozenset()
_PROMPT = frozenset(("prompt",))
_ONE_EDGE = (Edge(0, 1),)
_RANKING = frozenset(("responses", "edges", "ranks", "scores"))
_BESIDE_IDS = BY_NAME - _TEXTS - _RANKING - {"tools", "chat_template_kwargs"}


def read_row(where: str, row: dict[str, Any] | BadRow, columns: Columns = AS_NAMED, kind: RowKind = PAIRS) -> Example:
    """`parse_row` of a row of a source.

    Args:
        where: "file:row".

    Raises:
        BadRow: the row cannot be used.
        UserError: a column looks like a prompt and is not used; no row of the source can be trusted then.
    """
    if isinstance(row, BadRow):
        raise row
    try:
        return parse_row(row, columns, kind)
    except UnmappedColumn as error:
        raise UserError(f"{where}: {error.detail}") from None


def parse_row(row: dict[str, Any], columns: Columns = AS_NAMED, kind: RowKind = PAIRS) -> Example:
    """Read one row of any of the module's formats.

    Args:
        row: columns; a column that holds None counts as absent.
        columns: what the row's columns are.
        kind: what is asked of the row.

    Raises:
        BadRow: the row cannot be used.
    """
    if None in row.values():
        row = {name: value for name, value in row.items() if value is not None}
    try:
        return _parse_kind(row, columns, kind)
    except RecursionError:
        raise BadRow(WRONG_TYPE, "lists or objects nested too deep") from None


def _parse_kind(row: dict[str, Any], columns: Columns, kind: RowKind) -> Example:
    if not kind.answered:
        return parse_prompt(row, columns)
    if kind.turns is None:
        return _parse(row, columns, kind)
    if (ours := demonstrated(row, columns)) is not None:
        return parse_demonstration(ours, row, columns, kind)
    ours = columns.read(row)
    if "chosen" not in ours and "responses" not in ours and not has_ids(ours):
        has = ", ".join(map(repr, row)) or "no columns"
        bad(MISSING_COLUMN, f"no `messages`, no `prompt` and `completion`, and no `text`; the row has {has}")
    return best_answer(_parse(row, columns, kind))


def _parse(row: dict[str, Any], columns: Columns, kind: RowKind) -> Example:
    names = tuple(row)
    if columns.is_plain_pair(names) and (example := _plain_pair(row, columns, names, kind)):
        return example
    ours = columns.read(row)
    notes: list[Note] = []
    front = 0
    texts: tuple[str | None, ...] = ()
    if columns.has_turns and not has_ids(ours) and (joined := joined_prompt(ours, notes)) is not None:
        ours["prompt"] = joined
    if "responses" in ours:
        prompt, responses, pairs, used = _ranked(ours, notes)
    elif has_ids(ours):
        prompt = None
        responses, pairs, used, front, texts = _ids(ours, notes)
    else:
        prompt, responses, pairs, used = _pair(ours, row, notes)
    if ("chosen" in ours or has_ids(ours)) and (rated := columns.rated(names)):
        notes += _rated_otherwise(row, rated)
    if kind.prefers and not pairs:
        bad(NO_EDGE, "no response is preferred to another")
    edges, per_edge_weight = read_edges(ours, pairs, strengths=not kind.empty)
    tools, template_kwargs = template_arguments(ours)
    check_contents(prompt, responses, kind)
    if tools and prompt is not None and isinstance(responses[0], str) and isinstance(prompt, str):
        used -= {"tools", "chat_template_kwargs"}  # no template is rendered over texts
    if has_ids(ours):
        repeated = frozenset(n for n in names if columns.targets.get(n, n) in _TEXTS) if texts else _NONE
    else:
        repeated = repeated_prompts(prompt, responses, row, columns, names)
    if not prompt:
        check_turns(responses)  # after the columns that could have been it
    if prompt is None and "prompt" in used and "prompt" in ours:
        repeated |= {name for name in names if columns.targets.get(name, name) == "prompt"}
    return Example(
        prompt=prompt,
        responses=tuple(responses),
        edges=edges,
        per_edge_weight=per_edge_weight,
        tools=tools,
        template_kwargs=template_kwargs,
        prompt_ids=front,
        texts=texts,
        notes=tuple(notes),
        columns=columns.uses(names, used, repeated),
    )


def _plain_pair(row: dict[str, Any], columns: Columns, names: tuple[str, ...], kind: RowKind) -> Example | None:
    """What `_parse` makes of a row of a pair alone, as nearly all are; None where a side may be several answers."""
    answers = [row["chosen"], row["rejected"]]
    if not all(
        type(answer) is str or (type(answer) is list and answer and type(answer[0]) is dict) for answer in answers
    ):
        return None
    notes: list[Note] = []
    prompt, responses = settle(row.get("prompt"), answers, notes)
    check_contents(prompt, responses, kind)
    if not prompt:
        check_turns(responses)
    repeated = _PROMPT if prompt is None and "prompt" in row else _NONE
    return Example(
        prompt, tuple(responses), _ONE_EDGE, notes=tuple(notes), columns=columns.uses(names, _PAIR, repeated)
    )


def _ranked(ours: dict[str, Any], notes: list[Note]) -> tuple[Any, list[Any], list[Pair], frozenset[str]]:
    """`responses` and the order that edges, ranks, scores or their place in the list give them."""
    responses = ours["responses"]
    if not isinstance(responses, list):
        bad(WRONG_TYPE, f"`responses` is not a list but {type(responses).__name__}")
    if not responses:
        bad(EMPTY, "`responses` is an empty list")
    if ours.get("prompt") is None:
        bad(MISSING_COLUMN, f"no `prompt` beside `responses`; the row has {', '.join(map(repr, ours))}")
    count = len(responses)
    pairs = ranked_pairs(ours, count)
    prompt, settled = settle(ours["prompt"], responses, notes)
    if "chosen" not in ours and "rejected" not in ours:
        return prompt, settled, pairs, _RANKING | _BESIDE | {"prompt"}
    better, worse = (
        settle(ours["prompt"], several(ours[side]), [])[1] if side in ours else [] for side in ("chosen", "rejected")
    )
    _check_pair(settled, pairs, better, worse)
    return prompt, settled, pairs, _RANKING | _PAIR


def _check_pair(responses: list[Any], pairs: list[Pair], better: list[Any], worse: list[Any]) -> None:
    """Refuse a pair beside a ranking that is not in it."""
    known = [_answer(response) for response in responses]
    places = [[i for i, one in enumerate(known) if one == _answer(answer)] for answer in (*better, *worse)]
    if not all(places):
        bad(CONTRADICTION, "`chosen` or `rejected` is none of the `responses` beside it")
    if not worse and any(j in ranks for ranks in places for _, j in pairs):
        bad(CONTRADICTION, "`chosen` is not the best of the `responses` beside it")
    if not better and any(i in ranks for ranks in places for i, _ in pairs):
        bad(CONTRADICTION, "`rejected` is not the worst of the `responses` beside it")
    for above in places[: len(better)]:
        for below in places[len(better) :]:
            if not any((i, j) in pairs for i in above for j in below):
                bad(CONTRADICTION, "the `responses` are not ordered as `chosen` and `rejected` beside them are")


def _answer(response: Any) -> Any:
    """A response as it is compared: what its last turn says."""
    if response and is_messages(response) and not response[-1].get("tool_calls"):
        response = response[-1].get("content")
    return response.strip() if isinstance(response, str) else response


def _crossed(better: int, worse: int) -> list[Pair]:
    """Each of the first responses over each of the others."""
    return [(i, better + j) for i in range(better) for j in range(worse)]


def _pair(
    ours: dict[str, Any], row: dict[str, Any], notes: list[Note]
) -> tuple[Any, list[Any], list[Pair], frozenset[str]]:
    """Chosen over rejected answers, as text or messages."""
    for name in ("chosen", "rejected"):
        if name not in ours:
            layouts = "".join(f"; data.columns (--columns) {found} reads it" for found in layouts_with_answers(row))
            bad(MISSING_COLUMN, f"no `{name}`; the row has {', '.join(map(repr, row)) or 'no columns'}{layouts}")
    chosen, rejected = several(ours["chosen"]), several(ours["rejected"])
    if masks := [name for name in ours if "attention_mask" in name]:
        bad(WRONG_TYPE, f"`{masks[0]}` is the mask of no column of token ids: call these chosen_ids and rejected_ids")
    if ours["rejected"] == [] or (len(chosen) > 1 and not rejected):
        bad(NO_EDGE, "`rejected` is an empty list")
    pairs = _crossed(len(chosen), len(rejected))
    orders = _check_order(ours, pairs, len(chosen) + len(rejected))
    prompt, responses = settle(ours.get("prompt"), chosen + rejected, notes)
    return prompt, responses, pairs, _PAIR | orders if orders else _PAIR


def _ids(
    ours: dict[str, Any], notes: list[Note]
) -> tuple[list[Any], list[Pair], frozenset[str], int, tuple[str | None, ...]]:
    """Chosen over rejected answers as token ids, how many of each are the prompt's, and the texts beside them."""
    front, chosen, rejected = read_ids(ours, notes)
    pairs = _crossed(len(chosen), len(rejected))
    used = _BESIDE_IDS | _check_order(ours, pairs, len(chosen) + len(rejected))
    responses = [front + ids for ids in chosen + rejected]
    beside = [name for name in ours if name in _TEXTS]
    if not beside:
        return responses, pairs, used, len(front), ()
    answers = [
        text_of(answer)
        for side, ids in (("chosen", chosen), ("rejected", rejected))
        for answer in (several(ours[side]) if side in ours else [None] * len(ids))
    ]
    texts = (text_of(ours.get("prompt")), *answers)
    if len(answers) == len(responses) and any(texts):
        return responses, pairs, used, len(front), texts
    notes.append(Note(IDS_ALONE, ", ".join(beside)))
    return responses, pairs, used, len(front), ()


def _check_order(ours: dict[str, Any], pairs: list[Pair], count: int) -> frozenset[str]:
    """The columns beside a pair that order its answers too. Refuses those that order them in another way."""
    orders = pair_order(ours, count)
    for name, order in orders.items():
        check_pairs(pairs, order, "`chosen` and `rejected`", f"`{name}`")
    return frozenset(orders)


def _rated_otherwise(row: dict[str, Any], rated: Iterable[tuple[str, str]]) -> Iterator[Note]:
    """A note where a column that rates the chosen answer is below the one that rates the rejected answer.

    Ratings come from many places and are noisy, ranks are the preference itself.

    Raises:
        BadRow: the answers' ranks say that the rejected one is better.
    """
    otherwise = [side for side in rated if _is_below(*(row[name] for name in side))]
    shown = [f"`{larger}` {row[larger]}, `{smaller}` {row[smaller]}" for larger, smaller in otherwise]
    for (name, _), detail in zip(otherwise, shown, strict=True):
        if is_rank(name):
            bad(CONTRADICTION, f"{detail}: ranks prefer the rejected answer; data.columns (--columns) {name}=ignore")
    if shown:
        yield Note(RATED_OTHERWISE, shown[0])


def _is_below(value: Any, other: Any) -> bool:
    return all(type(one) in (int, float) for one in (value, other)) and value < other
