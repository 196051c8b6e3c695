"""Several reward models in PPO, and such with another tokenizer: what they score, and how a run goes on."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

import rmfast
from rmfast import cli
from rmfast.data.tokenizer import byte_tokenizer
from rmfast.train import main
from rmfast.trainer.ppo.rollouts import Rollouts
from tests.ppo.tiny import assert_same_run, command, state_of, steps_of, write_inputs
from tests.runs import read_lines

pytestmark = pytest.mark.usefixtures("no_plots")

LETTERS = "{% for m in messages %}a {{ m.content }} b {% endfor %}{% if add_generation_prompt %}a {% endif %}"
"""A template of the policy's words that ends no answer."""
ONE: dict[str, object] = {"run__max_steps": 1, "ppo__critic_warmup": 0, "ppo__critic": "policy"}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs read; `bytes`, a reward model of another family with a token for each byte and ChatML, `two`, one of
    two heads, and `neox`, of a family that transformers has to run; the prompts as messages too."""
    folder = write_inputs(tmp_path_factory.mktemp("ppo"))
    tokenizer = byte_tokenizer()
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    for name, heads in (("bytes", 1), ("two", 2)):
        torch.manual_seed(7)
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": None, "bos_token_id": None}
        config = Qwen2Config(
            vocab_size=len(tokenizer), num_key_value_heads=2, num_labels=heads, initializer_range=0.2, **SMALL, **ids
        )
        Qwen2ForSequenceClassification(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    neox = GPTNeoXConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.2, **SMALL, **ids)
    GPTNeoXForSequenceClassification(neox).save_pretrained(folder / "neox")
    tokenizer.save_pretrained(folder / "neox")
    file = folder / "two" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rmfast": {"heads": "ensemble"}}))
    for name in ("prompts", "held_out"):
        rows = [[{"role": "user", "content": row["prompt"]}] for row in read_lines(folder / f"{name}.jsonl")]
        (folder / f"{name}_messages.jsonl").write_text("".join(f"{json.dumps({'prompt': row})}\n" for row in rows))
    return folder


def several(folder: Path, run: str, names: str, **more: object) -> list[str]:
    """A run against several reward models."""
    words = command(folder, run, **{"ppo__reward": "REWARD"} | ONE | more)
    place = words.index("REWARD")
    return [*words[:place], *(str(folder / name) for name in names.split()), *words[place + 1 :]]


def samples_of(run: Path, step: int = 1) -> list[tuple[dict[str, Any], dict[str, Any], str]]:
    """Each sample of a step with its record and its text."""
    records = read_lines(run / "rollouts" / f"step-{step}.jsonl")
    return [
        (record, sample, text)
        for record in records
        for sample, text in zip(record["samples"], record["responses"], strict=True)
    ]


@pytest.mark.parametrize(("kind", "model"), [("text", "bytes"), ("messages", "bytes"), ("text", "neox")])
def test_another_familys_rewards_are_those_of_rmfast_score_of_the_decoded_answers(
    folder: Path, kind: str, model: str, tmp_path: Path
) -> None:
    run, reward_model = folder / f"{kind} {model}", folder / model
    chat = {"data__chat_template": LETTERS, "ppo__prompts": folder / "prompts_messages.jsonl"}
    chat |= {"ppo__eval_prompts": folder / "held_out_messages.jsonl"}
    more: dict[str, object] = {"ppo__reward": reward_model, "ppo__gold": reward_model}
    assert main(command(folder, run.name, **ONE | more | (chat if kind == "messages" else {}))) == 0
    rollouts = str(run / "rollouts" / "step-1.jsonl")
    assert cli.main(["score", str(reward_model), "--data", rollouts, "--out", str(tmp_path / "scores.jsonl")]) == 0
    scored = [reward for row in read_lines(tmp_path / "scores.jsonl") for reward in row["rewards"]]
    rows = read_lines(folder / {"text": "prompts.jsonl", "messages": "prompts_messages.jsonl"}[kind])
    asked = [row["prompt"] for row in rows]
    seen = {"eos": 0, "length": 0}
    for (record, sample, text), reward in zip(samples_of(run), scored, strict=True):
        seen[sample["stop_reason"]] += 1
        assert record["prompt"] in asked
        if sample["stop_reason"] == "eos":
            assert sample["reward"] == pytest.approx(reward, abs=1e-5)
            continue
        # As it would be scored, but for what closes it: the eos behind a text, the template's end of a turn.
        front = record["prompt"]
        if kind == "messages":
            front = f"<|im_start|>user\n{front[0]['content']}<|im_end|><|im_start|>assistant\n"
        ids = byte_tokenizer()(f"{front}{text}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            last = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()(torch.tensor([ids])).logits
        assert sample["reward"] == pytest.approx(last.item(), abs=1e-5) != pytest.approx(reward, abs=1e-5)
    assert min(seen.values()) > 0
    final = read_lines(run / "eval.jsonl")[-1]
    assert final["eval_gold"] == final["eval_reward"]


def test_a_template_of_the_same_words_is_the_reward_models_too(folder: Path) -> None:
    """Same ids, other template: messages are read through the reward model's, texts by the ids that were sampled."""
    other = "{% for m in messages %}c {{ m.content }} d {% endfor %}{% if add_generation_prompt %}c {% endif %}"
    shutil.copytree(folder / "reward", folder / "templated", dirs_exist_ok=True)
    (folder / "templated" / "chat_template.jinja").write_text(other)
    keys: dict[str, object] = {"ppo__reward": folder / "templated", "data__chat_template": LETTERS}
    keys |= {"ppo__prompts": folder / "prompts_messages.jsonl", "ppo__eval_prompts": "[]", "eval__every": "null"}
    assert main(command(folder, "templates", **ONE | keys)) == 0
    model, compared = rmfast.load(folder / "templated"), 0
    for record, sample, text in samples_of(folder / "templates"):
        assert [turn["role"] for turn in record["prompt"]] == ["user"]
        ((reward,),) = model.score([{"prompt": record["prompt"], "responses": [text]}])
        compared += sample["stop_reason"] == "eos"
        assert (sample["reward"] == pytest.approx(reward, abs=1e-5)) is (sample["stop_reason"] == "eos")
    assert compared


@pytest.mark.parametrize("rule", ["worst", "majority"])
def test_three_members_by_each_rule_are_what_the_rule_says(folder: Path, rule: str) -> None:
    keys: dict[str, object] = {"ppo__reward_rule": rule, "ppo__truncated": "bootstrap"}
    assert main(several(folder, rule, "reward other bytes", **keys)) == 0
    warm = read_lines(folder / rule / "rollouts" / "warmup-1.jsonl")
    samples = samples_of(folder / rule)
    raw = np.array([sample["rewards"] for _, sample, _ in samples]).T  # [3, 12]
    state = state_of(folder / rule)["ppo/moments"].reshape(3, 3)
    line = steps_of(folder / rule)[0]
    for member in range(3):
        count, mean, squares = state[member].tolist()
        assert count == sum(len(record["samples"]) for record in warm) + 12
        std = (squares / (count - 1)) ** 0.5
        assert line[f"member_{member}/reward_mean"] == mean and line[f"member_{member}/reward_std"] == std
        assert line[f"member_{member}/scores"] == pytest.approx(raw[member].mean())
        assert line[f"member_{member}/scores_std"] == pytest.approx(raw[member].std())
    normalised = (raw - state[:, 1:2].numpy()) / (state[:, 2:] / (state[:, :1] - 1)).sqrt().numpy()
    prompts = [record["number"] for record, _, _ in samples]
    by_hand = np.sort(normalised, 0)[0] if rule == "worst" else votes_by_hand(raw, prompts)
    scores = [sample["score"] for _, sample, _ in samples]
    assert scores == pytest.approx(by_hand.clip(-0.8, 0.8).tolist(), abs=1e-12)
    assert line["disagreement"] == pytest.approx(normalised.std(0).mean())
    assert [sample["reward"] for _, sample, _ in samples] == pytest.approx(raw.mean(0).tolist())
    assert line["objective/scores"] == pytest.approx(raw.mean())


def votes_by_hand(raw: np.ndarray, prompts: list[int]) -> np.ndarray:
    """The share of members that prefer an answer to another of its prompt, a mean over the others, on [-1, 1]."""
    out = []
    for i, prompt in enumerate(prompts):
        others = [j for j, other in enumerate(prompts) if other == prompt and j != i]
        wins = [(float(one[i] > one[j]) + float(one[i] >= one[j])) / 2 for one in raw for j in others]
        out.append(2 * sum(wins) / len(wins) - 1)
    return np.array(out)


def test_the_heads_of_a_folder_are_members(folder: Path) -> None:
    assert main(several(folder, "heads", "other two", ppo__reward_rule="worst")) == 0
    raw = np.array([sample["rewards"] for _, sample, _ in samples_of(folder / "heads")])
    assert raw.shape == (12, 3) and not np.allclose(raw[:, 1], raw[:, 2])
    assert state_of(folder / "heads")["ppo/moments"].shape == (9,)


def test_a_run_with_several_normalisers_goes_on_to_the_same_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: dict[str, object] = {"run__max_steps": 2, "ppo__reward_rule": "worst", "checkpoint__every": 1}
    keep = Rollouts.keep

    def asks(self: Rollouts, name: str, *rest: Any) -> None:
        keep(self, name, *rest)
        if name == "step-1":
            os.kill(os.getpid(), signal.SIGTERM)

    assert main(several(folder, "whole", "other reward", **keys)) == 0
    monkeypatch.setattr(Rollouts, "keep", asks)
    assert main(several(folder, "stopped", "other reward", **keys)) == 0 and not (folder / "stopped" / "model").exists()
    monkeypatch.setattr(Rollouts, "keep", keep)
    assert main(several(folder, "stopped", "other reward", **keys)) == 0
    assert_same_run(folder / "stopped", folder / "whole")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ppo__critic": "reward"}, "rmfast: ppo.critic: reward begins as {bytes}, which has another tokenizer than"),
        (
            {"ppo__prompts": "ids.jsonl"},
            "ids.jsonl:1: a prompt of token ids without its text, and ppo.reward {bytes} has",
        ),
        (
            {"ppo__reward": "short"},
            "prompts.jsonl:1: ppo.reward {short} cannot read this prompt: too long: 1 tokens, and",
        ),
        ({"ppo__reward": "policy"}, "rmfast: ppo.reward: {policy}: no reward head (LlamaForCausalLM): "),
        ({"ppo__reward": "bare"}, "ppo.reward: {bare} has another tokenizer than the policy and no chat template, and"),
        ({"ppo__reward": "closed"}, "ppo.reward: {closed} has another tokenizer or chat template than the policy, and"),
    ],
)
def test_what_cannot_be_right_is_one_line(
    folder: Path, keys: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ids.jsonl").write_text('{"prompt": [2, 3]}\n' * 4)
    shutil.copytree(folder / "bytes", folder / "short", dirs_exist_ok=True)
    file = folder / "short" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 6}))
    shutil.copytree(folder / "bytes", folder / "closed", dirs_exist_ok=True)
    upper = "{% for m in messages %}{{ m.role }}: {{ m.content | length }}{% endfor %}"
    (folder / "closed" / "chat_template.jinja").write_text(upper)
    more: dict[str, object] = {"ppo__reward": folder / "bytes"}
    more |= {key: value if key == "ppo__critic" else folder / value for key, value in keys.items()}
    shutil.copytree(folder / "bytes", folder / "bare", dirs_exist_ok=True)
    (folder / "bare" / "chat_template.jinja").unlink(missing_ok=True)
    if keys.get("ppo__reward") in ("closed", "bare"):
        more |= {"data__chat_template": LETTERS, "ppo__prompts": folder / "prompts_messages.jsonl"}
    assert main(command(folder, "refused", **ONE | more)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.format(**{name: folder / name for name in ("bytes", "short", "closed", "policy", "bare")}) in line
    assert not (folder / "refused" / "rollouts").exists()
