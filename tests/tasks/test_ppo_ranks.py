"""Ranks that run PPO together do what one process does, and go on to the same bits when one of them is killed."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from rmfast.train import main
from tests.ppo import tiny
from tests.ppo.tiny import COMPANY, assert_same_run, critic_of, drawn_of, steps_of, write_inputs
from tests.runs import Case, final_weights, launch

BASE: dict[str, object] = {"optim__lr": 1e-3, "run__max_steps": 3}
QUIET: dict[str, object] = {"run__max_steps": 2, "ppo__eval_prompts": "[]", "eval__every": "null"}
# A rank without prompts; one without a token that counts; and ratios of bf16, whose sums are rounded by rank.
FEW = BASE | QUIET | {"ppo__prompts_per_step": 1, "ppo__minibatches": 1}
MASKED = BASE | QUIET | {"ppo__prompts_per_step": 2, "ppo__truncated": "mask", "ppo__max_new_tokens": 1}
LORA = BASE | QUIET | {"model__adapter": "lora", "model__lora_rank": 2, "ppo__critic": "policy"}  # of one trunk
BF16 = BASE | QUIET | {"ppo__critic_warmup": 0, "model__dtype": "bfloat16", "model__recompute": "full"}


def command(folder: Path, run: str, **more: object) -> list[str]:
    """With demonstrations beside the answers, whose packs ranks share too."""
    return tiny.command(folder, run, ppo__ptx=0.3, ppo__ptx_rows=3, ppo__ptx_data=folder / "shown.jsonl", **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("ppo"))
    rows = [{"prompt": "a b", "completion": f" {letter} d"} for letter in "cdefghi"]
    (folder / "shown.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    """What one process does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
        for name, keys in (("one", BASE), ("few", FEW), ("masked", MASKED), ("lora", LORA)):
            assert main(command(folder, name, **keys)) == 0
    return folder / "one"


@pytest.mark.slow
def test_two_ranks_against_one(folder: Path, one: Path) -> None:
    runs = {"ddp": BASE, "few-ddp": FEW, "masked-fsdp": MASKED, "bf16-fsdp": BF16, "lora-ddp": LORA, "lora-fsdp": LORA}
    cases = [
        Case(name, command(folder, name, **keys, parallel__data=name.rpartition("-")[2]), "none:0")
        for name, keys in runs.items()
    ]
    shutil.copytree(one, folder / "more")
    shutil.rmtree(folder / "more" / "checkpoints" / "step-3")
    cases.append(Case("more", command(folder, "more", **BASE, parallel__data="fsdp")))
    codes = launch(folder / "logs", cases, ranks=2)
    assert codes == {name: [0, 0] for name in [*runs, "more"]}
    assert "resumed from step 2" in (folder / "logs" / "more-0.log").read_text()  # which one process saved
    truths = {"ddp": "one", "few-ddp": "few", "masked-fsdp": "masked", "more": "one"}
    for name, truth in (truths | {"lora-ddp": "lora", "lora-fsdp": "lora"}).items():
        assert_close(folder / name, folder / truth)
    for name in ("ddp", "bf16-fsdp"):
        lines = steps_of(folder / name)
        assert lines[0]["objective/kl"] == 0 and all(line.get("first_ratio_gap", 0) == 0 for line in lines)
        assert "first_ratio_gap" in lines[1]
    # Each prompt is drawn by one rank, and all ranks learn from all: of one prompt a step the second draws none.
    drew = [set(re.findall(r"^drew (\d+)$", (folder / "logs" / f"ddp-{r}.log").read_text(), re.M)) for r in range(2)]
    assert len(drew[0]) == len(drew[1]) == 6 // 2 + 4 * 4 // 2 and not drew[0] & drew[1]
    assert "drew" not in (folder / "logs" / "few-ddp-1.log").read_text()
    assert all(line["masked_answers"] >= 5 for line in steps_of(folder / "masked-fsdp"))


@pytest.mark.slow
def test_when_one_rank_is_killed_all_go_on_to_the_same_bits(folder: Path, one: Path) -> None:
    whole, killed = (command(folder, name, **BASE, parallel__data="fsdp") for name in ("fsdp", "killed"))
    # In the second rank's last prompt of step 1, behind two of the warm-up; and in step 3, behind the checkpoint.
    kills = [Case(f"killed {i}", killed, kill) for i, kill in enumerate(("draw:4@1", "step:14@0", ""))]
    codes = launch(folder / "killed logs", [Case("whole", whole), *kills], ranks=2)
    assert codes["whole"] == codes["killed 2"] == [0, 0]
    assert codes["killed 0"][1] == codes["killed 1"][0] == -9
    assert "resumed from step 2" in (folder / "killed logs" / "killed 2-0.log").read_text()
    assert_same_run(folder / "killed", folder / "fsdp")
    assert_close(folder / "fsdp", one)
    lines = steps_of(folder / "fsdp")
    assert [line.get("first_ratio_gap") for line in lines] == [None, 0, 0] and lines[1]["objective/kl"] == 0


def assert_close(many: Path, one: Path) -> None:
    """The same tokens; figures and weights to rounding."""
    assert drawn_of(many) == drawn_of(one)
    for ours, theirs in zip(steps_of(many), steps_of(one), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=1e-5, abs=1e-5 if key in COMPANY else 1e-6), key
    for weights, expected in ((final_weights(many), final_weights(one)), (critic_of(many), critic_of(one))):
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-5)
