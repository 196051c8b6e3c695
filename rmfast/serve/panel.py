"""The models that are served, as one: how rows become tokens, tokens rewards of members, and these one reward.

Shapes: M members, N responses of a row, S sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rmfast.data.example import BadRow, Example, check_unicode
from rmfast.data.tokenise import Ids, common_prefix, encode
from rmfast.data.tokenizer import fingerprint
from rmfast.errors import UserError
from rmfast.evaluation.combine import Rule, combined_scores
from rmfast.serve.asked import Asked, Floats, Scored, Whole
from rmfast.serve.refusal import Refused


class Model(Protocol):
    """A loaded reward model, or several over one trunk."""

    hf: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    window: int | None

    @property
    def vocabulary(self) -> int: ...
    def score_sequences(self, sequences: Sequence[Ids], *, alone: bool) -> np.ndarray:
        """Scores [S, M] of whole sequences."""
        ...


@dataclass(frozen=True, eq=False)
class Row:
    """The sequences of a row's N responses, by each of the tokenizers; the tokens that they store; and the bytes of the
    first one, by which rows that begin alike are found."""

    sequences: tuple[tuple[Ids, ...], ...]
    stored: int
    first: bytes

    def __len__(self) -> int:
        return len(self.sequences[0])

    @property
    def tokens(self) -> int:
        """Of all sequences, by the first tokenizer."""
        return sum(map(len, self.sequences[0]))


class Panel:
    """Reward models, and the rule by which their rewards become one.

    Args:
        models: each a member, or as many as it has heads.
        rule, k: see `rmfast.evaluation.combine`.
        alone: each response is computed by itself, so that its bits depend on its tokens alone.

    Attributes:
        members: M.

    Raises:
        UserError: a rule for several members where there is one.
    """

    def __init__(
        self, models: Sequence[Model], *, rule: Rule | None = None, k: float = 1.0, alone: bool = False
    ) -> None:
        self.models, self.rule, self.k, self.alone = models, rule or "mean", k, alone
        prints = [fingerprint(model.tokenizer) for model in models]
        self._reader_of = [sorted(set(prints)).index(one) for one in prints]
        self._readers = [models[self._reader_of.index(reader)].tokenizer for reader in range(len(set(prints)))]
        self.members = len(self.score([self.read_row(Whole("a"), "a text")])[0])  # and what fails, fails before clients
        if rule is not None and self.members == 1:
            raise UserError("--combine: one model with one head: nothing to combine")

    def read(self, asked: Asked) -> list[Row]:
        """The tokens of a request's rows.

        Raises:
            Refused: one cannot be tokenised, is longer than a model takes, or gives a vote nothing to compare.
        """
        if self.rule == "majority":
            places = self._groups(asked, [1 if isinstance(row, Whole) else len(row.responses) for row in asked.rows])
            if (np.bincount(places) < 2).any():
                raise Refused(422, "majority compares responses to one prompt, and one has none beside it")
        many = len(asked.rows) > 1
        return [self.read_row(row, f"row {number}" if many else "the request") for number, row in enumerate(asked.rows)]

    def read_row(self, row: Example | Whole, where: str) -> Row:
        """The tokens of one row; raises as `read`."""
        try:
            sequences = tuple(_tokens(tokenizer, row) for tokenizer in self._readers)
        except BadRow as bad:
            raise Refused(422, f"{where}: {bad}") from None
        except UserError as error:
            raise Refused(422, f"{where}: {error}") from None
        for model, reader in zip(self.models, self._reader_of, strict=True):
            longest = max(map(len, sequences[reader]))
            if model.window is not None and longest > model.window:
                raise Refused(422, f"{where}: too long: {longest:,} tokens, and the model takes {model.window:,}")
            if (largest := max(int(ids.max()) for ids in sequences[reader])) >= model.vocabulary:
                raise Refused(422, f"{where}: token id {largest} is beyond the model's vocabulary")
        first = sequences[0]
        shared = min(common_prefix(first[0], ids) for ids in first)
        return Row(sequences, sum(map(len, first)) - shared * (len(first) - 1), first[0].tobytes())

    def score(self, rows: Sequence[Row]) -> list[Floats]:
        """Members' rewards [M, N] of each row."""
        ends = np.cumsum([len(row) for row in rows])[:-1]
        scores = [
            model.score_sequences([ids for row in rows for ids in row.sequences[reader]], alone=self.alone)
            for model, reader in zip(self.models, self._reader_of, strict=True)
        ]
        return np.split(np.concatenate(scores, axis=1).T, ends, axis=1)

    def combined(self, asked: Asked, rows: Sequence[Row], members: Sequence[Floats]) -> Scored:
        """A request's rewards by the rule.

        Raises:
            Refused: a reward is not finite.
        """
        counts = [len(row) for row in rows]
        whole = np.concatenate(members, axis=1)
        if not np.isfinite(whole).all():
            member, place = np.argwhere(~np.isfinite(whole))[0]
            raise Refused(500, f"the reward of response {place} by member {member} is not finite: the model is broken")
        rewards = combined_scores(whole, self._groups(asked, counts), self.rule, self.k)
        return Scored(np.split(rewards, np.cumsum(counts)[:-1]), members, [row.tokens for row in rows])

    def _groups(self, asked: Asked, counts: Sequence[int]) -> np.ndarray:
        """A number for each response, equal for those that a vote compares."""
        prompts = range(len(counts)) if asked.prompts is None else asked.prompts
        number: dict[object, int] = {}
        return np.repeat([number.setdefault(prompt, len(number)) for prompt in prompts], counts)


def _tokens(tokenizer: PreTrainedTokenizerBase, row: Example | Whole) -> tuple[Ids, ...]:
    """Each response's sequence.

    Raises:
        BadRow, UserError: as `encode`.
    """
    if isinstance(row, Whole):
        if isinstance(row.text, str):
            check_unicode(row.text)
            ids = tokenizer(row.text, add_special_tokens=row.special, verbose=False)["input_ids"]
        else:
            ids = row.text
        if not ids:
            raise BadRow("empty", "the text has no tokens")
        return (np.asarray(ids, dtype=np.int32),)
    encoded = encode(tokenizer, [row])[0]
    if isinstance(encoded, BadRow):
        raise encoded
    return encoded.sequences
