"""YAML as rmfast reads it, in configs and in dataset cards: whatever a text holds, a value or one line."""

from typing import Any

import yaml

from rmfast.errors import first_line

LARGEST = 1_000_000  # values, each as often as aliases repeat it


class NotYAML(ValueError):
    """What a text is not, and in which line it shows (counted from 1), where that is known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


def parse_yaml(text: str) -> Any:
    """The value of a text.

    Raises:
        NotYAML: it is no YAML, holds itself, or more than can be meant.
    """
    try:
        value = yaml.load(text, _StrictLoader)
    except RecursionError:
        raise NotYAML("nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or first_line(error)
        raise NotYAML(problem, mark.line + 1 if mark else None) from None
    except Exception as error:  # PyYAML raises every kind for a value that is not of its tag's form
        raise NotYAML(f"a value that is not what it is tagged as ({first_line(error)})") from None
    _check_size(value)
    return value


def parse_word(word: str) -> Any:
    """What a word of a command line means: a value where it is one in YAML, else itself."""
    try:
        return parse_yaml(word)
    except NotYAML:  # 2020-99-99 looks like a date
        return word


STRING = "tag:yaml.org,2002:str"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key may appear once and is the word that it is (`on`, too), and nothing holds itself. 12:00:00 is
    text, as in YAML 1.2: PyYAML's 1.1 takes it for a number to the base of 60, 43,200."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        return STRING if tag in NUMBERS and isinstance(value, str) and ":" in value else tag

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if value is node:
                raise yaml.constructor.ConstructorError(None, None, "a mapping that holds itself", key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
            if key.tag == "tag:yaml.org,2002:bool":  # PyYAML's YAML 1.1 takes on, off, yes and no for true and false
                key.tag = STRING
        return super().construct_mapping(node, deep=deep)


def _check_size(value: Any) -> None:
    """Refuse a value in which aliases repeat so much that nothing could walk through it."""
    left, waiting = LARGEST, [value]
    while waiting:
        one = waiting.pop()
        inner = list(one.values()) if isinstance(one, dict) else one if isinstance(one, list | tuple | set) else ()
        left -= 1 + len(inner)
        if left < 0:
            raise NotYAML(f"holds more than {LARGEST:,} values")
        waiting += inner
