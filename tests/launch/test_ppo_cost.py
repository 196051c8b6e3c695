"""The plan of PPO against the models that a run really holds."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from rmfast.cli import main
from rmfast.commands.plan_ppo import models_of
from rmfast.config import load_config
from rmfast.launch.ppo_cost import NEEDS, Held, on_device
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
    peaks = [max(plan["bytes_by_phase"].values()) for plan in plans]
    assert peaks == sorted(peaks) and plans[0]["bytes_by_phase"].keys() == NEEDS.keys()
    assert [line.split()[:2] for line in said.splitlines() if line.startswith(("ddp", "fsdp"))] == [
        [plan["layout"]["engine"], plan["layout"]["recompute"]] for plan in plans
    ]
