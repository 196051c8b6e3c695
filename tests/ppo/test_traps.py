"""The traps of docs/ppo.md, and the tests that catch each; most of these were seen red on broken code."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = "tasks/test_ppo_numbers.py::test_a_run_gives_the_numbers_of_its_formulas"
CLASH = "test_ppo_config.py::test_a_clash_is_one_line_that_begins_with_the_key"
KILLS = "tasks/test_ppo_resume.py::test_a_run_that_is_killed_in_every_phase_goes_on_to_the_same_bits"
RANKS = "tasks/test_ppo_ranks.py::test_two_ranks_against_one"
REFUSED = "tasks/test_ppo_models.py::test_a_model_that_cannot_do_its_part_is_one_line"
BF16 = "tasks/test_ppo.py::test_the_first_ratio_is_1_in_bf16_with_recomputation"
TEXTS = "tasks/test_ppo_rewards.py::"
TEXTS += "test_another_familys_rewards_are_those_of_rmfast_score_of_the_decoded_answers"
MEMBERS = "trainer/ppo/test_rewards.py::test_members_are_normalised_each_by_its_moments_and_then_combined"
DRAWS = "tasks/test_ppo.py::test_equal_prompts_and_prompts_met_again_get_other_samples"

TRAPS: dict[int, list[str]] = {
    1: [f"{NUMBERS}[ppo_max]", "trainer/ppo/test_rewards.py::test_kl_is_at_every_token_and_the_score_at_the_last"],
    2: [f"{NUMBERS}[ppo_max]", "kernels/test_gae.py::test_reference_against_the_recursion"],
    3: [f"{NUMBERS}[critic_of_raw_scores]", f"{NUMBERS}[messages]"],
    4: [f"{NUMBERS}[ppo_max]", f"{NUMBERS}[rloo_loss_k2]"],  # the second has two ends
    5: [f"{NUMBERS}[messages]", TEXTS],
    6: [f"{NUMBERS}[ppo_max]"],  # the tokenizer pads with its eos
    7: [f"{NUMBERS}[ppo_max]", "objectives/test_policy.py::test_the_policy"],
    8: ["rollout/test_sampler.py::test_log_probabilities_are_transformers", f"{NUMBERS}[ppo_max]"],
    9: [f"{NUMBERS}[ppo]"],
    10: [f"{NUMBERS}[gae_penalty]"],
    11: [f"{NUMBERS}[rloo_loss_k2]"],
    12: [CLASH],
    13: [f"{NUMBERS}[ppo_max]", BF16, RANKS],
    14: [BF16, "kernels/test_linear_log_prob.py::test_bf16_maths_is_fp32"],
    15: ["objectives/test_kl_loss.py::test_values_and_slopes_in_fp32", f"{NUMBERS}[grpo_loss_k3]", CLASH],
    16: [f"{NUMBERS}[ppo_max]", f"{NUMBERS}[ppo]"],
    17: [f"{NUMBERS}[rloo_loss_k2]", f"{NUMBERS}[ppo_max]", RANKS, KILLS],
    18: [f"{NUMBERS}[reinforce_both_k2]", f"{NUMBERS}[ppo]", RANKS],
    19: [f"{NUMBERS}[ppo_max]", f"{NUMBERS}[rloo_loss_k2]", f"{NUMBERS}[messages]", MEMBERS, RANKS, KILLS],
    20: [f"{NUMBERS}[ppo_max]", f"{NUMBERS}[rloo_loss_k2]", RANKS],
    21: [f"{NUMBERS}[rloo_loss_k2]"],
    22: [f"{NUMBERS}[ppo_max]", f"{NUMBERS}[gae_mask]", KILLS],
    23: [f"{NUMBERS}[messages]", f"{NUMBERS}[ppo_max]"],
    24: [DRAWS, RANKS],
    25: [TEXTS, REFUSED],
    26: [f"{NUMBERS}[ppo_max]"],
    27: [REFUSED, f"{NUMBERS}[ppo_max]"],  # whose models have more ids than the tokenizer
    28: [REFUSED, "kernels/test_score_head.py::test_scores_of_bf16_are_fp32"],
    29: ["tasks/test_ppo.py::test_many_packs_are_one", f"{NUMBERS}[ppo_max]"],
    30: [f"{NUMBERS}[messages]"],
    31: [f"{NUMBERS}[ppo_max]"],
    32: [KILLS, "tasks/test_ppo.py::test_a_line_of_a_rollout_that_is_torn_or_edited_is_drawn_again_alone"],
    33: [],  # an answer is one turn
    34: [f"{NUMBERS}[gae_mask]", f"{NUMBERS}[grpo_loss_k3]"],
    35: [CLASH],
}


def test_every_trap_of_the_docs_is_here() -> None:
    page = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(TRAPS)


@pytest.mark.parametrize("test", sorted({test for tests in TRAPS.values() for test in tests}))
def test_its_tests_are_there(test: str) -> None:
    file, _, name = test.partition("::")
    function, _, case = name.rstrip("]").partition("[")
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert f"def {function}(" in text and (not case or f'    "{case}": ' in text)
