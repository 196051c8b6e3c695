"""What a run and the commands say of a model folder: its window, its head, its labels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import rmfast
from rmfast.cli import main
from rmfast.data.example import Example
from rmfast.errors import UserError
from rmfast.models.config import context_window
from rmfast.train import main as train
from tests.runs import ROOT, arguments, read_lines, write_model, write_rows
from tests.scoring import assert_same_scores, save_reward_model, transformers_scores
from tests.tiny import LLAMA3_ROPE, hf_config

pytestmark = pytest.mark.usefixtures("no_plots")

LABELS = {0: "helpfulness", 1: "verbosity"}
WINDOW = 48
CONFIG = str(ROOT / "configs" / "quickstart.yaml")
SHORT = {"prompt": "The cat", "responses": [" sat", " ran home"], "edges": [[0, 1]]}
LONG = {"prompt": "The cat", "responses": [" sat", " ran home" * 60], "edges": [[0, 1]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with a narrow window: without head, with one, and a classifier of two labels."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder / "base")
    raw = json.loads((folder / "base" / "config.json").read_text()) | {"max_position_embeddings": WINDOW}
    (folder / "base" / "config.json").write_text(json.dumps(raw))
    save_reward_model(folder / "one", max_position_embeddings=WINDOW)
    save_reward_model(folder / "two", num_labels=2, max_position_embeddings=WINDOW, id2label=LABELS,
                      label2id={v: k for k, v in LABELS.items()})  # fmt: skip
    write_rows(folder / "rows.jsonl", 8)
    (folder / "mixed.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in (SHORT, LONG, SHORT)))
    return folder


def command(folder: Path, run: Path, **more: object) -> list[str]:
    keys: dict[str, object] = {
        "model__path": folder / "base",
        "data__train": folder / "rows.jsonl",
        "data__cache": folder / "cache",
        "data__pairs_per_step": 4,
        "data__max_length": WINDOW,
        "run__dir": run,
        "run__tensorboard": False,
        "run__max_steps": 1,
    }
    return arguments(**(keys | more))


# The window


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({}, 4096),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, 8192),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, 8192),
        # As Qwen2.5's, whose max_position_embeddings stays, and as DeepSeek's, which is the scaled length.
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                              "original_max_position_embeddings": 4096}}, 16384),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                              "original_max_position_embeddings": 1024}}, 4096),
        ({"rope_parameters": LLAMA3_ROPE}, 4096),
    ],
)  # fmt: skip
def test_the_window_is_that_of_the_scaled_positions(changes: dict, window: int) -> None:
    for name in ("llama", "qwen2", "qwen3", "mistral-window"):  # a sliding window is no limit
        assert context_window(hf_config(name, **changes)) == window


def test_a_row_beyond_the_window_is_refused_or_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = rmfast.load(folder / "one")
    with pytest.raises(UserError, match=rf"row 1: too long: \d+ tokens, and the model takes {WINDOW}"):
        model.score([SHORT, LONG])
    ids = list(range(10, 10 + WINDOW))
    assert len(model.score_examples([Example(None, (ids,))])) == 1  # the longest that fits
    with pytest.raises(UserError, match=f"example 2: too long: {WINDOW + 1} tokens"):
        model.score_examples([Example(None, (ids,)), Example(None, ([*ids, 5],))])
    out = tmp_path / "out.jsonl"
    data = ["--data", str(folder / "mixed.jsonl"), "--out", str(out)]
    assert main(["score", str(folder / "one"), *data]) == 0
    assert "1 of 3 rows could not be scored: 1 too long" in capsys.readouterr().out
    assert [row["rewards"] is None for row in map(json.loads, out.read_text().splitlines())] == [False, True, False]
    assert main(["eval", str(folder / "one"), *data[:2]]) == 0
    assert "1 of 3 rows could not be scored: 1 too long" in capsys.readouterr().out


def test_training_refuses_a_length_beyond_the_window(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(command(folder, tmp_path / "run", data__max_length=WINDOW + 1)) == 2
    error = capsys.readouterr().err
    assert "data.max_length: 49 tokens are more than the 48" in error and "set data.max_length to 48" in error
    assert not (tmp_path / "run").exists()
    keys = command(folder, tmp_path / "run", data__max_length=WINDOW + 1)
    assert main(["plan", CONFIG, "--gpus", "1", "--tokens-per-group", "40", *keys]) == 2
    assert "data.max_length: 49 tokens" in capsys.readouterr().err


def test_a_suite_of_a_run_counts_rows_beyond_the_window(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suites = f"pairwise={folder / 'mixed.jsonl'}"
    assert train(command(folder, tmp_path / "run", eval__suites=suites)) == 0
    assert "suite pairwise: 2 rows, 1 prompts, 1 rows cannot be scored" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "eval" / "pairwise-1.json").read_text())
    assert result["not_scored_by_cause"] == {"too long": 1}


def test_an_ensemble_names_a_row_that_it_could_not_judge(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"task": "ensemble", "data__train": folder / "mixed.jsonl", "data__over_long": "truncate"}
    assert train(command(folder, tmp_path / "run", **keys)) == 2
    assert "mixed.jsonl:2: too long" in capsys.readouterr().err


# The head


def test_a_run_says_whether_its_head_is_new(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(run: str, **keys: object) -> str:
        assert train(command(folder, tmp_path / run, **keys)) == 0
        return capsys.readouterr().out

    assert "the reward head is new, randomly initialised (run.seed 0)" in said("new")
    assert "2 reward heads are new, randomly initialised" in said("heads", model__heads=2)
    one = folder / "one"
    assert f"the reward head is that of {one}\n" in said("one", model__path=one)
    assert "randomly initialised" in said("scratch", model__path=one, model__from_scratch=True)
    ensemble = tmp_path / "heads" / "model"  # of rmfast: its heads are known for an ensemble's
    assert f"the 2 reward heads are those of {ensemble}" in said("again", model__path=ensemble)
    assert rmfast.load(ensemble).network.head.weight.shape[0] == 2
    raw = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps(raw | {"pad_token_id": 2}))
    try:
        assert "'<|im_end|>', ends sequences" in said("pad", model__path=one)
    finally:
        (one / "config.json").write_text(json.dumps(raw))


def test_training_on_labels_needs_a_word(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(command(folder, tmp_path / "run", model__path=folder / "two")) == 2
    assert "a classifier of 2 labels (helpfulness, verbosity)" in capsys.readouterr().err
    assert train(command(folder, tmp_path / "run", model__path=folder / "two", model__heads=2)) == 0


def test_commands_take_a_label_and_a_scored_token(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two, data = str(folder / "two"), ["--data", str(folder / "rows.jsonl")]
    assert main(["score", two, *data, "--out", str(tmp_path / "out.jsonl")]) == 2
    assert "--label" in capsys.readouterr().err
    rewards = {}
    for label in ("verbosity", "1", "ensemble"):
        out = tmp_path / f"{label}.jsonl"
        assert main(["score", two, *data, "--out", str(out), "--label", label, "--scored-token", "last"]) == 0
        rewards[label] = [row["rewards"] for row in read_lines(out)]
    assert rewards["verbosity"] == rewards["1"]
    np.testing.assert_allclose([row[1] for row in rewards["ensemble"]], rewards["1"], rtol=1e-5)
    assert main(["eval", two, *data, "--label", "verbosity"]) == 0
    exported = tmp_path / "exported"
    assert main(["export", two, "--out", str(exported), "--label", "verbosity"]) == 0
    rows = [SHORT]
    theirs = transformers_scores(exported, rows)
    assert_same_scores(rmfast.load(exported).score(rows), theirs)
    assert_same_scores(rmfast.load(two, label=1).score(rows), theirs)


def test_an_adapter_is_named_wherever_a_model_is_taken(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "some/base"}')
    data = ["--data", str(folder / "rows.jsonl")]
    keys = command(folder, tmp_path / "run", model__path=adapter)
    for words in (
        ["score", str(adapter), *data, "--out", str(tmp_path / "o.jsonl")],
        ["eval", str(adapter), *data],
        ["eval", "--judge", str(adapter), *data],
        ["export", str(adapter), "--out", str(tmp_path / "x")],
        ["plan", CONFIG, "--gpus", "1", *keys],
    ):
        assert main(words) == 2
        assert "a PEFT adapter (adapter_config.json, LORA of some/base)" in capsys.readouterr().err, words[0]
    assert train(keys) == 2
    assert "a PEFT adapter" in capsys.readouterr().err


def test_an_adapter_is_taken_wherever_a_model_is(folder: Path, tmp_path: Path) -> None:
    """Scored, evaluated, exported and trained from, as the model that it is merged into."""
    base = shutil.copytree(folder / "base", tmp_path / "base")
    lora = {"model__path": base, "model__adapter": "lora", "model__lora_rank": 2, "optim__lr": 1e-2}
    assert train(command(folder, tmp_path / "first", **lora)) == 0
    adapter, whole = tmp_path / "first" / "adapter", tmp_path / "first" / "model"
    rows, data = [SHORT], ["--data", str(folder / "rows.jsonl")]
    expected = transformers_scores(whole, rows)
    assert_same_scores(rmfast.load(adapter).score(rows), expected)
    checkpoint = next((tmp_path / "first" / "checkpoints").iterdir())
    assert_same_scores(rmfast.load(checkpoint).score(rows), expected)
    for words in (
        ["score", str(adapter), *data, "--out", str(tmp_path / "o.jsonl")],
        ["eval", str(adapter), *data],
        ["export", str(adapter), "--out", str(tmp_path / "merged")],
        ["export", str(checkpoint), "--out", str(tmp_path / "of-checkpoint")],
    ):
        assert main(words) == 0
    for exported in ("merged", "of-checkpoint"):
        assert_same_scores(transformers_scores(tmp_path / exported, rows), expected)
    assert train(command(folder, tmp_path / "second", model__path=adapter, optim__lr=1e-30)) == 0
    assert_same_scores(transformers_scores(tmp_path / "second" / "model", rows), expected)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"of .*/base\), and that base is not here"):
        rmfast.load(adapter)
    with pytest.raises(UserError, match="a checkpoint of an adapter of .*/base, which is not here"):
        rmfast.load(checkpoint)
