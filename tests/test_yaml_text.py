"""YAML: a value, or one line that says where it is none."""

import pytest

from rmfast.yaml_text import NotYAML, parse_word, parse_yaml


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\na: 2", 2, "key 'a' is there twice"),
        ("a: {b: 1, b: 2}", 1, "key 'b' is there twice"),
        ("? [1]\n: 2", 1, "a key that is no word"),
        ("a: &x {b: *x}", 1, "a mapping that holds itself"),
        ("a: &x [*x]", None, "holds more than 1,000,000 values"),
        ("a: !!timestamp nope", None, "a value that is not what it is tagged as"),
        ("a: !!bool x", None, "a value that is not what it is tagged as"),
        ("a: 2020-99-99", None, "a value that is not what it is tagged as"),
        ("!!map [a]", 1, "expected a mapping node, but found sequence"),
        ("a: !!python/name:os.system", 1, "could not determine a constructor"),
        ("[\n" * 600 + "]" * 600, None, "nested too deeply"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(text: str, line: int | None, problem: str) -> None:
    with pytest.raises(NotYAML, match=problem) as caught:
        parse_yaml(text)
    assert caught.value.line == line


def test_aliases_that_multiply_are_not_walked_through() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    with pytest.raises(NotYAML, match="holds more than 1,000,000 values"):
        parse_yaml("\n".join(rows))


def test_a_time_is_no_number_to_the_base_of_60() -> None:
    assert parse_yaml("{a: 12:00:00, b: 1:30.5, c: -190:20:30, d: 12}") == {
        "a": "12:00:00", "b": "1:30.5", "c": "-190:20:30", "d": 12
    }  # fmt: skip
    assert parse_word("12:00:00") == "12:00:00"


def test_a_word_that_is_no_yaml_is_itself() -> None:
    assert [parse_word(word) for word in ("1e-3", "[1, 2]", "!!int", "[", "2020-99-99")] == [
        "1e-3", [1, 2], "!!int", "[", "2020-99-99",
    ]  # fmt: skip
