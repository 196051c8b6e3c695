"""The reward task whole: it resumes bit for bit after SIGKILL, ends well when repeated, and stops at NaN."""

import json
import random
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmfast import cli
from rmfast.checkpoint import export
from rmfast.data.edges import RANGES
from rmfast.data.plan import StepPlan
from rmfast.models.weights import HEAD
from rmfast.outputs.marks import LOCK
from rmfast.tasks.build.inputs import eval_names, total_steps
from rmfast.train import main
from tests.runs import Case, arguments, final_weights, launch, read_lines, text, write_model, write_rows

pytestmark = pytest.mark.usefixtures("no_plots")

STEPS = 9
# What a step computes and where it stands; times and memory differ from run to run.
EXACT = ("step", "epoch", "loss", "grad_norm", "accuracy", "margin", "mean_reward", "min_reward", "max_reward")
EXACT += ("learning_rate", "num_tokens", "num_computed_tokens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", 20)
    write_rows(folder / "eval.jsonl", 6, seed=1)
    swap = {"chosen": "rejected", "rejected": "chosen"}
    rows = [{swap.get(key, key): value for key, value in row.items()} for row in read_lines(folder / "rows.jsonl")]
    (folder / "swapped.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def command(folder: Path, run: str, **more: object) -> list[str]:
    """20 rows, 8 a step: epochs of 3 steps, the last one smaller; checkpoints lie across the epochs' ends."""
    keys: dict[str, object] = {
        "model__path": folder / "model",
        "model__dropout": 0.1,
        "data__train": folder / "rows.jsonl",
        "data__eval": folder / "eval.jsonl",
        "data__cache": folder / "cache",
        "data__pairs_per_step": 8,
        "data__tokens_per_pack": 96,
        "run__dir": folder / run,
        "run__epochs": 3,
        "run__tensorboard": False,
        "optim__lr": 1e-2,
        "eval__every": 3,
        "checkpoint__every": 2,
        "parallel__timeout_minutes": 1,
    }
    return arguments(**(keys | more))


def exact(run: Path) -> list[dict[str, Any]]:
    return [{key: line[key] for key in EXACT} for line in read_lines(run / "metrics.jsonl")]


def assert_same_run(run: Path, whole: Path) -> None:
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert exact(run) == exact(whole)
    assert read_lines(run / "eval.jsonl") == read_lines(whole / "eval.jsonl")
    assert (run / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()


def killed(name: str, run: list[str], kills: Sequence[str]) -> list[Case]:
    """The same command until it ends."""
    return [Case(f"{name} {number}", run, kill) for number, kill in enumerate([*kills, ""])]


@pytest.mark.slow
def test_one_process_resumes_bit_for_bit(folder: Path) -> None:
    kills = ["step:2", "rename:1", "step:6", "manifest:1"]
    cases = [Case("whole", command(folder, "whole")), *killed("killed", command(folder, "killed"), kills)]
    codes = launch(folder / "launch-1", [*cases, Case("again", command(folder, "killed"))])
    assert codes == {"whole": [0]} | {f"killed {i}": [-9] for i in range(4)} | {"killed 4": [0], "again": [0]}
    resumed = [number_resumed(folder / "launch-1" / f"{case.name}-0.log") for case in cases]
    # The first two died before a checkpoint was complete, the fourth while it wrote step 6.
    assert resumed == [None, None, None, None, 4, 4]
    assert_same_run(folder / "killed", folder / "whole")
    assert [path.name for path in sorted((folder / "killed" / "checkpoints").iterdir())] == ["step-8", "step-9"]


def number_resumed(log: Path) -> int | None:
    lines = [line for line in log.read_text().splitlines() if line.startswith("resumed from step ")]
    return int(lines[0].split()[3]) if lines else None


@pytest.mark.slow
def test_two_ranks_resume_bit_for_bit_and_fewer_to_rounding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[Case] = []
    for mode in ("ddp", "fsdp"):
        cases.append(Case(f"{mode} whole", command(folder, f"{mode}-whole", parallel__data=mode)))
        run = command(folder, f"{mode}-killed", parallel__data=mode)
        cases += killed(f"{mode} killed", run, ["step:5", "manifest:1"])
    half = command(folder, "half", parallel__data="fsdp", model__dropout=0.0)
    spoil(folder)
    bad = command(folder, "bad-2", model__path=folder / "damaged", data__train=folder / "damaged.jsonl")
    codes = launch(folder / "launch-2", [*cases, Case("half", half, "step:7"), Case("bad", bad)], ranks=2)
    logs = folder / "launch-2"
    for mode in ("ddp", "fsdp"):
        assert codes[f"{mode} whole"] == codes[f"{mode} killed 2"] == [0, 0], (
            logs / f"{mode} killed 2-0.log"
        ).read_text()
        assert -9 in codes[f"{mode} killed 0"] and 0 not in codes[f"{mode} killed 0"]
        assert codes[f"{mode} killed 1"][0] == -9
        assert [number_resumed(logs / f"{mode} killed {n}-0.log") for n in range(3)] == [None, 4, 4]
        assert_same_run(folder / f"{mode}-killed", folder / f"{mode}-whole")
    assert exact(folder / "ddp-whole") != exact(folder / "fsdp-whole")  # rounding differs, so the test can tell

    # One rank met NaN: all stop, and one of them says why.
    assert codes["bad"] == [1, 1]
    assert (logs / "bad-0.log").read_text().count("rmfast: step 2: ") == 1
    assert "rmfast: step" not in (logs / "bad-1.log").read_text()

    # What two ranks began, one ends.
    assert main(half) == 0
    assert "resumed from step 6" in capsys.readouterr().out
    assert main(command(folder, "alone", model__dropout=0.0)) == 0
    for mine, other in zip(exact(folder / "half"), exact(folder / "alone"), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    other_weights = final_weights(folder / "alone")
    for name, weight in final_weights(folder / "half").items():
        assert (weight - other_weights[name]).abs().max() <= 1e-4 * other_weights[name].abs().max(), name


def test_a_finished_run_repeated_changes_nothing_and_ends_well(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = command(folder, "finished", run__dir=tmp_path / "run")
    assert main(run) == 0
    capsys.readouterr()
    assert cli.main(["doctor", str(tmp_path / "run")]) == 0
    written = len(list((tmp_path / "run" / "model").iterdir())) - 1  # but rmfast.json
    assert f"whole, {written} files\n" in capsys.readouterr().out
    before = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")}
    assert main(run) == 0
    after = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert {path for path in before if before[path] != after[path] and path.suffix != ".npz"} == set()
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_longer_run_goes_on_from_a_finished_one(folder: Path) -> None:
    long, short = ({"optim__schedule": "constant", "run__max_steps": steps} for steps in (7, 4))
    assert main(command(folder, "long", **long)) == 0
    assert main(command(folder, "longer", **short)) == 0
    assert main(command(folder, "longer", **long)) == 0
    assert exact(folder / "longer") == exact(folder / "long")
    assert all(torch.equal(w, final_weights(folder / "long")[n]) for n, w in final_weights(folder / "longer").items())


def test_the_resolved_config_alone_repeats_the_run(folder: Path, tmp_path: Path) -> None:
    assert main(command(folder, "first", run__dir=tmp_path / "first", run__max_steps=3)) == 0
    assert main([str(tmp_path / "first" / "config.yaml"), "--run.dir", str(tmp_path / "second")]) == 0
    assert exact(tmp_path / "second") == exact(tmp_path / "first")
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


def test_never_moves_the_earlier_run_aside(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys: dict[str, object] = {"run__dir": tmp_path / "run", "run__resume": "never", "run__max_steps": 2}
    assert main(command(folder, "", **keys)) == 0
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # there was nothing to move
    assert main(command(folder, "", **keys, run__seed=1)) == 0
    assert main(command(folder, "", **keys, run__seed=2)) == 0
    assert f"moved to {tmp_path / 'run.2'}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1", "run.2"]
    assert (tmp_path / "run.1" / "model" / "model.safetensors").read_bytes() == weights
    for name in ("run", "run.1", "run.2"):
        assert [line["step"] for line in read_lines(tmp_path / name / "metrics.jsonl")] == [1, 2]
    # An error of the user's moves nothing.
    assert main(command(folder, "", **keys, model__top_layers=3)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1", "run.2"]


@pytest.mark.parametrize("key", ["data__train", "data__eval"])
def test_never_does_not_move_the_data_away(folder: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / f"own-{key}"
    run.mkdir()
    rows = write_rows(run / "rows.jsonl", 8)
    again = command(folder, run.name, run__max_steps=1, run__resume="never", **{key: rows})
    assert main(again) == 2
    assert f"{key.replace('__', '.')}: {rows} is in run.dir" in capsys.readouterr().err
    assert rows.is_file() and not (folder / f"{run.name}.1").exists()
    assert main(command(folder, run.name, run__max_steps=1, **{key: rows})) == 0


def test_an_ensemble_does_not_write_over_its_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine").mkdir()
    rows = write_rows(folder / "mine" / "data.jsonl", 8)
    before = rows.read_bytes()
    assert (
        main(command(folder, "mine", task="ensemble", ensemble__mode="heads", data__train=rows, model__dropout=0)) == 2
    )
    assert f"{rows} would overwrite data.train, {rows}" in capsys.readouterr().err and rows.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        ({"run__seed": 1}, "other data, order or seed"),
        ({"data__pairs_per_step": 4}, "other data, order or seed"),
        ({"data__train": "eval.jsonl"}, "other data, order or seed"),
        ({"data__train": "swapped.jsonl"}, "other data, order or seed"),  # the same lengths
        ({"optim__lr": 1e-3}, "began with optim.lr 0.01, now it is 0.001"),
        ({"objective__center": 0.1}, "began with objective.center 0.0, now it is 0.1"),
        ({"run__max_steps": 1}, "is at step 2, beyond this run's 1"),
        ({"model__heads": 2}, "holds another model or other trained weights (model/head.weight differs)"),
    ],
    ids=["seed", "batch", "data", "labels", "lr", "center", "shorter", "heads"],
)
def test_a_checkpoint_of_another_run_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], more: dict[str, object], hint: str
) -> None:
    if not (folder / "other").exists():
        assert main(command(folder, "other", run__max_steps=2)) == 0
    before = {path: path.stat().st_mtime_ns for path in (folder / "other").rglob("*") if path.name != LOCK}
    capsys.readouterr()
    if "data__train" in more:
        more = {"data__train": folder / str(more["data__train"])}
    assert main(command(folder, "other", **({"run__max_steps": 2} | more))) == 2
    assert hint in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (folder / "other").rglob("*") if path.name != LOCK} == before


def spoil(folder: Path) -> None:
    """A model with NaN in the embedding of a token that one row of step 2 holds."""
    if (folder / "damaged").exists():
        return
    write_model(folder / "damaged")
    state = load_file(folder / "damaged" / "model.safetensors")
    state["model.embed_tokens.weight"][4000] = torch.nan
    save_file(state, folder / "damaged" / "model.safetensors", metadata={"format": "pt"})
    ids = list(range(300, 320))
    row = {"chosen_ids": [*ids, 4000, 2], "rejected_ids": [*ids, 321, 2]}
    draw = random.Random(5)
    rows: list[dict[str, Any]] = [
        {"prompt": text(draw, 3, 6), "chosen": text(draw, 1, 2), "rejected": text(draw, 3, 4)} for _ in range(23)
    ]
    rows.insert(12, row)
    (folder / "damaged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def damaged(folder: Path, run: str, **more: object) -> list[str]:
    spoil(folder)
    keys: dict[str, object] = {"model__path": folder / "damaged", "data__train": folder / "damaged.jsonl"}
    keys |= {"data__shuffle": False, "run__epochs": 1, "checkpoint__every": 1, "model__dropout": 0.0}
    return command(folder, run, **(keys | more))


def test_nan_stops_the_run_with_its_step_and_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(damaged(folder, "bad")) == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("rmfast: ")]
    assert line.startswith("rmfast: step 2: ")
    assert all(f"damaged.jsonl:{row}" in line for row in range(9, 17))
    assert f"damaged.jsonl:{8}," not in line and f"damaged.jsonl:{17}" not in line
    assert "Traceback" not in captured.err
    assert [line["step"] for line in read_lines(folder / "bad" / "metrics.jsonl")] == [1]
    assert [path.name for path in (folder / "bad" / "checkpoints").iterdir()] == ["step-1"]
    assert not (folder / "bad" / "model").exists()


def test_nan_is_skipped_where_asked_and_told_to_the_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(damaged(folder, "skipped", optim__on_nonfinite="skip")) == 0
    out = capsys.readouterr().out
    (told,) = [line for line in out.splitlines() if "step 2 is left out: loss nan" in line]
    assert all(f"damaged.jsonl:{row}" in told for row in range(9, 17)) and "optim.on_nonfinite" not in told
    assert "1 step was left out, as loss or gradient was not finite (optim.on_nonfinite): 2" in out.splitlines()
    assert json.loads((folder / "skipped" / "summary.json").read_text())["skipped_steps"] == 1
    lines = read_lines(folder / "skipped" / "metrics.jsonl")
    assert [(line["step"], line["loss"] is None, line.get("skipped")) for line in lines] == [
        (1, False, None),
        (2, True, True),
        (3, False, None),
    ]
    assert "NaN" not in (folder / "skipped" / "metrics.jsonl").read_text()
    weights = final_weights(folder / "skipped")
    assert all(w.isfinite().all() for name, w in weights.items() if name != "model.embed_tokens.weight")


def test_a_loss_that_overflows_without_its_gradient_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RANGES, "margin", (-4e38, 4e38))  # which are refused otherwise
    rows = read_lines(write_rows(tmp_path / "rows.jsonl", 8))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"margin": 3e38}) + "\n" for row in rows))
    keys: dict[str, object] = {
        "data__train": tmp_path / "rows.jsonl",
        "run__dir": tmp_path / "run",
        "run__max_steps": 1,
    }
    assert main(command(folder, "", **keys, optim__on_nonfinite="skip")) == 0
    (line,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert line["skipped"] and line["loss"] is None
    base = load_file(folder / "model" / "model.safetensors")
    after = final_weights(tmp_path / "run")
    assert all(torch.equal(weight, base[name]) for name, weight in after.items() if name != "score.weight")


@pytest.mark.parametrize(
    ("extra", "keys", "said"),
    [
        ({}, {"optim__warmup": 4}, "optim.warmup: 4 steps of 3, so that the rate never reaches its peak"),
        ({"weight": 0}, {}, "train data: every edge weighs 0 (column weight), which trains and tells nothing"),
    ],
)
def test_what_would_train_nothing_is_refused(
    folder: Path, tmp_path: Path, extra: dict[str, Any], keys: dict[str, object],
    said: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = read_lines(write_rows(tmp_path / "rows.jsonl", 4))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | extra) + "\n" for row in rows))
    keys = {"data__train": tmp_path / "rows.jsonl", "run__dir": tmp_path / "run", "run__max_steps": 3} | keys
    assert main(command(folder, "", **keys)) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"rmfast: {said}"
    assert not (tmp_path / "run").exists()


def test_wandb_that_is_not_installed_is_refused_before_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rmfast.tasks.build.inputs.find_spec", lambda name: None)
    assert main(command(folder, "wandb", run__wandb=True)) == 2
    assert "rmfast: run.wandb: the package wandb is not installed" in capsys.readouterr().err
    assert not (folder / "wandb").exists()


def test_bfloat16_trains_like_float32_and_exports_in_its_dtype(folder: Path) -> None:
    keys: dict[str, object] = {"model__dropout": 0.0, "run__max_steps": 3, "optim__lr": 1e-3}
    assert main(command(folder, "fp32", **keys)) == 0
    assert main(command(folder, "bf16", **keys, model__dtype="bfloat16", model__recompute="full")) == 0
    assert {w.dtype for w in final_weights(folder / "bf16").values()} == {torch.bfloat16}
    for low, high in zip(exact(folder / "bf16"), exact(folder / "fp32"), strict=True):
        assert low["loss"] == pytest.approx(high["loss"], rel=0.03)
        assert low["loss"] != high["loss"]


@pytest.mark.parametrize(
    ("name", "more"),
    [("reward", {}), ("heads", {"task": "ensemble", "ensemble__mode": "heads", "model__dropout": 0.0})],
)
def test_an_export_is_checked_without_the_weights_that_it_was_written_from(
    folder: Path, name: str, more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the whole model in fp32, and transformers loads another copy; the heads of mode heads live on."""
    written, alive = [], []
    write, check = export.write_model, export.check_export

    def note(folder: Path, parts: export.ModelParts) -> None:
        written.extend(weakref.ref(tensor) for name, tensor in parts.state.items() if name != HEAD)
        write(folder, parts)

    def look(*args: Any, **values: Any) -> float:
        alive.extend(one for one in written if one() is not None)
        return check(*args, **values)

    monkeypatch.setattr(export, "write_model", note)
    monkeypatch.setattr(export, "check_export", look)
    monkeypatch.setattr("rmfast.tasks.ensemble.strength.write_ensemble_report", lambda *_: [])
    assert main(command(folder, f"freed-{name}", run__max_steps=1, **more)) == 0
    assert len(written) > 10 and not alive


def test_several_held_out_sources_keep_their_names(folder: Path) -> None:
    rows = folder / "rows.jsonl"
    assert main(command(folder, "two", data__eval=(folder / "eval.jsonl", rows), run__max_steps=1)) == 0
    assert [(line["step"], line["name"]) for line in read_lines(folder / "two" / "eval.jsonl")] == [
        (0, "eval"),
        (0, "rows"),
        (1, "eval"),
        (1, "rows"),
    ]
    summary = json.loads((folder / "two" / "summary.json").read_text())
    assert {"eval_accuracy", "eval_rows_accuracy"} <= summary.keys()


def test_names_of_held_out_sources() -> None:
    assert eval_names(["a/b.jsonl.gz"]) == ["eval"]
    assert eval_names(["a/b.jsonl.gz", "c.parquet"]) == ["b", "c"]
    assert eval_names(["x/test.jsonl", "y/test.jsonl", "z.json"]) == ["test-1", "test-2", "z"]


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (2, 6), (0.5, 2), (2.5, 8), (0.01, 1)])
def test_epochs_in_steps(epochs: float, steps: int) -> None:
    assert total_steps(StepPlan([20], [1.0], groups_per_step=8, seed=0), epochs) == steps
