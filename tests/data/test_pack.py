"""A pack, read back through its layout as attention sees it, gives every sequence, position, edge and LM target."""

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from rmfast.data.pack import Pack, build_pack, empty_pack
from rmfast.data.pad import pad_pack
from rmfast.data.rows import parse_row
from rmfast.data.store import store_examples
from rmfast.data.table import build_table
from tests.data.groups import BOS, groups
from tests.data.test_table import cut_groups
from tests.tiny import Group, pack_of, table_of

DTYPES = {
    **dict.fromkeys(
        (
            "tokens",
            "positions",
            "scored",
            "edges.better",
            "edges.worse",
            "targets.rows",
            "targets.ids",
            "targets.response",
        ),
        torch.int64,
    ),
    **dict.fromkeys(("edges.margin", "edges.target", "edges.weight"), torch.float32),
    "layout": torch.int32,
}


def seen_by(pack: Pack, row: int) -> list[int]:
    """The tokens that a token attends to, in order; their positions must count from 0."""
    start, prefix_end, segment, _ = pack.layout[:, row].tolist()
    keys = [k for k in range(start, row + 1) if k < prefix_end or k >= segment]
    assert pack.positions[keys].tolist() == list(range(len(keys)))
    return pack.tokens[keys].tolist()


def check_dtypes(pack: Pack) -> None:
    for name, dtype in DTYPES.items():
        tensor: Tensor = attrgetter(name)(pack)
        assert tensor.dtype == dtype and tensor.is_contiguous(), name
    assert pack.layout.shape == (4, len(pack.tokens)) and len(pack.positions) == len(pack.tokens)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans(), st.none() | st.integers(2, 9), st.randoms(use_true_random=False))
def test_reads_back(data: st.DataObject, bos: bool, limit: int | None, random: object) -> None:
    drawn = data.draw(st.lists(groups(bos), min_size=1, max_size=5))
    table = table_of(drawn, BOS if bos else None, max_length=limit, over_long="truncate")
    kept = cut_groups(drawn, limit, True, bos)
    order = data.draw(st.permutations(range(len(kept))))
    order = order[: data.draw(st.integers(0, len(order)))]
    if not order:
        return
    laid = [kept[g] for g in order]
    pack = build_pack(table, np.array(order), predicts="chosen")
    check_dtypes(pack)
    assert [seen_by(pack, row) for row in pack.scored.tolist()] == [s for g in laid for s in g.sequences]
    flat = [s for g in laid for s in g.sequences]
    edges = [
        (flat[b], flat[w], margin, target, weight)
        for b, w, margin, target, weight in zip(*(c.tolist() for c in vars(pack.edges).values()), strict=True)
    ]
    assert edges == [
        (g.sequences[b], g.sequences[w], *values)
        for g in laid
        for (b, w), *values in zip(g.edges, *g.edge_values(), strict=True)
    ]
    predictions = [
        (seen_by(pack, row), target, flat[response])
        for row, target, response in zip(*(column.tolist() for column in pack.targets.columns()), strict=True)
    ]
    assert predictions == [
        (g.sequences[r][:t], g.sequences[r][t], g.sequences[r])
        for g in laid
        for r in g.chosen()
        for t in range(max(g.answers[r], 1), len(g.sequences[r]))
    ]
    rows = np.array(order)
    assert pack.groups.tolist() == order
    numbers = [n for g in order for n in range(table.first_response[g], table.first_response[g + 1])]
    assert pack.responses.tolist() == numbers
    # The table's counts, which plans and totals go by, are those of the pack.
    assert len(pack.tokens) == table.stored[rows].sum() and len(pack.targets.rows) == table.lm[rows].sum()
    assert sum(len(seen_by(pack, row)) for row in range(len(pack.tokens))) == table.visible[rows].sum()
    assert len(pack.edges.better) == table.edges[rows].sum()
    plain = build_pack(table, np.array(order))
    assert len(plain.targets.rows) == len(plain.targets.ids) == 0
    check_dtypes(plain)


def test_a_response_inside_the_prefix_is_scored_there() -> None:
    pack = pack_of([Group([[3, 4], [3, 4, 5]], ((0, 1),))])
    assert pack.tokens.tolist() == [3, 4, 5] and pack.scored.tolist() == [1, 2]
    pack = pack_of([Group([[3]]), Group([[3, 4], [3, 4]])])
    assert pack.tokens.tolist() == [3, 3, 4] and pack.scored.tolist() == [0, 2, 2]


@pytest.mark.parametrize(
    ("answer", "rows", "targets"),
    [
        ([2, 2], [1, 2], [5, 6]),  # the prefix's last token predicts the response's first
        ([1, 1], [0, 1, 2], [4, 5, 6]),  # an answer that begins inside the prefix
        ([0, 0], [0, 1, 2], [4, 5, 6]),  # nothing comes before the first token
        ([3, 2], [2], [6]),  # after it
        ([4, 2], [], []),  # no response at all
    ],
    ids=str,
)
def test_lm_rows(answer: list[int], rows: list[int], targets: list[int]) -> None:
    pack = pack_of([Group([[3, 4, 5, 6], [3, 4, 7]], ((0, 1),), answer)], lm=True)
    assert pack.targets.rows.tolist() == rows and pack.targets.ids.tolist() == targets


def test_columns_beside_the_targets_follow_them() -> None:
    pack = pack_of([Group([[3, 4, 5], [3, 6]], ((0, 1),), [1, 1])], lm=True)
    pack = replace(pack, targets=replace(pack.targets, beside={"advantage": torch.tensor([0.5, -1.0])}))
    assert (
        pack.targets.response.tolist() == [0, 0] and len(pack.tensors()) == len(pack_of([Group([[3]])]).tensors()) + 1
    )
    padded = pad_pack(pack, 16).targets
    assert padded.beside["advantage"].tolist() == [0.5, -1.0] + [0.0] * 14
    assert padded.ids.tolist() == [4, 5] + [-1] * 14 and padded.response.tolist() == [0] * 16
    doubled = pack.map(lambda column: column * 2).targets
    assert doubled.beside["advantage"].tolist() == [1.0, -2.0] and doubled.ids.tolist() == [8, 10]


def test_lm_rows_of_truncated_prompts() -> None:
    group = Group([[BOS, 8, 8, 8, 5, 6], [BOS, 8, 8, 8, 7]], ((0, 1),))
    for bos, limit, tokens, rows, targets in [
        (BOS, 4, [BOS, 8, 5, 6, 7], [1, 2], [5, 6]),
        (BOS, 3, [BOS, 5, 6, 7], [0, 1], [5, 6]),
        (None, 3, [8, 5, 6, 7], [0, 1], [5, 6]),
        (None, 2, [5, 6, 7], [0], [6]),  # no token is left that could predict the first
    ]:
        table = table_of([group], bos, max_length=limit, over_long="truncate")
        pack = build_pack(table, np.array([0]), predicts="chosen")
        assert pack.tokens.tolist() == tokens
        assert pack.targets.rows.tolist() == rows and pack.targets.ids.tolist() == targets
        assert table.lm.tolist() == [len(rows)]


def test_a_pack_without_work() -> None:
    for pack in (empty_pack(), build_pack(table_of([Group([[3]])]), np.empty(0, np.int64), predicts="chosen")):
        check_dtypes(pack)
        assert len(pack.tokens) == len(pack.scored) == 1 and pack.scored.tolist() == [0]
        assert not len(pack.edges.better) and not len(pack.edges.weight) and not len(pack.targets.rows)
        assert not len(pack.groups) and not len(pack.responses)


def test_all_tensors_go_to_the_device() -> None:
    pack = pack_of([Group([[3, 4], [3, 5]], ((0, 1),))], lm=True)
    assert pack.to(torch.device("cpu")) is pack
    moved = pack.to(torch.device("meta"))
    assert all(attrgetter(name)(moved).device.type == "meta" for name in DTYPES)
    assert moved.responses is pack.responses


def test_from_texts(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    """The whole way from texts, in many scripts and with tokens that merge where prompt and response meet."""
    texts = [
        ("The capital of Fra", ["nce is Paris.", "nce is London", "nce"]),
        ("naïve ", ["日本語のテキスト", "🙂\u2028\n\t ok ", "日本語"]),
        ("", ["the cat", "the cat sat", "مرحبا", "the cat"]),
        ("Привет", [" мир", " мир!"]),
    ]
    rows = [{"prompt": p, "responses": rs, "scores": list(range(len(rs)))} for p, rs in texts]
    for habits in ({}, {"add_bos": True}, {"add_bos": True, "pad_is_eos": True}):
        tokenizer = make_tokenizer(**habits)
        table, _ = build_table([store_examples([parse_row(row) for row in rows], tokenizer)])
        pack = build_pack(table, np.arange(len(table)), predicts="chosen")
        expected = [tokenizer(p + r)["input_ids"] + [tokenizer.eos_token_id] for p, rs in texts for r in rs]
        assert [seen_by(pack, row) for row in pack.scored.tolist()] == expected
        assert [s for g in range(len(table)) for s in table.sequences_of(g)] == expected
        assert len(pack.tokens) < sum(map(len, expected))
