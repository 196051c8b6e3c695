"""The task sft whole: any number of processes, resumed bit for bit after SIGKILL, exported as transformers has it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import rmfast
from rmfast.cli import main as command
from rmfast.data.tail import answer_end
from rmfast.data.tokenizer import load_tokenizer
from rmfast.report.html import write_report
from rmfast.train import main
from tests.runs import Case, arguments, final_weights, launch, read_lines, text, write_model

pytestmark = pytest.mark.usefixtures("no_plots")

EXACT = ("step", "epoch", "loss", "entropy", "trained_tokens", "grad_norm", "learning_rate", "num_tokens", "rows")
KEYS: dict[str, object] = {
    "task": "sft",
    "data__pairs_per_step": 6,
    "data__tokens_per_pack": 128,
    "data__max_length": 128,
    "run__epochs": 2,
    "run__tensorboard": False,
    "optim__lr": 1e-2,
    "eval__every": 3,
    "checkpoint__every": 2,
    "parallel__timeout_minutes": 1,
}


def talks(path: Path, count: int, seed: int) -> Path:
    """Conversations of one to three answers."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        turns = 2 * draw.randint(1, 3)
        roles = ("user", "assistant")
        rows.append({"messages": [{"role": roles[i % 2], "content": text(draw, 1, 6)} for i in range(turns)]})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    write_model(folder / "model")
    talks(folder / "rows.jsonl", 18, 0)
    talks(folder / "eval.jsonl", 7, 1)
    return folder


def words(folder: Path, run: str, **more: object) -> list[str]:
    own = {
        "model__path": folder / "model",
        "data__train": folder / "rows.jsonl",
        "data__eval": folder / "eval.jsonl",
        "data__cache": folder / "cache",
        "run__dir": folder / run,
    }
    return arguments(**(KEYS | own | more))


def exact(run: Path) -> list[dict[str, Any]]:
    return [{key: line[key] for key in EXACT} for line in read_lines(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def runs(folder: Path) -> Path:
    """One process, killed and not; two that share the work; the same with adapters."""
    lora = {"model__adapter": "lora", "model__lora_rank": 2, "run__max_steps": 2}
    cases = [
        Case("whole", words(folder, "whole")),
        Case("killed", words(folder, "killed"), kill="step:4"),
        Case("resumed", words(folder, "killed")),
        *(Case(mode, words(folder, mode, parallel__data=mode), ranks=2) for mode in ("ddp", "fsdp")),
        Case("lora", words(folder, "lora", **lora)),
        *(
            Case(f"lora-{mode}", words(folder, f"lora-{mode}", parallel__data=mode, **lora), ranks=2)
            for mode in ("ddp", "fsdp")
        ),
    ]
    codes = launch(folder / "logs", cases)
    assert codes.pop("killed") == [-9] and {code for ranks in codes.values() for code in ranks} == {0}
    return folder


def test_a_killed_run_goes_on_bit_for_bit(runs: Path) -> None:
    assert exact(runs / "killed") == exact(runs / "whole") and len(exact(runs / "whole")) == 6
    whole, resumed = final_weights(runs / "whole"), final_weights(runs / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_does(runs: Path, mode: str) -> None:
    for one, two in zip(exact(runs / "whole"), exact(runs / mode), strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    one, two = (exact(runs / name)[0] for name in ("whole", mode))
    assert two == pytest.approx(one, rel=1e-5)
    evals = [read_lines(runs / name / "eval.jsonl") for name in ("whole", mode)]
    for one, two in zip(*evals, strict=True):
        assert one.pop("name") == two.pop("name") and two == pytest.approx(one, rel=1e-4)


def test_it_learns_and_the_log_has_trl_s_names(runs: Path) -> None:
    lines = read_lines(runs / "whole" / "metrics.jsonl")
    assert {"loss", "entropy", "num_tokens", "epoch", "learning_rate", "grad_norm"} <= lines[0].keys()
    assert not {"accuracy", "pairs", "pairs_per_second"} & lines[0].keys()
    evals = read_lines(runs / "whole" / "eval.jsonl")
    assert [line["step"] for line in evals] == [0, 3, 6]
    assert evals[-1]["eval_perplexity"] < 0.5 * evals[0]["eval_perplexity"]
    assert evals[-1]["eval_perplexity_low"] < evals[-1]["eval_perplexity"] < evals[-1]["eval_perplexity_high"]
    assert evals[-1]["eval_rows"] == 7 and 0 < evals[-1]["eval_mean_token_accuracy"] < 1


def test_the_export_is_a_causal_model_that_samples(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(runs / "whole" / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(runs / "whole" / "model")
    row = [{"role": "user", "content": "the cat"}]
    policy = rmfast.load_policy(str(runs / "whole" / "model"))
    found = policy.log_prob([{"prompt": row, "responses": ["sat on a mat"]}])[0][0]
    whole = [*row, {"role": "assistant", "content": "sat on a mat"}]
    ids = torch.tensor([tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]])
    log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[-len(found) :, 0]
    torch.testing.assert_close(torch.tensor(found), log_probs.detach(), rtol=1e-4, atol=1e-4)
    out = runs / "samples.jsonl"
    flags = ["--n", "1", "--max-new-tokens", "4", "--out", str(out)]
    assert command(["sample", str(runs / "whole" / "model"), "--data", str(runs / "eval.jsonl"), *flags]) == 0
    assert len(read_lines(out)) == 7
    capsys.readouterr()


@torch.no_grad()
def test_an_adapter_is_exported_beside_the_model_that_it_is_merged_into(runs: Path) -> None:
    """PEFT gives the same log-probabilities over the base, and any number of processes the same adapter."""
    peft = pytest.importorskip("peft")
    folder = runs / "lora"
    ids = torch.tensor([[5, 9, 300, 17, 2]])
    models = (
        peft.AutoPeftModelForCausalLM.from_pretrained(folder / "adapter"),
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        AutoModelForCausalLM.from_pretrained(runs / "model"),
    )
    theirs, merged, base = (model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]) for model in models)
    torch.testing.assert_close(theirs, merged, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged, base, atol=1e-2)
    policy = rmfast.load_policy(folder / "adapter")
    found = policy.log_prob([{"prompt": ids[0, :1].tolist(), "response_ids": [ids[0, 1:].tolist()]}])[0][0]
    torch.testing.assert_close(torch.tensor(found), theirs[:, 0], rtol=1e-4, atol=1e-4)
    assert policy.ends == rmfast.load_policy(folder / "model").ends
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * 2
    for mode in ("ddp", "fsdp"):
        for name, weight in load_file(runs / f"lora-{mode}" / "adapter" / "adapter_model.safetensors").items():
            assert (weight - weights[name]).norm() <= 1e-4 * weights[name].norm(), (mode, name)
    log = (runs / "logs" / "lora-0.log").read_text()
    assert "LoRA: rank 2, alpha 4 (over rank), on q_proj, " in log and "each process holds weights " in log
    assert f"exported {folder / 'adapter'}, the adapter of {runs / 'model'} in PEFT's format" in log


def test_the_summary_and_the_report(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = (runs / "logs" / "whole-0.log").read_text()
    assert "18 demonstrations" in log and "in the loss (sft.turns all)" in log and "Perplexity on held-out: " in log
    assert f"sample {runs}/whole/model --data {runs}/eval.jsonl" in log
    assert "pairs" not in log.partition("eval after step 0")[2].replace("pairs_per_step", "")
    files = {file.name for file in write_report(runs / "whole")}
    assert files == {"perplexity.png", "loss.png", "speed.png", "report.html"}
    page = (runs / "whole" / "report" / "report.html").read_text()
    assert "Held-out perplexity on eval, step 6" in page and "coin" not in page and "Pairs" not in page
    assert json.loads((runs / "whole" / "summary.json").read_text())["eval_perplexity"] > 1


def test_other_turns_are_another_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(runs, "whole", sft__turns="last")) == 2
    assert "this run began with sft.turns all, now it is last" in capsys.readouterr().err


def test_bad_rows_are_counted_by_cause(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (folder / "rows.jsonl").read_text()
    (folder / "bad.jsonl").write_text(f'{rows}{{"messages": []}}\n{{"a": 1}}\nnot json\n{{"text": 3}}\n')
    more = {"data__train": folder / "bad.jsonl", "run__max_steps": 1, "model__from_scratch": True}
    assert main(words(folder, "bad", **more)) == 0
    said = capsys.readouterr().out
    assert "train: left out 1 empty, 1 missing column, 1 not JSON, 1 wrong type" in said
    assert f"rmfast data report {folder}/bad.jsonl --model MODEL --max-length 128 --demonstrations all" in said


def test_a_reward_model_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import LlamaForSequenceClassification

    LlamaForSequenceClassification.from_pretrained(folder / "model", num_labels=1).save_pretrained(folder / "rm")
    for file in (folder / "model").glob("*token*"):
        (folder / "rm" / file.name).write_bytes(file.read_bytes())
    for file in (folder / "model").glob("*.jinja"):
        (folder / "rm" / file.name).write_bytes(file.read_bytes())
    assert main(words(folder, "refused", model__path=folder / "rm")) == 2
    assert "a reward model; a policy is a causal language model" in capsys.readouterr().err


def test_what_closes_an_answer_ends_the_trained_model_s_samples(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a base model, whose eos is another token than that of the chat template."""
    write_model(tmp_path / "base")
    for name, key, value in (("tokenizer_config.json", "eos_token", "<|pad|>"), ("config.json", "eos_token_id", 0)):
        file = tmp_path / "base" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    (tmp_path / "base" / "generation_config.json").unlink(missing_ok=True)
    assert answer_end(load_tokenizer(tmp_path / "base")) == 2
    assert main(words(folder, "ends", model__path=tmp_path / "base", run__max_steps=1)) == 0
    generation = json.loads((folder / "ends" / "model" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [0, 2]
    more = {"model__path": tmp_path / "base", "model__adapter": "lora", "run__max_steps": 1}
    assert main(words(folder, "adapter", **more)) == 0
    assert rmfast.load_policy(folder / "adapter" / "adapter").ends == {0, 2}
    assert rmfast.load_policy(tmp_path / "base").ends == {0}
    capsys.readouterr()
