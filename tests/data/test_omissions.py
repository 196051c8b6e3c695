"""What a template leaves out of a row is told; what it only sets in another way is not."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rmfast.data.example import BadRow, Example
from rmfast.data.notes import Note
from rmfast.data.omissions import ANSWER_CUT, PROMPT_CUT, TOOLS_CUT, shared_turns
from rmfast.data.rows import parse_row
from rmfast.data.tokenise import SAME_BY_TEMPLATE, SAME_BY_TOKENIZER, Encoded, encode

from .templates import CHATML, DEEPSEEK, GEMMA, LLAMA3, QWEN3

Make = Callable[..., PreTrainedTokenizerFast]
TRIMMED = CHATML.replace("m.content", "m.content | trim")
USER_AND_ASSISTANT = CHATML.replace(
    "<|im_start|>{{", "{% if m.role not in ('user', 'assistant') %}{% continue %}{% endif %}<|im_start|>{{"
)
NO_TOOLS = CHATML.replace("m.content", "m.content or ''")
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": 'New "Oslo"', "days": 2}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def notes(make_tokenizer: Make, template: str, example: Example) -> tuple[Note, ...]:
    (encoded,) = encode(make_tokenizer(template=template), [example])
    assert isinstance(encoded, Encoded), encoded
    return encoded.notes


TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "qwen3": QWEN3, "deepseek": DEEPSEEK}
FAITHFUL = {
    "plain": Example([user("Is 1 < 2 & so on?\n\n  Tell me. ")], ("Yes:\n\n- one\n- two \n", "  No. ")),
    "system": Example([{"role": "system", "content": "Be brief.\n"}, user("Hi")], ("A", "B")),
    "several turns": Example([user("Hi"), assistant("Hello"), user("Hi")], ("Hi", "Hello")),
    "reasoning of earlier turns": Example(
        [user("Hi"), assistant("<think>\nhm\n</think>\n\nHello"), user("Sure?")], ("Yes", "No")
    ),
    "prompt inside": Example(None, ([user("Hi"), assistant("Hello")], [user("Hi"), assistant("Go")])),
    "nothing shared": Example(None, ([user("Hi"), assistant("Hello")], [user("Ho"), assistant("Go")])),
    "several turns answer": Example([user("Hi")], ([assistant("A"), user("so?"), assistant("B")], [assistant("C")])),
    "markup": Example([user("Hi")], ("<b>Yes</b>", "<table>")),
    "one response": Example([user("Hi")], ("Hello",)),
}


@pytest.mark.parametrize("row", FAITHFUL)
@pytest.mark.parametrize("kind", TEMPLATES)
def test_no_false_alarm(make_tokenizer: Make, kind: str, row: str) -> None:
    assert notes(make_tokenizer, TEMPLATES[kind], FAITHFUL[row]) == ()


def test_a_late_system_turn_that_is_moved_to_the_front_is_there(make_tokenizer: Make) -> None:
    example = Example([user("Hi"), {"role": "system", "content": "Be brief."}], ("A", "B"))
    assert notes(make_tokenizer, DEEPSEEK, example) == ()


@pytest.mark.parametrize(
    "answer",
    ["<think>\nIt is.\n</think>\n\nYes", "<think>It is.</think>Yes", "<think></think>Yes", "It is.</think>\n\n\nYes"],
)
def test_reasoning_that_is_set_in_another_way_is_there(make_tokenizer: Make, answer: str) -> None:
    assert notes(make_tokenizer, QWEN3, Example([user("So?")], (answer, "No"))) == ()


def test_empty_marks_of_reasoning_that_are_cut_are_no_loss(make_tokenizer: Make) -> None:
    assert notes(make_tokenizer, DEEPSEEK, Example([user("So?")], ("<think>\n\n</think>\n\nYes", "No"))) == ()


def test_an_answer_that_begins_as_the_header_ends_is_there(make_tokenizer: Make) -> None:
    template = CHATML.replace("assistant\n{% endif %}", "assistant\n[THINK]{% endif %}")
    assert notes(make_tokenizer, template, Example([user("So?")], ("[THINK]Hm[/THINK]Yes", "[No]"))) == ()


def test_reasoning_in_a_field_and_calls_of_tools_are_there(make_tokenizer: Make) -> None:
    answers = ([assistant("Yes", reasoning_content="It is.\n")], [assistant("", tool_calls=[CALL])])
    example = Example([user("So?")], answers)
    assert notes(make_tokenizer, QWEN3, example) == ()
    called = Example(
        [user("Rain?"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": '{"rain": "a\nb"}'}], ("Y", "N")
    )
    assert notes(make_tokenizer, LLAMA3, called) == ()


def test_reasoning_that_is_cut_from_the_answer_is_told(make_tokenizer: Make) -> None:
    row = Example([user("Is 91 prime?")], ("<think>7 times 13 is 91.</think>No.", "No, it is not."))
    assert notes(make_tokenizer, DEEPSEEK, row) == (
        Note(ANSWER_CUT, "1 of 2 answers, without '<think>7 times 13 is 91.</think>'"),
    )


@pytest.mark.parametrize(
    ("template", "answers", "detail"),
    [
        (
            CHATML,
            ([assistant("Yes", reasoning_content="It is.")], [assistant("No")]),
            "1 of 2 answers, without 'It is.'",
        ),
        (
            CHATML,
            ([assistant("Yes", thinking="Hm.")], [assistant("No", thinking="Ho.")]),
            "2 of 2 answers, without 'Hm.'",
        ),
        (NO_TOOLS, ([assistant("", tool_calls=[CALL])], [assistant("No")]), "1 of 2 answers, without 'weather'"),
        (QWEN3, ("Hm <think>a b</think>Yes", "No"), "1 of 2 answers, without 'Hm <think>a b</think>'"),
        (
            QWEN3,
            ([assistant("<think>one</think>A"), user("so?"), assistant("B")], [assistant("C")]),
            "1 of 2 answers, without '<think>one</think>'",
        ),
        (
            CHATML.replace("m.content", "m.content.split('\n\n')[0]"),
            ("Yes, it is.\n\nAnd more.", "No"),
            "1 of 2 answers, without '\\n\\nAnd more.'",
        ),
        (
            CHATML.replace("in messages %}", "in messages[:3] %}"),
            ([assistant("A"), user("so?"), assistant("Yes")], [assistant("C")]),
            "1 of 2 answers, without 'Yes'",
        ),
    ],
    ids=["field", "thinking", "tools", "before the marks", "first of two turns", "second paragraph", "second turn"],
)
def test_each_kind_of_loss_is_told(make_tokenizer: Make, template: str, answers: Any, detail: str) -> None:
    assert notes(make_tokenizer, template, Example([user("So?")], answers)) == (Note(ANSWER_CUT, detail),)


def test_a_loss_is_told_where_prompt_and_answers_are_one(make_tokenizer: Make) -> None:
    lost = [user("So?"), assistant("<think>Hm.</think>Yes")]
    assert notes(make_tokenizer, DEEPSEEK, Example(None, (lost, [user("So?"), assistant("No")]))) == (
        Note(ANSWER_CUT, "1 of 2 answers, without '<think>Hm.</think>'"),
    )


def test_a_text_that_is_in_the_prompt_too_is_no_excuse(make_tokenizer: Make) -> None:
    template = CHATML.replace("in messages %}", "in messages if m.role != 'assistant' %}")
    example = Example([user("Say yes or no")], ("yes", "no"))
    assert Note(ANSWER_CUT, "2 of 2 answers, without 'yes'") in notes(make_tokenizer, template, example)


def test_a_turn_of_the_prompt_that_is_left_out_is_told(make_tokenizer: Make) -> None:
    system = {"role": "system", "content": "You are\na poet."}
    example = Example([system, user("Hi")], ("A", "B"))
    assert notes(make_tokenizer, USER_AND_ASSISTANT, example) == (Note(PROMPT_CUT, "system: 'You are\\na poet.'"),)
    inside = Example(None, tuple([system, user("Hi"), assistant(answer)] for answer in "AB"))
    assert notes(make_tokenizer, USER_AND_ASSISTANT, inside) == (Note(PROMPT_CUT, "system: 'You are\\na poet.'"),)
    called = Example([user("Hi"), assistant("", tool_calls=[CALL]), user("So?")], ("A", "B"))
    assert notes(make_tokenizer, NO_TOOLS, called) == (Note(PROMPT_CUT, "assistant: 'weather'"),)


@pytest.mark.parametrize("place", ["prompt", "answer", "inside"])
def test_a_turn_of_an_unknown_role_is_used_or_makes_the_row_a_bad_one(make_tokenizer: Make, place: str) -> None:
    critic = {"role": "critic", "content": "Hi"}  # a text that other turns hold too
    example = {
        "prompt": Example([critic, user("Hi")], ("Hi", "B")),
        "answer": Example([user("Hi")], ([critic, assistant("Hi")], [assistant("B")])),
        "inside": Example(None, tuple([critic, user("Hi"), assistant(answer)] for answer in "AB")),
    }[place]
    assert notes(make_tokenizer, CHATML, example) == ()
    (bad,) = encode(make_tokenizer(template=USER_AND_ASSISTANT), [example])
    assert isinstance(bad, BadRow)
    assert str(bad) == "wrong roles: the chat template leaves out turns of the role 'critic'"


def test_a_pair_that_only_the_template_makes_the_same_is_told(make_tokenizer: Make) -> None:
    example = Example([user("Is 97 prime?")], ("<think>I know.</think>Yes.", "<think>I guess.</think>Yes."))
    assert notes(make_tokenizer, DEEPSEEK, example)[1:] == (
        Note(SAME_BY_TEMPLATE, "'<think>I know.</think>Yes.' and '<think>I guess.</think>Yes.'"),
    )
    spaces = Example([user("So?")], ([assistant("Yes ")], [assistant("Yes")], [assistant("No")]))
    assert notes(make_tokenizer, TRIMMED, spaces) == (Note(SAME_BY_TEMPLATE, "'Yes ' and 'Yes'"),)
    assert notes(make_tokenizer, CHATML, spaces) == ()
    truly = Example([user("So?")], ([assistant("Yes")], [assistant("Yes")]))
    assert notes(make_tokenizer, TRIMMED, truly) == ()


def test_strings_that_only_the_tokenizer_makes_the_same_are_told(make_tokenizer: Make) -> None:
    assert notes(make_tokenizer, CHATML, Example("So? ", ("Yes", "Yes<|im_end|>"))) == (
        Note(SAME_BY_TOKENIZER, "'Yes' and 'Yes<|im_end|>'"),
    )
    assert notes(make_tokenizer, CHATML, Example("So? ", ("Yes", "Yes"))) == ()


def test_notes_of_parsing_come_first(make_tokenizer: Make) -> None:
    made = parse_row({"prompt": [user("So?")], "chosen": "<think>a</think>b", "rejected": "c"})
    example = Example(made.prompt, made.responses, made.edges, notes=(Note("columns", "odd"),))
    assert [note.kind for note in notes(make_tokenizer, DEEPSEEK, example)] == ["columns", ANSWER_CUT]


def test_shared_turns_are_those_before_the_first_that_differs() -> None:
    a, b, c = user("a"), assistant("b"), user("c")
    assert shared_turns([[a, b, c], [a, b, a]]) == 2
    assert shared_turns([[a, b], [a, b, c]]) == 2
    assert shared_turns([[a], [b]]) == 0 and shared_turns([[a, b, c]]) == 3


@pytest.mark.parametrize("wrapped", [True, False])
def test_tools_that_a_template_does_not_write_are_noted(make_tokenizer: Make, wrapped: bool) -> None:
    tool = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    example = Example([user("Hi")], ("A", "B"), tools=[{"type": "function", "function": tool} if wrapped else tool])
    assert notes(make_tokenizer, CHATML, example) == (Note(TOOLS_CUT, "'weather'"),)
    for written in ("tojson", "length"):
        template = f"{{% if tools %}}{{{{ tools | {written} }}}}{{% endif %}}{CHATML}"
        assert notes(make_tokenizer, template, example) == ()
