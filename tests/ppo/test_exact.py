"""The exact figures that training is judged by: against straight sums, by differentiation, and of models on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rmfast
from rmfast.data.example import Example
from tests.ppo.exact import (
    Answers,
    Steps,
    kl,
    loss_optimum,
    objective,
    optimum,
    possible_gain,
    read_hidden,
    read_steps,
    total_variation,
    trained_for,
)
from tests.ppo.folders import APART, EOS, answers_of, tokenizer_of, write_policy, write_reward_model

BETA = 0.5
ANSWERS = Answers(vocabulary=4, eos=1, longest=3)


def random_steps(answers: Answers, seed: int, spread: float = 1.0) -> Steps:
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(answers.letters) ** d for d in range(answers.longest)]
    draws = (torch.randn(n, answers.vocabulary, generator=generator, dtype=torch.float64) for n in sizes)
    return tuple((spread * draw).log_softmax(1) for draw in draws)


def random_rewards(answers: Answers, seed: int) -> Tensor:
    """Of spread 2 beta."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * BETA * torch.randn(len(answers.ids), generator=generator, dtype=torch.float64)


def derivative(function: Callable[[Steps], Tensor], steps: Steps, size: float = 1e-5) -> float:
    """The largest derivative by a logit, from central differences."""
    largest = 0.0
    for d, step in enumerate(steps):
        for place in range(step.numel()):
            moved = []
            for sign in (1, -1):
                logits = step.clone()
                logits.view(-1)[place] += sign * size
                moved.append(function((*steps[:d], logits.log_softmax(1), *steps[d + 1 :])))
            largest = max(largest, abs(float(moved[0] - moved[1])) / (2 * size))
    return largest


def test_answers_are_all_there_and_their_probabilities_those_of_their_tokens() -> None:
    assert len(set(ANSWERS.ids)) == len(ANSWERS.ids) == 1 + 3 + 9 + 27
    steps = random_steps(ANSWERS, 0)
    log_prob = ANSWERS.log_prob(steps)
    assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    for ids, cut, length, found in zip(ANSWERS.ids, ANSWERS.cut, ANSWERS.lengths, log_prob.tolist(), strict=True):
        assert bool(cut) == (EOS not in ids) and EOS not in ids[:-1] and length == len(ids)
        by_hand, place = 0.0, 0
        for d, token in enumerate(ids):
            by_hand += float(steps[d][place, token])
            place = place * 3 + (0, 2, 3).index(token) if token != EOS else place
        assert found == pytest.approx(by_hand, abs=1e-12)


def test_a_distribution_over_answers_is_a_policy() -> None:
    for found, want in zip(
        ANSWERS.steps(ANSWERS.log_prob(random_steps(ANSWERS, 1))), random_steps(ANSWERS, 1), strict=True
    ):
        torch.testing.assert_close(found, want)


def test_the_closed_form_is_better_than_every_other_policy_and_gains_what_is_possible() -> None:
    reference, rewards = ANSWERS.log_prob(random_steps(ANSWERS, 2)), random_rewards(ANSWERS, 3)
    best = optimum(reference, rewards, BETA)
    top = float(objective(best, reference, rewards, BETA))
    at_reference = float(objective(reference, reference, rewards, BETA))
    assert top - at_reference == pytest.approx(float(possible_gain(reference, rewards, BETA)), abs=1e-12)
    for seed in range(50):
        other = ANSWERS.log_prob(random_steps(ANSWERS, seed, spread=0.1 * seed))
        near = (best + 0.1 * other).log_softmax(0)
        assert float(objective(other, reference, rewards, BETA)) < top
        assert float(objective(near, reference, rewards, BETA)) < top
    loss = loss_optimum(ANSWERS, random_steps(ANSWERS, 2), rewards, BETA)
    assert at_reference < float(objective(loss, reference, rewards, BETA)) < top


def test_the_gradient_of_the_objective_vanishes_at_the_closed_form() -> None:
    reference, rewards = ANSWERS.log_prob(random_steps(ANSWERS, 2)), random_rewards(ANSWERS, 3)

    def value(steps: Steps) -> Tensor:
        return objective(ANSWERS.log_prob(steps), reference, rewards, BETA)

    assert derivative(value, ANSWERS.steps(optimum(reference, rewards, BETA))) < 1e-8
    assert derivative(value, ANSWERS.steps(reference)) > 0.01


def test_the_expected_gradient_of_kl_in_the_loss_vanishes_at_its_fixed_point() -> None:
    """The expectation over answers of sum over tokens of (R - beta (log pi - log ref)) grad log pi, as REINFORCE with
    the estimator k2 in the loss has it: the log-ratio is that of the token itself."""
    reference, rewards = random_steps(ANSWERS, 2), random_rewards(ANSWERS, 3)

    def gradient(log_prob: Tensor) -> float:
        fixed = ANSWERS.steps(log_prob)

        def surrogate(steps: Steps) -> Tensor:
            total = torch.zeros((), dtype=torch.float64)
            for ids, share, reward in zip(ANSWERS.ids, log_prob.exp(), rewards, strict=True):
                place = 0
                for d, token in enumerate(ids):
                    ratio = fixed[d][place, token] - reference[d][place, token]
                    total = total + share * (reward - BETA * ratio) * steps[d][place, token]
                    place = place * 3 + (0, 2, 3).index(token) if token != EOS else place
            return total

        return derivative(surrogate, fixed)

    assert gradient(loss_optimum(ANSWERS, reference, rewards, BETA)) < 1e-8
    assert gradient(optimum(ANSWERS.log_prob(reference), rewards, BETA)) > 0.01


def test_both_optima_are_the_same_where_answers_have_one_token() -> None:
    one = Answers(vocabulary=8, eos=7, longest=1)
    reference, rewards = random_steps(one, 4), random_rewards(one, 5)
    closed = optimum(one.log_prob(reference), rewards, BETA)
    torch.testing.assert_close(loss_optimum(one, reference, rewards, BETA), closed)
    assert total_variation(closed, one.log_prob(reference)) > 0.2


def test_kl_and_total_variation() -> None:
    a, b = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]], dtype=torch.float64).clamp(min=1e-300).log()
    assert float(kl(a, b)) == pytest.approx(torch.tensor(2.0).log().item())
    assert total_variation(a, b) == pytest.approx(0.5)


@pytest.mark.parametrize(("spread", "cut_share", "share"), [(0.0, None, 0.75**4), (0.0, 0.5, 0.5), (1.0, 0.5, 0.5)])
def test_a_policy_on_disk_is_read_as_transformers_computes_it(
    tmp_path: Path, spread: float, cut_share: float | None, share: float
) -> None:
    prompts, tokenizer, answers = ["a", "ba"], tokenizer_of("ab"), answers_of("ab")
    model = write_policy(tmp_path, "ab", prompts, spread=spread, cut_share=cut_share)
    found = [answers.log_prob(read_steps(model, tokenizer(prompt)["input_ids"], answers)) for prompt in prompts]
    cut = [float(log_prob.exp()[answers.cut].sum()) for log_prob in found]
    assert sum(cut) / 2 == pytest.approx(share, abs=1e-5)
    ours = rmfast.load_policy(tmp_path).log_prob([{"prompt": p, "response_ids": [*answers.ids]} for p in prompts])
    for log_prob, lists in zip(found, ours, strict=True):
        torch.testing.assert_close(torch.tensor([sum(x) for x in lists]).double(), log_prob, rtol=0, atol=1e-5)
    assert bool(total_variation(*found) > 0.01) == (spread > 0)
    warm = [answers.log_prob(read_steps(model, tokenizer(p)["input_ids"], answers, temperature=2.0)) for p in prompts]
    assert bool(total_variation(warm[0], found[0]) > 0.01) == bool(spread or cut_share)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_a_policy_can_learn_any_steps_after_a_prompt_that_is_apart_and_no_weight_is_large(
    tmp_path: Path, spread: float
) -> None:
    """A row of the head that is large makes one small update of the trunk decide everything."""
    answers = answers_of("ab")
    model = write_policy(tmp_path, "ab", [APART], spread=spread, cut_share=0.5)
    states = torch.cat(read_hidden(model, tokenizer_of("ab")(APART)["input_ids"], answers)).double()
    assert float(torch.pdist(states).min()) > 2.0
    assert float(torch.linalg.svdvals(states)[-1]) > 0.5
    assert float(model.lm_head.weight.detach()[EOS].norm()) < 0.5 + 2 * spread


def test_texts_of_one_letter_alone_are_the_same_to_a_policy(tmp_path: Path) -> None:
    model = write_policy(tmp_path, "ab", ["a"], spread=1.0)
    once, more, *_ = read_hidden(model, tokenizer_of("ab")("a")["input_ids"], answers_of("ab"))
    torch.testing.assert_close(more[1], once[0])


def test_a_model_with_other_ids_is_not_read(tmp_path: Path) -> None:
    model = write_policy(tmp_path, "ab", ["a"])
    with pytest.raises(ValueError, match="read_steps: 4 ids in the model, 5 in the answers"):
        read_steps(model, [2], answers_of("abc"))


def test_a_reward_model_on_disk_gives_any_table_of_scores(tmp_path: Path) -> None:
    prompts, tokenizer, answers = ["a", "ba"], tokenizer_of("ab"), answers_of("ab")
    tables = {prompt: random_rewards(answers, seed) for seed, prompt in enumerate(prompts)}
    write_reward_model(tmp_path, "ab", tables)
    model = rmfast.load(tmp_path)
    for prompt, table in tables.items():
        ids = tokenizer(prompt)["input_ids"]
        whole = tuple([*ids, *answer] for answer in answers.ids)
        found = torch.tensor(model.score_examples([Example(None, whole, prompt_ids=len(ids))])[0][:, 0])
        torch.testing.assert_close(found.double(), table, rtol=0, atol=1e-5 * float(table.abs().max()))


def test_what_cut_answers_are_trained_for() -> None:
    raw = random_rewards(ANSWERS, 0)
    zero, penalty = trained_for(ANSWERS, raw), trained_for(ANSWERS, raw, truncated_score=-1.0)
    for i, cut in enumerate(ANSWERS.cut.tolist()):
        assert (zero[i], penalty[i]) == ((0.0, -1.0) if cut else (raw[i], raw[i]))
