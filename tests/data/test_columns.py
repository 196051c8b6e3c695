"""Columns of other names: mapped, read by a layout, refused where they look like a prompt, and always reported."""

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rmfast.cli import main
from rmfast.config import load_config
from rmfast.data.chunk import encode_chunk
from rmfast.data.columns import AS_NAMED, BY_NAME, TURNS, Columns, add_uses, read_columns, uses_line
from rmfast.data.example import BadRow, Example, UnmappedColumn
from rmfast.data.layouts import LAYOUTS
from rmfast.data.prompt import prompt_key
from rmfast.data.report import data_report
from rmfast.data.row_kinds import JUDGED, RESPONSES, samples
from rmfast.data.row_kinds import PAIRS as PAIR_ROWS
from rmfast.data.rows import RATED_OTHERWISE, parse_row
from rmfast.data.store import build_store
from rmfast.errors import UserError

ANSWERS = {"chosen": "Lima.", "rejected": "Quito."}
ASK = "What is the capital of Peru?"
USER, SYSTEM = {"role": "user", "content": ASK}, {"role": "system", "content": "Be brief."}
GOOD, POOR = ({"role": "assistant", "content": text} for text in ANSWERS.values())
PAIRS = [(0, 1)]


def read(row: dict[str, Any], *words: str) -> tuple[Any, tuple[Any, ...], list[tuple[int, int]]]:
    example = parse_row(row, read_columns(words))
    return example.prompt, example.responses, [(edge.better, edge.worse) for edge in example.edges]


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("words", "row", "prompt"),
    [
        (["question=prompt"], {"question": ASK}, ASK),
        (["question=user"], {"question": ASK}, [USER]),
        (["question=user", "hint=system"], {"question": ASK, "hint": "Be brief."}, [SYSTEM, USER]),
        (["system=system"], {"system": "Be brief.", "prompt": ASK}, [SYSTEM, USER]),
        (["system=system"], {"system": "Be brief.", "prompt": [USER]}, [SYSTEM, USER]),
        (["system=system"], {"system": "Be brief.", "prompt": [SYSTEM, USER]}, [SYSTEM, USER]),
        (["system=system"], {"system": " ", "prompt": ASK}, [USER]),  # all rows are conversations then
        (["system=system"], {"prompt": ASK}, [USER]),
        (
            ["q=user", "context=input"],
            {"q": "Sum.", "context": "1 + 2"},
            [{"role": "user", "content": "Sum.\n\n1 + 2"}],
        ),
        (["q=user", "context=input"], {"q": "Sum.", "context": ""}, [{"role": "user", "content": "Sum."}]),
        (["q=user"], {"q": ASK, "prompt": [SYSTEM, USER]}, [SYSTEM, USER]),
        (
            ["history=history", "q=user"],
            {"history": [["Hi", "Hello"]], "q": ASK},
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, USER],
        ),
        (["past=history"], {"past": [SYSTEM], "prompt": ASK}, [SYSTEM, USER]),
        (["prompt=ignore"], {"prompt": "wrong"}, None),
        (["ignore"], {"question": ASK, "context": "x", "prompt": "p"}, "p"),
        (["context=ignore", "question=prompt"], {"question": ASK, "context": "x"}, ASK),
        (["a=prompt", "b=prompt"], {"a": ASK, "b": ""}, ASK),
        (["question=prompt"], {"question": ASK, "prompt": ASK}, ASK),
    ],
)
def test_columns_are_what_data_columns_says(words: list[str], row: dict[str, Any], prompt: Any) -> None:
    assert read(row | ANSWERS, *words)[0] == prompt


def test_answers_and_numbers_may_have_other_names() -> None:
    row = {"instruction": ASK, "candidates": ["a", "b"], "rating": [1, 2], "gap": 0.5, "margin": 7}
    words = ["instruction=prompt", "candidates=responses", "rating=scores", "gap=margin", "margin=ignore"]
    example = parse_row(row, read_columns(words))
    assert (example.prompt, example.responses, example.edges[0].better) == (ASK, ("a", "b"), 1)
    assert example.edges[0].margin == 0.5
    assert uses_line(dict(example.columns)) == (
        "instruction as prompt, candidates as responses, rating as scores, gap as margin; ignored: margin"
    )


@pytest.mark.parametrize(
    ("words", "row"),
    [
        (["question=prompt"], {"question": ASK, "prompt": "And of Chile?"}),
        (["q=user"], {"q": "And of Chile?", "prompt": ASK}),
        (["q=user"], {"q": "And of Chile?", "prompt": [USER]}),
        (["system=system"], {"system": "Be long.", "prompt": [SYSTEM, USER]}),
        (["gap=margin"], {"prompt": ASK, "gap": 1, "margin": 2}),
    ],
)
def test_two_columns_that_differ_are_a_contradiction(words: list[str], row: dict[str, Any]) -> None:
    with pytest.raises(BadRow) as caught:
        read(row | ANSWERS, *words)
    assert caught.value.cause == "contradiction"


@pytest.mark.parametrize(
    ("layout", "row", "prompt", "pairs"),
    [
        ("orca", {"system": "Be brief.", "question": ASK, **ANSWERS}, [SYSTEM, USER], PAIRS),
        ("orca", {"system": "", "input": ASK, "generations": ["x"], **ANSWERS}, [USER], PAIRS),
        ("alpaca", {"instruction": ASK, "input": "", **ANSWERS}, [USER], PAIRS),
        (
            "alpaca",
            {"instruction": "Answer.", "input": ASK, "output_1": "Lima.", "output_2": "Quito.", "preference": 2},
            [{"role": "user", "content": f"Answer.\n\n{ASK}"}],
            [(1, 0)],
        ),
        ("llama-factory", {"conversations": [{"from": "human", "value": ASK}], "system": "Be brief.",
                           "chosen": {"from": "gpt", "value": "Lima."}, "rejected": {"from": "gpt", "value": "Quito."}},
         [SYSTEM, USER], PAIRS),
        ("llama-factory", {"instruction": ASK, "input": None, "history": [], **ANSWERS}, [USER], PAIRS),
        ("llama-factory", {"instruction": ASK, "input": "", "output": ["Lima.", "Quito."]}, [USER], PAIRS),
        ("helpsteer", {"prompt": ASK, "response_1": "Lima.", "response_2": "Quito.", "preference_strength": -2,
                       "preference_statement": "x"}, [USER], PAIRS),
        ("helpsteer", {"context": [SYSTEM, USER], "response1": "Lima.", "response2": "Quito.", "overall_preference": 1,
                       "individual_preference": [{"score": 1}]}, [SYSTEM, USER], [(1, 0)]),
        ("ultrafeedback", {"instruction": ASK, "source": "x", "completions": [
            {"response": "Lima.", "overall_score": 8.0, "custom_system_prompt": "y"},
            {"response": "Quito.", "overall_score": 3.5, "custom_system_prompt": "z"}]}, [USER], PAIRS),
        ("ultrafeedback", {"instruction": ASK, "completions": {
            "response": ["Lima.", "Quito."], "overall_score": [1, 2]}}, [USER], [(1, 0)]),
        ("ultrafeedback", {"instruction": ASK, "chosen_response": "Lima.", "rejected_response": "Quito."},
         [USER], PAIRS),
    ],
)  # fmt: skip
def test_layouts_of_public_sets(layout: str, row: dict[str, Any], prompt: Any, pairs: list[tuple[int, int]]) -> None:
    found, responses, edges = read(row, layout)
    texts = [r if isinstance(r, str) else r[-1]["content"] for r in responses]
    assert (found, texts, edges) == (prompt, ["Lima.", "Quito."], pairs)


@pytest.mark.parametrize(
    ("layout", "row", "cause"),
    [
        ("helpsteer", {"prompt": ASK, "response1": "a", "response2": "b", "overall_preference": 0}, "no edge"),
        ("helpsteer", {"prompt": ASK, "response1": "a", "response2": "b"}, "missing column"),
        ("helpsteer", {"prompt": ASK, "response1": "a", "response2": "b", "overall_preference": "1"}, "wrong type"),
        ("alpaca", {"instruction": ASK, "output_1": "a", "output_2": "b", "preference": 0}, "wrong type"),
        ("ultrafeedback", {"instruction": ASK, "completions": [{"response": "a"}]}, "missing column"),
        ("ultrafeedback", {"instruction": ASK, "completions": "a"}, "wrong type"),
    ],
)
def test_layouts_refuse_rows_without_a_verdict(layout: str, row: dict[str, Any], cause: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(row, layout)
    assert caught.value.cause == cause


def test_a_row_without_answers_hears_of_the_layout_that_has_them() -> None:
    with pytest.raises(BadRow, match=r"no `chosen`.*--columns\) helpsteer reads it"):
        read({"context": [USER], "response1": "a", "response2": "b", "overall_preference": 1})


# --- columns that look like a prompt


@pytest.mark.parametrize(
    "name",
    ["question", "instruction", "input", "query", "system", "system_prompt", "System Prompt", "context", "history",
     "conversation", "messages", "prompt_text", "Prompt", "userInput", "image", "documents", "functions"],
)  # fmt: skip
def test_a_column_that_looks_like_a_prompt_must_be_spoken_of(name: str) -> None:
    with pytest.raises(UnmappedColumn) as caught:
        read({name: ASK} | ANSWERS)
    assert f"`{name}`: looks like a prompt and is not used; set data.columns (--columns)" in caught.value.detail
    assert read({name: ASK} | ANSWERS, f"{name}=ignore")[0] is None
    assert read({name: None} | ANSWERS) == read({name: ""} | ANSWERS) == read({name: []} | ANSWERS)


def test_the_line_names_them_all_and_the_layouts_that_read_them() -> None:
    with pytest.raises(UnmappedColumn, match="`system`, `question`: look") as caught:
        read({"system": "Be brief.", "question": ASK} | ANSWERS)
    assert "system=system question=user" in caught.value.detail and "(orca)" in caught.value.detail


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASK, "question": f" {ASK}\n"} | ANSWERS,
        {"prompt": f"Human: {ASK}\n\nAssistant:", "question": ASK} | ANSWERS,
        {"prompt": [SYSTEM, USER], "system": "Be brief.", "question": ASK} | ANSWERS,
        {"chosen": [USER, GOOD], "rejected": [USER, POOR], "messages": [USER, GOOD], "question": ASK},
        {"chosen": [USER, GOOD], "rejected": [USER, POOR], "messages": json.dumps([USER, GOOD])},
        {"chosen": [USER, GOOD], "rejected": [USER, POOR], "conversation": [USER, GOOD | {"content": "Cuzco."}]},
        {"prompt": [USER], "conversations": [{"from": "human", "value": ASK}]} | ANSWERS,
        {"prompt": ASK, "messages": [USER, GOOD]} | ANSWERS,
        {"prompt": [USER], "history": [], "context": 3, "turns": 1} | ANSWERS,
    ],
)
def test_one_that_repeats_what_is_used_is_no_error(row: dict[str, Any]) -> None:
    example = parse_row(row)
    known = {name: value for name, value in row.items() if name in ("prompt", "chosen", "rejected")}
    assert example.responses == parse_row(known).responses
    assert {dict(example.columns)[name] for name in row if name not in known} == {"repeated"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "messages": [{"role": None, "content": "y"}]} | ANSWERS,
        {"prompt": [USER], "messages": [SYSTEM, USER, GOOD]} | ANSWERS,  # a system turn that is not used
        {"prompt": "Is it so?", "question": "so"} | ANSWERS,  # too short for more than a coincidence
        {"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "?"}, POOR], "question": ASK},
    ],
)
def test_one_that_says_more_is(row: dict[str, Any]) -> None:
    with pytest.raises(UnmappedColumn):
        parse_row(row)


def test_they_end_every_command_with_one_line(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "rows.jsonl", {"prompt": "p", **ANSWERS}, {"question": ASK, **ANSWERS})
    with pytest.raises(UserError, match=r"rows\.jsonl:2: `question`: looks like a prompt"):
        build_store(data, tokenizer, tmp_path / "cache")
    for command in (["data", "report"], ["data", "denoise"]):
        assert main([*command, data]) == 2
        assert capsys.readouterr().err.startswith(f"rmfast: {data}:2: `question`: looks like a prompt")
        assert main([*command, data, "--columns", "question=prompt"]) == 0
        assert "prompt, chosen, rejected, question as prompt" in capsys.readouterr().out


def test_they_leave_a_worker_process_as_they_are(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"f:7: `question`") as caught:
        encode_chunk([("f", 7, {"question": ASK, **ANSWERS})], tokenizer)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    bad = pickle.loads(pickle.dumps(UnmappedColumn("x" * 300)))
    assert (bad.cause, bad.detail) == ("looks like a prompt", "x" * 300)


# --- what is reported and kept


def test_a_source_says_once_what_its_columns_are(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"id": 1, "question": ASK, **ANSWERS}, {"id": 2, "prompt": [USER], "messages": [USER, GOOD], **ANSWERS}]
    data = write(tmp_path / "rows.jsonl", *rows)
    store = build_store(data, tokenizer, tmp_path / "cache", columns=read_columns("question=user"))
    line = "question as user, chosen, rejected, prompt; repeat these: messages; ignored: id"
    assert uses_line(store.meta["columns"]) == line
    assert f"  columns               {line}\n" in data_report([store], 100)


def test_a_column_is_used_where_one_row_uses_it() -> None:
    uses: dict[str, str] = {}
    for use in ("ignore", "repeated", "prompt", "repeated", "ignore"):
        add_uses(uses, [("prompt", use)])
    assert uses == {"prompt": "prompt"}


def test_the_cache_tells_columns_apart(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = write(tmp_path / "rows.jsonl", {"question": ASK, **ANSWERS})
    stores = [
        build_store(data, tokenizer, tmp_path / "cache", columns=read_columns(words))
        for words in ("question=prompt", "question=ignore", "question=prompt")
    ]
    keys = [store.meta["key"] for store in stores]
    assert keys[0] == keys[2] != keys[1]
    assert len(stores[0].sequence(0, 0)) > len(stores[1].sequence(0, 0))


# --- words


@pytest.mark.parametrize(
    "given", [["question=prompt", "orca"], ("orca", "question=prompt"), ["orca", "orca", "question=prompt"]]
)
def test_words_in_any_order_mean_the_same(given: Any) -> None:
    assert read_columns(given) == Columns((("question", "prompt"),), ("orca",))
    assert read_columns(read_columns(given).words) == read_columns(given)


def test_no_words_mean_columns_as_they_are_named() -> None:
    assert read_columns(()) == read_columns(None) == AS_NAMED
    assert read_columns({"question": "prompt"}) == read_columns("question=prompt")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("orcas", "is ignore, THEIRS=OURS or a layout (orca, alpaca, "),
        ("question=promt", "not as 'promt'"),
        ("question=prompt system=system", "not as 'prompt system=system'"),
        ("=prompt", "a column is used as"),
        (["a=prompt", "a=user"], "'a' cannot be both prompt and user"),
        (7, "is ignore, THEIRS=OURS or a layout"),
    ],
)
def test_wrong_words_say_what_is_right(given: Any, hint: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_columns(given)
    assert hint in str(caught.value)


def test_a_config_takes_a_word_a_list_or_a_mapping(tmp_path: Path) -> None:
    base = ["--model.path", "m", "--data.train", "x"]
    config = tmp_path / "config.yaml"
    for text, words in (
        ("orca", ("orca",)),
        ("[orca, 'a.b=prompt']", ("orca", "a.b=prompt")),
        ("{a.b: prompt, input: ignore}", ("a.b=prompt", "input=ignore")),
    ):
        config.write_text(f"data:\n  columns: {text}\n", encoding="utf-8")
        assert load_config([str(config), *base]).data.columns == words
        # What comes later replaces all of it.
        assert load_config([str(config), *base, "--data.columns", "q=prompt", "s=system"]).data.columns == (
            "q=prompt", "s=system",
        )  # fmt: skip
    with pytest.raises(UserError, match=r"command line: data\.columns: is ignore, THEIRS=OURS or a layout"):
        load_config([*base, "--data.columns", "orcas"])
    config.write_text("data:\n  columns: {q: nothing}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.yaml: data\.columns: 'q=nothing'"):
        load_config([str(config), *base])


# --- whatever a file holds


def any_value(rng: random.Random, depth: int = 0) -> Any:
    texts = [
        "",
        " ",
        "a",
        "user",
        "assistant",
        "one two three four five",
        '[{"role": "user", "content": "x"}]',
        "\ud800",
    ]
    kinds = ["text", "number", "null", "ids", "list", "object", "turns", "texts"] if depth < 3 else ["text", "number"]
    kind = rng.choice(kinds)
    if kind == "list":
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == "object":
        keys = rng.sample(["role", "content", "from", "value", "type", "text", "response", "tool_calls"], 3)
        return {key: any_value(rng, depth + 1) for key in keys}
    if kind == "turns":
        roles = rng.choices(["user", "assistant", "system", "tool", None], k=rng.randrange(4))
        return [{"role": role, "content": rng.choice(["x", "", None, ["y"]])} for role in roles]
    return {
        "text": rng.choice(texts),
        "number": rng.choice([0, 1, -1, 0.5, float("nan"), 10**400, 10**5000, True]),
        "null": None,
        "ids": [rng.randrange(3) for _ in range(rng.randrange(5))],
        "texts": rng.choices(texts, k=rng.randrange(4)),
    }[kind]


def usual_value(rng: random.Random, name: str) -> Any:
    turns = [{"role": "user", "content": rng.choice("xy")}]
    answers: list[Any] = [
        "a",
        "b",
        [{"role": "assistant", "content": "a"}],
        [*turns, {"role": "model", "content": "b"}],
    ]
    if name.endswith("_ids"):
        return [rng.randrange(3) for _ in range(1, 5)]
    return {"prompt": rng.choice(["x", turns]), "responses": ["a", "b"]}.get(name, rng.choice(answers))


def test_no_row_raises_anything_but_a_bad_row() -> None:
    rng = random.Random(0)
    names = [*sorted(BY_NAME), *TURNS, "question", "completions", "response1", "response2", "overall_preference"]
    words: list[Any] = [(), *LAYOUTS, "ignore", ["question=user", "user=prompt"]]
    hows = [read_columns(some) for some in words]
    bases = ["", "prompt chosen rejected", "prompt responses", "chosen_ids rejected_ids"]
    read_rows = 0
    for _ in range(3000):
        row = {name: usual_value(rng, name) for name in rng.choice(bases).split()}
        row |= {name: any_value(rng) for name in rng.sample(names, rng.randrange(3))}
        try:
            example = parse_row(row, rng.choice(hows), rng.choice([PAIR_ROWS, JUDGED, RESPONSES, samples(2)]))
        except BadRow as bad:
            str(bad).encode()
        else:
            read_rows += 1
            assert isinstance(example, Example) and len({type(response) for response in example.responses}) == 1
            prompt_key(example)
    assert read_rows > 100


@pytest.mark.parametrize(
    ("more", "detail"),
    [
        ({"score_chosen": 2, "score_rejected": 4.5}, "`score_chosen` 2, `score_rejected` 4.5"),
        ({"chosen_avg_rating": 1.0, "rejected_avg_rating": 3}, "`chosen_avg_rating` 1.0, `rejected_avg_rating` 3"),
        (
            {"reranker_score_chosen": 1, "reranker_score_rejected": 2},
            "`reranker_score_chosen` 1, `reranker_score_rejected` 2",
        ),
        ({"score_chosen": 4, "score_rejected": 4}, None),
        ({"chosen_rank": 1, "rejected_rank": 2}, None),
        ({"score_chosen": "2", "score_rejected": "4"}, None),
        ({"score_chosen": 2}, None),
        ({"chosen_model": 1, "rejected_model": 2}, None),
    ],
)
def test_ratings_that_prefer_the_rejected_answer_are_noted(more: dict[str, Any], detail: str | None) -> None:
    row = {"prompt": ASK} | ANSWERS | more
    example = parse_row(row)
    assert example.responses == ("Lima.", "Quito.") and (example.edges[0].better, example.edges[0].worse) == (0, 1)
    assert [tuple(note) for note in example.notes] == ([(RATED_OTHERWISE, detail)] if detail else [])
    assert parse_row(row, read_columns([f"{name}=ignore" for name in more])).notes == ()


@pytest.mark.parametrize("names", [("chosen_rank", "rejected_rank"), ("rank_chosen", "rank_rejected")])
def test_ranks_that_prefer_the_rejected_answer_are_a_contradiction(names: tuple[str, str]) -> None:
    for pair in (ANSWERS | {"prompt": ASK}, {"chosen_ids": [1, 2], "rejected_ids": [1, 3]}):
        worse = pair | dict(zip(names, (2, 1), strict=True))
        with pytest.raises(BadRow, match=f"contradiction: `{names[1]}` 1, `{names[0]}` 2: ranks prefer the rejected"):
            parse_row(worse)
        assert parse_row(worse, read_columns([f"{names[1]}=ignore"])).notes == ()
        for ranks in ((1, 2), (1, 1)):
            assert parse_row(pair | dict(zip(names, ranks, strict=True))).notes == ()
