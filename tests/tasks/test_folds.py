"""Folds: even, deaf to order and length, and no prompt in two of them."""

from typing import Any

import numpy as np
import pytest

from rmfast.data.row_kinds import RESPONSES
from rmfast.data.rows import parse_row
from rmfast.data.store import store_examples
from rmfast.data.table import build_table
from rmfast.data.tokenizer import load_tokenizer
from rmfast.tasks.ensemble.folds import fold_of_groups
from tests.runs import DECODER
from tests.tiny import group_of, table_of

ASK = "the cat sat on a mat"
DIALOGUE = f"\n\nHuman: {ASK}\n\nAssistant:"
CHAT = [{"role": "user", "content": ASK}]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def text(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": DIALOGUE + chosen, "rejected": DIALOGUE + rejected}


def answers(chosen: str, rejected: str) -> dict[str, Any]:
    texts = {"chosen": chosen, "rejected": rejected}
    return {name: [*CHAT, {"role": "assistant", "content": text}] for name, text in texts.items()}


@pytest.mark.parametrize(
    "pair",
    [
        # Replies of one row that begin alike, and of the other that do not: their common tokens differ.
        [text(" yes a", " yes b"), text(" yes a", " no")],
        [text(" yes a", " yes b"), text(" a", "")],
        [answers("yes a", "yes b"), answers("yes a", "no")],
        # A prompt whose end merges with the replies of one row, and with none of the other's.
        [{"prompt": ASK, "chosen": "ter a", "rejected": "ter b"}, {"prompt": ASK, "chosen": " a", "rejected": " b"}],
        [{"prompt": f"{ASK}\n", "chosen": "\na", "rejected": "\nb"}, {"prompt": ASK, "chosen": " a", "rejected": " b"}],
    ],
    ids=["text", "text, empty reply", "messages", "merged", "white space"],
)
def test_rows_of_one_prompt_share_a_fold(pair: list[dict[str, Any]]) -> None:
    tokenizer = load_tokenizer(DECODER, TEMPLATE)
    others = [{"prompt": f"{number} dogs", "chosen": "a", "rejected": "b"} for number in range(14)]
    table, _ = build_table([store_examples([parse_row(row) for row in [*pair, *others]], tokenizer)], kind=RESPONSES)
    folds = np.array([fold_of_groups(table, 5, seed) for seed in range(8)])
    assert (folds[:, 0] == folds[:, 1]).all() and len(set(folds[:, 0])) > 1
    assert all(sorted(np.bincount(own[1:])) == [3] * 5 for own in folds)


def test_folds_are_even_and_know_neither_order_nor_length() -> None:
    draw = np.random.default_rng(0)
    groups = [group_of(draw, 3 + i, [2, 3], [(0, 1)]) for i in range(17)]
    table, turned = table_of(groups), table_of(groups[::-1], max_length=12, over_long="truncate")
    fold = fold_of_groups(table, 5, 1)
    assert sorted(np.bincount(fold)) == [3, 3, 3, 4, 4]
    assert np.array_equal(fold_of_groups(turned, 5, 1)[::-1], fold)
    assert not np.array_equal(fold_of_groups(table, 5, 2), fold)
