"""benchmarks/vs_trl.py on a tiny model: the two trainers walk the same loss curve, and the figures add up."""

import importlib
import json
import random
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("trl")

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "home", "by", "sea", "with", "two", "red", "birds")


@pytest.fixture
def vs_trl(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("vs_trl")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights large enough that scores differ, so that a wrong gradient shows in the curve."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(ROOT / "configs" / "quickstart" / "decoder", folder)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int, *, messages: bool, **columns: Any) -> Path:
    draw = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    rows = []
    for _ in range(count):
        prompt: Any = [{"role": "user", "content": text(5, 40)}] if messages else text(5, 40)
        rows.append({"prompt": prompt, "chosen": text(1, 12), "rejected": text(6, 30)} | columns)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_one_curve_and_figures_that_add_up(
    vs_trl: ModuleType, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", 24, messages=True), tmp_path / "out.json"
    flags = ["--steps", "5", "--pairs-per-step", "4", "--rounds", "1", "--threads", "1", "--lr", "1e-3"]
    assert vs_trl.main(["--data", str(data), "--model", str(model), "--json", str(out), *flags]) == 0
    result = json.loads(out.read_text())
    losses = {mode: runs[0]["loss"] for mode, runs in result["rounds"].items()}
    assert list(losses) == ["trl", "trl-no-checkpointing", "rmfast"]
    assert losses["rmfast"] == pytest.approx(losses["trl"], abs=1e-5)
    assert max(losses["trl"]) - min(losses["trl"]) > 1e-2  # the rows and steps are told apart
    assert all(d < 1e-5 for d in result["largest_loss_difference"].values())
    data_figures, summary = result["data"], result["summary"]
    rmfast, trl = summary["rmfast"], summary["trl"]
    raw = {mode: runs[0] for mode, runs in result["rounds"].items()}
    assert sum(raw["rmfast"]["computed_tokens"]) == pytest.approx(data_figures["stored_tokens"])
    assert sum(raw["trl"]["real_tokens"]) == data_figures["sequence_tokens"]
    timed = {mode: sum(run["computed_tokens"][2:]) / 3 for mode, run in raw.items()}
    assert rmfast["computed_tokens"] == timed["rmfast"] and trl["computed_tokens"] == timed["trl"]
    sequences = sum(raw["trl"]["real_tokens"][2:]) / 3
    for mode, row in summary.items():
        assert row["cpu_seconds"] == sorted(raw[mode]["cpu_seconds"][2:])[1]
    assert trl["padding_share"] == pytest.approx(1 - sequences / timed["trl"])
    assert rmfast["prefix_share"] == pytest.approx(1 - timed["rmfast"] / sequences)
    assert trl["padding_share"] > 0.05 and trl["prefix_share"] == 0
    assert rmfast["prefix_share"] > 0.05 and rmfast["padding_share"] == 0
    runs = [run for runs in result["rounds"].values() for run in runs]
    assert all(len(run["cpu_seconds"]) == 5 and min(run["cpu_seconds"]) > 0 for run in runs)
    assert all(run["threads"] == 1 and run["peak_bytes"] > 2**26 for run in runs)
    printed = capsys.readouterr().out
    assert "largest difference of a loss, trl and rmfast" in printed and "CPU ratio" in printed
    assert str(tmp_path) not in out.read_text() and str(ROOT) not in out.read_text()


def test_text_with_margins_and_accumulation(vs_trl: ModuleType, model: Path, tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", 16, messages=False, margin=0.7), tmp_path / "out.json"
    flags = ["--steps", "3", "--pairs-per-step", "4", "--micro-batch", "2", "--rounds", "1", "--tokens-per-pack", "128"]
    modes = ["--modes", "trl-no-checkpointing", "rmfast"]
    assert vs_trl.main(["--data", str(data), "--model", str(model), "--json", str(out), *flags, *modes]) == 0
    result = json.loads(out.read_text())
    assert result["largest_loss_difference"]["trl-no-checkpointing"] < 1e-5
    assert result["rounds"]["rmfast"][0]["loss"][0] > 0.75  # ln 2 without the margin


def test_other_token_ids_are_noticed(
    vs_trl: ModuleType, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(mode: str, *_: Any) -> dict[str, Any]:
        same = [[1, 2], [1, 3]]
        ids = [same, [[1, 2], [1, 4]] if mode == "rmfast" else same]
        return {"cpu_seconds": [1.0, 1.0, 1.0], "ids": [*ids, same]}

    monkeypatch.setattr(vs_trl, "run_mode", run)
    data = write_rows(tmp_path / "rows.jsonl", 4, messages=True)
    flags = ["--steps", "3", "--pairs-per-step", "1", "--rounds", "1"]
    assert vs_trl.main(["--data", str(data), "--model", str(model), *flags]) == 1
    assert "same token ids (first difference: drawn row 2)" in capsys.readouterr().err


def test_a_run_that_dies_is_named(vs_trl: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = vs_trl.Job(
        model="absent",
        rows="absent",
        scratch=str(tmp_path),
        steps=2,
        pairs_per_step=1,
        micro_batch=1,
        tokens_per_pack=64,
        max_length=64,
        lr=1e-4,
        device="cpu",
        threads=1,
    )
    with pytest.raises(RuntimeError, match=r"mode rmfast ended with code 1:[\s\S]*absent"):
        vs_trl.run_mode("rmfast", job, tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "absent.jsonl"], "absent.jsonl"),
        (["--steps", "2"], "--steps: must be at least 3, got 2"),
        (["--pairs-per-step", "4", "--micro-batch", "3"], "--micro-batch: 3 does not divide"),
        (["--lr", "0"], "--lr: must be positive"),
        (["--steps", "100"], "lower --steps"),
        (["--max-length", "4"], "raise --max-length"),
        (["--model", "absent"], "absent"),
        (["--json", "absent/out.json"], "is not a folder"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    flags: list[str],
    message: str,
    vs_trl: ModuleType,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_rows(tmp_path / "rows.jsonl", 8, messages=True)
    assert vs_trl.main(["--data", str(data), "--model", str(model), *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error


def test_a_source_without_pairs(
    vs_trl: ModuleType, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "no preference"}\n', encoding="utf-8")
    assert vs_trl.main(["--data", str(data), "--model", str(model)]) == 2
    assert "no preference pair" in capsys.readouterr().err
