"""Adapters under two other tasks: MetaRM moves them alone, and each member of an ensemble has its own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rmfast
from rmfast.train import main
from tests.runs import final_weights, read_lines
from tests.tasks import ensembles, test_meta
from tests.tasks.test_meta import assert_same_weights, lines, write_samples

pytestmark = pytest.mark.usefixtures("no_plots")

LORA: dict[str, object] = {"model__adapter": "lora", "model__lora_rank": 2, "model__dropout": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = ensembles.write_inputs(tmp_path_factory.mktemp("adapters"))
    write_samples(folder / "samples.jsonl", 11)
    return folder


def test_meta_rm_s_ascent_moves_adapters_and_head_alone(folder: Path) -> None:
    more: dict[str, object] = {"run__max_steps": 3, "meta__check_every": 1, "data__max_length": 40} | LORA
    assert main(test_meta.command(folder, "meta", **more)) == 0
    for line in read_lines(folder / "meta" / "metrics.jsonl"):
        rise = line["difference_loss_after"] - line["difference_loss"]
        assert rise > 0 and rise == pytest.approx(0.05 * line["difference_grad_norm"] ** 2, rel=0.2)
    before, after = load_file(folder / "model" / "model.safetensors"), final_weights(folder / "meta")
    moved = {name for name, weight in after.items() if name in before and not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "_proj" in name}
    # Without an ascent it is the reward task, to the bit.
    still = more | {"meta__eta": 0, "meta__check_every": "null"}
    assert main(test_meta.command(folder, "still", **still)) == 0
    reward = {key: value for key, value in more.items() if not key.startswith("meta")}
    assert main(test_meta.command(folder, "reward", "reward", **reward)) == 0
    assert lines(folder / "still") == lines(folder / "reward")
    assert_same_weights(folder / "still", folder / "reward")


def test_each_member_of_an_ensemble_has_its_adapter(folder: Path) -> None:
    more = {"ensemble__mode": "full", "ensemble__members": 2, "run__max_steps": 2} | LORA
    assert main(ensembles.command(folder, "full", **more)) == 0
    rows = [row for row in read_lines(folder / "full" / "data.jsonl") if "error" not in row]
    pairs = [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]} for row in rows[:4]]
    adapters = [folder / "full" / "members" / f"{member:02d}" / "adapter" for member in range(2)]
    for member, adapter in enumerate(adapters):
        for place in (adapter, adapter.parent):  # by itself over the base, and merged into it
            found = rmfast.load(place).score(pairs)
            for row, scores in zip(rows, found, strict=False):
                assert scores == pytest.approx(row["rewards"][member], abs=1e-4), place
    one, two = (load_file(adapter / "adapter_model.safetensors") for adapter in adapters)
    assert one.keys() == two.keys() and not any(torch.equal(weight, two[name]) for name, weight in one.items())
