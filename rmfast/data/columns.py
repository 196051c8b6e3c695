"""What a file's columns are in rmfast's terms: by their names, by a layout, or as `data.columns` says."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rmfast.data.example import CONTRADICTION, UnmappedColumn, bad
from rmfast.data.layouts import LAYOUTS
from rmfast.errors import shown

UsedAs = tuple[tuple[str, str], ...]
"""(column, what it is used as)"""

EDGE_COLUMNS = ("margin", "target", "weight", "strength_mean", "strength_std")
TURNS = ("system", "history", "user", "input")
"""Parts of a conversation in separate columns: read only where `data.columns` says so (see `rmfast.data.parts`)."""
_IDS = tuple(
    spelling.format(side)
    for side in ("chosen", "rejected", "prompt")
    for spelling in ("{}_ids", "{}_input_ids", "input_ids_{}", "{}_attention_mask", "attention_mask_{}")
)
BY_NAME = frozenset(
    ("prompt", "chosen", "rejected", "responses", "scores", "ranks", "edges", "tools", "chat_template_kwargs")
    + EDGE_COLUMNS
    + _IDS
)
"""Columns that mean what they are called."""
DEMONSTRATED = frozenset(("messages", "completion", "text", "prompt", "tools", "chat_template_kwargs"))
"""Columns of demonstrations that mean what they are called (see `rmfast.data.demonstration_rows`)."""
_OF_DEMONSTRATIONS = DEMONSTRATED - BY_NAME
TARGETS = (*sorted(BY_NAME), *TURNS, *sorted(_OF_DEMONSTRATIONS))
IGNORE = "ignore"
REPEATED = "repeated"
"""What a column was used as that says what others say too: nothing."""

_RATES = re.compile(r"score|rating|reward|grade|quality|rank", re.IGNORECASE)
_RANKS = re.compile(r"(?!.*(score|rating|reward|grade|quality)).*rank", re.IGNORECASE)  # a reranker's score is none
_MEDIA = frozenset(["image", "images", "video", "videos", "audio", "audios"])
_PROMPTS = _MEDIA | frozenset(
    [
        "prompt",
        "prompts",
        "prompttext",
        "promptmessages",
        "rawprompt",
        "fullprompt",
        "question",
        "questions",
        "query",
        "queries",
        "problem",
        "task",
        "instruction",
        "instructions",
        "instruct",
        "input",
        "inputs",
        "inputtext",
        "request",
        "user",
        "userinput",
        "userprompt",
        "usermessage",
        "usercontent",
        "human",
        "message",
        "messages",
        "conversation",
        "conversations",
        "conversationhistory",
        "conversationinput",
        "dialog",
        "dialogs",
        "dialogue",
        "dialogues",
        "chat",
        "chathistory",
        "history",
        "turns",
        "system",
        "systemprompt",
        "systemmessage",
        "sysprompt",
        "customsystemprompt",
        "systeminstruction",
        "developer",
        "context",
        "contexts",
        "background",
        "passage",
        "passages",
        "document",
        "documents",
        "article",
        "post",
        "functions",
        *("originalprompt", "sourceprompt", "inputprompt", "questiontext", "userquestion", "userquery"),
        *("userinstruction", "systemtext", "preprompt", "preamble", "premise", "chatmessages", "previousmessages"),
        *("priorturns", "userturn", "chosenprompt", "promptchosen"),
    ]
)
"""Names, without case and separators, of columns that hold what the answers answer."""


@dataclass(frozen=True)
class Columns:
    """How a row's columns are read. Made from words by `read_columns`; equal ones read all rows alike.

    Attributes:
        names: (theirs, ours) pairs; ours is one of `TARGETS` or "ignore".
        layouts: names of `LAYOUTS`; `names` go before what they say.
        ignore_prompts: whether columns that look like a prompt and are not named are left out.
    """

    names: UsedAs = ()
    layouts: tuple[str, ...] = ()
    ignore_prompts: bool = False

    @cached_property
    def words(self) -> tuple[str, ...]:
        """What `read_columns` makes the same of."""
        return *self.layouts, *(f"{theirs}={ours}" for theirs, ours in self.names), *[IGNORE] * self.ignore_prompts

    @cached_property
    def targets(self) -> dict[str, str]:
        """Theirs -> what it is used as, of all columns that were spoken of."""
        return _merged(LAYOUTS[layout].columns for layout in self.layouts) | dict(self.names)

    @cached_property
    def _renames(self) -> dict[str, str]:
        return _merged(LAYOUTS[layout].names for layout in self.layouts) | dict(self.names)

    @cached_property
    def has_turns(self) -> bool:
        """Whether parts of conversations are in separate columns, so that prompts are conversations."""
        return any(target in TURNS for target in self.targets.values())

    def read(self, row: dict[str, Any], *, answered: bool = True, names: frozenset[str] = BY_NAME) -> dict[str, Any]:
        """A row's values under rmfast's names.

        Args:
            answered: without, answers that are not in columns as rmfast has them are not looked at.
            names: rmfast's, of columns that mean what they are called.

        Raises:
            BadRow: two columns that are the same in rmfast's terms hold different things.
            UnmappedColumn: one is used as what such rows do not have.
        """
        if not self.targets:
            return {name: value for name, value in row.items() if name in names}
        for name, target in self.targets.items():
            if target in _OF_DEMONSTRATIONS and target not in names and name in row:
                raise UnmappedColumn(f"data.columns (--columns) {name}={target}: only demonstrations have {target}")
        ours: dict[str, Any] = {}
        parts = [part for layout in self.layouts for part in LAYOUTS[layout].answers if answered]
        theirs = {name: value for name, value in row.items() if name not in dict(self.names)} if parts else {}
        made = [(name, name, value) for part in parts for name, value in part.read(theirs).items()]
        taken = {name for part in parts for name in part.columns} if made else set()
        named = [(name, self._renames.get(name, name), value) for name, value in row.items() if name not in taken]
        for name, target, value in named + made:
            if target not in names and target not in TURNS:
                continue
            if _empty(ours.get(target)):
                ours[target] = value
            elif not _empty(value) and value != ours[target]:
                bad(CONTRADICTION, f"`{name}` and another column that is used as {target} hold different things")
        return ours

    def prompts(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of a row's columns that look like a prompt and that `data.columns` does not name."""
        if (found := self._prompts.get(names)) is None:
            known = BY_NAME.union(self.targets)
            found = () if self.ignore_prompts else tuple(n for n in names if n not in known and _simple(n) in _PROMPTS)
            self._prompts[names] = found
        return found

    def is_plain_pair(self, names: tuple[str, ...]) -> bool:
        """Whether a row's columns are chosen, rejected and maybe prompt, and others that nothing is to be said of."""
        if (found := self._plain.get(names)) is None:
            known = BY_NAME.intersection(names)
            found = {"chosen", "rejected"} <= known <= {"prompt", "chosen", "rejected"} and not (
                self.targets or self.prompts(names) or self.rated(names)
            )
            self._plain[names] = found
        return found

    def rated(self, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """Those of a row's columns that rate the chosen and the rejected answer, the one that should be larger first.

        `score_chosen` and `score_rejected` of UltraFeedback-binarized are such; they are not read otherwise.
        """
        if (found := self._rated.get(names)) is None:
            sides = [(n, n.replace("chosen", "rejected")) for n in names if "chosen" in n and _RATES.search(n)]
            sides = [side for side in sides if self.targets.keys().isdisjoint(side)]
            found = tuple((b, a) if is_rank(a) else (a, b) for a, b in sides if b in names)
            self._rated[names] = found
        return found

    def uses(
        self, names: tuple[str, ...], used: frozenset[str], repeated: frozenset[str]
    ) -> tuple[tuple[str, str], ...]:
        """What each of a row's columns is used as: rmfast's name, "repeated" or "ignore".

        Args:
            used: columns, by rmfast's names, that the row was read from.
            repeated: columns, by their names, that only say again what others say.
        """
        key = names, used, repeated
        if (found := self._uses.get(key)) is None:
            found = tuple((name, REPEATED if name in repeated else self._use(name, used)) for name in names)
            self._uses[key] = found
        return found

    def _use(self, name: str, used: frozenset[str]) -> str:
        target = self.targets.get(name, name)
        return target if used.intersection(target.split(" and ")) else IGNORE

    # By the names of a row's columns, of which a source has few sets.
    @cached_property
    def _prompts(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        return {}

    @cached_property
    def _plain(self) -> dict[tuple[str, ...], bool]:
        return {}

    @cached_property
    def _rated(self) -> dict[tuple[str, ...], tuple[tuple[str, str], ...]]:
        return {}

    @cached_property
    def _uses(self) -> dict[Any, UsedAs]:
        return {}


def _merged(layouts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What several layouts say; the first of them that speaks of a column counts."""
    out: dict[str, str] = {}
    for layout in layouts:
        out = dict(layout) | out
    return out


AS_NAMED = Columns()
"""Columns mean what they are called."""


def _simple(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def is_rank(name: str) -> bool:
    """Whether a column's name says that it holds an answer's rank, 1 for the best."""
    return _RANKS.match(name) is not None


def is_media(name: str) -> bool:
    """Whether a column's name says that it holds pictures or sound."""
    return name.lower() in _MEDIA


def refuse_prompts(found: Sequence[str]) -> UnmappedColumn:
    """The error of columns that look like a prompt and are not used, with what to write for them."""
    words = " ".join(f"{name}={_guess(name)}" for name in found)
    layouts = [name for name, layout in LAYOUTS.items() if set(found) <= layout.columns.keys()]
    ways = [
        f"what they are, such as {words}",
        "NAME=ignore",
        *([f"a layout that reads them ({', '.join(layouts)})"] * bool(layouts)),
    ]
    return UnmappedColumn(
        f"{', '.join(map('`{}`'.format, found))}: {'looks' if len(found) == 1 else 'look'} like a prompt and "
        f"{'is' if len(found) == 1 else 'are'} not used; set data.columns (--columns) to {', or '.join(ways)}; see "
        "docs/data.md"
    )


def _guess(name: str) -> str:
    """The likeliest use of a column that looks like a prompt."""
    simple = _simple(name)
    if simple in _MEDIA:  # only text is read
        return IGNORE
    guesses = {"functions": "tools", "input": "input", "inputs": "input", "history": "history"}
    return guesses.get(simple, "system" if simple.startswith("sys") else "user")


def _empty(value: Any) -> bool:
    return value is None or value == "" or value == []


def read_columns(given: str | Sequence[str] | Mapping[str, str] | None) -> Columns:
    """What `data.columns` and `--columns` say: layouts, THEIRS=OURS and `ignore`, or a mapping of theirs to ours.

    Raises:
        ValueError: a word that says nothing; the message says what would.
    """
    if isinstance(given, Mapping):
        given = [f"{theirs}={ours}" for theirs, ours in given.items()]
    words = tuple(given or ()) if isinstance(given, list | tuple | None) else (given,)
    names: dict[str, str] = {}
    layouts: list[str] = []
    for word in words:
        word = str(word)
        theirs, equals, ours = word.partition("=")
        if not equals and word in LAYOUTS:
            layouts.append(word)
        elif not equals and word != IGNORE:
            raise ValueError(f"is {IGNORE}, THEIRS=OURS or a layout ({', '.join(LAYOUTS)}), got {shown(word)}")
        elif equals and (not theirs or ours not in (*TARGETS, IGNORE)):
            raise ValueError(
                f"{shown(word)}: a column is used as {', '.join(_shown())} or {IGNORE}, not as {shown(ours)}"
            )
        elif equals and names.setdefault(theirs, ours) != ours:
            raise ValueError(f"{shown(theirs)} cannot be both {names[theirs]} and {ours}")
    return Columns(tuple(names.items()), tuple(dict.fromkeys(layouts)), IGNORE in words)


def _shown() -> list[str]:
    return [name for name in TARGETS if name not in _IDS or name.endswith("_ids") and "input" not in name]


Uses = dict[str, str]
"""Column of a source -> what it was used as."""


def add_uses(uses: Uses, more: Iterable[tuple[str, str]]) -> None:
    """Count what columns of further rows were used as: a use of one row is the column's."""
    for name, use in more:
        if use not in (REPEATED, IGNORE) or uses.get(name, IGNORE) == IGNORE:
            uses[name] = use


def uses_of(rows: Iterable[UsedAs]) -> Uses:
    """What the columns of some rows were used as, from their `Example.columns`."""
    uses: Uses = {}
    for columns in dict.fromkeys(rows):
        add_uses(uses, columns)
    return uses


def uses_line(uses: Mapping[str, str]) -> str:
    """A line for people: the columns that are used, and as what; those that repeat others; and the rest."""
    used = [name if name == use else f"{name} as {use}" for name, use in uses.items() if use not in (REPEATED, IGNORE)]
    lines = [", ".join(used)]
    for word, use in (("repeat these", REPEATED), ("ignored", IGNORE)):
        if names := [name for name in uses if uses[name] == use]:
            lines.append(f"{word}: {', '.join(names)}")
    return "; ".join(lines)
