"""The plan of PPO against the models that a run really holds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from rmfast.cli import main
from rmfast.commands.plan_ppo import models_of
from rmfast.config import load_config
from rmfast.launch.cost import Layout, parameters
from rmfast.launch.hardware import Gpu
from rmfast.launch.ppo_cost import NEEDS, Held, on_device
from rmfast.launch.ppo_time import Step, phase_seconds, sampling_seconds
from rmfast.models.config import decoder_config
from rmfast.models.hf import read_config
from rmfast.models.low_rank import TARGETS
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import open_prompts
from rmfast.tasks.build.policy import ModelBuilder
from tests.ppo.tiny import command, write_inputs

LORA: dict[str, object] = {"model__adapter": "lora", "model__lora_rank": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("plan"))
    base = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    get_peft_model(base, LoraConfig(r=2, target_modules=list(TARGETS), task_type="SEQ_CLS")).save_pretrained(
        folder / "adapter"
    )
    return folder


@pytest.mark.parametrize(
    ("keys", "reward"),
    [({}, "reward"), (LORA, "reward"), (LORA | {"ppo__critic": "policy"}, "reward"), (LORA, "adapter"),
     (LORA | {"model__dtype": "bfloat16", "ppo__reference": "other-policy"}, "reward")],
)  # fmt: skip
def test_planned_bytes_are_those_of_a_run_s_models(folder: Path, keys: dict[str, object], reward: str) -> None:
    if "ppo__reference" in keys:
        keys = keys | {"ppo__reference": folder / "policy" / ".." / "policy"}
    config = load_config(command(folder, "none", **keys | {"ppo__reward": folder / reward}))
    models = ModelBuilder(config, World(), open_prompts(config, World()), {0}).models()
    engines = [models.policy, models.critic, models.reference, models.reward.scorers[0].held]
    held: dict[int, torch.nn.Parameter] = {}
    for engine in engines:
        assert isinstance(engine, NativeEngine)
        held |= {id(parameter): parameter for parameter in engine.parameters()}
    weights = sum(p.nbytes for p in held.values())
    trained = sum(p.numel() for p in held.values() if p.requires_grad)
    width = 2 if config.model.dtype == "bfloat16" else 4
    copies = width * sum(p.numel() for p in held.values() if p.requires_grad and p.dim() == 2) if width == 2 else 0
    planned = on_device(models_of(config, shared=bool(keys)), "updating", "none", width)
    # Heads, norms that stay fp32 and a frozen adapter are neglected, which are much of a model of 10,000 weights.
    assert planned == pytest.approx(weights + copies + 12 * trained, rel=0.15 if reward == "adapter" else 0.05)


def test_what_leaves_the_device_is_not_counted() -> None:
    shape = None
    models = [Held("policy", "p", shape, 100, 10), Held("critic", "r", shape, 100, 10)]  # type: ignore[arg-type]
    models += [Held("reference", "p", shape, 100), Held("reward", "r", shape, 100)]  # type: ignore[arg-type]
    found = {how: [on_device(models, phase, how, 2) for phase in NEEDS] for how in ("none", "frozen", "all")}
    # 2 x 200 frozen; 20 trained of 4 + 2 (+ 4 while updating) + 8.
    assert found["none"] == [400 + 280, 400 + 280, 400 + 280, 400 + 360]
    assert found["frozen"] == [200 + 280, 200 + 280, 400 + 280, 400 + 360]
    assert found["all"] == [200 + 120, 200 + 120, 400 + 120, 400 + 360]


def test_the_command_names_what_fits_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder / "ppo.yaml"
    config.write_text("task: ppo\n")
    arguments = [word.removeprefix("--task=ppo") for word in command(folder, "none", **LORA)]
    out = folder / "plans.json"
    assert main(["plan", str(config), *filter(None, arguments), "--gpus", "4", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "policy 0.0 M weights (0.0 M trained), critic" in said and "steps of 4 prompts of at most 4 tokens" in said
    plans = json.loads(out.read_text())["plans"]
    assert {plan["layout"]["engine"] for plan in plans} == {"ddp", "fsdp"} and len(plans) == 6
    times = [sum(plan["seconds_by_phase"].values()) for plan in plans]
    assert times == sorted(times)
    assert all(plan["bytes_by_phase"].keys() == plan["seconds_by_phase"].keys() == NEEDS.keys() for plan in plans)
    assert [line.split()[:2] for line in said.splitlines() if line.startswith(("ddp", "fsdp"))] == [
        [plan["layout"]["engine"], plan["layout"]["recompute"]] for plan in plans
    ]


UNIT = Gpu(memory=1e12, matrix=1e9, single=1e9, bandwidth=1e30, nvlink=1e30, network=1e30, matrix_share=1.0)


def test_seconds_are_the_products_of_each_phase_over_the_rate() -> None:
    shape = decoder_config(read_config("configs/shapes/llama3-8b"), "Llama")
    whole = parameters(shape)
    models = [Held(name, name, shape, whole, whole) for name in ("policy", "critic")]
    models += [Held(name, name, shape, whole) for name in ("reference", "reward", "reward")]
    step = Step(prompts=8, samples=4, prompt=100, answer=50, rows=16, epochs=2, minibatches=4)
    found = phase_seconds(models, Layout("ddp", 1), step, UNIT, pack=512, activation=4)
    layers, head = 2 * shape.layers * shape.layer_parameters / 1e9, 2 * shape.vocabulary * shape.width / 1e9
    width = 4 * shape.layers * shape.heads * shape.head_dim / 1e9
    prompts = 800 * layers + width * 8 * 100**2 / 2
    seen = width * 8 * 4 * 50 * (100 + 25)
    answers = 1600 * layers + seen
    assert found["sampling"] == pytest.approx(prompts + answers + 1600 * head, rel=1e-4)
    assert found["scoring"] == pytest.approx(2 * (prompts + answers), rel=1e-4)
    assert found["reading"] == pytest.approx(3 * (prompts + answers) + 2 * 1600 * head, rel=1e-4)
    assert found["updating"] == pytest.approx(2 * 2 * 3 * (prompts + answers) + 2 * 4 * 1600 * head, rel=1e-4)
    adapters = [replace(model, trained=model.trained // 100) for model in models]
    less = phase_seconds(adapters, Layout("ddp", 1), step, UNIT, pack=512, activation=4)
    assert less["updating"] == pytest.approx(found["updating"] - 2 * 2 * 2400 * layers, rel=1e-4)


def test_decoding_takes_the_longer_of_products_and_of_what_it_reads() -> None:
    shape = decoder_config(read_config("configs/shapes/llama3-8b"), "Llama")
    step, slow = Step(8, 4, 100, 50, rows=16), replace(UNIT, matrix=1e30, single=1e30, bandwidth=1e9)
    layout = Layout("ddp", 1)
    few, many = (sampling_seconds(shape, layout, replace(step, rows=rows), slow, 2) for rows in (16, 32))
    weights = 2 * (shape.layers * shape.layer_parameters + shape.vocabulary * shape.width) / 1e9
    assert few - many == pytest.approx(50 * weights, rel=1e-6)  # once less through 50 steps; keys are the same
    assert sampling_seconds(shape, Layout("fsdp", 2), step, replace(slow, nvlink=1e9), 2) > parameters(shape) / 1e9
