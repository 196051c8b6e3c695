"""Odd configs: YAML files and command lines with values of every type under every key, and YAML that is no config."""

import json
import random
from collections.abc import Iterator

from rmfast.config.load import known_keys
from tests.odd.values import DEEP, SURROGATE, some

YAML = (
    "", "\0", "null", "[]", "3", "text", "- a\n- b", "a: [", "a: {b: c", "? [1, 2]\n: 3", "1: 2", "null: 3",
    "~: {a: 1}", "2024-01-01: 3", "1.5: {a: 2}", "run: {1: 2}", "run: {null: 2}", "run: {2020-01-01: 1}",
    "optim: {lr: 1}\noptim: {lr: 2}", "optim: {lr: 1, lr: 2}", "a: &x [*x]", "a: &x {b: *x}", "run: &x {<<: *x}",
    "run: {<<: {seed: 3}}", "run: {<<: 3}", "run: {<<: [1, 2]}", "run: &a {seed: 1}\noptim: *a",
    "run: {seed: !!binary aGk=}", "run: {seed: !!python/name:os.system}",
    "run: {dir: !!python/object/apply:os.getcwd []}", "run: {seed: !x 3}", "run: {seed: !!int x}",
    "run: {seed: !!timestamp nope}", "run: {seed: 2020-99-99}", "run: {dir: 0001-01-01}", "run: {seed: !!set {a, b}}",
    "run: {seed: !!omap [a: 1]}", "run: {seed: !!pairs [a: 1]}", "run: {seed: .nan}", "run: {seed: .inf}",
    "run: {seed: 1e400}", f"run: {{seed: {'9' * 5000}}}", f"run: {{seed: 0x{'f' * 5000}}}", "run: {seed: 190:20:30}",
    "run: {seed: 99999999999999999999:00}", "run: {seed: !!float x}", "run: {seed: !!bool x}",
    "run: {seed: !!null x}", "run: {seed: 12345-01-01 00:00:00}", "run: {seed: 2001-01-01 00:00:00 +99:99}",
    f"a: {'[' * 3000}", f"a: {'[' * 500}{']' * 500}", f"run: {json.dumps(DEEP)}", "---\na: 1\n---\nb: 2",
    "%TAG ! x\n---", "\tmodel: 1", "a: *missing", "&a a: 1", "model: \"\\ud800\"", "model: {path: \"a\\0b\"}",
    "\ufeffmodel: {path: x}", "on: 1", "run: {yes: 1}", "run.seed: 3", "run.seed.x: 3", "run: {seed.x: 3}", ". : 3",
    "'': 3", "run: {'': 3}", "model: x", "data: [1]", "data: {train: {a: 1}}", "data: {columns: {a: {b: c}}}",
    "data: {columns: {1: 2}}", "data: {columns: [[a]]}", "data: {columns: {null: a}}", "task: [reward]",
    "task: {reward: 1}", "eval: {suites: {a: b}}", f"run: {{? '{'k' * 2000}' : 1}}", "!!map [a]", "!!seq {a: b}",
    "!!str {a: b}", "? a", "run: !!map", "run: ''", f"run: {{seed: {'0' * 200}1}}", "run: {seed: 1_000_}",
    "run: {seed: 0b12}", "run: {seed: 0o9}", "run: {seed: +.e}",
)  # fmt: skip
"""Whole files."""
WORDS = (
    "-1", "0", "1e400", "nan", ".nan", ".inf", "-.inf", "inf", "", " ", "\0", "a\0b", SURROGATE, "9" * 5000, "1e-400",
    "[", "{", "{a: b}", "[1, 2]", "[[]]", "null", "~", "true", "yes", "2020-99-99", "2024-01-01", "1:2:3", "0x",
    "!!int", "*a", "&a", "!!python/name:os.system", "- a", "a: b", "x" * 5000, "%", "#", "/dev/null", ".", "..",
    "~nobody/x", "1_0", "2001-01-01 00:00:00 +99:99",
)  # fmt: skip


def odd_configs(seed: int, count: int) -> Iterator[tuple[str, list[str]]]:
    """The text of a config file, and the words of the command line behind it."""
    draw, keys = random.Random(seed), known_keys()
    for number in range(count):
        if number < len(YAML):
            yield YAML[number], []
            continue
        words = [word for _ in range(draw.choice((1, 1, 1, 2, 3))) for word in _key(draw.choice(keys), draw)]
        if draw.random() < 0.4:
            yield good(draw), words
        else:
            yield _nested(draw.choice(keys), draw), []


def good(draw: random.Random) -> str:
    """A config that only the words behind it make odd."""
    task = draw.choice(("reward", "ensemble", "meta", "sft", "ppo"))
    sections = {"task": task, "model": {"path": "no-model"}, "data": {"train": [] if task == "ppo" else "no-data"}}
    if task == "meta":
        sections["meta"] = {"data": "no-data"}
    if task == "ppo":
        sections["ppo"] = {"reward": "no-reward", "prompts": "no-prompts"}
    return json.dumps(sections)


def _key(key: str, draw: random.Random) -> list[str]:
    values = [draw.choice(WORDS) for _ in range(draw.choice((0, 1, 1, 1, 1, 2)))]
    return [f"--{key}={values[0]}"] if len(values) == 1 and draw.random() < 0.5 else [f"--{key}", *values]


def _nested(key: str, draw: random.Random) -> str:
    """A file that sets one key to a value that JSON has, and so YAML."""
    config, (*sections, last) = json.loads(good(draw)), key.split(".")
    inner = config
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = some(draw)
    return json.dumps(config)
