"""Section ppo: what the presets mean, what a resolved config repeats, and every clash as its line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rmfast.config import config_help, load_config
from rmfast.config.ppo import PRESETS
from rmfast.errors import UserError
from rmfast.kernels.draw_tokens.options import LEAST_TEMPERATURE
from rmfast.outputs.overlap import Input
from rmfast.tasks.build.folder import check_run, config_inputs

BASE = {"task": "ppo", "model": {"path": "policy"}, "ppo": {"prompts": "prompts.jsonl", "reward": "rm"}}
BOTH = {
    "reward": ["rm"], "reward_rule": "mean", "reward_k": 1.0, "reference": None, "critic_lr": 3e-5,
    "prompts": ["prompts.jsonl"], "eval_prompts": [],
    "prompts_per_step": 32, "samples": 4, "minibatches": 4, "advantage": "gae", "kl": 0.05, "kl_in": "reward",
    "kl_estimator": "k1", "kl_target": None, "kl_horizon": 10000, "gamma": 1.0, "lam": 0.95, "clip": 0.2,
    "clip_high": 0.2, "value_clip": 0.2, "entropy": 0.0, "max_new_tokens": 256, "temperature": 1.0, "top_p": 1.0,
    "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "truncated_score": -1.0, "overlong_buffer": 0,
    "overlong_penalty": 1.0, "ptx": 0.0, "ptx_data": [], "ptx_rows": 32, "offload": "none", "gold": None,
    "stop_kl": None, "stop_entropy": None, "stop_cut": None,
}  # fmt: skip
PPO_MAX = {
    "preset": "ppo_max", "critic": "reward", "critic_warmup": 20, "epochs": 1, "reward_norm": "running",
    "reward_clip": 0.8, "reward_warmup": 1, "whiten": False, "truncated": "bootstrap",
}  # fmt: skip
PPO = {
    "preset": "ppo", "critic": "policy", "critic_warmup": 0, "epochs": 4, "reward_norm": "none",
    "reward_clip": 0.0, "reward_warmup": 0, "whiten": True, "truncated": "zero",
}  # fmt: skip
NO_CRITIC = dict.fromkeys(("critic", "critic_warmup", "critic_lr", "lam", "value_clip"))


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return str(path)


def resolved(base: str, *words: str) -> dict[str, Any]:
    values: dict[str, Any] = load_config([base, *words]).dump()["ppo"]
    return values


def line_of(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_preset_fills_each_null(base: str) -> None:
    assert resolved(base) == BOTH | PPO_MAX
    assert resolved(base, "--ppo.preset", "ppo_max") == BOTH | PPO_MAX
    assert resolved(base, "--ppo.preset", "ppo") == BOTH | PPO
    assert set(PRESETS["ppo"]) == set(PRESETS["ppo_max"])


def test_what_is_set_wins_over_the_preset(base: str) -> None:
    words = ["--ppo.whiten", "true", "--ppo.reward_clip", "0", "--ppo.epochs", "2", "--ppo.critic", "critics/a"]
    assert resolved(base, *words) == BOTH | PPO_MAX | {
        "whiten": True, "reward_clip": 0.0, "epochs": 2, "critic": "critics/a"
    }  # fmt: skip


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "reinforce"])
def test_without_a_critic_its_keys_are_null_and_cut_answers_score_0(base: str, advantage: str) -> None:
    expected = BOTH | PPO_MAX | NO_CRITIC | {"advantage": advantage, "truncated": "zero"}
    assert resolved(base, "--ppo.advantage", advantage) == expected
    assert resolved(base, "--ppo.advantage", advantage, "--ppo.truncated", "mask") == expected | {"truncated": "mask"}
    anyway = ["--ppo.critic_warmup", "0", "--ppo.lam", "1", "--ppo.value_clip", "0"]
    assert resolved(base, "--ppo.advantage", advantage, *anyway) == expected


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["--optim.lr", "5e-7"], {"critic_lr": 1.5e-6}),
        (["--optim.lr", "5e-7", "--ppo.critic_lr", "2e-6"], {"critic_lr": 2e-6}),
        (["--run.max_steps", "3"], {"critic_warmup": 1}),
        (["--run.max_steps", "100"], {"critic_warmup": 20}),
        (["--ppo.prompts_per_step", "3"], {"prompts_per_step": 3, "minibatches": 3}),
        (["--ppo.clip", "0.1"], {"clip": 0.1, "clip_high": 0.1}),
        (["--ppo.clip_high", "0.28"], {"clip_high": 0.28}),
        (["--ppo.kl_in", "loss"], {"kl_in": "loss", "kl_estimator": "k2"}),
        (["--ppo.kl_in", "both"], {"kl_in": "both", "kl_estimator": "k2"}),
        (["--ppo.kl_in", "both", "--ppo.kl_estimator", "k3"], {"kl_in": "both", "kl_estimator": "k3"}),
        (["--ppo.reward_norm", "none"], {"reward_norm": "none", "reward_clip": 0.0, "reward_warmup": 0}),
        (
            ["--ppo.reward_norm", "none", "--ppo.reward_clip", "5"],
            {"reward_norm": "none", "reward_clip": 5.0, "reward_warmup": 0},
        ),
    ],
)
def test_a_null_follows_other_keys(base: str, words: list[str], changed: dict[str, Any]) -> None:
    assert resolved(base, *words) == BOTH | PPO_MAX | changed


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--ppo.preset", "ppo", "--ppo.advantage", "grpo", "--ppo.kl_in", "loss"],
        ["--ppo.advantage", "reinforce", "--ppo.gamma", "0.9", "--ppo.truncated", "penalty"],
        ["--ppo.truncated", "penalty", "--ppo.truncated_score", "-2", "--optim.lr", "7e-7"],
        ["--ppo.kl_target", "6", "--ppo.kl_horizon", "100", "--ppo.overlong_buffer", "16"],
        ["--ppo.reward_norm", "none", "--data.tokens_per_pack", "512", "--rollout.memory", "1.5"],
        ["--ppo.eval_prompts", "a", "b", "--ppo.gold", "gold", "--eval.every", "5", "--ppo.reference", "sft"],
    ],
    ids=lambda words: " ".join(words) or "defaults",
)
@pytest.mark.parametrize("times", [1, 2])
def test_the_resolved_config_alone_means_the_same(base: str, tmp_path: Path, words: list[str], times: int) -> None:
    config = again = load_config([base, *words])
    for _ in range(times):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(again.dump(), sort_keys=False))
        again = load_config([str(tmp_path / "config.yaml")])
    assert again == config


def test_the_example_is_ppo_max() -> None:
    config = load_config([str(Path(__file__).parents[1] / "configs" / "ppo_max_hh.yaml")])
    assert {key: config.dump()["ppo"][key] for key in PPO_MAX} == PPO_MAX
    assert config.run.max_steps == 220 and config.ppo.critic_lr == 3e-6


def test_another_task_leaves_the_section_as_it_is(base: str) -> None:
    config = load_config([base, "--task", "reward", "--data.train", "pairs.jsonl", "--ppo.kl_estimator", "k3"])
    assert (config.ppo.critic, config.ppo.kl_estimator, config.ppo.clip_high) == (None, "k3", None)


CLASHES = [
    ("--ppo.prompts []", "ppo.prompts is missing: task ppo needs prompts to sample from"),
    ("--ppo.reward []", "ppo.reward is missing: task ppo needs the folder of a reward model"),
    (
        "--ppo.reward_rule majority --ppo.samples 1",
        "ppo.samples 1 leaves a vote (ppo.reward_rule majority) no other answer to compare with",
    ),
    ("--ppo.reward_k 2", "ppo.reward_k belongs to ppo.reward_rule mean-k-std, which is mean"),
    ("--ppo.kl_estimator k2", "ppo.kl_estimator k2 has a biased gradient in the reward: ppo.kl_in reward takes k1"),
    ("--ppo.kl_estimator k3", "ppo.kl_estimator k3 has a biased gradient in the reward: ppo.kl_in reward takes k1"),
    (
        "--ppo.kl_in loss --ppo.kl_estimator k1",
        "ppo.kl_estimator k1 has a gradient of expectation 0 in the loss: ppo.kl_in loss takes k2 or k3",
    ),
    (
        "--ppo.kl_in both --ppo.kl_estimator k1",
        "ppo.kl_estimator k1 has a gradient of expectation 0 in the loss: ppo.kl_in both takes k2 or k3",
    ),
    ("--ppo.kl_target 6 --ppo.kl 0", "ppo.kl 0 stays 0, whatever ppo.kl_target"),
    ("--ppo.kl_horizon 100", "ppo.kl_horizon belongs to ppo.kl_target, which is null"),
    (
        "--ppo.kl_target 6 --ppo.kl_horizon 25 --ppo.samples 4 --ppo.prompts_per_step 32",
        "ppo.kl_horizon (25) is not above a fifth of a step's 128 answers: ppo.kl could fall to 0 in a step",
    ),
    *(
        (f"--ppo.advantage {a} --ppo.{key} {value}", f"ppo.{key} is for a critic, and ppo.advantage {a} has none")
        for a, key, value in [
            ("rloo", "critic", "reward"),
            ("grpo", "critic_warmup", "1"),
            ("reinforce", "critic_lr", "1e-5"),
            ("rloo", "lam", "0.95"),
            ("grpo", "value_clip", "0.2"),
        ]
    ),
    *(
        (
            f"--ppo.advantage {a} --ppo.truncated bootstrap",
            f"ppo.truncated bootstrap needs a critic, and ppo.advantage {a} has none",
        )
        for a in ("rloo", "grpo", "reinforce")
    ),
    *(
        (
            f"--ppo.advantage {a} --ppo.samples 1",
            f"ppo.samples 1 leaves ppo.advantage {a} no other answer to compare with",
        )
        for a in ("rloo", "grpo")
    ),
    *(
        (
            f"--ppo.advantage {a} --ppo.gamma 0.9",
            f"ppo.gamma (0.9) is not 1, and ppo.advantage {a} takes an answer's reward as a whole",
        )
        for a in ("rloo", "grpo")
    ),
    (
        "--ppo.reward_norm none --ppo.reward_warmup 2",
        "ppo.reward_warmup fills running moments, and ppo.reward_norm is none",
    ),
    ("--ppo.truncated_score -2", "ppo.truncated_score belongs to ppo.truncated penalty, which is bootstrap"),
    (
        "--ppo.overlong_buffer 300",
        "ppo.overlong_buffer (300) is above ppo.max_new_tokens (256)",
    ),
    ("--ppo.overlong_penalty 2", "ppo.overlong_penalty belongs to ppo.overlong_buffer, which is 0"),
    (
        "--ppo.prompts_per_step 3 --ppo.minibatches 4",
        "ppo.minibatches (4) is above ppo.prompts_per_step (3): prompt groups stay whole",
    ),
    (
        "--ppo.max_new_tokens 1024",
        "ppo.max_new_tokens (1024) leaves no room for a prompt in data.max_length (1024)",
    ),
    (
        "--data.tokens_per_pack 256",
        "ppo.max_new_tokens (256) leaves no room for a prompt in data.max_length (256)",
    ),
    (
        "--run.max_steps 20 --ppo.critic_warmup 20",
        "ppo.critic_warmup (20) leaves the policy none of the 20 steps (run.max_steps)",
    ),
    ("--eval.every 5", "eval.every is set but ppo.eval_prompts is empty"),
    (
        "--ppo.offload all --parallel.data fsdp",
        "ppo.offload needs parallel.data ddp: fsdp shards frozen weights over the ranks in place of it",
    ),
    (
        "--model.adapter lora --model.lora_dropout 0.1",
        "model.lora_dropout is not for task ppo: it takes the ratio of new and old probabilities without dropout",
    ),
    ("--ppo.gold g", "ppo.gold scores the samples of ppo.eval_prompts, which is empty"),
    ("--data.train x", "data.train is not read by task ppo, which samples answers to ppo.prompts"),
    ("--data.eval x", "data.eval is not read by task ppo: its held-out prompts are ppo.eval_prompts"),
    ("--data.train_weights 1", "data.train_weights is for the sources of data.train, which task ppo does not read"),
    ("--data.pairs_per_step 9", "data.pairs_per_step is not read by task ppo: a step has ppo.prompts_per_step prompts"),
    ("--data.denoise flip", "data.denoise is for preferences, and task ppo has none"),
    ("--denoise.flip 0.1", "denoise.flip is for preferences, and task ppo has none"),
    ("--model.heads 1", "model.heads counts reward heads, and a policy has none"),
    (
        "--model.top_layers 2",
        "model.top_layers is for reward models: task ppo trains every layer of policy and critic",
    ),
    (
        "--model.dropout 0.1",
        "model.dropout must be 0 or null: task ppo takes the ratio of new and old probabilities without dropout",
    ),
    *(
        (f"--objective.{key} {value}", f"objective.{key} is for reward models, and task ppo trains none")
        for key, value in [("center", "0.01"), ("lm", "1"), ("contrastive", "swav"), ("beta", "1"), ("queue", "8")]
    ),
    ("--eval.suites rmb=x", "eval.suites are for reward models: task ppo is evaluated on ppo.eval_prompts"),
    ("--eval.suites_every 5", "eval.suites_every is for reward models: task ppo is evaluated on ppo.eval_prompts"),
    ("--parallel.cuda_graphs true", "parallel.cuda_graphs is not for task ppo, whose packs have many shapes"),
]


@pytest.mark.parametrize(("words", "line"), CLASHES, ids=[words for words, _ in CLASHES])
def test_a_clash_is_one_line_that_begins_with_the_key(base: str, words: str, line: str) -> None:
    given = [part for part in words.split() if part]
    assert line_of(base, *given) == f"command line: {line}"


@pytest.mark.parametrize(
    "words",
    [
        "--ppo.samples 1",
        "--ppo.advantage reinforce --ppo.gamma 0.9 --ppo.samples 1",
        "--ppo.gamma 0.9 --ppo.lam 0",
        "--ppo.overlong_buffer 256 --ppo.overlong_penalty 0.5",
        "--ppo.eval_prompts x",
        "--ppo.eval_prompts x --ppo.gold y --eval.at_start false",
        "--run.max_steps 21",
        "--ppo.prompts_per_step 4",
        "--model.dropout 0",
        "--ppo.max_new_tokens 1023",
        "--ppo.kl 0",
        "--ppo.reward a b --ppo.reward_rule mean-k-std --ppo.reward_k 2",
        "--ppo.stop_kl 30 --ppo.stop_entropy 0.1 --ppo.stop_cut 0",
        "--ppo.kl_target 6 --ppo.kl_horizon 26",
        "--ppo.preset ppo --ppo.reward_norm running --ppo.reward_warmup 3",
    ],
)
def test_what_fits_is_not_refused(base: str, words: str) -> None:
    load_config([base, *words.split()])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("kl", v) for v in ("-0.1", ".inf")),
        *(("gamma", v) for v in ("0", "1.1")),
        *((key, "0") for key in ("stop_kl", "stop_entropy")),
        *(("stop_cut", v) for v in ("-0.1", "1")),
        ("reward_k", "-1"),
        ("reward_rule", "best"),
        *(("lam", v) for v in ("-0.1", "1.1")),
        *((key, "0") for key in ("clip", "clip_high", "kl_target", "kl_horizon", "critic_lr", "repetition_penalty")),
        *((key, "0") for key in ("prompts_per_step", "samples", "minibatches", "epochs", "max_new_tokens")),
        *((key, "-1") for key in ("critic_warmup", "value_clip", "reward_clip", "reward_warmup", "entropy", "top_k")),
        *((key, "-1") for key in ("overlong_buffer", "overlong_penalty")),
        *(("temperature", v) for v in ("0", str(LEAST_TEMPERATURE / 2))),
        *(("top_p", v) for v in ("0", "1.1")),
        *(("min_p", v) for v in ("-0.1", "1")),
        ("whiten", "perhaps"),
        ("epochs", "true"),
        ("truncated", "none"),
        ("critic", "''"),
    ],
)
def test_a_value_out_of_its_range_is_one_line(base: str, key: str, value: str) -> None:
    assert line_of(base, f"--ppo.{key}", value).startswith(f"command line: ppo.{key}: ")


def test_the_least_temperature_is_the_samplers(base: str) -> None:
    assert resolved(base, "--ppo.temperature", str(LEAST_TEMPERATURE))["temperature"] == LEAST_TEMPERATURE


@pytest.mark.parametrize("words", [["--rollout.rows", "0"], ["--rollout.memory", "0"]])
def test_rollouts_of_nothing_are_refused(base: str, words: list[str]) -> None:
    assert line_of(base, *words).startswith(f"command line: {words[0][2:]}: ")


def test_every_other_task_needs_data_train(base: str) -> None:
    for task in ("reward", "meta", "ensemble"):
        missing = "data.train: missing; set it in the file or with --data.train"
        assert line_of("--task", task, "--model.path", "x") == f"config: {missing}"
        assert line_of(base, "--task", task, "--data.train", "[]") == f"command line: {missing}"


def test_the_inputs_of_a_run_are_those_that_ppo_reads(base: str) -> None:
    words = ["--ppo.prompts", "a.jsonl", "b.jsonl", "--ppo.eval_prompts", "c.jsonl", "--ppo.critic", "critic"]
    words += ["--ppo.reference", "sft", "--ppo.gold", "gold"]
    expected = [
        ("ppo.prompts", "a.jsonl"), ("ppo.prompts", "b.jsonl"), ("ppo.eval_prompts", "c.jsonl"), ("ppo.reward", "rm"),
        ("ppo.reference", "sft"), ("ppo.critic", "critic"), ("ppo.gold", "gold"), ("model.path", "policy"),
    ]  # fmt: skip
    assert config_inputs(load_config([base, *words]), []) == [Input(key, Path(path)) for key, path in expected]
    for critic in ("reward", "policy"):
        names = [one.name for one in config_inputs(load_config([base, "--ppo.critic", critic]), [])]
        assert names == ["ppo.prompts", "ppo.reward", "model.path"]


@pytest.mark.parametrize("key", ["reward", "reference", "critic", "gold", "prompts", "eval_prompts"])
def test_what_ppo_reads_is_never_written_over(base: str, tmp_path: Path, key: str) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    words = [f"--ppo.{key}", str(tmp_path / "run" / "model"), "--run.dir", str(tmp_path / "run")]
    words += [] if key == "eval_prompts" else ["--ppo.eval_prompts", "held_out.jsonl"]
    with pytest.raises(UserError, match=f"would overwrite ppo.{key}, "):
        check_run(load_config([base, *words]), [])


def test_help_says_what_null_means_in_each_preset() -> None:
    lines = config_help().splitlines()
    place = lines.index("  --ppo.whiten  bool | null  (default null)")
    assert lines[place + 1].strip() == "advantages to mean 0, std 1; null: ppo_max false, ppo true"


def test_demonstrations_and_their_weight_belong_together(base: str) -> None:
    values = resolved(base, "--ppo.ptx", "0.5", "--ppo.ptx_data", "shown.jsonl", "--ppo.ptx_rows", "8")
    assert (values["ptx"], values["ptx_data"], values["ptx_rows"]) == (0.5, ["shown.jsonl"], 8)
    assert "ppo.ptx_data is missing" in line_of(base, "--ppo.ptx", "0.5")
    assert "ppo.ptx_data is not read while ppo.ptx is 0" in line_of(base, "--ppo.ptx_data", "shown.jsonl")
    assert "ppo.ptx_rows belongs to ppo.ptx, which is 0" in line_of(base, "--ppo.ptx_rows", "8")
