"""The table's numbers equal what counting token by token gives; what is left out, cut or refused, and why."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmfast.data.row_kinds import RESPONSES
from rmfast.data.table import GroupTable, build_table, table_edges
from rmfast.errors import UserError
from tests.data.groups import BOS, groups
from tests.tiny import Group, ids, store_of, table_of

G = np.random.default_rng(0)
SHORT = Group([[3, 4, 5], [3, 4, 6, 7]], ((0, 1),))
LONG = Group([[3] * 9 + [4], [3] * 9 + [5, 6]], ((0, 1),))  # 9 tokens of prompt, at most 11 in all


def cut_groups(all_groups: Sequence[Group], limit: int | None, truncate: bool, bos: bool) -> list[Group]:
    """What is left of each group within the limit; those that do not fit are left out."""
    out = []
    for group in all_groups:
        excess = 0 if limit is None else max(max(map(len, group.sequences)) - limit, 0)
        # Only the prompt is cut, after its bos, and of no sequence all of it.
        fits = excess <= min(group.answers) - bos and all(len(s) > excess for s in group.sequences)
        if excess == 0:
            out.append(group)
        elif truncate and fits:
            cut = [s[:bos] + s[bos + excess :] for s in group.sequences]
            out.append(replace(group, sequences=cut, answer=[a - excess for a in group.answers]))
    return out


def counted(group: Group) -> dict[str, float]:
    """The table's columns, by counting."""
    suffixes = [s[group.prefix :] for s in group.sequences]
    predicted = {r: range(max(group.answers[r], 1), len(group.sequences[r])) for r in group.chosen()}
    visible = sum(range(1, group.prefix + 1))
    visible += sum(group.prefix + own + 1 for suffix in suffixes for own in range(len(suffix)))
    return {
        "stored": group.prefix + sum(map(len, suffixes)),
        "sequences": sum(map(len, group.sequences)),
        "edges": len(group.edges),
        "lm": sum(map(len, predicted.values())),
        "visible": visible,
        "weight": sum(group.edge_values()[2]),
    }


def sequences(table: GroupTable) -> list[list[list[int]]]:
    return [table.sequences_of(g) for g in range(len(table))]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans(), st.booleans(), st.none() | st.integers(1, 9))
def test_columns(data: st.DataObject, bos: bool, truncate: bool, limit: int | None) -> None:
    drawn = data.draw(st.lists(groups(bos), max_size=5))
    table = table_of(drawn, BOS if bos else None, max_length=limit, over_long="truncate" if truncate else "drop")
    expected = cut_groups(drawn, limit, truncate, bos)
    assert sequences(table) == [g.sequences for g in expected]
    for group, number in zip(expected, range(len(table)), strict=True):
        columns = {name: getattr(table, name)[number] for name in counted(group)}
        assert columns == counted(group)
    assert np.diff(table.first_response).tolist() == [len(g.sequences) for g in expected]
    assert table.first_response[0] == 0
    for name in ("store", "index", "cut", "stored", "sequences", "edges", "lm", "visible", "first_response"):
        assert getattr(table, name).dtype == np.int64, name


@settings(max_examples=60, deadline=None)
@given(st.lists(groups(), min_size=1, max_size=4), st.lists(groups(), min_size=1, max_size=4))
def test_edges_number_responses_through_several_stores(first: list[Group], second: list[Group]) -> None:
    table, _ = build_table([store_of(first), store_of(second)], kind=RESPONSES)
    edges = table_edges(table)
    flat = [(g, s, a) for g in first + second for s, a in zip(g.sequences, g.answers, strict=True)]
    wanted = [
        (number, g.sequences[b], g.sequences[w], *values)
        for number, g in enumerate(first + second)
        for (b, w), *values in zip(g.edges, *g.edge_values(), strict=True)
    ]
    found = [
        (group, flat[b][1], flat[w][1], margin, target, weight)
        for b, w, group, margin, target, weight in zip(
            edges.better, edges.worse, edges.group, edges.margin, edges.target, edges.weight, strict=True
        )
    ]
    assert found == wanted
    assert edges.length.tolist() == [len(s) - a for _, s, a in flat]


def test_edges_of_a_table_with_rows_left_out() -> None:
    drawn = [LONG, SHORT, Group([[7]]), LONG, Group([[8, 9], [8, 3]], ((1, 0),), answer=[1, 1])]
    table, dropped = build_table([store_of(drawn), store_of([SHORT])], max_length=10)
    assert dropped == {"over-long": 2, "longer than a pack": 0, "identical": 0, "no edge": 1, "truncated": 0}
    assert table.index.tolist() == [1, 4, 0] and table.store.tolist() == [0, 0, 1]
    edges = table_edges(table)
    assert edges.better.tolist() == [0, 3, 4] and edges.worse.tolist() == [1, 2, 5]
    assert edges.group.tolist() == [0, 1, 2] and edges.length.tolist() == [1, 2, 1, 1, 1, 2]
    assert [table.label(g) for g in range(3)] == ["tiny:2", "tiny:5", "tiny:1"]


def test_over_long_rows() -> None:
    store = store_of([SHORT, LONG])
    assert len(build_table([store], max_length=11)[0]) == 2
    table, dropped = build_table([store], max_length=10)
    assert len(table) == 1 and dropped["over-long"] == 1
    table, dropped = build_table([store], max_length=10, over_long="truncate")
    assert sequences(table) == [SHORT.sequences, [[3] * 8 + [4], [3] * 8 + [5, 6]]] and dropped["truncated"] == 1
    with pytest.raises(UserError, match=r"^tiny:2: over-long for data.max_length 10; raise it or set data.over_long"):
        build_table([store], max_length=10, over_long="error")
    with pytest.raises(UserError, match=r"^tiny:2: over-long for data.tokens_per_pack 11"):
        build_table([store], tokens_per_pack=11, over_long="error")


def test_responses_are_never_cut() -> None:
    group = replace(SHORT, answer=[1, 2])  # in the first response, the prompt's last token merged with the answer
    for limit, left in [(3, [[4, 5], [4, 6, 7]]), (2, None)]:
        table, dropped = build_table([store_of([group])], max_length=limit, over_long="truncate")
        assert sequences(table) == ([left] if left else []) and dropped["over-long"] == (left is None)


def test_a_sequence_is_never_cut_to_nothing() -> None:
    """A response without tokens of its own would be scored at a token of another group."""
    bare = Group([[3, 4], [3, 4, 5, 6]], ((1, 0),))
    table, dropped = build_table([store_of([bare])], max_length=3, over_long="truncate")
    assert sequences(table) == [[[4], [4, 5, 6]]]
    table, dropped = build_table([store_of([bare])], max_length=2, over_long="truncate")
    assert len(table) == 0 and dropped["over-long"] == 1


def test_cut_after_the_bos() -> None:
    group = Group([[BOS, 3, 4, 5, 6], [BOS, 3, 4, 5, 7]], ((0, 1),))
    table, _ = build_table([store_of([group], BOS)], max_length=3, over_long="truncate")
    assert sequences(table) == [[[BOS, 5, 6], [BOS, 5, 7]]]
    assert len(build_table([store_of([group], BOS)], max_length=1, over_long="truncate")[0]) == 0


def test_an_answer_that_begins_at_the_bos_is_not_too_long() -> None:
    group = replace(Group([[BOS, 3], [BOS, 4]], ((0, 1),)), answer=[0, 0])
    for over_long in ("truncate", "drop"):
        table, dropped = build_table([store_of([group], BOS)], max_length=5, over_long=over_long)
        assert len(table) == 1 and not any(dropped.values())


def test_longer_than_a_pack() -> None:
    table, dropped = build_table([store_of([SHORT, LONG])], tokens_per_pack=11)
    assert len(table) == 1 and dropped["longer than a pack"] == 1
    # What truncation leaves counts.
    table, dropped = build_table([store_of([LONG])], max_length=10, tokens_per_pack=11, over_long="truncate")
    assert len(table) == 1 and table.stored.tolist() == [11]


def test_groups_without_a_use() -> None:
    same, single = Group([[3, 4], [3, 4]], ((0, 1),)), Group([[3, 4], [3, 5]])
    partly = Group([[3, 4], [3, 4], [3, 5]], ((0, 1), (0, 2)))
    table, dropped = build_table([store_of([same, single, partly, SHORT])])
    assert table.index.tolist() == [2, 3]
    assert dropped == {"over-long": 0, "longer than a pack": 0, "identical": 1, "no edge": 1, "truncated": 0}
    table, dropped = build_table([store_of([same, single, partly, SHORT])], kind=RESPONSES)
    assert len(table) == 4 and not any(dropped.values())


def test_each_row_has_one_cause() -> None:
    same = Group([[3] * 12, [3] * 12], ((0, 1),))
    single = Group([[3] * 12])
    _, dropped = build_table([store_of([same, single])], max_length=10, tokens_per_pack=5)
    assert sum(dropped.values()) == 2 and dropped["identical"] == dropped["no edge"] == 1


def test_empty_stores() -> None:
    table, dropped = build_table([store_of([]), store_of([SHORT]), store_of([])])
    assert table.store.tolist() == [1] and not any(dropped.values())
    edges = table_edges(table)
    assert edges.better.tolist() == [0] and edges.length.tolist() == [1, 2]
    table, _ = build_table([store_of([])])
    assert len(table) == 0 and table.first_response.tolist() == [0]


def test_chosen_are_preferred_by_some_edge_and_rejected_by_none() -> None:
    group = Group([[3, *ids(G, n)] for n in (2, 3, 4, 5)], ((0, 1), (1, 2), (3, 2)), answer=[1, 1, 1, 1])
    assert table_of([group]).lm.tolist() == [2 + 5]
