"""Prompts to sample from in stores, tables, packs and reports: groups without responses, none of them lost silently."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rmfast.cli import main
from rmfast.data.example import Example
from rmfast.data.loader import StepLoader, rank_packs, totals_of
from rmfast.data.pack import build_pack, prompt_ends
from rmfast.data.pad import pad_pack
from rmfast.data.plan import StepPlan
from rmfast.data.report import data_report
from rmfast.data.row_kinds import JUDGED, PAIRS, PROMPTS, RESPONSES, samples
from rmfast.data.store import TokenStore, build_store, store_examples
from rmfast.data.table import GroupTable, build_table, twins
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reader import first_too_long
from rmfast.kernels import prefix_layout, rms_norm
from rmfast.models.hf import load_network
from tests.data.test_pack import seen_by
from tests.data.test_report import lines_of
from tests.data.test_store import assert_same, no_tokenising, write
from tests.tiny import ids, save_hf_model

ROWS: list[dict[str, Any]] = [
    {"prompt": "the capital of "},
    {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello!", "rejected": "What?"},
    {"prompt": ""},
    {"prompt_ids": [5, 6, 7]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
    {"id": 1},
]


def prompts(store: TokenStore) -> list[list[int]]:
    return [store.tokens[a:b].tolist() for a, b in zip(store.token_start[:-1], store.token_start[1:], strict=True)]


def of_ids(tokenizer: PreTrainedTokenizerFast, sequences: list[list[int]]) -> TokenStore:
    return store_examples([Example(sequence, ()) for sequence in sequences], tokenizer)


def table_of_ids(tokenizer: PreTrainedTokenizerFast, sequences: list[list[int]], **options: Any) -> GroupTable:
    return build_table([of_ids(tokenizer, sequences)], kind=PROMPTS, **options)[0]


# --- stores


@pytest.mark.parametrize("habits", [{}, {"add_bos": True}, {"add_eos": True}], ids=str)
def test_a_store_holds_prompts_whole_and_is_read_again(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    habits: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, source = make_tokenizer(**habits), write(tmp_path / "rows.jsonl", ROWS)
    made = build_store(source, tokenizer, tmp_path / "cache", kind=PROMPTS)
    chat = tokenizer.apply_chat_template(ROWS[1]["prompt"], add_generation_prompt=True, return_dict=False)
    text = tokenizer("the capital of ", add_special_tokens=False)["input_ids"]
    assert prompts(made) == [[0] * habits.get("add_bos", False) + text, chat, [5, 6, 7], chat]
    assert made.prefix_length.tolist() == made.longest().tolist() == [len(prompt) for prompt in prompts(made)]
    assert made.response_start.tolist() == made.edge_start.tolist() == [0] * 5
    assert len(made.lengths()) == len(made.suffix_length) == len(made.answer_start) == len(made.better) == 0
    assert made.row.tolist() == [1, 2, 4, 5] and made.label(3) == f"{source}:5"
    assert made.prompt[1] == made.prompt[3] and len(set(made.prompt.tolist())) == 3
    assert made.meta["bad"] == {"empty": 1, "missing column": 1} and made.meta["rows_kept"] == 4
    assert made.meta["columns"] == {
        **{"prompt": "prompt", "chosen": "ignore", "rejected": "ignore"},
        **{"prompt_ids": "prompt_ids", "messages": "prompt"},
    }
    assert made.meta["bos_id"] is None and made.meta["has_strings"] and made.meta["has_messages"]
    no_tokenising(monkeypatch)
    again = build_store(source, tokenizer, tmp_path / "cache", kind=PROMPTS)
    assert_same(made, again)
    assert again.meta == made.meta


def test_prompts_are_cached_apart_from_other_kinds_and_these_as_before(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    assert [kind.key for kind in (PAIRS, JUDGED, RESPONSES, samples(5), PROMPTS)] == [
        "",
        "",
        "",
        " 5 samples",
        " prompts",
    ]
    source = write(tmp_path / "rows.jsonl", [{"prompt": "p", "responses": ["a", "b"]}])
    keys = {build_store(source, tokenizer, tmp_path, kind=k).meta["key"] for k in (PAIRS, samples(2), PROMPTS)}
    assert len(keys) == 3


def test_a_bos_of_all_prompts_is_known(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    adds, leaves = make_tokenizer(add_bos=True), make_tokenizer()
    assert store_examples([Example("a", ()), Example("b", ())], adds).meta["bos_id"] == 0
    assert store_examples([Example("a", ()), Example("b", ())], leaves).meta["bos_id"] is None


def test_a_bad_prompt_ends_a_run_that_asks_for_it(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(UserError, match=r"rows.jsonl:3: empty: the prompt has no text"):
        build_store(source, tokenizer, tmp_path, kind=PROMPTS, bad_rows="error")


# --- tables


def test_a_table_counts_prompts(tokenizer: PreTrainedTokenizerFast) -> None:
    table, dropped = build_table([of_ids(tokenizer, [[5, 6, 7], [8], [5, 6, 7]])], kind=PROMPTS)
    assert set(dropped.values()) == {0}
    assert table.stored.tolist() == table.sequences.tolist() == [3, 1, 3] and table.visible.tolist() == [6, 1, 6]
    assert table.first_response.tolist() == [0] * 4 and not table.edges.any() and not table.weight.any()
    assert [table.sequences_of(g) for g in range(3)] == [[[5, 6, 7]], [[8]], [[5, 6, 7]]]
    assert not list(twins(table))
    totals = totals_of(table, np.array([0, 2]))
    assert (totals.groups, totals.responses, totals.edges) == (2, 0, 0)
    assert (totals.sequence_tokens, totals.stored_tokens, totals.visible) == (6, 6, 12)


def test_prompts_above_a_limit_are_dropped_and_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    store = of_ids(tokenizer, [[5] * 4, [6] * 5, [7] * 9, [8]])
    table, dropped = build_table([store], kind=PROMPTS, max_length=4)
    assert [table.label(g) for g in range(len(table))] == ["examples:1", "examples:4"]
    assert dropped["over-long"] == 2 and dropped["truncated"] == 0 and not table.cut.any()
    table, dropped = build_table([store], kind=PROMPTS, tokens_per_pack=5)
    assert len(table) == 3 and dropped["longer than a pack"] == 1
    with pytest.raises(UserError, match="examples:2: over-long for data.max_length 4"):
        build_table([store], kind=PROMPTS, max_length=4, over_long="error")
    assert str((first_too_long(store, 4) or ())[1]) == "too long: 5 tokens, and the model takes 4"


def test_truncation_that_is_asked_for_leaves_the_end_of_a_prompt(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> None:
    for tokenizer, sequences, left in [
        (make_tokenizer(), [[5, 6, 7, 8], [9]], [[7, 8], [9]]),
        (make_tokenizer(add_bos=True), [[0, 5, 6, 7], [0, 9]], [[0, 7], [0, 9]]),
    ]:
        table, dropped = build_table([of_ids(tokenizer, sequences)], kind=PROMPTS, max_length=2, over_long="truncate")
        assert [table.sequences_of(g)[0] for g in range(2)] == left and dropped["truncated"] == 1
        assert build_pack(table, np.arange(2)).tokens.tolist() == left[0] + left[1]


def test_pairs_need_an_edge_and_prompts_have_none(tokenizer: PreTrainedTokenizerFast) -> None:
    table, dropped = build_table([of_ids(tokenizer, [[5], [6]])], kind=PAIRS)
    assert not len(table) and dropped["no edge"] == 2


def test_groups_with_and_without_responses_in_one_store(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = [Example([5, 6], ()), Example(None, ([5, 7, 8], [5, 9])), Example([6], ()), Example(None, ([7, 7],))]
    store = store_examples([*examples, Example([8, 8, 8], ())], tokenizer)
    assert store.longest().tolist() == [2, 3, 1, 2, 3]
    table, dropped = build_table([store], kind=RESPONSES, max_length=2)
    assert [table.sequences_of(g) for g in range(len(table))] == [[[5, 6]], [[6]], [[7, 7]]]
    assert dropped["over-long"] == 2
    pack = build_pack(table, np.arange(3))
    assert pack.tokens.tolist() == [5, 6, 6, 7, 7] and pack.scored.tolist() == [4] and pack.group.tolist() == [2]


# --- packs


def test_a_pack_of_prompts(tokenizer: PreTrainedTokenizerFast) -> None:
    table = table_of_ids(tokenizer, [[5, 6, 7], [8], [9, 9]])
    groups = np.array([2, 0, 1])
    pack, ends = build_pack(table, groups, predicts="all"), prompt_ends(table, groups)
    assert pack.tokens.tolist() == [9, 9, 5, 6, 7, 8] and pack.positions.tolist() == [0, 1, 0, 1, 2, 0]
    assert torch.equal(pack.layout, prefix_layout([(2, ()), (3, ()), (1, ())]))
    assert ends.dtype == torch.int64 and ends.tolist() == [1, 4, 5]
    assert [seen_by(pack, end) for end in ends.tolist()] == [[9, 9], [5, 6, 7], [8]]
    for nothing in (pack.scored, pack.group, pack.edges.better, pack.targets.rows):
        assert nothing.dtype == torch.int64 and not len(nothing)
    assert pack.is_response.dtype == torch.bool and not len(pack.is_response) and not len(pack.responses)
    assert pack.groups.tolist() == [2, 0, 1]
    assert not len(prompt_ends(table, np.empty(0, np.int64)))


def test_a_pack_of_prompts_is_padded_behind_them(tokenizer: PreTrainedTokenizerFast) -> None:
    table = table_of_ids(tokenizer, [[5, 6, 7], [8]])
    pack = pad_pack(build_pack(table, np.arange(2)), 16)
    assert pack.tokens.tolist() == [5, 6, 7, 8] + [0] * 12 and not len(pack.scored) and not len(pack.group)
    assert prompt_ends(table, np.arange(2)).tolist() == [2, 3]


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen3"])
def test_hidden_states_at_prompt_ends_are_those_of_each_prompt_alone(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    model = save_hf_model(name, tmp_path)
    network, _ = load_network(tmp_path)
    generator = np.random.default_rng(0)
    sequences = [ids(generator, n) for n in (9, 1, 30, 2, 17)]
    table = table_of_ids(tokenizer, sequences)
    packs, _ = rank_packs(table, np.arange(5), ranks=1, rank=0, budget=40)
    assert len(packs) == 2
    for pack in packs:
        hidden = network.decoder(pack.tokens, pack.positions, pack.layout, prompt_ends(table, pack.groups))
        ours = rms_norm(hidden, network.norm.weight, eps=model.config.rms_norm_eps)
        alone = [model.model(torch.tensor([sequences[g]])).last_hidden_state[0, -1] for g in pack.groups]
        torch.testing.assert_close(ours, torch.stack(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fixed", [False, True])
def test_steps_hold_every_prompt_once_an_epoch_in_an_order_of_the_seed(
    tokenizer: PreTrainedTokenizerFast, fixed: bool
) -> None:
    table = table_of_ids(tokenizer, [[5] * n for n in range(1, 12)])

    def order(seed: int, ranks: int = 1) -> list[list[int]]:
        plan = StepPlan([11], [1.0], groups_per_step=4, seed=seed)
        options: dict[str, Any] = {"total": plan.first_step(2), "ranks": ranks, "budget": 16, "fixed": fixed}
        loaders = [StepLoader(table, plan, rank=rank, **options) for rank in range(ranks)]
        steps = [[loader.build(step) for loader in loaders] for step in range(6)]
        assert all(len(pack.tokens) <= 16 for one in steps for step in one for pack in step.packs)
        return [sorted(int(g) for step in one for pack in step.packs for g in pack.groups) for one in steps]

    first = order(0)
    assert sorted(sum(first[:3], [])) == sorted(sum(first[3:], [])) == list(range(11))
    assert first[:3] != first[3:] and first != order(1) and first == order(0, ranks=3)


# --- the report


def test_the_report_of_prompts(tokenizer: PreTrainedTokenizerFast) -> None:
    store = of_ids(tokenizer, [[5], [6, 6, 6, 6, 6], [7, 7], [6, 6, 6, 6, 6]])
    first, second = data_report([store, of_ids(tokenizer, [[7, 7], [8]])], max_length=4).split("\n\n")
    lines = lines_of(first)
    assert lines == {
        "rows": "4 read, 4 kept",
        "bad rows": "none",
        "quantiles": "0 %    25 %    50 %    75 %    95 %   100 %",
        "prompt tokens": "1       2       4       5       5       5",
        "over 4 tokens": "2 (50.0%) of the groups",
        "kind": "token ids",
        "double BOS": "0 sequences, one of the two taken out",
        "duplicates": "1 groups",
        "padding avoided": "35.0% of a padded batch of 8 in random order",  # 13 tokens of 4 x 5
    }
    assert lines_of(second)["in a source above"] == "1 groups"


def test_the_command_reads_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "rows.jsonl", [{"question": "Hi", "chosen": "a", "rejected": "b"}, {"question": ""}])
    assert main(["data", "report", source, "--prompts"]) == 2
    assert "`question`: looks like a prompt and is not used" in capsys.readouterr().err
    assert main(["data", "report", source, "--prompts", "--columns", "question=user"]) == 0
    lines = lines_of(capsys.readouterr().out)
    assert lines["rows"] == "2 read, 1 kept" and lines["kind"] == "messages"
    assert lines["columns"] == "question as user; ignored: chosen, rejected"
    assert lines["bad: empty"] == f"1, such as {source}:2: what is used as user has no text"
    assert "edges" not in lines and "whole sequences" not in lines
    with pytest.raises(SystemExit):
        main(["data", "report", source, "--prompts", "--samples", "2"])
    assert "not allowed with" in capsys.readouterr().err


def test_the_same_prompts_from_a_preference_file_and_from_its_prompts(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    turns = [[{"role": "user", "content": text}] for text in ("Hi", "the cat", "naïve")]
    answers = [[{"role": "assistant", "content": text}] for text in ("a", "b")]
    files = {
        "prompts": [{"prompt": t} for t in turns],
        "pairs": [{"prompt": t, "chosen": answers[0], "rejected": answers[1]} for t in turns],
        "whole": [{"chosen": t + answers[0], "rejected": t + answers[1]} for t in turns],
        "demonstrations": [{"messages": t + answers[0]} for t in turns],
        "samples": [json.loads(json.dumps({"prompt": t, "responses": ["a", "b"], "edges": []})) for t in turns],
    }
    made = {
        name: build_store(write(tmp_path / f"{name}.jsonl", rows), tokenizer, tmp_path / "cache", kind=PROMPTS)
        for name, rows in files.items()
    }
    for store in made.values():
        assert_same(store, made["prompts"])
