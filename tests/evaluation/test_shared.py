"""Models that share a trunk on disk: written with links, recognised by their files, and scored with one pass of it."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

import rmfast
from rmfast import cli
from rmfast.checkpoint.export import ModelParts, write_model
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.rows import read_row
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.evaluation.scoring.shared import by_trunk, load_together, shared_layers
from rmfast.models.hf import load_network
from rmfast.models.members import SharedNetwork
from rmfast.models.save import INDEX, SharedWeights
from tests.runs import read_lines, write_rows
from tests.runs import write_model as write_decoder

LAYERS, TOP = 3, 1
ROWS = [{"prompt": "the cat", "responses": [" sat on a mat", " ran home", ""]}, {"prompt": "", "responses": [" two"]}]


def write_members(folder: Path, count: int = 3) -> list[Path]:
    """Reward models whose embedding and lower layers are one."""
    base = write_decoder(folder / "base", layers=LAYERS)
    network, hf = load_network(base, new_heads=True)
    whole = {name: p.detach() for name, p in network.named_parameters()}
    top = f"decoder.layers.{LAYERS - TOP}."
    trunk = frozenset(name for name in whole if name.startswith("decoder.") and not name.startswith(top))
    tokenizer = load_tokenizer(base)
    paths: list[Path] = []
    for number in range(count):
        draw = torch.Generator().manual_seed(number)
        state = {n: w if n in trunk else w + 0.1 * torch.randn(w.shape, generator=draw) for n, w in whole.items()}
        shared = SharedWeights(trunk, paths[0] if paths else None)
        parts = ModelParts(hf, network.config, state, tokenizer, torch.float32, shared=shared)
        paths.append(folder / f"{number:02d}")
        write_model(paths[-1], parts)
    return paths


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_members(tmp_path_factory.mktemp("members"))


def copy_of(path: Path, name: str) -> Path:
    return Path(shutil.copytree(path, path.with_name(name)))


def test_the_trunk_is_one_file_that_each_model_has(members: Sequence[Path]) -> None:
    maps = [json.loads((path / INDEX).read_text())["weight_map"] for path in members]
    assert maps[0] == maps[1] == maps[2] and len(set(maps[0].values())) == 2
    trunk, top = maps[0]["model.embed_tokens.weight"], maps[0]["score.weight"]
    assert (trunk, top) == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert maps[0][f"model.layers.{LAYERS - TOP - 1}.mlp.down_proj.weight"] == trunk
    assert maps[0][f"model.layers.{LAYERS - TOP}.mlp.down_proj.weight"] == maps[0]["model.norm.weight"] == top
    assert {(path / trunk).stat().st_ino for path in members} == {(members[0] / trunk).stat().st_ino}
    assert len({(path / top).stat().st_ino for path in members}) == len(members)
    for path in members:
        AutoModelForSequenceClassification.from_pretrained(path)
        ours = dict(load_network(path)[0].named_parameters())
        with safe_open(path / top, "pt") as file:
            assert torch.equal(ours["head.weight"], file.get_tensor("score.weight"))


def test_where_links_are_not_possible_the_trunk_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    paths = write_members(tmp_path, 2)
    trunk = "model-00001-of-00002.safetensors"
    assert (paths[0] / trunk).stat().st_ino != (paths[1] / trunk).stat().st_ino
    assert shared_layers(*paths) == LAYERS - TOP


def test_together_they_score_as_each_alone_and_run_the_trunk_once(
    members: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    score = SharedNetwork.score

    def counted(self: SharedNetwork, pack: object) -> torch.Tensor:
        hook = self.trunk.register_forward_hook(lambda *_: calls.append(1))
        scores = score(self, pack)  # type: ignore[arg-type]
        hook.remove()
        return scores

    monkeypatch.setattr(SharedNetwork, "score", counted)
    together = load_together(members)
    assert sum(p.numel() for p in together.network.parameters()) < 2 * sum(
        p.numel() for p in load_network(members[0])[0].parameters()
    )
    examples = [read_row(str(i), row, kind=RESPONSES) for i, row in enumerate(ROWS)]
    scores = together.score_examples(examples)
    assert len(calls) == 1
    for number, path in enumerate(members):
        for ours, alone in zip(scores, rmfast.load(path).score_examples(examples), strict=True):
            assert np.allclose(ours[:, number], alone[:, 0], atol=1e-5)


def test_a_trunk_is_recognised_by_its_files(members: Sequence[Path], tmp_path: Path) -> None:
    assert by_trunk(members) == [list(members)]
    base = members[0].parent / "base"
    assert by_trunk([members[0], base, *members[1:]]) == [[members[0]], [base], list(members[1:])]
    other = write_members(tmp_path, 1)[0]  # the same weights, written again: the checksums say so
    assert shared_layers(members[0], other) == LAYERS - TOP
    for number, harm in enumerate(("weights", "tokenizer", "note")):
        copy = copy_of(members[1], f"other-{number}")
        if harm == "weights":
            state, parts = load_network(copy)[0].state_dict(), members[0]
            state["decoder.layers.0.out.weight"] += 1.0
            network, hf = load_network(copy)
            trunk = frozenset(n for n in state if n.startswith("decoder.") and ".layers.2." not in n)
            shutil.rmtree(copy)
            tokenizer = load_tokenizer(parts)
            made = ModelParts(hf, network.config, state, tokenizer, torch.float32, shared=SharedWeights(trunk))
            write_model(copy, made)
        elif harm == "tokenizer":
            (copy / "tokenizer_config.json").write_text("{}")
        else:
            (copy / "rmfast.json").unlink()
        assert shared_layers(members[0], copy) == 0, harm
        shutil.rmtree(copy)
    with pytest.raises(UserError, match="no models that share a trunk"):
        load_together([members[0], base])


def test_score_and_eval_give_what_they_give_of_models_alone(
    members: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 6)
    paths = [str(path) for path in members]

    def run() -> tuple[list[float], dict[str, float], str]:
        out, figures = tmp_path / "out.jsonl", tmp_path / "figures.json"
        assert cli.main(["score", *paths, "--data", str(rows), "--out", str(out)]) == 0
        common = ["--data", str(rows), "--combine", "worst", "--out", str(figures)]
        assert cli.main(["eval", *paths, *common]) == 0
        rewards = [r for row in read_lines(out) for member in row["rewards"] for r in member]
        return rewards, json.loads(figures.read_text()), capsys.readouterr().out

    rewards, figures, said = run()
    assert said.count("3 models share a trunk, which is computed once") == 2 and "heads" not in said
    monkeypatch.setattr("rmfast.commands.flags.by_trunk", lambda paths: [[path] for path in paths])
    alone, theirs, said = run()
    assert "share a trunk" not in said
    assert rewards == pytest.approx(alone, abs=1e-5)
    assert figures["members"] == theirs["members"] and figures["margin"] == pytest.approx(theirs["margin"], abs=1e-4)
