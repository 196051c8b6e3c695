"""The PPO task whole: what a run says, logs and leaves, which of its files others read, and how it goes on."""

import contextlib
import io
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rmfast
from rmfast import cli
from rmfast.checkpoint.store import read_weights
from rmfast.models.hf import load_network
from rmfast.rollout.sampler import Sampler
from rmfast.train import main
from tests.ppo.tiny import assert_same_run, command, drawn_of, steps_of, write_inputs
from tests.runs import arguments, read_lines, write_rows

pytestmark = pytest.mark.usefixtures("no_plots")

ALONE = 2
STEPS = 4
SETUP: dict[str, object] = {"ppo__critic_warmup": ALONE, "run__max_steps": STEPS, "checkpoint__every": 1}
SETUP |= {"checkpoint__keep": STEPS, "optim__lr": 1e-3, "eval__at_start": True}

ALWAYS = {"objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward"}
ALWAYS |= {"objective/scores", "loss/value_avg", "val/clipfrac_avg", "val/num_eos_tokens", "episode", "critic_lr"}
ALWAYS |= {"critic_grad_norm", "kl_coefficient", "kl_per_token", "sampler_gap", "sampler_gap_max", "kept_mass"}
ALWAYS |= {"cut_share", "masked_answers", "flat_group_share", "explained_variance", "sampling_share", "mean_length"}
ALWAYS |= {"mean_reward", "reward_mean", "reward_std", "critic_warmup", "optim_steps", "num_tokens", "prompts_drawn"}
ALWAYS |= {"cut_value", "step", "step_seconds", "tokens_per_second", "answers_per_second", "memory_gib"}
OF_POLICY = {"loss", "lr", "grad_norm", "first_ratio_gap", "loss/policy_avg", "policy/approxkl_avg"}
OF_POLICY |= {"policy/clipfrac_avg", "policy/entropy_avg", "val/ratio", "val/ratio_var"}
SAMPLE = {"ids", "stop_reason", "sampled_log_prob", "behaviour_log_prob", "log_prob", "reference_log_prob", "value"}
SAMPLE |= {"value_after", "reward", "score", "kl"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("ppo"))


@pytest.fixture(scope="module")
def said(folder: Path) -> str:
    """What a whole run says, which is in `run`."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(command(folder, "run", **SETUP)) == 0
    return out.getvalue()


@pytest.fixture
def run(folder: Path, said: str, tmp_path: Path) -> Path:
    """A copy of the whole run, as `copy` beside its inputs."""
    shutil.rmtree(folder / "copy", ignore_errors=True)
    shutil.copytree(folder / "run", folder / "copy")
    return folder / "copy"


def test_what_a_run_says_and_logs(folder: Path, said: str) -> None:
    assert "4 steps of 4 prompts with 3 answers" in said
    assert f"ppo_max: gae, critic from reward, {ALONE} steps alone first; KL 0.05 to {folder / 'policy'}" in said
    assert "sampling: temperature 1, top_p 1, top_k 0, min_p 0, repetition penalty 1, at most 6 tokens" in said
    assert "transformers gives the same log-probabilities" in said
    lines = read_lines(folder / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        learns = line["step"] > ALONE
        assert line.keys() >= (ALWAYS | OF_POLICY if learns else ALWAYS)
        assert learns or not OF_POLICY & line.keys()
        assert line["critic_warmup"] is not learns
        assert all(math.isfinite(value) for value in line.values() if value is not None)
        assert line["episode"] == 12 * line["step"] and line["optim_steps"] == 4 * line["step"]
        assert line["prompts_drawn"] == 4 + 4 * line["step"]  # the reward warm-up's before
        assert line["objective/rlhf_reward"] == pytest.approx(line["mean_reward"] + line["objective/non_score_reward"])
        assert line["objective/non_score_reward"] == pytest.approx(-0.05 * line["objective/kl"])
        assert line["kept_mass"] == pytest.approx(1) and line["sampler_gap_max"] < 1e-5
    evals = read_lines(folder / "run" / "eval.jsonl")
    assert [line["step"] for line in evals] == [0, 2, 4]
    for line in evals:
        for name in ("reward", "kl", "length"):
            assert line[f"eval_{name}_low"] <= line[f"eval_{name}"] <= line[f"eval_{name}_high"]
    assert evals[0]["eval_kl"] == evals[1]["eval_kl"] == 0 != evals[2]["eval_kl"]
    assert not list((folder / "run").rglob("*.partial*"))


def test_the_policy_begins_when_the_critic_has_learned_alone(folder: Path, said: str) -> None:
    checkpoints = [read_weights(folder / "run" / "checkpoints" / f"step-{n}") for n in range(1, STEPS + 1)]
    first = dict(load_network(folder / "policy", lm=True, heads=0)[0].named_parameters())
    for number, weights in enumerate(checkpoints, 1):
        same = [torch.equal(weight, first[name]) for name, weight in weights.items()]
        assert weights.keys() == first.keys() and (all(same) if number <= ALONE else not any(same))
    lines = steps_of(folder / "run")
    assert [line["objective/kl"] == 0 for line in lines] == [True, True, True, False]
    assert [line.get("lr") for line in lines] == [None, None, pytest.approx(1e-3), pytest.approx(5e-4)]
    assert [line["critic_lr"] for line in lines] == pytest.approx([3e-3, 2.25e-3, 1.5e-3, 7.5e-4])
    assert [line["first_ratio_gap"] for line in lines[ALONE:]] == [0, 0]


def test_the_first_ratio_is_1_in_bf16_with_recomputation(folder: Path) -> None:
    keys: dict[str, object] = {"model__dtype": "bfloat16", "model__recompute": "full", "data__tokens_per_pack": 32}
    assert main(command(folder, "bf16", **keys, ppo__critic_warmup=0, run__max_steps=2, ppo__eval_prompts="[]",
                        eval__every="null")) == 0  # fmt: skip
    lines = steps_of(folder / "bf16")
    assert [line["first_ratio_gap"] for line in lines] == [0, 0]
    assert lines[0]["objective/kl"] == 0 != lines[1]["objective/kl"]


def test_many_packs_are_one(folder: Path, said: str) -> None:
    assert main(command(folder, "packs", **SETUP | {"data__tokens_per_pack": 2048})) == 0
    assert drawn_of(folder / "packs") == drawn_of(folder / "run")
    for ours, theirs in zip(steps_of(folder / "packs"), steps_of(folder / "run"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def test_a_rollout_file_says_what_was_drawn_and_what_it_is_worth(folder: Path, said: str) -> None:
    tokens = 0
    for step, line in enumerate(steps_of(folder / "run"), 1):
        records = read_lines(folder / "run" / "rollouts" / f"step-{step}.jsonl")
        assert [record["number"] for record in records] == [0, 1, 2, 3]
        samples = [sample for record in records for sample in record["samples"]]
        assert all(sample.keys() == SAMPLE for sample in samples)
        for record in records:
            assert record["edges"] == [] and len(record["responses"]) == len(record["samples"]) == 3
            for text, sample in zip(record["responses"], record["samples"], strict=True):
                assert len(text.split()) == len(sample["ids"]) - (sample["stop_reason"] == "eos") or 1 in sample["ids"]
                assert len(sample["ids"]) == len(sample["value"]) == len(sample["behaviour_log_prob"])
        assert np.mean([sample["reward"] for sample in samples]) == pytest.approx(line["objective/scores"])
        assert np.mean([sample["score"] for sample in samples]) == pytest.approx(line["mean_reward"])
        assert np.mean([sample["kl"] for sample in samples]) == pytest.approx(line["objective/kl"])
        tokens += sum(len(sample["ids"]) for sample in samples)
        assert tokens == line["num_tokens"]


def test_rollouts_are_rows_that_other_commands_take(
    folder: Path, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts = str(folder / "run" / "rollouts" / "step-4.jsonl")
    assert cli.main(["data", "report", rollouts, "--samples", "2"]) == 0
    assert "4 read, 4 kept" in capsys.readouterr().out
    reward = str(folder / "reward")
    assert cli.main(["score", reward, "--data", rollouts, "--out", str(tmp_path / "scores.jsonl")]) == 0
    compared = 0
    for row, record in zip(read_lines(tmp_path / "scores.jsonl"), read_lines(Path(rollouts)), strict=True):
        for rewarded, sample in zip(row["rewards"], record["samples"], strict=True):
            # Texts hold no <pad>, and a cut answer's is scored with an end.
            whole = sample["stop_reason"] == "eos" and 1 not in sample["ids"]
            assert not whole or rewarded == pytest.approx(sample["reward"], abs=1e-5)
            compared += whole
    assert compared
    write_rows(tmp_path / "pairs.jsonl", 8)
    meta = arguments(
        task="meta", model__path=reward, data__train=tmp_path / "pairs.jsonl", meta__data=rollouts, meta__k=2,
        meta__prompts_per_step=2, data__pairs_per_step=4, run__max_steps=1, run__dir=tmp_path / "meta",
        data__cache=folder / "cache", run__tensorboard=False,
    )  # fmt: skip
    assert main(meta) == 0 and "meta: 4 prompt groups, 8 samples" in capsys.readouterr().out


def test_the_exported_policy_is_a_language_model(folder: Path, said: str, tmp_path: Path) -> None:
    run = folder / "run"
    policy, model = rmfast.load_policy(str(run)), AutoModelForCausalLM.from_pretrained(run / "model")
    ids = AutoTokenizer.from_pretrained(run / "model")("a b c", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model(ids).logits.log_softmax(-1)[0, 1:2].gather(-1, ids[:, 2:].T)[:, 0]
    (((found, *_),),) = policy.log_prob([{"prompt": "a b", "responses": [" c"]}])
    assert found == pytest.approx(expected.item(), abs=1e-5)
    out, prompts = tmp_path / "samples.jsonl", str(folder / "prompts.jsonl")
    words = ["sample", str(run), "--data", prompts, "--n", "2", "--max-new-tokens", "3", "--out", str(out)]
    assert cli.main(words) == 0
    assert all(len(row["responses"]) == 2 for row in read_lines(out))


def test_equal_prompts_and_prompts_met_again_get_other_samples(folder: Path) -> None:
    (folder / "twice.jsonl").write_text('{"prompt": "a b"}\n' * 2)
    keys: dict[str, object] = {"ppo__prompts": folder / "twice.jsonl", "ppo__prompts_per_step": 2}
    keys |= {"run__max_steps": 2, "ppo__eval_prompts": "[]", "eval__every": "null"}
    assert main(command(folder, "twice", **keys)) == 0  # in two epochs, with the same weights: the critic learns alone
    drawn = [tuple(map(tuple, group)) for step in drawn_of(folder / "twice").values() for group in step]
    assert len(drawn) == 3 * 2 and len(set(drawn)) == 6


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"ppo__kl": 0.1}, "began with ppo.kl 0.05, now it is 0.1"),
        ({"ppo__samples": 2}, "began with ppo.samples 3, now it is 2"),
        ({"ppo__critic_lr": 1e-3}, "began with ppo.critic_lr 0.003, now it is 0.001"),
        ({"ppo__reward": "other"}, "began with ppo.reward"),
        ({"ppo__reference": "other policy"}, "began with ppo.reference"),
        ({"model__path": "other policy"}, "began with ppo.reference"),
        ({"ppo__prompts": "held_out.jsonl"}, "other data, order or seed"),
        ({"run__seed": 1}, "other data, order or seed"),
        ({"run__max_steps": 3}, "is at step 4, beyond this run's 3; raise run.max_steps"),
    ],
)
def test_a_run_that_goes_on_otherwise_is_refused(
    folder: Path, said: str, capsys: pytest.CaptureFixture[str], more: dict[str, Any], line: str
) -> None:
    if not (folder / "other policy").exists():
        shutil.copytree(folder / "policy", folder / "other policy")
    paths = {key: folder / value for key, value in more.items() if isinstance(value, str)}
    before = (folder / "run" / "metrics.jsonl").read_bytes()
    assert main(command(folder, "run", **SETUP | more | paths)) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1 and (folder / "run" / "metrics.jsonl").read_bytes() == before


def test_more_steps_go_on_where_a_run_ended(folder: Path, run: Path) -> None:
    assert main(command(folder, "copy", **SETUP | {"run__max_steps": 5})) == 0
    lines = steps_of(run)
    assert lines[:4] == steps_of(folder / "run") and lines[4]["step"] == 5
    assert lines[4]["episode"] == 60 and lines[4]["prompts_drawn"] == 24


def test_asked_to_stop_a_run_goes_on_to_the_same_bits(
    folder: Path, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the file, while it samples: what the first prompt has is kept, and the rest is drawn later."""
    run, sample = folder / "stopped", Sampler.sample

    def asked(self: Sampler, requests: Any, n: int) -> Any:
        for found in sample(self, requests, n):
            if (run / "rollouts" / ".step-3.0.partial").exists():  # not step 2's checkpoint: a thread writes it
                (run / "stop").touch()
            yield found

    monkeypatch.setattr("rmfast.signals.POLL", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "sample", asked)
        assert main(command(folder, "stopped", **SETUP)) == 0
    said = capsys.readouterr().out
    assert f"stopped by {run / 'stop'}: 1 of 4 prompts of step-3 have answers, all before it is saved" in said
    assert not (run / "model").exists() and not (run / "stop").exists() and (run / "requeue").exists()
    assert len((run / "rollouts" / ".step-3.0.partial").read_bytes().splitlines()) == 1
    assert main(command(folder, "stopped", **SETUP)) == 0
    assert_same_run(run, folder / "run")


def test_answers_are_flushed_now_and_then_and_at_the_end(
    folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (3, 4):
        shutil.rmtree(run / "checkpoints" / f"step-{step}")
    (run / "rollouts" / "step-3.jsonl").unlink()
    counts, fsync = [], os.fsync

    def flushed(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.name == ".step-3.0.partial":
            counts.append(path.read_bytes().count(b"crc32"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr("rmfast.data.files.FLUSH", 0.0)
    assert main(command(folder, "copy", **SETUP)) == 0
    assert counts == [1, 2, 3, 4, 4]
    assert_same_run(run, folder / "run")


def test_a_line_of_a_rollout_that_is_torn_or_edited_is_drawn_again_alone(
    folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (3, 4):
        shutil.rmtree(run / "checkpoints" / f"step-{step}")
    file = run / "rollouts" / "step-3.jsonl"
    lines = [line.encode() for line in file.read_text().splitlines()]
    reward = json.loads(lines[0])["samples"][1]["reward"]
    edited = lines[0].replace(f'"reward": {reward}'.encode(), b'"reward": 9.5')  # which no key of the answer holds
    assert edited != lines[0]
    file.write_bytes(b"\n".join([edited, b"[1]\n5\n\xff\0", lines[2], lines[3][:-40]]))
    drawn, sample = [], Sampler.sample

    def counted(self: Sampler, requests: Any, n: int) -> Any:
        drawn.extend(request.draw_number for request in requests)
        return sample(self, requests, n)

    monkeypatch.setattr(Sampler, "sample", counted)
    assert main(command(folder, "copy", **SETUP)) == 0
    assert drawn == [12, 13, 15]
    line = f"{file}: damaged or cut off in line 1, 2, 3, 4: what is missing is drawn again"
    assert line in capsys.readouterr().out.splitlines()
    assert_same_run(run, folder / "run")
