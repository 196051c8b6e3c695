"""Rows and models that the tests of commands share."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.runs import write_model
from tests.scoring import save_reward_model

ANSWERS = [" sat on a mat", " ran home by the sea", " slept", " is a dog with two red birds"]
MESSAGES = [{"role": "user", "content": "Who sat?"}]


def write(path: Path, rows: list[Any]) -> Path:
    """JSON lines; a string is a line as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def pairs_of(row: dict[str, Any]) -> list[tuple[int, int]]:
    return [tuple(edge) for edge in row["edges"]]


# Written with edges, so that what is expected needs no reading of formats.
PAIRS: list[dict[str, Any]] = [
    *({"prompt": f"The cat {i}", "responses": ANSWERS[:2], "edges": [[i % 2, 1 - i % 2]]} for i in range(7)),
    {"prompt": "A dog", "responses": ANSWERS, "edges": [[0, 1], [0, 2], [3, 0]], "note": "Grüße, 世界"},
    {"prompt": "Is it?", "responses": [" no", " yes"], "edges": [[0, 1]]},
    {"prompt": MESSAGES, "responses": ["The cat.", "Nobody."], "edges": [[1, 0]]},
]
BROKEN: list[Any] = [
    {"prompt": "x", "responses": []},
    {"prompt": "x", "responses": [" a", 3]},
    {"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b", "id": 17},
]


def write_models(folder: Path) -> Path:
    """Two reward models, a model without head, and held-out rows."""
    save_reward_model(folder / "one")
    save_reward_model(folder / "two", "qwen3", seed=5)
    write_model(folder / "base")
    write(folder / "pairs.jsonl", PAIRS)
    return folder


def strict_json(text: str) -> Any:
    """JSON without NaN and Infinity, which are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def spoiled_copy(model: Path, folder: Path, add: float) -> Path:
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    spoil(folder, add)
    return folder


def spoil(folder: Path, add: float) -> None:
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.o_proj.weight"][0] += add
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
