"""Demonstrations in stores, tables, packs and reports: their targets stay beside their tokens."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rmfast.cli import main
from rmfast.data.loader import rank_packs, totals_of
from rmfast.data.pack import build_pack
from rmfast.data.pad import pad_pack
from rmfast.data.report import data_report
from rmfast.data.row_kinds import PAIRS, RESPONSES, Turns, demonstrations
from rmfast.data.store import TokenStore, build_store
from rmfast.data.table import GroupTable, build_table
from rmfast.errors import UserError
from tests.data.test_report import lines_of
from tests.data.test_store import assert_same, no_tokenising
from tests.tiny import Group, store_of

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello world"}] * 2},
    {"prompt": "the capital of France is", "completion": " Paris."},
    {"text": "the cat sat"},
    {"messages": []},
    {"id": 3},
    {"messages": [{"role": "user", "content": "hi"}]},
]


def stored(path: Path, tokenizer: PreTrainedTokenizerFast, turns: Turns = "all", **options: Any) -> TokenStore:
    (path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    kind = demonstrations(turns)
    return build_store(str(path / "rows.jsonl"), tokenizer, path / "cache", kind=kind, **options)


def table_of(rows: list[tuple[list[int], list[bool]]], bos_id: int | None = None, **options: Any) -> Any:
    """The table of token ids and which of them are targets, and what was left out."""
    store = store_of([Group([ids], answer=[mask.index(True)]) for ids, mask in rows], bos_id)
    store = replace(store, trained=np.array([one for _, mask in rows for one in mask]))
    return build_table([store], kind=demonstrations(), **options)


# --- stores


def test_a_store_keeps_the_targets_and_is_read_again(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(tmp_path, tokenizer)
    assert store.trained is not None and store.trained.shape == store.tokens.shape and store.trained.dtype == np.bool_
    texts = [
        tokenizer.decode(store.tokens[a:b][store.trained[a:b]])
        for a, b in zip(store.token_start[:-1], store.token_start[1:], strict=True)
    ]
    assert texts[:2] == ["hello world<|im_end|>\n" * 2, " Paris.<|im_end|>"]
    assert store.meta["bad"] == {"empty": 1, "missing column": 1, "wrong roles": 1}
    with monkeypatch.context() as patch:
        no_tokenising(patch)
        again = stored(tmp_path, tokenizer)
    assert_same(store, again)
    assert again.trained is not None and (again.trained == store.trained).all()


def test_turns_are_part_of_a_store_s_name(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    every, last = (stored(tmp_path, tokenizer, turns) for turns in ("all", "last"))
    assert every.trained is not None and last.trained is not None
    assert every.meta["key"] != last.meta["key"] and every.trained.sum() > last.trained.sum()
    assert every.tokens.tolist() == last.tokens.tolist()


def test_other_stores_hold_no_targets(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    store = build_store(str(tmp_path / "pairs.jsonl"), tokenizer, tmp_path / "cache", kind=PAIRS)
    assert store.trained is None and not (tmp_path / "cache" / store.meta["key"] / "trained.npy").exists()


def test_several_processes_give_the_same_store(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stored(tmp_path, tokenizer)
    monkeypatch.setattr("rmfast.data.store._POOL_FROM", 2)
    monkeypatch.setattr("rmfast.data.store._BATCH", 2)
    (tmp_path / "two").mkdir()
    two = stored(tmp_path / "two", tokenizer, workers=2)
    assert_same(one, two)
    assert one.trained is not None and two.trained is not None and one.trained.tolist() == two.trained.tolist()


def test_a_bad_row_may_end_the_reading(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl:4: empty: `messages` is an empty list"):
        stored(tmp_path, tokenizer, bad_rows="error")


# --- tables and packs


def test_of_an_over_long_row_the_last_tokens_stay() -> None:
    ids, mask = [*range(10, 20)], [False, True, True, False, False, True, False, True, True, False]
    table, left_out = table_of([(ids, mask)], max_length=6, over_long="truncate")
    assert left_out["truncated"] == 1 and table.cut.tolist() == [4] and table.lm.tolist() == [3]
    pack = build_pack(table, np.arange(1), predicts="targets")
    assert pack.tokens.tolist() == ids[4:] and pack.targets.ids.tolist() == [15, 17, 18]
    assert pack.targets.rows.tolist() == [0, 2, 3] and pack.targets.response.tolist() == [0, 0, 0]
    table, _ = table_of([(ids, mask)], max_length=5, over_long="truncate")
    assert table.lm.tolist() == [2]  # nothing predicts the first token that stays


def test_the_cut_follows_the_bos() -> None:
    ids, mask = [1, *range(10, 16)], [False, True, True, False, True, False, True]
    table, _ = table_of([(ids, mask)], bos_id=1, max_length=4, over_long="truncate")
    pack = build_pack(table, np.arange(1), predicts="targets")
    assert pack.tokens.tolist() == [1, 13, 14, 15] and table.lm.tolist() == [2]
    assert pack.targets.ids.tolist() == [13, 15] and pack.targets.rows.tolist() == [0, 2]


def test_an_over_long_row_is_dropped_where_no_target_would_stay_or_where_that_is_asked_for() -> None:
    row = ([10, 11, 12, 13, 14], [False, True, False, False, False])
    assert len(table_of([row], max_length=5, over_long="truncate")[0]) == 1
    for how in ("truncate", "drop"):
        table, left_out = table_of([row], max_length=4, over_long=how)
        assert len(table) == 0 and left_out["over-long"] == 1
    kept, _ = table_of([row, ([5, 6], [False, True])], max_length=4)
    assert kept.lm.tolist() == [1]


@st.composite
def rows_of_targets(draw: st.DrawFn) -> list[tuple[list[int], list[bool]]]:
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        length = draw(st.integers(2, 12))
        mask = [False, *draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1).filter(any))]
        rows.append((draw(st.lists(st.integers(3, 90), min_size=length, max_size=length)), mask))
    return rows


@settings(deadline=None, max_examples=60)
@given(rows_of_targets(), st.integers(1, 3), st.integers(3, 12))
def test_packs_hold_every_target_once_behind_its_token(
    rows: list[tuple[list[int], list[bool]]], ranks: int, limit: int
) -> None:
    table, _ = table_of(rows, max_length=limit, over_long="truncate")
    groups = np.arange(len(table))
    expected = []
    for ids, mask in rows:
        cut = max(len(ids) - limit, 0)
        targets = [(ids[i - 1], ids[i]) for i in range(cut + 1, len(ids)) if mask[i]]
        expected += [targets] if targets else []
    found: dict[int, list[tuple[int, int]]] = {}
    total = 0
    for rank in range(ranks):
        packs, _ = rank_packs(table, groups, ranks=ranks, rank=rank, budget=24, predicts="targets")
        for pack in packs:
            total += len(pack.targets.rows)
            for row, target, response in zip(*(c.tolist() for c in pack.targets.columns()), strict=True):
                found.setdefault(int(pack.responses[response]), []).append((int(pack.tokens[row]), target))
    assert [found[group] for group in sorted(found)] == expected
    assert total == table.lm.sum() == (totals_of(table, groups).lm_tokens if len(table) else 0)


def test_padding_adds_no_target() -> None:
    table, _ = table_of([([5, 6, 7], [False, True, True])])
    pack = pad_pack(build_pack(table, np.arange(1), predicts="targets"), 8)
    assert pack.targets.ids[:2].tolist() == [6, 7] and (pack.targets.ids[2:] == -1).all()


# --- what people are told


def test_the_report(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = stored(tmp_path, tokenizer)
    assert store.trained is not None
    lines = lines_of(data_report([store], max_length=9))
    share = store.trained.mean()
    assert lines["trained on"] == f"{store.trained.sum()} of {len(store.tokens)} tokens ({share:.1%})"
    counts = [int(store.trained[a:b].sum()) for a, b in zip(store.token_start, store.token_start[1:], strict=False)]
    assert lines["trained tokens"].split()[0] == str(min(counts))
    assert lines["trained tokens"].split()[-1] == str(max(counts))
    assert not {"edges", "responses per prompt", "prefix sharing saves"} & lines.keys()
    told = []
    for flags in (["--demonstrations"], ["--demonstrations", "last"]):
        assert main(["data", "report", str(tmp_path / "rows.jsonl"), *flags]) == 0
        told.append(lines_of(capsys.readouterr().out))
    assert told[0]["rows"] == "6 read, 3 kept" and told[0]["trained on"] != told[1]["trained on"]


def test_scoring_reads_a_table_of_demonstrations_as_responses() -> None:
    """An export is checked by sequences of the training table, whatever its kind."""
    table: GroupTable = table_of([([5, 6, 7], [False, True, True])])[0]
    assert table.sequences_of(0) == [[5, 6, 7]] and not len(table.store_edges[0].better)
    assert len(build_table(table.stores, kind=RESPONSES)[0]) == 1
