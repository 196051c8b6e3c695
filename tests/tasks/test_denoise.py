"""Treated training data: what a run trains on, when it is another run, and what the preview shows and writes."""

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.image import imread

from rmfast.cli import main as command
from rmfast.config import DataConfig, load_config, read_denoise
from rmfast.data.denoise import PRESETS, Denoise
from rmfast.data.store import build_store
from rmfast.data.table import table_edges
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.tasks.build.tables import data_key, make_table
from rmfast.train import main as train
from tests.runs import DECODER, Case, arguments, final_weights, launch, read_lines
from tests.scoring import save_reward_model, transformers_scores

STRENGTHS = [-2.0, 1.5, 0.1, -0.3, 3.0, 0.8, -1.0, 2.2, 0.4, 5.0]


def pairs(strengths: list[float | None]) -> list[dict[str, Any]]:
    answers = (" sat on a mat", " ran home by the sea", " slept", " is a dog with two red birds")
    return [
        {
            "prompt": f"The cat {'and ' * i}the dog",
            "chosen": answers[i % 4],
            "rejected": answers[(i + 1 + i // 4) % 4 if i // 4 < 3 else (i + 2) % 4],
            "strength_mean": mean,
            "strength_std": 0.1 * (i + 1),
        }
        for i, mean in enumerate(strengths)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("denoise")
    save_reward_model(folder / "model")
    write(folder / "pairs.jsonl", pairs(list(STRENGTHS)))
    return folder


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)


# --- the training table


def table_of(path: Path, folder: Path, denoise: Denoise | None) -> Any:
    store = build_store(str(path), load_tokenizer(str(DECODER)), folder / "cache", workers=1)
    return make_table([store], DataConfig(train=(str(path),)), 4096, "train", cast(Any, WORLD), denoise)


WORLD = SimpleNamespace(main=True)


def test_the_run_says_what_it_treats(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(folder / "some.jsonl", [*pairs([-1.0, 2.0, -3.0]), *pairs([None])])
    table = table_of(data, folder, Denoise(drop=(0.3, 1.0), flip=0.1, margin="mean"))
    printed = capsys.readouterr().out
    assert "train: 4 prompt groups" in printed
    assert "train: denoise (flip 0.1, drop 0.3 to 1, margin mean): 4 edges, 3 with a strength: 0 flipped, " in printed
    assert "2 dropped, 1 margins (-3 / -3 / -3), 1 without a strength" in printed
    assert "train: left out 2 groups whose edges were all dropped" in printed
    assert len(table) == 2 and table_edges(table).margin.tolist() == [-3, 0]


def test_the_data_key_changes_with_the_treatment_alone(folder: Path) -> None:
    treatments = {name: PRESETS[name] for name in PRESETS} | {
        "flip 0.2": Denoise(flip=0.2),
        "capped": Denoise(margin="mean", margin_max=2.0),
        "weight": Denoise(weight_temperature=1.0),
        "drop": Denoise(drop=(0, 0.1)),
    }
    data = DataConfig(train=("x",))
    tables = {name: table_of(folder / "pairs.jsonl", folder, options) for name, options in treatments.items()}
    keys = {name: data_key(table, data, 0) for name, table in tables.items()}
    untreated = data_key(table_of(folder / "pairs.jsonl", folder, None), data, 0)
    assert keys.pop("baseline") == untreated and untreated not in keys.values()
    assert len(set(keys.values())) == len(keys)
    again = table_of(folder / "pairs.jsonl", folder, resolve_flip())
    assert data_key(again, data, 0) == keys["flip"]  # the same denoised in other words


def resolve_flip() -> Denoise:
    return read_denoise(None, {"flip": ["0.1"]})


# --- whole runs


def run(folder: Path, name: str, **more: object) -> list[str]:
    keys: dict[str, object] = {
        "model__path": folder / "model",
        "data__train": folder / "pairs.jsonl",
        "data__cache": folder / "cache",
        "data__pairs_per_step": 10,
        "run__dir": folder / name,
        "run__max_steps": 2,
        "run__tensorboard": False,
        "optim__lr": 1e-3,
    }
    return arguments(**(keys | more))


def first_loss(folder: Path, **more: object) -> float:
    name = "-".join(map(str, more.values())) or "plain"
    assert train(run(folder, name, **more)) == 0
    return read_lines(folder / name / "metrics.jsonl")[0]["loss"]


def test_the_loss_of_a_treated_run_by_hand(folder: Path) -> None:
    rows = pairs(list(STRENGTHS))
    scored = [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]} for row in rows]
    gap = np.array([better - worse for better, worse in transformers_scores(folder / "model", scored)])
    mean = np.array(STRENGTHS)
    flip = np.where(mean == -2.0, -1, 1)  # the weakest tenth: one edge of ten

    def loss(gap: np.ndarray, target: np.ndarray | float = 1.0) -> float:
        return float((np.logaddexp(0, -gap) + (1 - target) * gap).mean())

    assert first_loss(folder) == pytest.approx(loss(gap), abs=1e-5)
    wanted = {
        "margin": loss(gap - mean),
        "flip": loss(flip * gap),
        "flip_margin": loss(flip * (gap - mean)),
        "soft_margin": loss(gap - mean, np.where(mean < 0, 0.9, 1.0)),
    }
    found = {name: first_loss(folder, data__denoise=name) for name in wanted}
    assert found == pytest.approx(wanted, abs=1e-5)
    assert first_loss(folder, data__denoise="baseline") == first_loss(folder)
    mixed = first_loss(folder, data__denoise="flip_margin", denoise__margin_max=1.0, denoise__weight_temperature=2.0)
    weight = 1 / (1 + np.exp(-flip * mean / 2))
    losses = np.logaddexp(0, -(flip * gap - np.minimum(flip * mean, 1)))
    assert mixed == pytest.approx((weight * losses).sum() / weight.sum(), abs=1e-5)


@pytest.mark.slow
def test_two_ranks_train_on_the_treated_edges_of_one(folder: Path) -> None:
    """Flips, drops, margins and weights are those of the whole table, however its groups are shared out."""
    keys: dict[str, object] = {"data__denoise": "flip_margin", "denoise__flip": 0.3, "denoise__drop_below": 0.3}
    keys |= {"denoise__weight_temperature": 2.0, "data__pairs_per_step": 4, "data__tokens_per_pack": 64}
    keys |= {"run__max_steps": 6, "parallel__timeout_minutes": 1}
    for name, ranks in (("alone", 1), ("shared", 2)):
        codes = launch(folder / f"launch-{name}", [Case(name, run(folder, name, **keys))], ranks=ranks)
        assert codes[name] == [0] * ranks, (folder / f"launch-{name}" / f"{name}-0.log").read_text()
    alone, shared = (read_lines(folder / name / "metrics.jsonl") for name in ("alone", "shared"))
    assert len({line["loss"] for line in alone}) == 6
    assert [line["loss"] for line in shared] == pytest.approx([line["loss"] for line in alone], rel=1e-5)
    other = final_weights(folder / "alone")
    for name, weight in final_weights(folder / "shared").items():
        assert (weight - other[name]).abs().max() <= 1e-4 * other[name].abs().max(), name


def test_a_run_with_another_treatment_is_not_resumed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(run(folder, "other", data__denoise="flip")) == 0
    for more in ({}, {"data__denoise": "flip_margin"}, {"data__denoise": "flip", "denoise__flip": 0.3}):
        capsys.readouterr()
        assert train(run(folder, "other", **more)) == 2
        assert "holds a run on other data" in capsys.readouterr().err
    assert train(run(folder, "other", denoise__flip=0.1)) == 0


def test_a_run_without_strengths_is_refused_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [{k: v for k, v in row.items() if "strength" not in k} for row in pairs(list(STRENGTHS))]
    data = write(folder / "plain.jsonl", plain)
    assert train(run(folder, "none", data__train=data, data__denoise="flip")) == 2
    error = capsys.readouterr().err
    assert "denoise (flip 0.1): no edge has a strength; write strengths" in error and len(error.splitlines()) == 1
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--data.denoise", "flop"], "command line: data.denoise: input should be 'baseline', 'margin'"),
        (["--denoise.flop", "1"], "command line: denoise.flop: unknown key; did you mean denoise.flip?"),
        (["--denoise.flip", "2"], "command line: denoise.flip must be from 0 to 1, got 2"),
        (["--denoise.drop", "0.3"], "command line: denoise.drop: "),
        (["--denoise.smooth", "0.1", "--denoise.smooth_slice", "some"], "denoise.smooth_slice: is negative, all or"),
        (["--denoise.margin_max", "1"], "command line: denoise.margin_max does nothing without"),
        (["--task", "ensemble", "--data.denoise", "flip"], "command line: data.denoise and denoise.* go by strengths"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], hint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(["--model.path", "m", "--data.train", "x", *words])
    assert hint in str(caught.value) and "\n" not in str(caught.value)


def test_keys_reach_the_treatment() -> None:
    words = "--data.denoise soft_margin --denoise.flip 0.2 --denoise.drop 0.3 0.4 --denoise.drop_below -1 "
    words += "--denoise.margin_scale 0.5 --denoise.margin_min 0 --denoise.margin_max 3 --denoise.smooth 0.2 "
    words += "--denoise.smooth_slice 0 0.5 --denoise.weight_temperature 4"
    config = load_config(["--model.path", "m", "--data.train", "x", *words.split()])
    assert config.denoise_options() == Denoise(
        flip=0.2,
        drop=(0.3, 0.4),
        drop_below=-1.0,
        margin="mean",
        margin_scale=0.5,
        margin_min=0.0,
        margin_max=3.0,
        smooth=0.2,
        smooth_slice=(0.0, 0.5),
        weight_temperature=4.0,
    )
    given = {key.removeprefix("denoise."): value for key, value in options_of(words).items()}
    assert read_denoise("soft_margin", given) == config.denoise_options()


def options_of(words: str) -> dict[str, list[str]]:
    parts = [part.split() for part in words.split("--") if part.startswith("denoise.")]
    return {key: values for key, *values in parts}


# --- rmfast data denoise


def preview(*words: object) -> int:
    return command(["data", "denoise", *map(str, words)])


def test_preview_counts_by_tenth_and_shows_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder / "pairs.jsonl"
    more = ["--drop", "0.9", "1", "--smooth", "0.2", "--denoise.smooth_slice", "negative", "--examples", "1"]
    assert preview(data, "--preset", "flip_margin", *more) == 0
    printed = capsys.readouterr().out
    assert "10 edges, 10 with a strength: 1 flipped, 1 dropped, 9 margins (-1 / 0.8 / 3), 2 smoothed" in printed
    tenths = {line.split()[0]: " ".join(line.split()) for line in printed.splitlines() if line[:5].strip().isdigit()}
    assert len(tenths) == 10
    assert tenths["1"] == "1 -2 to -2 1 1 0 0 2 / 2 / 2 1.000 1.000"
    assert tenths["2"] == "2 -1 to -1 1 0 0 1 -1 / -1 / -1 0.800 1.000"
    assert tenths["10"] == "10 5 to 5 1 0 1 0 none - -"
    lines = printed.splitlines()
    place = lines.index(f"flipped: {data}:1: strength -2 -> 2, margin 0 -> 2, target 1, weight 1")
    texts = ("The cat the dog", "sat on a mat", "ran home by the sea")
    assert all(line.endswith(f" {text}") for line, text in zip(lines[place + 1 :], texts, strict=False))
    assert "better before, worse now" in lines[place + 2] and "worse before, better now" in lines[place + 3]
    assert f"dropped: {data}:10: strength 5, margin 0, target 1, weight 1" in lines
    assert f"smoothed: {data}:7: strength -1, margin 0 -> -1, target 1 -> 0.8, weight 1" in lines
    assert f"margin: {data}:3: strength 0.1, margin 0 -> 0.1, target 1, weight 1" in lines


def test_written_rows_train_as_the_treatment_does(folder: Path, tmp_path: Path) -> None:
    """The file, read as it stands, gives the edges of the denoised table."""
    ranked = {"prompt": "A dog", "responses": [" one", " two", " three three"], "weight": 3.0, "note": "Grüße"}
    many = {"prompt": "A cat", "chosen": " one", "rejected": [" two", " three"], "strength_mean": [-9.0, 4.0]}
    rows = [*pairs([-2.0, 1.5, 0.1]), ranked | {"strength_mean": [-3.0, 0.5, None], "strength_std": [0.1, 0.2, None]}]
    data = write(tmp_path / "data.jsonl", [*rows, many, {"prompt": "bad"}])
    out = tmp_path / "denoised.jsonl"
    options = [
        "--flip",
        "0.4",
        "--margin",
        "mean",
        "--margin-max",
        "3",
        "--weight-temperature",
        "2",
        "--drop",
        "0.57",
        "0.7",
    ]
    assert preview(data, *options, "--out", out) == 0
    # Strengths in order: -9 -3 -2 .1 .5 1.5 4: three flipped, the fifth (0.5) dropped.
    written = read_lines(out)
    assert len(written) == 7 and {row["note"] for row in written if row["prompt"] == "A dog"} == {"Grüße"}
    assert [(r["chosen"], r["rejected"], r["strength_mean"], r["margin"]) for r in written[3:]] == [
        (" two", " one", 3.0, 3.0),
        (" two", " three three", None, 0.0),
        (" two", " one", 9.0, 3.0),
        (" one", " three", 4.0, 3.0),
    ]
    assert not any(key in row for row in written for key in ("responses", "edges"))
    assert written[3]["weight"] == pytest.approx(1 / (1 + math.exp(-1.5))) and written[4]["weight"] == 1.0
    denoise = read_denoise(
        None,
        {
            "flip": ["0.4"],
            "margin": ["mean"],
            "margin_max": ["3"],
            "weight_temperature": ["2"],
            "drop": ["0.57", "0.7"],
        },
    )
    trained, read = (edge_texts(path, tmp_path, options) for path, options in ((data, denoise), (out, None)))
    assert trained == read and len(read) == 7


def edge_texts(path: Path, folder: Path, denoise: Denoise | None) -> list[tuple[Any, ...]]:
    table = table_of(path, folder, denoise)
    sequences = [tuple(s) for g in range(len(table)) for s in table.sequences_of(g)]
    e = table_edges(table)
    columns = (e.better, e.worse, e.margin, e.target, e.weight)
    return [(sequences[b], sequences[w], *rest) for b, w, *rest in zip(*(c.tolist() for c in columns), strict=True)]


def test_rows_that_rmfast_score_wrote_stay_true(tmp_path: Path) -> None:
    (row,) = pairs([-1.0])
    scored = row | {"rewards": [[0.0, 3.0], [1.0, 0.5], [1.0, 1.5]], "votes": 1}
    alone = row | {"rewards": [0.0, 1.0]}
    other = row | {"rewards": "high", "votes": 2}
    out = tmp_path / "out.jsonl"
    assert preview(write(tmp_path / "in.jsonl", [scored, alone, other]), "--flip", "1", "--out", out) == 0
    first, second, third = read_lines(out)
    assert (first["chosen"], first["rejected"]) == (row["rejected"], row["chosen"]) and first["strength_mean"] == 1.0
    assert first["rewards"] == [[3.0, 0.0], [0.5, 1.0], [1.5, 1.0]] and first["votes"] == 2
    assert second["rewards"] == [1.0, 0.0] and third["rewards"] == "high" and third["votes"] is None


def test_baseline_writes_the_rows_as_they_came(folder: Path, tmp_path: Path) -> None:
    messages = {"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]}
    messages["rejected"] = [*messages["chosen"][:1], {"role": "assistant", "content": "b"}]
    ids = {"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9], "margin": 0.1}
    rows = [*pairs([-1.0, 0.123456789012345]), messages, ids]
    out = tmp_path / "out.jsonl"
    assert preview(write(tmp_path / "in.jsonl", rows), "--out", out) == 0
    assert read_lines(out) == [{"margin": 0.0} | row | {"target": 1.0, "weight": 1.0} for row in rows]


def test_the_histogram_is_a_picture(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "strength.png"
    assert preview(folder / "pairs.jsonl", "--preset", "flip", "--drop", "0.4", "0.6", "--plot", out) == 0
    image = imread(io.BytesIO(out.read_bytes()), format="png")[..., :3]
    for colour in ("#0072B2", "#D55E00", "#c9ced6"):  # the rest, flipped, dropped
        wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert (np.abs(image - wanted).max(-1) < 0.02).mean() > 0.002, colour
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["{data}", "--flip", "2"], "command line: denoise.flip must be from 0 to 1, got 2"),
        (["{data}", "--margin", "much"], "command line: denoise.margin: input should be 'none' or 'mean', got 'much'"),
        (["{data}", "--margin-max", "1"], "denoise.margin_max does nothing without denoise.margin mean"),
        (["{data}", "--out", "{data}"], "would overwrite"),
        (["{data}", "--preset", "flip", "--plot", "{folder}"], "is a folder; name a file"),
        (["{plain}", "--preset", "flip"], "no edge has a strength; write strengths"),
        (["{plain}", "--smooth", "0.1", "--plot", "{folder}/x.png"], "--plot: no edge has a strength"),
        (["{useless}"], "no usable row in the data"),
        (["{folder}/nowhere.jsonl"], "no such file or folder"),
    ],
)
def test_wrong_commands_are_one_line(
    folder: Path, words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / "plain.jsonl", [{"prompt": "a", "chosen": " b", "rejected": " c"}])
    write(folder / "useless.jsonl", [{"prompt": "a"}])
    names = {name: folder / f"{name}.jsonl" for name in ("plain", "useless")}
    before = {path: path.read_bytes() for path in folder.glob("*.jsonl")}
    assert preview(*(word.format(data=folder / "pairs.jsonl", folder=folder, **names) for word in words)) == 2
    error = capsys.readouterr().err
    assert hint in error and len(error.splitlines()) == 1
    assert before == {path: path.read_bytes() for path in folder.glob("*.jsonl")} and not (folder / "x.png").exists()
