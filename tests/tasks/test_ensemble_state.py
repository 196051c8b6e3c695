"""What an ensemble's folder survives: damage, another number of members; what is refused; and its report."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import rmfast.tasks.ensemble.run as task
from rmfast.data import files
from rmfast.report.ensemble.page import write_ensemble_report
from rmfast.report.html import write_report
from rmfast.tasks.ensemble.head_learner import HeadLearner
from rmfast.train import main
from tests.runs import arguments, read_lines
from tests.tasks.ensembles import MEMBERS, command, trained, write_inputs

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def full(folder: Path) -> Path:
    return trained(folder, "full")


@pytest.fixture(scope="module")
def heads(folder: Path) -> Path:
    return trained(folder, "heads")


def copy_of(run: Path, name: str) -> Path:
    return Path(shutil.copytree(run, run.with_name(name)))


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


class Interrupted(BaseException):
    """Not one of the errors that anything may catch."""


# --- damage


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *(("features.json", halve), ("features.npy", halve), ("features.npy", flip)),
        *(("members/01/scores.npz", halve), ("members/01/scores.npz", flip)),
    ],
)
def test_what_is_damaged_is_made_again(
    name: str, harm: Callable[[Path], None], heads: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(heads, f"{harm.__name__}-{Path(name).name}")
    if name.startswith("features"):
        (run / "members" / "00" / "scores.npz").unlink()
    harm(run / name)
    (run / "data.jsonl").unlink()
    assert main(command(folder, run.name, ensemble__mode="heads")) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if ": damaged" in line]
    assert len(lines) == 1 and "made again" in lines[0] and str(run / Path(name).with_suffix("")) in lines[0]
    assert ("one pass of the trunk" in printed) == name.startswith("features")
    assert (run / "data.jsonl").read_bytes() == (heads / "data.jsonl").read_bytes()


def test_damaged_scores_of_a_whole_member(full: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of(full, "damaged-member")
    halve(run / "members" / "01" / "scores.npz")
    (run / "data.jsonl").unlink()
    assert main(command(folder, run.name)) == 0
    printed = capsys.readouterr().out
    assert printed.count("scores.npz: damaged; made again") == 1 and printed.count("done before") == MEMBERS - 1
    assert (run / "data.jsonl").read_bytes() == (full / "data.jsonl").read_bytes()


@pytest.mark.parametrize("size", [0, 400])
def test_heads_go_on_from_the_checkpoint_before_a_damaged_one(
    size: int, heads: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(heads, f"damaged-heads-{size}")
    (run / "members" / "01" / "scores.npz").unlink()
    newest = run / "checkpoints" / "step-6"
    file = newest / "rank-00000.safetensors"
    assert file.stat().st_size > 400
    file.write_bytes(file.read_bytes()[:size])
    assert main(command(folder, run.name, ensemble__mode="heads")) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"{newest}: damaged: {file.name} has {size} bytes") == 1
    assert "resumed from step 4" in printed and "features.npy: made before" in printed
    assert f"{newest}: what had this name is removed" in printed
    assert (run / "data.jsonl").read_bytes() == (heads / "data.jsonl").read_bytes()


def test_heads_of_which_no_checkpoint_is_whole_are_one_line(
    heads: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(heads, "no-whole-heads")
    (run / "members" / "01" / "scores.npz").unlink()
    for manifest in run.glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    assert main(command(folder, run.name, ensemble__mode="heads")) == 2
    printed = capsys.readouterr()
    assert len(printed.err.strip().splitlines()) == 1 and "one pass" not in printed.out
    assert f"{run / 'checkpoints'}: none of 2 checkpoints is whole" in printed.err and "run.resume" in printed.err


def test_all_that_a_resumed_ensemble_reads_is_on_disk_before_it_has_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[Path] = set()
    named: dict[str, bool] = {}
    sync, replace = files.sync, files.os.replace

    def renamed(old: Any, new: Any) -> None:
        named[Path(new).name] = named.get(Path(new).name, True) and Path(old) in synced
        synced.discard(Path(old))
        replace(old, new)

    monkeypatch.setattr(files, "sync", lambda path: (synced.add(Path(path)), sync(path))[1])
    monkeypatch.setattr(files.os, "replace", renamed)
    assert main(command(folder, "synced", ensemble__mode="heads")) == 0
    kept = ("features.npy", "features.json", "step-6", "scores.npz", "data.jsonl", "summary.json")
    assert {name: named.get(name) for name in (*kept, "config.yaml", "ensemble.json")} == dict.fromkeys(
        (*kept, "config.yaml", "ensemble.json"), True
    )


# --- another number of members


def agree(run: Path, heads: int) -> list[dict[str, Any]]:
    """All parts of a run folder say that it has this many heads; gives its scored rows."""
    rows = [row for row in read_lines(run / "data.jsonl") if row["rewards"]]
    assert {len(row["rewards"]) for row in rows} == {heads}
    assert load_file(run / "model" / "model.safetensors")["score.weight"].shape[0] == heads
    assert AutoConfig.from_pretrained(run / "model").num_labels == heads
    assert yaml.safe_load((run / "config.yaml").read_text())["ensemble"]["members"] == heads
    assert json.loads((run / "summary.json").read_text())["members"] == heads
    assert sorted(path.name for path in (run / "members").iterdir()) == [f"{m:02d}" for m in range(heads)]
    return rows


@pytest.mark.parametrize("members", [2, 5])
def test_another_number_of_heads_trains_all_anew_on_the_same_features(
    members: int, heads: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(heads, f"heads-{members}")
    step = HeadLearner.step

    def stops(self: HeadLearner, number: int) -> Any:
        if number == 5:
            raise Interrupted
        return step(self, number)

    again = command(folder, run.name, ensemble__mode="heads", ensemble__members=members)
    with monkeypatch.context() as patch:
        patch.setattr(HeadLearner, "step", stops)
        with pytest.raises(Interrupted):
            main(again)
    printed = capsys.readouterr().out
    assert f"holds 3 heads, now ensemble.members is {members}: all are trained again" in printed
    assert "made before" in printed and "resumed" not in printed
    assert main(again) == 0  # what was cut off is not taken for finished
    assert "resumed from step 4" in capsys.readouterr().out
    rows, before = agree(run, members), agree(heads, MEMBERS)
    common = min(members, MEMBERS)
    for row, old in zip(rows, before, strict=True):
        assert np.array(row["rewards"][:common]) == pytest.approx(np.array(old["rewards"][:common]), abs=1e-5)
    steps = [line["step"] for line in read_lines(run / "metrics.jsonl")]
    assert steps == list(range(1, 7))
    assert main(again) == 0 and f"all {members} heads: done before" in capsys.readouterr().out


def test_fewer_whole_members_are_the_first_ones(full: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copy_of(full, "fewer")
    monkeypatch.setattr(task, "open_reward", lambda *_: pytest.fail("trained again"))
    assert main(command(folder, run.name, ensemble__members=2)) == 0
    rows, before = (read_lines(r / "data.jsonl") for r in (run, full))
    assert [row["rewards"] for row in rows] == [row["rewards"] and row["rewards"][:2] for row in before]
    assert yaml.safe_load((run / "config.yaml").read_text())["ensemble"]["members"] == 2
    assert main(command(folder, run.name)) == 0  # the third is still there
    assert (run / "data.jsonl").read_bytes() == (full / "data.jsonl").read_bytes()


# --- what is told and refused


@pytest.mark.parametrize("mode", ["full", "heads"])
def test_a_model_of_several_heads_is_refused(mode: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / f"two-heads-{mode}"
    shutil.copytree(folder / "model", model)
    state = load_file(model / "model.safetensors")
    save_file(state | {"score.weight": torch.ones(2, 32)}, model / "model.safetensors", metadata={"format": "pt"})
    assert main(command(folder, "refused", model__path=model, ensemble__mode=mode)) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and f"{model} has 2 reward heads" in error
    assert not (folder / "refused").exists()


def test_smoothing_of_all_edges_needs_no_strength(folder: Path, heads: Path) -> None:
    assert main([*command(folder, "smooth", ensemble__mode="heads"), *arguments(denoise__smooth=0.3)]) == 0
    mine, other = (load_file(run / "model" / "model.safetensors")["score.weight"] for run in (folder / "smooth", heads))
    assert (mine - other).norm() > 1e-2 * other.norm()


@pytest.mark.parametrize("folds", [None, 2])
def test_guessed_prompts_are_told(folds: int | None, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_lines(folder / "eval.jsonl")
    for row in rows[:5]:
        prompt = row.pop("prompt")
        row |= {side: f"Human: {prompt}\n\nAssistant:{row[side]}" for side in ("chosen", "rejected")}
    data = folder / "guessed.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    more = {} if folds is None else {"ensemble__folds": folds}
    assert main(command(folder, f"guessed-{folds}", data__train=data, ensemble__mode="heads", **more)) == 0
    assert ("folds: 5 of 12 rows have no separate prompt" in capsys.readouterr().out) == (folds is not None)


# --- the report


def test_the_report_of_heads_shows_the_ensemble_and_its_training(
    heads: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real plots, once."""
    run = copy_of(heads, "reported")
    monkeypatch.setattr("rmfast.tasks.build.training.write_report", write_report)
    monkeypatch.setattr("rmfast.tasks.ensemble.strength.write_ensemble_report", write_ensemble_report)
    assert main(command(folder, run.name, ensemble__mode="heads")) == 0
    page = (run / "report" / "report.html").read_text()
    names = {path.stem for path in (run / "report").glob("*.png")}
    ours = {"strength", "strength-std", "agreement", "deciles"}
    assert ours <= names and {"loss", "accuracy", "rewards"} <= names
    assert page.count("<figure") == len(names) and page.count("data:image/png;base64,") == 2 * len(names)
    assert not re.search(r"https?://|<script|src=\"(?!data:)", page)
    figures = json.loads((run / "summary.json").read_text())
    for accuracy in figures["eval"]["eval"]["members"]:
        assert f"<td>{100 * accuracy:.1f} %</td>" in page
    assert page.index("strengths lean") < page.index("<h2>Strengths") < page.index("Members combined, on eval")
    assert page.index("Members alone") < page.index("<h2>Training") < page.index("config.yaml")


def test_every_mode_ends_with_the_ensembles_own_report(
    full: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    report: Callable[..., Any] = lambda *given: calls.append(given)  # noqa: E731
    monkeypatch.setattr("rmfast.tasks.ensemble.strength.write_ensemble_report", report)
    run = copy_of(full, "reported-full")
    assert main(command(folder, run.name)) == 0
    ((where, strengths, held_out, figures, remarks),) = calls
    assert where == run and strengths.mean.size == 25 and list(held_out) == ["eval"]
    assert figures["members"] == MEMBERS and any("In-sample" in remark for remark in remarks)
