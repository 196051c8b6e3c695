"""Prompts and responses that items share are computed once, and each item gets its own rewards back."""

import random

import numpy as np

from rmfast.data.example import Edge, Example
from rmfast.evaluation.suites.base import Item, group_key
from rmfast.evaluation.suites.shared import results_of, share

TURN = {"role": "user", "content": "hi"}


def item(prompt: object, responses: tuple, *edges: tuple[int, int], **more: object) -> Item:
    example = Example(prompt, responses, tuple(Edge(*edge) for edge in edges), **more)
    return Item("uid", "file:1", "part", (), example)


def said(text: str, first: str = "hi") -> list[dict[str, str]]:
    return [{"role": "user", "content": first}, {"role": "assistant", "content": text}]


def test_rewards_come_back_to_every_item() -> None:
    draw = random.Random(0)
    items = []
    for _ in range(60):
        texts = tuple(draw.choice("abcdefg") for _ in range(draw.randint(2, 4)))
        items.append(item(draw.choice(("p", "q", [TURN])), texts, (0, 1), (len(texts) - 1, 0)))
    shared = share(items)
    worth = {text: draw.random() for text in "abcdefg"}
    results = results_of(items, shared, [np.array([worth[r] for r in e.responses]) for e in shared.examples])
    assert len(shared.examples) == 3
    assert all(len(set(example.responses)) == len(example.responses) for example in shared.examples)
    for own, result in zip(items, results, strict=True):
        rewards = [worth[text] for text in own.example.responses]
        assert result.item is own and result.rewards is not None and result.rewards.tolist() == rewards
        gaps = [rewards[edge.better] - rewards[edge.worse] for edge in own.example.edges]
        assert result.gaps.tolist() == gaps
        assert result.won == all(gap > 0 for gap in gaps)


def test_what_differs_in_more_than_the_response_is_apart() -> None:
    items = [
        item("hi", ("a", "b"), (0, 1)),
        item([TURN], ("a", "b"), (0, 1)),
        item([TURN], ("a", "b"), (0, 1), tools=[{"name": "t"}]),
        item([TURN], ("a", "b"), (0, 1), template_kwargs={"x": 1}),
        item([TURN], ([said("a")[1]], [said("b")[1]]), (0, 1)),
    ]
    assert len(share(items).examples) == len(items)


def test_prompts_inside_the_responses_do_not_make_one_group_of_all() -> None:
    turns = [item(None, (said("a"), said(f"b{i}")), (0, 1)) for i in range(3)]
    turns += [item(None, (said("a", "other"), said("b", "other")), (0, 1))]
    turns += [item(None, (said("a", f"x{i}"), said("b", f"y{i}")), (0, 1)) for i in range(2)]  # nothing in common
    shared = share(turns)
    assert shared.group == (0, 0, 0, 1, 2, 3) and len(shared.examples[0].responses) == 4
    texts = [item(None, (f"Human: {i} Bot: a", f"Human: {i} Bot: b"), (0, 1)) for i in (0, 1, 0)]
    assert share(texts).group == (0, 1, 0)
    ids = [item(None, ([1, 2], [1, i]), (0, 1)) for i in (3, 4)]
    assert share(ids).group == (0, 1)
    assert group_key(turns[0].example) != group_key(turns[3].example)


def test_ties_and_scores_that_are_no_numbers_are_lost() -> None:
    own = item("p", ("a", "b"), (0, 1))
    for rewards in ([1.0, 1.0], [np.nan, 0.0], [0.0, np.nan], [-1.0, 0.0]):
        assert not results_of([own], share([own]), [np.array(rewards)])[0].won
    assert results_of([own], share([own]), [np.array([1.0, 0.0])])[0].won
