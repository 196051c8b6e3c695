"""Sampling draws from the policy's distribution, whatever shares the batch."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rmfast.errors import RunError, UserError
from rmfast.kernels.draw_tokens import reference
from rmfast.models.network import Network
from rmfast.rollout.batch import Batch
from rmfast.rollout.decoding import network_decoding
from rmfast.rollout.draft import Draft, Request
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.sampler import Sampler
from tests.rollout.tiny_policies import language_model, logits_of, network_of, requests, sampled
from tests.tiny import CONFIGS, VOCABULARY

LENGTHS = (1, 3, 9, 4, 17)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Network]:
    model = language_model("llama")
    return model, network_of(model, tmp_path_factory.mktemp("tiny"))


def make(network: Network, *, ends: Sequence[int] = (), rows: int = 256, memory: float = math.inf,
         tokens_per_pack: int = 8192, window: int | None = None, **options: float) -> Sampler:  # fmt: skip
    drawing = SampleOptions(**{"max_new_tokens": 12, "seed": 5} | options)
    model = network_decoding(network, VOCABULARY)
    return Sampler(
        model, drawing, ends=ends, rows=rows, memory=memory, tokens_per_pack=tokens_per_pack, window=window
    )  # fmt: skip


def tokens(drafts: Sequence[Sequence[Draft]]) -> list[list[list[int]]]:
    return [[draft.ids.tolist() for draft in row] for row in drafts]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_generate(name: str, tmp_path: Path) -> None:
    """Where they part, two logits are equal but for rounding; log-probabilities are transformers'."""
    model = language_model(name, eos_token_id=None)
    prompts = requests(LENGTHS)
    sampler = make(network_of(model, tmp_path), rows=3, temperature=0)
    for request, (draft,) in zip(prompts, sampled(sampler, prompts, 1), strict=True):
        ids = torch.tensor(request.ids[None].astype(np.int64))
        out = model.generate(ids, max_new_tokens=len(draft.ids), do_sample=False, pad_token_id=0)
        want, logits = out[0, ids.shape[1] :].numpy(), logits_of(model, request, draft.ids)
        chosen = torch.tensor(draft.ids)[:, None].long()
        log_prob = logits.log_softmax(-1).gather(1, chosen)[:, 0]
        np.testing.assert_allclose(draft.log_prob, log_prob.numpy(), atol=1e-4)
        assert not draft.behaviour_log_prob.any() and draft.stop_reason == "length" and len(draft.ids) == 12
        if len(parts := np.flatnonzero(want != draft.ids)):
            first = int(parts[0])
            assert abs(float(logits[first, int(want[first])] - logits[first, int(draft.ids[first])])) < 1e-4


def test_log_probabilities_are_transformers(tiny: tuple[PreTrainedModel, Network]) -> None:
    """Raw ones, and those of the distribution after temperature and top-k."""
    model, network = tiny
    prompts = requests(LENGTHS)
    for request, drafts in zip(prompts, sampled(make(network, temperature=0.7, top_k=9), prompts, 3), strict=True):
        for draft in drafts:
            logits, chosen = logits_of(model, request, draft.ids), torch.tensor(draft.ids)[:, None].long()
            raw = logits.log_softmax(-1).gather(1, chosen)[:, 0]
            kept = logits.masked_fill(logits < logits.topk(9).values[:, -1:], -math.inf) / 0.7
            behaviour = kept.log_softmax(-1).gather(1, chosen)[:, 0]
            np.testing.assert_allclose(draft.log_prob, raw, atol=1e-4)
            np.testing.assert_allclose(draft.behaviour_log_prob, behaviour, atol=1e-4)


FILTERS: list[dict[str, float]] = [{}, {}, {}, {"top_k": 12}, {"top_p": 0.8}, {"min_p": 0.05}]


@pytest.mark.parametrize("seed, options", list(enumerate(FILTERS)), ids=str)
def test_the_first_tokens_and_the_second_ones_have_the_models_distribution(
    tiny: tuple[PreTrainedModel, Network], monkeypatch: pytest.MonkeyPatch, options: dict[str, float], seed: int
) -> None:
    """20,000 samples of one prompt against transformers' logits and processors; p below 1e-4 of a chi-square is red.
    The draw has blocks of 32 ids, so that few have two levels."""
    monkeypatch.setattr(reference, "BLOCK", 32)
    model, network = tiny
    request = requests((6,))[0]
    sampler = make(network, rows=1000, max_new_tokens=2, temperature=0.5, seed=seed, **options)
    (drafts,) = sampled(sampler, [request], 20_000)
    drawn = np.stack([draft.ids for draft in drafts])
    check_distribution(drawn[:, 0], processed(logits_of(model, request, np.zeros(1, np.int32))[0], options))
    common = int(np.bincount(drawn[:, 0]).argmax())
    second = logits_of(model, request, np.array([common, 0], np.int32))[1]
    check_distribution(drawn[drawn[:, 0] == common, 1], processed(second, options))


def processed(logits: torch.Tensor, options: dict[str, float]) -> np.ndarray:
    """The distribution that transformers' processors make of logits [V] at temperature 0.5."""
    kinds = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    scores = TemperatureLogitsWarper(0.5)(None, logits[None])
    for name, value in options.items():
        scores = kinds[name](value)(None, scores)
    probabilities: np.ndarray = scores[0].double().softmax(-1).numpy()
    return probabilities


def check_distribution(drawn: np.ndarray, probability: np.ndarray) -> None:
    """A chi-square test over ids of expected count 5 or more, and the rest as one."""
    expected, counts = len(drawn) * probability, np.bincount(drawn, minlength=len(probability)).astype(float)
    large = expected >= 5
    a, b = (np.append(x[large], x[~large].sum()) for x in (counts, expected))
    assert not a[b == 0].any()  # what is filtered out is never drawn
    a, b = a[b > 0], b[b > 0]
    statistic, freedom = float(((a - b) ** 2 / b).sum()), len(a) - 1
    assert freedom > 3
    upper = torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(statistic / 2).double())
    assert upper > 1e-4, (statistic, freedom)


@pytest.mark.parametrize("rows, tokens_per_pack", [(1, 8192), (4, 1), (7, 8192), (64, 12)])
def test_samples_do_not_depend_on_the_batch(
    tiny: tuple[PreTrainedModel, Network], rows: int, tokens_per_pack: int
) -> None:
    prompts, draw = requests(LENGTHS), partial(make, tiny[1])
    want = tokens(sampled(draw(), prompts, 3))
    assert tokens(sampled(draw(rows=rows, tokens_per_pack=tokens_per_pack), prompts, 3)) == want
    assert tokens(sampled(draw(rows=rows), prompts[3:4], 3)) == want[3:4]


@pytest.mark.parametrize("tokens_of_memory", [28, 40, 100])
def test_samples_do_not_depend_on_the_memory(tiny: tuple[PreTrainedModel, Network], tokens_of_memory: int) -> None:
    """28 tokens are the longest prompt and one row."""
    prompts, network = requests(LENGTHS), tiny[1]
    size = network_decoding(network, VOCABULARY).token_bytes
    want = tokens(sampled(make(network), prompts, 3))
    assert tokens(sampled(make(network, memory=tokens_of_memory * size), prompts, 3)) == want


def test_a_memory_without_room_for_a_row_says_what_would_do(tiny: tuple[PreTrainedModel, Network]) -> None:
    size = network_decoding(tiny[1], VOCABULARY).token_bytes
    with pytest.raises(UserError) as error:
        list(make(tiny[1], memory=27 * size).sample(requests(LENGTHS), 2))
    assert str(error.value) == (
        f"a memory of {27 * size / 1e9:.3g} GB holds keys and values of 27 tokens, and the longest prompt and its "
        "answer may have 28: give at least 0.001 GB, or fewer max_new_tokens"
    )
    assert 28 * size <= 0.001e9
    long = requests([305 * 10**6 // size])  # whose keys and values are no round number of megabytes
    with pytest.raises(UserError, match=r"give at least 0\.306 GB"):
        list(make(tiny[1], memory=27 * size).sample(long, 2))


@pytest.mark.parametrize("prompt", [19_341, 70_001])
def test_the_memory_that_is_named_does(tiny: tuple[PreTrainedModel, Network], prompt: int) -> None:
    """However its figure is rounded."""
    lengths = requests((prompt,))
    with pytest.raises(UserError) as error:
        list(make(tiny[1], memory=1).sample(lengths, 1))
    named = float(str(error.value).split("give at least ")[1].split(" GB")[0])
    Batch(make(tiny[1], memory=named * 1e9).settings, lengths, [12], 1)


def test_more_samples_begin_with_the_fewer_and_differ(tiny: tuple[PreTrainedModel, Network]) -> None:
    prompts = requests(LENGTHS)
    two, three = (tokens(sampled(make(tiny[1]), prompts, n)) for n in (2, 3))
    assert [row[:2] for row in three] == two
    assert all(len({tuple(ids) for ids in row}) == 3 for row in three)
    assert tokens(sampled(make(tiny[1], seed=6), prompts, 2)) != two


def test_an_end_ends_a_sample_and_its_place_is_used_again(tiny: tuple[PreTrainedModel, Network]) -> None:
    """Every sample is that without an end, cut after the first of the ends in it."""
    prompts, ends = requests(LENGTHS * 2), {5, 17, 40, 41, 63, 88}
    longer = sampled(make(tiny[1], max_new_tokens=20), prompts, 3)
    ended = sampled(make(tiny[1], max_new_tokens=20, ends=tuple(ends), rows=6), prompts, 3)
    reasons = set()
    for row, other in zip(ended, longer, strict=True):
        for draft, whole in zip(row, other, strict=True):
            places = [i for i, token in enumerate(whole.ids.tolist()) if token in ends]
            cut = places[0] + 1 if places else 20
            assert draft.ids.tolist() == whole.ids[:cut].tolist()
            np.testing.assert_allclose(draft.log_prob, whole.log_prob[:cut], atol=1e-5)
            assert draft.stop_reason == ("eos" if places else "length")
            reasons.add((draft.stop_reason, cut == 1))
    assert {("eos", True), ("eos", False), ("length", False)} <= reasons


def test_a_repetition_penalty_is_of_prompt_and_answer(tiny: tuple[PreTrainedModel, Network]) -> None:
    """A huge one, of a row in a place that another row had before: no token comes twice."""
    prompts = requests(LENGTHS * 2)
    for request, drafts in zip(
        prompts, sampled(make(tiny[1], repetition_penalty=1e6, temperature=0, rows=2), prompts, 1), strict=True
    ):
        ids = drafts[0].ids.tolist()
        assert len(set(ids)) == len(ids) and not set(ids) & set(request.ids.tolist())


def test_a_sample_ends_where_the_window_does(tiny: tuple[PreTrainedModel, Network]) -> None:
    drafts = sampled(make(tiny[1], window=20), requests(LENGTHS), 2)
    assert [len(row[0].ids) for row in drafts] == [12, 12, 11, 12, 3]
    assert {draft.stop_reason for row in drafts for draft in row} == {"length"}


@pytest.mark.parametrize(
    "lengths, says",
    [((4, 0), "prompt 1: has no tokens"), ((20,), "prompt 0: 20 tokens, and the model takes 20, answer included")],
)
def test_prompts_that_cannot_be_answered(
    tiny: tuple[PreTrainedModel, Network], lengths: tuple[int, ...], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        list(make(tiny[1], window=20).sample(requests(lengths), 1))


def test_logits_that_are_not_finite_end_it(tmp_path: Path) -> None:
    model = language_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(RunError, match="the model's logits are not finite: its weights are broken"):
        list(make(network_of(model, tmp_path)).sample(requests((3,)), 1))


def test_nothing_to_draw_is_nothing(tiny: tuple[PreTrainedModel, Network]) -> None:
    assert list(make(tiny[1]).sample([], 3)) == []
    (one,) = sampled(make(tiny[1], max_new_tokens=1), requests((3,)), 1)
    assert len(one[0].ids) == 1
    assert isinstance(one[0], Draft) and isinstance(requests((3,))[0], Request)
