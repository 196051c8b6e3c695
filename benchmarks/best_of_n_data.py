"""What benchmarks/best_of_n.py chooses from: many models' answers to each instruction, and a decoder's features."""

import gzip
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmfast.data.example import Example, Message
from rmfast.data.pack import Pack
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.store import store_examples
from rmfast.data.table import build_table
from rmfast.data.tokenizer import load_tokenizer
from rmfast.evaluation.scoring.score import score_table
from rmfast.models.hf import load_network
from rmfast.models.network import Reads

BUDGET = 4096  # tokens of a pack


@dataclass(frozen=True)
class Instruction:
    """A prompt, different answers to it, and whether a judge preferred each to one baseline's answer."""

    prompt: list[Message]
    answers: list[str]
    won: list[bool]


def read_instructions(sources: Sequence[str], *, answers: tuple[int, int], letters: int) -> list[Instruction]:
    """Instructions in the order of a seeded shuffle.

    Args:
        sources: preference pairs (JSON lines, or gzip of them) of many models' answers against one baseline's.
        answers: the fewest that an instruction must have, and the most that are taken of it.
        letters: of an answer; longer ones are left out.
    """
    rows = []
    for source in sources:
        with gzip.open(source, "rt", encoding="utf-8") as lines:
            rows += [json.loads(line) for line in lines]
    models = [{row["meta"]["chosen_model"], row["meta"]["rejected_model"]} for row in rows]
    (baseline,) = set.intersection(*models)
    found: dict[str, dict[str, bool]] = {}
    for row in rows:
        won = row["meta"]["rejected_model"] == baseline
        answer = row["chosen" if won else "rejected"]
        if answer.strip() and len(answer) <= letters:
            found.setdefault(json.dumps(row["prompt"]), {}).setdefault(answer, won)
    draw, (least, most) = np.random.default_rng(0), answers
    out = []
    for prompt, verdicts in sorted(found.items()):
        if len(verdicts) >= least:
            taken = [list(verdicts.items())[i] for i in draw.permutation(len(verdicts))[:most]]
            texts, won_each = zip(*taken, strict=True)
            out.append(Instruction(json.loads(prompt), list(texts), list(won_each)))
    return [out[i] for i in draw.permutation(len(out))]


def features_of(model: Path, layers: int, instructions: Sequence[Instruction], keep: Path) -> list[np.ndarray]:
    """Features fp32 [N, d] of each instruction's answers: the residual stream of the decoder's first layers (bf16) at
    the last token, through the final norm. Kept in a file, and not computed twice."""
    texts = [(one.prompt, one.answers) for one in instructions]
    key = hashlib.sha256(json.dumps([str(model), layers, texts]).encode()).hexdigest()[:16]
    file = keep / f"features-{key}.npy"
    if not file.is_file():
        keep.mkdir(parents=True, exist_ok=True)
        np.save(file, _computed(model, layers, instructions))
    sizes = np.cumsum([len(one.answers) for one in instructions])
    return np.split(np.load(file), sizes[:-1])


@torch.no_grad()
def _computed(model: Path, layers: int, instructions: Sequence[Instruction]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        lower = lower_layers(model, layers, Path(folder))
        network, _ = load_network(lower, new_heads=True, dtype=torch.bfloat16, weights_dtype=torch.bfloat16)
    network.eval()
    examples = [Example(one.prompt, tuple(one.answers)) for one in instructions]
    table = build_table([store_examples(examples, load_tokenizer(model))], kind=RESPONSES)[0]

    def features(packs: Sequence[Pack]) -> list[Tensor]:
        read = (network(pack, Reads(scores=pack.scored, features=True)) for pack in packs)
        return [outputs.features for outputs in read]

    print(f"{len(examples)} instructions, {int(table.stored.sum()):,} tokens through {layers} layers", flush=True)
    done = {"progress": lambda count, of: print(f"{count} of {of} instructions", flush=True)}
    return score_table(features, table, budget=BUDGET, **done).astype(np.float32)


def lower_layers(model: Path, layers: int, folder: Path) -> Path:
    """A copy of a Llama folder in one file of weights that ends after its first layers."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}), encoding="utf-8")
    with safe_open(model / "model.safetensors", "pt") as weights:
        kept = [name for name in weights.keys() if _layer(name) < layers]  # noqa: SIM118
        save_file({name: weights.get_tensor(name) for name in kept}, folder / "model.safetensors")
    return folder


def _layer(name: str) -> int:
    """The number of a weight's layer; -1 of what belongs to none."""
    front, _, rest = name.partition("layers.")
    return int(rest.split(".")[0]) if rest else -1
