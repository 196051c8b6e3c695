"""PPO with demonstrations beside: the first update's loss on them is transformers', and a resumed run goes on."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification

from rmfast.train import main
from tests.runs import arguments, final_weights, read_lines, write_model

ROWS = [("the cat", " sat on a mat"), ("two red", " birds"), ("by the sea", " with a dog"), ("home", " ran")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
    write_model(tmp_path / "policy")
    write_model(tmp_path / "reward", seed=1)
    LlamaForSequenceClassification.from_pretrained(tmp_path / "reward", num_labels=1).save_pretrained(
        tmp_path / "reward"
    )
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{prompt}"}}\n' for prompt, _ in ROWS))
    shown = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in ROWS]
    (tmp_path / "shown.jsonl").write_text("\n".join(shown))
    return tmp_path


def run(folder: Path, name: str, **more: object) -> Path:
    keys = {
        "task": "ppo", "model__path": folder / "policy", "data__cache": folder / "cache", "data__max_length": 64,
        "data__tokens_per_pack": 128, "ppo__reward": folder / "reward", "ppo__prompts": folder / "prompts.jsonl",
        "ppo__prompts_per_step": 2, "ppo__samples": 2, "ppo__minibatches": 1, "ppo__max_new_tokens": 4,
        "ppo__advantage": "rloo", "ppo__whiten": True, "ppo__reward_norm": "none", "run__dir": folder / name,
        "run__max_steps": 2, "run__tensorboard": False, "optim__lr": 1e-3, "optim__schedule": "constant",
    }  # fmt: skip
    assert main(arguments(**(keys | more))) == 0
    return folder / name


def shown(folder: Path, name: str, **more: object) -> Path:
    return run(folder, name, ppo__ptx=0.5, ppo__ptx_data=folder / "shown.jsonl", ppo__ptx_rows=4, **more)


def test_demonstrations_are_learnt_beside_the_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, without = shown(folder, "whole"), run(folder, "without")
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    total, count = 0.0, 0
    for prompt, answer in ROWS:
        ids = [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
        begin = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            out = model(torch.tensor([ids]), labels=torch.tensor([[-100] * begin + ids[begin:]]))
        total, count = total + float(out.loss) * (len(ids) - begin), count + len(ids) - begin
    first, second = read_lines(whole / "metrics.jsonl")
    assert first["loss/ptx_avg"] == pytest.approx(total / count, rel=1e-5) and second["loss/ptx_avg"] < total / count
    assert first["loss"] == pytest.approx(first["loss/policy_avg"] + 0.5 * first["loss/ptx_avg"], rel=1e-5)
    apart = read_lines(without / "metrics.jsonl")[0]
    assert "loss/ptx_avg" not in apart and first["loss/policy_avg"] == apart["loss/policy_avg"]
    assert "ptx: 4 demonstrations" in capsys.readouterr().out
    shown(folder, "parts", run__max_steps=1)
    parts = final_weights(shown(folder, "parts"))
    assert all(torch.equal(weight, parts[name]) for name, weight in final_weights(whole).items())
