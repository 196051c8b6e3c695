"""Ranks that share answers among several reward models, one of which transformers runs, do what one process does."""

from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForSequenceClassification

from rmfast.data.tokenizer import byte_tokenizer
from rmfast.train import main
from tests.ppo.tiny import command, write_inputs
from tests.runs import Case, launch
from tests.tasks.test_ppo_ranks import assert_close


@pytest.mark.slow
def test_two_ranks_with_several_reward_models_against_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`neox` is of a family that the decoder does not have, with a token for each byte."""
    monkeypatch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
    folder, tokenizer = write_inputs(tmp_path), byte_tokenizer()
    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = GPTNeoXConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.2, **sizes)
    GPTNeoXForSequenceClassification(config).save_pretrained(folder / "neox")
    tokenizer.save_pretrained(folder / "neox")

    def words(run: str) -> list[str]:
        keys = {"run__max_steps": 2, "optim__lr": 1e-3, "ppo__critic": "policy", "ppo__reward_rule": "worst"}
        found = command(folder, run, **keys, ppo__reward="REWARD", ppo__gold=folder / "neox")
        place = found.index("REWARD")
        return [*found[:place], str(folder / "neox"), str(folder / "reward"), *found[place + 1 :]]

    assert main(words("one")) == 0
    assert launch(folder / "logs", [Case("two", words("two"), "none:0")], ranks=2) == {"two": [0, 0]}
    assert_close(folder / "two", folder / "one")
