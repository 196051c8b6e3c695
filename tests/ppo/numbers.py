"""Runs of PPO with tiny random models, and the same runs in fp64 (`tests.ppo.dense_run`), compared number by number."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rmfast.config import ModelConfig
from rmfast.models.hf import load_network
from rmfast.models.lora import adapt, to_peft
from rmfast.models.peft import peft_settings
from rmfast.tasks.build.adapter import lora_options
from rmfast.train import main
from tests.ppo.dense import Answer
from tests.ppo.dense_run import DenseRun
from tests.runs import arguments, read_lines
from tests.tiny import randomised

LETTERS = "abcdefghijkl"
SPECIAL = ("<eos>", "<unk>", "<user>", "<bot>", "<end>")
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<bot> ' }}{{ m.content }}{{ ' <eos> <end> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<bot> ' }}{% endif %}"
)
UNSEEN = 3  # ids of the models that the tokenizer does not have
PROMPTS = [" ".join(LETTERS[(5 * i + 3 * j) % len(LETTERS)] for j in range(1 + i % 4)) for i in range(10)]
SHOWN = [("a b", " c d e"), ("c", " a"), ("b a b", " e d")]
RESHAPED = {"temperature": 0.2, "top_k": 2, "top_p": 0.5, "repetition_penalty": 3.0, "do_sample": True}
NO_NUMBERS = {"step", "step_seconds", "tokens_per_second", "answers_per_second", "sampling_share"}
NO_NUMBERS |= {"memory_gib", "memory_reserved_gib", "alloc_retries"}
NO_NUMBERS |= {f"memory_{phase}_gib" for phase in ("sampling", "scoring", "reading", "updating")}
BASE: dict[str, Any] = {
    "task": "ppo",
    "run__max_steps": 2,
    "run__tensorboard": False,
    "data__shuffle": False,
    "data__max_length": 16,
    "data__tokens_per_pack": 16,  # so that every prompt group is a pack
    "optim__lr": 3e-3,
    "optim__eps": 1e-2,  # so that no gradient of rounding errors moves a weight as far as any other does
    "optim__schedule": "constant",
    "ppo__prompts_per_step": 4,
    "ppo__samples": 3,
    "ppo__minibatches": 2,
    "ppo__max_new_tokens": 6,
}


def write_models(folder: Path) -> Path:
    """Random models of one tokenizer, which pads with its eos, in folders by name; two_ends is policy, whose
    generation_config.json has a second end and much that is not to be read."""
    words = [*SPECIAL, *LETTERS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "<eos>", "pad_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"eos_token_id": 0, "pad_token_id": 0, "bos_token_id": None, "vocab_size": len(words) + UNSEEN}
    config = LlamaConfig(**sizes, **ids, num_key_value_heads=1, tie_word_embeddings=False, num_labels=1)
    for seed, name in enumerate(("policy", "reference", "reward", "critic", "gold")):
        kind = AutoModelForCausalLM if name in ("policy", "reference") else AutoModelForSequenceClassification
        model = randomised(kind.from_config(config, dtype=torch.float32), seed)
        if kind is AutoModelForCausalLM:
            model.lm_head.weight.data[0] += 1.3 * _usual_state(model)  # or hardly an answer would end
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shutil.copytree(folder / "policy", folder / "two_ends")
    (folder / "two_ends" / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 13], **RESHAPED}))
    return folder


@torch.no_grad()
def _usual_state(model: PreTrainedModel) -> Tensor:
    """[width]: the mean of what a language model's head reads, over each single token; of length 1."""
    states = model.model(torch.arange(model.config.vocab_size)[:, None]).last_hidden_state[:, 0]
    mean = states.mean(0)
    return mean / mean.norm()


def run(folder: Path, models_folder: Path, keys: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run.

    Args:
        keys: of the command, beside `BASE`. Models are named as `write_models` names them.
    """
    monkeypatch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
    chat = "data__chat_template" in keys
    prompts = [[{"role": "user", "content": prompt}] if chat else prompt for prompt in PROMPTS]
    rows = folder / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    named = {key: models_folder / str(value) for key, value in keys.items() if (models_folder / str(value)).is_dir()}
    here = {"ppo__prompts": rows, "run__dir": folder / "run", "data__cache": folder / "cache"}
    here |= {"ppo__eval_prompts": rows} if "eval__every" in keys else {}
    if "ppo__ptx" in keys:
        shown = here["ppo__ptx_data"] = folder / "shown.jsonl"
        shown.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in SHOWN), encoding="utf-8")
    begin = {"model__path": models_folder / "policy", "ppo__reward": models_folder / "reward"}
    assert main(arguments(**BASE | begin | keys | named | here)) == 0
    return folder / "run"


def compare(out: Path) -> DenseRun:
    """Compare all that a run logged and what it made of its models with the formulas; the run in fp64, at its end."""
    config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(config["model"]["path"])
    tokenizer.chat_template = config["data"]["chat_template"]
    file = Path(config["model"]["path"]) / "generation_config.json"
    ends = np.atleast_1d(json.loads(file.read_text(encoding="utf-8"))["eos_token_id"]).tolist()
    dense = open_dense(config, len(tokenizer))
    if config["ppo"]["ptx"]:
        dense.shown = [(tokenizer(p)["input_ids"], [*tokenizer(c)["input_ids"], 0]) for p, c in SHOWN]
    start = {name: _weights(model) for name, model in dense.trained.items()}

    def answers_of(name: str, step: int) -> list[Answer]:
        answers = read_answers(read_lines(out / name), step * config["ppo"]["prompts_per_step"], tokenizer)
        for answer in answers:
            assert [token in ends for token in answer.ids] == [False] * (len(answer.ids) - 1) + [not answer.cut]
            assert not answer.cut or len(answer.ids) == config["ppo"]["max_new_tokens"]
        return answers

    def compare_evaluation(step: int) -> None:
        for line in evaluations:
            if line["step"] == step:
                gold = None if config["ppo"]["gold"] is None else load(config["ppo"]["gold"])
                expected = dense.evaluate(answers_of(f"eval/rollouts/step-{step}.jsonl", 0), gold)
                assert_same({key: line[key] for key in line.keys() - {"step", "name"}}, expected, f"eval {step}")

    evaluations = read_lines(out / "eval.jsonl")
    dense.begin([answers_of(f"rollouts/warmup-{n + 1}.jsonl", n) for n in range(config["ppo"]["reward_warmup"])])
    compare_evaluation(0)
    for number, logged in enumerate(read_lines(out / "metrics.jsonl")):
        answers = answers_of(f"rollouts/step-{number + 1}.jsonl", number)
        expected = dense.step(number, answers)
        compare_answers(read_lines(out / "rollouts" / f"step-{number + 1}.jsonl"), answers)
        of_step = {key for key in logged.keys() - NO_NUMBERS if not key.startswith("eval_")}
        assert_same({key: logged[key] for key in of_step}, expected, f"step {number + 1}")
        compare_evaluation(number + 1)
    if dense.critic is not None:
        units = json.loads((out / "critic" / "config.json").read_text(encoding="utf-8"))["rmfast_values"]
        assert_same(units, {"shift": dense.shift, "scale": dense.scale}, "units of values")
    for name, model in dense.trained.items():
        ours, theirs = _weights(load(out / {"policy": "model"}.get(name, name), lm=name == "policy")), _weights(model)
        for key, weight in theirs.items():
            moved, apart = (weight - start[name][key]).norm(), (ours[key] - weight).norm()
            assert apart <= 1e-4 * moved, f"{name} {key}: {float(apart / moved):.1e} of what it moved"
    return dense


def load(folder: str | Path, lm: bool = False) -> PreTrainedModel:
    """A model in fp64, whose padding token has a gradient as any other has."""
    kind = AutoModelForCausalLM if lm else AutoModelForSequenceClassification
    model = kind.from_pretrained(folder, dtype=torch.float64).eval()
    model.get_input_embeddings().padding_idx = None
    return model


def adapt_dense(model: PreTrainedModel, folder: str, config: Mapping[str, Any], head: bool = False) -> None:
    """Give a model PEFT's LoRA in place, with the A that a run draws, and let nothing else learn but a head.

    Args:
        folder: that it was read from.
    """
    if (options := lora_options(ModelConfig(**config["model"]))) is None:
        return
    network, _ = load_network(folder, heads=1 if head else 0, new_heads=True, lm=not head)
    adapt(network, options, seed=config["run"]["seed"])
    drawn = to_peft(network, {name: weight.detach() for name, weight in network.named_parameters()})
    settings = peft_settings(options, Path(folder), drawn) | {"modules_to_save": None}
    inject_adapter_in_model(LoraConfig(**settings | {"inference_mode": False, "task_type": None}), model)
    for name, weight in model.named_parameters():
        key = f"base_model.model.{name.replace('.default.', '.')}"
        if ".lora_" in name:
            weight.data = drawn[key].double()
        weight.requires_grad_(".lora_" in name or name == "score.weight")


def open_dense(config: Mapping[str, Any], ids: int) -> DenseRun:
    """A run as a resolved config says, before its first step."""
    ppo, path, seed, critic = config["ppo"], config["model"]["path"], config["run"]["seed"], None
    if ppo["critic"] is not None:
        folder = {"reward": ppo["reward"][0], "policy": path}.get(ppo["critic"], ppo["critic"])
        critic = load(folder)
        if ppo["critic"] == "policy":  # whose head is random
            head = load_network(path, seed=seed, heads=1, new_heads=True)[0].head
            assert head is not None
            critic.score.weight.data.copy_(head.weight.data)
        adapt_dense(critic, folder, config, head=True)
    policy = load(path, lm=True)
    adapt_dense(policy, path, config)
    return DenseRun(
        ppo=ppo,
        optim=config["optim"],
        steps=config["run"]["max_steps"],
        seed=seed,
        policy=policy,
        reference=load(ppo["reference"] or path, lm=True).requires_grad_(False),
        reward=load(ppo["reward"][0]).requires_grad_(False),
        critic=critic,
        ids=ids,
    )


def read_answers(records: Sequence[Mapping[str, Any]], first: int, tokenizer: PreTrainedTokenizerFast) -> list[Answer]:
    """The answers of a step.

    Args:
        first: the number of its first prompt in the file.
    """
    answers = []
    for record in sorted(records, key=lambda record: int(record["number"])):
        asked = [{"role": "user", "content": PROMPTS[(first + record["number"]) % len(PROMPTS)]}]
        if tokenizer.chat_template is None:
            prompt = tokenizer(asked[0]["content"])["input_ids"]
        else:
            prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        for sample in record["samples"]:
            answer = Answer(record["number"], prompt, sample["ids"], sample["stop_reason"])
            if tokenizer.chat_template is not None and not answer.cut:
                said = {"role": "assistant", "content": tokenizer.decode(answer.ids[:-1])}
                conversation = tokenizer.apply_chat_template([*asked, said])["input_ids"]
                assert conversation[: len(answer.whole)] == answer.whole
                answer.tail = conversation[len(answer.whole) :]
            answers.append(answer)
    return answers


def compare_answers(records: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> None:
    """What is kept of each answer."""
    samples = [sample for record in records for sample in record["samples"]]
    for number, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
        expected: dict[str, Any] = {
            "log_prob": answer.old.tolist(),
            "behaviour_log_prob": answer.behaviour.tolist(),
            "reference_log_prob": answer.reference.tolist(),
            "reward": answer.raw,
            "score": answer.score if answer.kept else None,
            "kl": answer.kl,
        }
        if len(answer.values):
            expected |= {"value": answer.values[:-1].tolist(), "value_after": float(answer.values[-1])}
        assert_same({key: sample[key] for key in expected}, expected, f"answer {number}")
        assert sample.keys() - expected.keys() == {"ids", "stop_reason", "sampled_log_prob"}


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """The same names, and numbers that are as near as fp32 comes."""
    assert found.keys() == expected.keys(), where
    for key, value in expected.items():
        near = None if value is None else pytest.approx(value, rel=1e-5, abs=1e-5)
        assert found[key] == near, f"{where}: {key}"


@torch.no_grad()
def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights by name, adapters added to them."""
    state = {name.replace(".base_layer.", "."): weight.clone() for name, weight in model.state_dict().items()}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            state[f"{name}.weight"] += layer.get_delta_weight("default")
    return {name: weight for name, weight in state.items() if ".lora_" not in name}
