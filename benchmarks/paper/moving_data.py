"""What benchmarks/paper/moving.py trains and tests on: preference pairs, and answers of many models as the shifted
distribution."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rmfast.data.denoise import Denoise
from rmfast.data.denoise_table import denoise_table
from rmfast.data.example import Edge, Example
from rmfast.data.store import build_store, store_examples
from rmfast.data.table import GroupTable, build_table, select
from rmfast.data.tokenizer import load_tokenizer
from rmfast.tasks.ensemble.folds import fold_of_groups

TEST_SHARE = 0.3
FOLDS = 3
K = 5  # sampled responses of a prompt, as in the paper
MAX_LENGTH = 384  # tokens of a pair's longer side: prompts are cut to it; those of answers may have a third more
LETTERS = 800  # of an answer of the shifted distribution; longer ones are left out


@dataclass(frozen=True)
class Data:
    """All that is trained and tested on.

    `train` and `test`: pairs of one domain, of different prompts. `other`: groups whose first K responses are answers
    of different models and whose edges set each of them against a baseline's. `samples`: a file of groups of K answers
    to instructions that are not in `other`. `fold` int64 [G] of each group of `train`.
    """

    train: GroupTable
    test: GroupTable
    other: GroupTable
    samples: Path
    fold: np.ndarray


def read_data(
    model: str, pairs: str, other: str, samples: str, *, limit: int, prompts: int, tokens: int, folder: Path
) -> Data:
    """Everything; `folder` takes the samples and the tokens of the pairs.

    Args:
        other, samples: preference pairs of many models' answers against one baseline's, of different instructions.
        limit: of the pairs, drawn with seed 0. prompts: of `other`; `samples` has half as many.
        tokens: of a whole pair, its prompt once; longer ones are left out.
    """
    tokenizer = load_tokenizer(model, None)
    store = build_store(pairs, tokenizer, folder / "cache")
    table, _ = build_table([store], max_length=MAX_LENGTH, over_long="truncate")
    rows = np.sort(np.random.default_rng(0).permutation(len(table))[:limit])
    rows = rows[table.stored[rows] <= tokens]
    of_test = held_out(table, rows)
    train = select(table, rows[~of_test])
    answers = store_examples(answer_groups(other, prompts, edges=True), tokenizer)
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        for group in answer_groups(samples, prompts // 2, edges=False):
            first, *others = group.responses
            file.write(json.dumps({"prompt": group.prompt, "chosen": first, "rejected": others}) + "\n")
    return Data(
        train=train,
        test=select(table, rows[of_test]),
        other=build_table([answers], max_length=MAX_LENGTH * 4 // 3, over_long="truncate")[0],
        samples=folder / "samples.jsonl",
        fold=fold_of_groups(train, FOLDS, 0),
    )


def with_strengths(table: GroupTable, strength: np.ndarray) -> GroupTable:
    """A table of pairs whose edges have these strengths."""
    assert len(table.stores) == 1 and (table.edges == 1).all()
    edges = table.store_edges[0]
    whole = np.full(len(edges.strength), np.nan, np.float32)
    whole[edges.start[table.index]] = strength
    return replace(table, store_edges=(replace(edges, strength=whole),))


def turned(table: GroupTable, flipped: np.ndarray) -> GroupTable:
    """A table of pairs with better and worse swapped where `flipped` (bool [G])."""
    return denoise_table(with_strengths(table, np.where(flipped, -1.0, 1.0)), Denoise(flip=1.0))[0]


def held_out(table: GroupTable, groups: np.ndarray) -> np.ndarray:
    """Which of some groups are for testing, bool [G]: all those of TEST_SHARE of their prompts. Conversations whose
    first 32 prompt tokens agree count as one prompt."""
    names = []
    for group in groups:
        store, g = table.stores[table.store[group]], int(table.index[group])
        begin = int(store.token_start[g])
        length = min(32, int(store.answer_start[store.response_start[g]]))
        names.append(store.tokens[begin : begin + length].tobytes().hex())
    unique = np.unique(names)
    return np.isin(names, np.random.default_rng(1).permutation(unique)[: int(TEST_SHARE * len(unique))])


def answer_groups(source: str, prompts: int, *, edges: bool) -> list[Example]:
    """Groups of K different models' answers to one instruction each, drawn with seed 0.

    Each row of `source` sets a model's answer against a baseline's. With `edges` the baseline's answers follow the
    models' in a group, and its edges are the rows' own.
    """
    opener = gzip.open if source.endswith(".gz") else open
    with opener(source, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    models = [{row["meta"]["chosen_model"], row["meta"]["rejected_model"]} for row in rows]
    (baseline,) = set.intersection(*models)
    by_prompt: dict[str, list[dict]] = {}
    for row in rows:
        if max(len(row["chosen"]), len(row["rejected"])) <= LETTERS:
            by_prompt.setdefault(json.dumps(row["prompt"]), []).append(row)
    drawn = np.random.default_rng(0)
    out = []
    for text, found in sorted(by_prompt.items()):
        order = [found[i] for i in drawn.permutation(len(found))]
        group = _group(json.loads(text), order, baseline, edges)
        if group is not None:
            out.append(group)
    return [out[i] for i in sorted(drawn.permutation(len(out))[:prompts].tolist())]


def _group(prompt: list[dict], rows: Sequence[dict], baseline: str, edges: bool) -> Example | None:
    """K rows whose models' answers differ, as a group; None where there are fewer."""
    taken: dict[str, tuple[str, bool]] = {}
    for row in rows:
        wins = row["meta"]["rejected_model"] == baseline
        answer, against = (row["chosen"], row["rejected"]) if wins else (row["rejected"], row["chosen"])
        if len(taken) < K and answer.strip() and against.strip() and answer != against:
            taken.setdefault(answer, (against, wins))
    if len(taken) < K:
        return None
    if not edges:
        return Example(prompt, tuple(taken))
    texts = list(dict.fromkeys([*taken, *(against for against, _ in taken.values())]))
    ends = [(texts.index(answer), texts.index(against), wins) for answer, (against, wins) in taken.items()]
    return Example(prompt, tuple(texts), tuple(Edge(a, b) if wins else Edge(b, a) for a, b, wins in ends))
