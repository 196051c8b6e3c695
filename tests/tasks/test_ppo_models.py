"""Models beside the policy that would read its ids as other texts, or not all of them, are refused at the start."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import LlamaForSequenceClassification

from rmfast.train import main
from tests.ppo.tiny import command, write_inputs

OTHER = "has another tokenizer than model.path"
SHORT = "takes 16 tokens, fewer than data.max_length (32)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside what runs read: `swapped-` reward and policy, whose tokenizer has two letters swapped; `short`, a reward
    model of few positions; `two`, one of two heads."""
    folder = write_inputs(tmp_path_factory.mktemp("ppo"))
    for name in ("reward", "policy"):
        shutil.copytree(folder / name, folder / f"swapped-{name}")
        file = folder / f"swapped-{name}" / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        file.write_text(json.dumps(tokenizer))
    shutil.copytree(folder / "reward", folder / "short")
    file = folder / "short" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 16}))
    shutil.copytree(folder / "reward", folder / "two")
    config = LlamaForSequenceClassification.from_pretrained(folder / "reward").config
    config.num_labels = 2
    LlamaForSequenceClassification(config).save_pretrained(folder / "two")
    file = folder / "two" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rmfast": {"heads": "ensemble"}}))
    return folder


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("critic", "swapped-reward", OTHER),
        ("reference", "swapped-policy", OTHER),
        ("reward", "short", SHORT),
        ("critic", "short", SHORT),
        ("critic", "two", "has several reward heads, and a critic has one"),
        ("reward", "policy", "this is no reward model"),
        ("reference", "reward", "a reward model; a policy is a causal language model"),
    ],
)
def test_a_model_that_cannot_do_its_part_is_one_line(
    folder: Path, key: str, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, "refused", **{f"ppo__{key}": folder / name})) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"rmfast: ppo.{key}: {folder / name}") and said in line
    assert not (folder / "refused" / "rollouts").exists()
