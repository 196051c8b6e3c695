"""PPO with adapters: what models share, what is trained, and what a run leaves. Numbers are in test_ppo_numbers."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rmfast
from rmfast.checkpoint.store import open_checkpoint
from rmfast.config import load_config
from rmfast.data.example import Example
from rmfast.data.pack import Pack, build_pack
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.store import store_examples
from rmfast.data.table import build_table
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import open_prompts
from rmfast.tasks.build.policy import ModelBuilder
from rmfast.train import main
from rmfast.trainer.ppo.models import Models
from tests.ppo.tiny import assert_same_run, command, write_inputs
from tests.runs import final_weights, read_lines

LORA: dict[str, object] = {"model__adapter": "lora", "model__lora_rank": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside what runs read: `adapter` and `second`, reward models that are PEFT's adapters of the policy."""
    folder = write_inputs(tmp_path_factory.mktemp("ppo"))
    for name, rank in (("adapter", 3), ("second", 2)):
        torch.manual_seed(rank)
        base = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
        targets = ["q_proj", "v_proj", "down_proj"]
        settings = LoraConfig(r=rank, lora_alpha=7, target_modules=targets, task_type="SEQ_CLS")
        settings.init_lora_weights = False
        get_peft_model(base, settings).save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)


def models_of(folder: Path, **keys: object) -> Models:
    config, world = load_config(command(folder, "none", **LORA | keys)), World()
    return ModelBuilder(config, world, open_prompts(config, world), {0}).models()


def pack_of(folder: Path) -> Pack:
    """A sequence of five tokens, all of which are predicted."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    table = build_table([store_examples([Example(None, ([3, 5, 7, 9, 4],), prompt_ids=1)], tokenizer)], kind=RESPONSES)
    return build_pack(table[0], np.arange(1), predicts="all")


def decoders(models: Models) -> list[int]:
    """Which decoder policy, reference, reward and critic have, as numbers."""
    engines = [models.policy, models.reference, models.reward.scorers[0].held, models.critic]
    assert all(isinstance(engine, NativeEngine) for engine in engines)
    found = [id(engine.network.decoder) for engine in engines]
    return [found.index(one) for one in found]


def test_models_share_the_trunk_that_they_are_adapters_of(folder: Path) -> None:
    assert decoders(models_of(folder, ppo__critic="policy")) == [0, 0, 2, 0]
    assert decoders(models_of(folder)) == [0, 0, 2, 2]  # the critic begins as the reward model
    assert decoders(models_of(folder, ppo__reward=folder / "adapter")) == [0, 0, 0, 0]
    assert decoders(models_of(folder, ppo__reference=folder / "policy")) == [0, 0, 2, 2]
    assert decoders(models_of(folder, ppo__critic=folder / "other")) == [0, 0, 2, 3]
    assert decoders(models_of(folder, model__adapter="none", model__lora_rank=16)) == [0, 1, 2, 3]


def test_several_reward_models_over_one_trunk_score_as_each_alone(folder: Path) -> None:
    models = models_of(folder, ppo__reward=(folder / "adapter", folder / "second"), ppo__gold=folder / "second")
    held = [scorer.held for scorer in (*models.reward.scorers, models.gold) if scorer is not None]
    assert all(isinstance(one, NativeEngine) for one in held) and len(held) == 3
    assert {id(one.network.decoder) for one in held} == {id(models.policy.network.decoder)}
    first, second, gold = (one.score([pack_of(folder)])[0] for one in held)
    assert torch.equal(second, gold) and not torch.allclose(first, second)
    alone = models_of(folder, ppo__reward=folder / "second").reward.scorers[0].held
    assert isinstance(alone, NativeEngine) and torch.equal(alone.score([pack_of(folder)])[0], second)


@pytest.mark.parametrize("reward", ["reward", "adapter"])
def test_the_critic_begins_as_the_reward_model_and_training_moves_it_alone(folder: Path, reward: str) -> None:
    models = models_of(folder, ppo__reward=folder / reward)
    critic, scorer = models.critic, models.reward.scorers[0].held
    assert isinstance(critic, NativeEngine) and isinstance(scorer, NativeEngine)
    pack = pack_of(folder)
    before = scorer.score([pack])[0]
    assert torch.equal(critic.score([pack])[0], before) and critic.parameter_counts()[1] == len(before[0]) * 32 + sum(
        p.numel() for name, p in critic.network.named_parameters() if ".critic." in name
    )
    trained = {name for name, p in critic.network.parts() if p.requires_grad}
    assert trained == {name for name, _ in critic.network.parts() if ".critic." in name} | {"head.weight"}
    for parameter in critic.optimizer.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    critic.optimizer_step(0.1)
    assert torch.equal(scorer.score([pack])[0], before) and not torch.equal(critic.score([pack])[0], before)


def test_a_reward_model_over_the_trunk_scores_as_by_itself(folder: Path) -> None:
    keys = LORA | {"ppo__reward": folder / "adapter", "eval__every": "null", "ppo__eval_prompts": "[]"}
    assert main(command(folder, "over", **keys)) == 0
    (line, *_) = read_lines(folder / "over" / "rollouts" / "step-3.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder / "adapter", num_labels=1).eval()
    for sample in line["samples"]:
        ids = torch.tensor([tokenizer(line["prompt"])["input_ids"] + sample["ids"]])
        head = model.base_model.model
        score = head.score(head.model(ids).last_hidden_state[0, -1])
        assert float(score) == pytest.approx(sample["reward"], abs=1e-5)


def test_a_run_resumes_to_the_same_bits_and_leaves_model_and_adapter(folder: Path) -> None:
    assert main(command(folder, "whole", **LORA)) == 0
    shutil.copytree(folder / "whole", folder / "again")
    shutil.rmtree(folder / "again" / "checkpoints" / "step-3")
    for name in ("model", "critic", "adapter"):
        shutil.rmtree(folder / "again" / name)
    assert main(command(folder, "again", **LORA)) == 0
    assert_same_run(folder / "again", folder / "whole")
    names = {name for name, weight in final_weights(folder / "whole").items() if weight.dim() == 2}
    assert any("q_proj" in name for name in names)
    rows = [{"prompt": "a b c", "responses": [" d e", " f"]}]
    merged = rmfast.load_policy(folder / "whole" / "model").log_prob(rows)
    for other in (folder / "whole" / "adapter", folder / "whole" / "checkpoints" / "step-3"):
        for ours, theirs in zip(merged[0], rmfast.load_policy(other).log_prob(rows)[0], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
    first = rmfast.load_policy(folder / "policy").log_prob(rows)
    assert abs(first[0][0][0] - merged[0][0][0]) > 1e-4
    with open_checkpoint(folder / "whole" / "checkpoints" / "step-3") as (_, shapes):
        kept = {name for name in shapes if "model/" in name}
    assert kept and all(".adapters." in name or name == "critic/model/head.weight" for name in kept)


def test_another_trunk_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = LORA | {"ppo__critic": folder / "critic", "run__max_steps": 2}
    shutil.copytree(folder / "reward", folder / "critic")
    assert main(command(folder, "trunks", **keys)) == 0
    shutil.rmtree(folder / "critic")
    shutil.copytree(folder / "other", folder / "critic")
    assert main(command(folder, "trunks", **keys)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "ppo.critic: its weights are not those that the checkpoint's adapter was trained on" in said
