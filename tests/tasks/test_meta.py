"""The meta task whole: without an ascent the reward task bit for bit; it resumes, and ranks repeat one process."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from rmfast.data.row_kinds import samples
from rmfast.data.rows import parse_row
from rmfast.data.store import build_store
from rmfast.data.tokenise import distinct_samples, encode
from rmfast.data.tokenizer import load_tokenizer
from rmfast.train import main
from rmfast.trainer.dropout import seed_dropout
from tests.runs import Case, arguments, final_weights, launch, read_lines, text, write_model, write_rows

pytestmark = pytest.mark.usefixtures("no_plots")

STEPS = 7
EXACT = ("step", "epoch", "loss", "grad_norm", "accuracy", "margin", "mean_reward", "min_reward", "max_reward")
EXACT += ("learning_rate", "pairs")
META = ("difference_loss", "reward_difference_variance", "difference_grad_norm")


def write_samples(path: Path, count: int, seed: int = 0) -> Path:
    """Prompts with samples: mostly five; the first three rows have a twin among six, too few, and only twins."""
    draw = random.Random(seed)
    rows = [{"prompt": text(draw, 2, 9), "responses": [" " + text(draw, 3, 7) for _ in range(5)]} for _ in range(count)]
    twin = " a sample twice"
    rows[0]["responses"] = [twin, twin, " one", " two", " three", " four"]
    rows[1]["responses"] = [" one", " two", " three", " four"]
    rows[2]["responses"] = [twin] * 5
    extra = [{"edges": []}, {"scores": [1.0] * 5}, {"ranks": [1, 2, 3, 4, 5]}]  # preferences do not matter
    for row, columns in zip(rows[3:], extra, strict=False):
        row |= columns
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meta")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", 20)
    write_rows(folder / "eval.jsonl", 6, seed=1)
    write_samples(folder / "samples.jsonl", 11)
    return folder


def command(folder: Path, run: str, task: str = "meta", **more: object) -> list[str]:
    """20 pairs, 8 a step; 9 prompts, 4 a step: neither's epochs end with the other's."""
    keys: dict[str, object] = {
        "task": task,
        "model__path": folder / "model",
        "model__dropout": 0.1,
        "data__train": folder / "rows.jsonl",
        "data__eval": folder / "eval.jsonl",
        "data__cache": folder / "cache",
        "data__pairs_per_step": 8,
        "data__tokens_per_pack": 96,
        "run__dir": folder / run,
        "run__max_steps": STEPS,
        "run__tensorboard": False,
        "optim__lr": 1e-2,
        "checkpoint__every": 2,
        "parallel__timeout_minutes": 1,
    }
    if task == "meta":
        keys |= {"meta__data": folder / "samples.jsonl", "meta__prompts_per_step": 4, "meta__eta": 0.05}
        keys |= {"meta__check_every": 3}
    return arguments(**(keys | more))


def lines(run: Path, keys: tuple[str, ...] = EXACT) -> list[dict[str, Any]]:
    return [{key: line[key] for key in keys} for line in read_lines(run / "metrics.jsonl")]


def assert_same_weights(run: Path, other: Path) -> None:
    ours, theirs = final_weights(run), final_weights(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(w, theirs[name]) for name, w in ours.items())


def test_what_a_run_says_and_logs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, "run")) == 0
    said = capsys.readouterr().out
    assert "meta: 9 prompt groups, 45 samples, " in said
    assert "meta: left out 1 too few responses, 1 identical (details" in said
    assert "meta: merged 1 samples that were the same as another of their prompt" in said
    assert "MetaRM: 4 prompts of up to 5 samples a step, ascent of eta 0.05" in said
    steps = read_lines(folder / "run" / "metrics.jsonl")
    for line in steps:
        assert 0.4 < line["difference_loss"] < 0.8 and line["reward_difference_variance"] > 0
        assert ("difference_loss_after" in line) == (line["step"] in (1, 4, 7))
    for line in steps[::3]:
        rise = line["difference_loss_after"] - line["difference_loss"]
        assert rise > 0
        assert rise == pytest.approx(0.05 * line["difference_grad_norm"] ** 2, rel=0.5)
    assert main(command(folder, "quiet", meta__check_every="null")) == 0
    assert lines(folder / "quiet", EXACT + META) == lines(folder / "run", EXACT + META)
    assert not any("difference_loss_after" in line for line in read_lines(folder / "quiet" / "metrics.jsonl"))


def test_tokens_and_work_count_both_sets(folder: Path) -> None:
    assert main(command(folder, "counted", run__max_steps=1)) == 0
    assert main(command(folder, "counted-pairs", "reward", run__max_steps=1)) == 0
    # All prompts in one step: what they add to the pairs is the table's sum.
    assert main(command(folder, "counted-all", run__max_steps=1, meta__prompts_per_step=9)) == 0
    some, pairs, everything = (
        read_lines(folder / name / "metrics.jsonl")[0] for name in ("counted", "counted-pairs", "counted-all")
    )
    store = build_store(
        str(folder / "samples.jsonl"), load_tokenizer(str(folder / "model"), None), folder / "cache", kind=samples(5)
    )
    assert everything["num_computed_tokens"] - pairs["num_computed_tokens"] == len(store.tokens)
    assert everything["num_tokens"] - pairs["num_tokens"] == store.lengths().sum()
    assert pairs["num_computed_tokens"] < some["num_computed_tokens"] < everything["num_computed_tokens"]
    for line in (some, pairs, everything):
        work = line["tflops"] * line["step_seconds"]
        assert line["tokens_per_second"] * line["step_seconds"] == pytest.approx(line["num_computed_tokens"])
        assert work / line["num_computed_tokens"] == pytest.approx(
            pairs["tflops"] * pairs["step_seconds"] / pairs["num_computed_tokens"], rel=0.3
        )


def test_without_an_ascent_it_is_the_reward_task(folder: Path) -> None:
    assert main(command(folder, "plain", "reward")) == 0
    assert main(command(folder, "zero", meta__eta=0, meta__check_every=1)) == 0
    assert lines(folder / "zero") == lines(folder / "plain")
    assert read_lines(folder / "zero" / "eval.jsonl") == read_lines(folder / "plain" / "eval.jsonl")
    assert_same_weights(folder / "zero", folder / "plain")
    for line in read_lines(folder / "zero" / "metrics.jsonl"):  # the same dropout, too
        assert line["difference_loss_after"] == line["difference_loss"]
    # Without that dropout would not be seen, nor the ascent.
    assert main(command(folder, "dry", "reward", model__dropout=0.0)) == 0
    assert lines(folder / "dry") != lines(folder / "plain")
    assert main(command(folder, "moved")) == 0
    assert lines(folder / "moved") != lines(folder / "plain")


DRY: dict[str, dict[str, object]] = {
    # Several packs a rank, of which one may hold no prompt; log-probabilities and prototypes that J does not read.
    "packs": {
        "meta__prompts_per_step": 3,
        "data__tokens_per_pack": 64,
        "objective__lm": 0.5,
        "objective__contrastive": "swav",
    },
    # FSDP2 gives the single row of the head to the first rank: the other moves nothing, and has no prompt.
    "head": {"meta__prompts_per_step": 1, "model__top_layers": 0},
}


@pytest.mark.slow
def test_two_ranks(folder: Path) -> None:
    cases = []
    for mode in ("ddp", "fsdp"):
        keys: dict[str, object] = {"parallel__data": mode}
        killed = command(folder, f"{mode}-killed", **keys)
        cases += [
            Case(f"{mode} plain", command(folder, f"{mode}-plain", "reward", **keys)),
            Case(f"{mode} zero", command(folder, f"{mode}-zero", meta__eta=0, **keys)),
            Case(f"{mode} whole", command(folder, f"{mode}-whole", **keys)),
            Case(f"{mode} killed 0", killed, "step:5"),
            Case(f"{mode} killed 1", killed),
        ]
        for name, more in DRY.items():
            cases.append(
                Case(
                    f"{mode} {name}",
                    command(folder, f"{mode}-{name}", model__dropout=0.0, optim__lr=1e-3, **keys, **more),
                )
            )
    codes = launch(folder / "launch", cases, ranks=2)
    for name, more in DRY.items():
        assert main(command(folder, f"{name}-1", model__dropout=0.0, optim__lr=1e-3, **more)) == 0
    for mode in ("ddp", "fsdp"):
        for name in ("plain", "zero", "whole", "killed 1", *DRY):
            assert codes[f"{mode} {name}"] == [0, 0], (folder / "launch" / f"{mode} {name}-0.log").read_text()
        assert lines(folder / f"{mode}-zero") == lines(folder / f"{mode}-plain")
        assert_same_weights(folder / f"{mode}-zero", folder / f"{mode}-plain")
        assert -9 in codes[f"{mode} killed 0"]
        assert "resumed from step 4" in (folder / "launch" / f"{mode} killed 1-0.log").read_text()
        assert lines(folder / f"{mode}-killed", EXACT + META) == lines(folder / f"{mode}-whole", EXACT + META)
        assert_same_weights(folder / f"{mode}-killed", folder / f"{mode}-whole")
        for name in DRY:
            compare_to_rounding(folder / f"{mode}-{name}", folder / f"{name}-1")


def compare_to_rounding(many: Path, one: Path) -> None:
    """What two ranks did is what one process does."""
    for ours, theirs in zip(read_lines(many / "metrics.jsonl"), read_lines(one / "metrics.jsonl"), strict=True):
        measured = {"difference_loss_after"} & theirs.keys()
        for key in ("loss", "grad_norm", *META, *measured):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), (key, ours["step"])
        assert ours["num_tokens"] == theirs["num_tokens"]
    weights = final_weights(one)
    for name, weight in final_weights(many).items():
        assert (weight - weights[name]).abs().max() <= 5e-5 * weights[name].abs().max(), name


@pytest.mark.slow
def test_one_process_resumes_bit_for_bit(folder: Path) -> None:
    killed = command(folder, "killed")
    cases = [Case("whole", command(folder, "whole"))]
    cases += [Case(f"killed {i}", killed, kill) for i, kill in enumerate(["step:4", "manifest:1", ""])]
    codes = launch(folder / "launch-1", cases)
    assert codes == {"whole": [0], "killed 0": [-9], "killed 1": [-9], "killed 2": [0]}
    assert "resumed from step 2" in (folder / "launch-1" / "killed 2-0.log").read_text()
    assert lines(folder / "killed", EXACT + META) == lines(folder / "whole", EXACT + META)
    assert_same_weights(folder / "killed", folder / "whole")


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        ({"meta__eta": 0.1}, "began with meta.eta 0.05, now it is 0.1"),
        ({"meta__prompts_per_step": 5}, "began with meta.prompts_per_step 4, now it is 5"),
        ({"meta__normaliser": "pairs"}, "began with meta.normaliser k2, now it is pairs"),
        ({"meta__data": "rows"}, "other data, order or seed"),
        ({"meta__k": 4}, "meta.k"),
        ({"task": "reward"}, "began with task meta, now it is reward"),
    ],
    ids=["eta", "prompts", "normaliser", "data", "k", "task"],
)
def test_a_checkpoint_of_another_run_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], more: dict[str, object], hint: str
) -> None:
    if not (folder / "other").exists():
        assert main(command(folder, "other", run__max_steps=1)) == 0
    if "meta__data" in more:
        more = {"meta__data": write_samples(folder / "others.jsonl", 11, seed=9)}
    capsys.readouterr()
    assert main(command(folder, "other", **({"run__max_steps": 1} | more))) == 2
    assert hint in capsys.readouterr().err


def test_another_length_of_the_ascent_is_refused_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys: dict[str, object] = {"meta__eta": 5e-6, "run__max_steps": 1}
    assert main(command(folder, "length", **keys)) == 0
    assert main(command(folder, "length", **keys, meta__rho=0.1)) == 2
    assert "began with meta.rho None, now it is 0.1" in capsys.readouterr().err


def test_bad_configs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    pairs = folder / "rows.jsonl"  # two responses a row
    for more, hint in (
        ({}, "meta.data is missing: task meta needs prompts with sampled responses"),
        ({"meta__data": tmp_path / "none.jsonl"}, "none.jsonl"),
        ({"meta__data": pairs}, "too few responses: 2 responses, and 5 are to be taken"),
        ({"meta__data": pairs, "meta__k": 1}, "meta.k: input should be greater than or equal to 2"),
        ({"meta__data": pairs, "meta__k": 2, "data__max_length": 2}, "no usable row"),
        ({"meta__data": pairs, "meta__rho": 0.1}, "meta.eta does nothing beside meta.rho"),
    ):
        assert main(command(folder, "", **({"run__dir": run, "meta__data": "[]"} | more))) == 2, more
        assert hint in capsys.readouterr().err
    assert not run.exists()


def test_a_step_whose_prompts_are_not_finite_names_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.tasks.test_reward import spoil

    spoil(folder)  # NaN in the embedding of token 4000
    rows = [{"chosen_ids": [5, 6, 2], "rejected_ids": [[5, 7, 2], [5, token, 2]]} for token in (8, 8, 4000, 8)]
    (folder / "nan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys: dict[str, object] = {"model__path": folder / "damaged", "meta__data": folder / "nan.jsonl", "meta__k": 3}
    keys |= {"data__shuffle": False, "meta__prompts_per_step": 1, "model__dropout": 0.0}
    assert main(command(folder, "nan", **keys)) == 1
    error = capsys.readouterr().err
    assert "rmfast: step 3: " in error and f"MetaRM's prompts: {folder / 'nan.jsonl'}:3." in error
    assert main(command(folder, "nan-skip", **keys, run__max_steps=4, optim__on_nonfinite="skip")) == 0
    steps = read_lines(folder / "nan-skip" / "metrics.jsonl")
    assert [line.get("skipped") for line in steps] == [None, None, True, None]
    assert steps[2]["difference_loss"] is None and "NaN" not in (folder / "nan-skip" / "metrics.jsonl").read_text()


def test_dropout_of_the_two_sets_differs() -> None:
    drawn = set()
    for seed, step, rank, stream in itertools.product((0, 1), (0, 1, 2), (0, 1), (0, 1)):
        seed_dropout(seed, step, rank, stream)  # type: ignore[arg-type]
        drawn.add(tuple(torch.rand(4).tolist()))
    assert len(drawn) == 24


def test_samples_of_a_row(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder / "model"), None)
    responses = [" a", " b c", " a", " d", " b c", " e"]
    (encoded,) = encode(tokenizer, [parse_row({"prompt": "the", "responses": responses})])
    assert not isinstance(encoded, BaseException)
    kept = distinct_samples(encoded, 3)
    assert not isinstance(kept, BaseException)
    assert [ids.tolist() for ids in kept.ids] == [encoded.ids[i].tolist() for i in (0, 1, 3)]
    assert kept.answer_start == tuple(encoded.answer_start[i] for i in (0, 1, 3)) and kept.merged == 2
    assert len({ids[: kept.prefix].tobytes() for ids in kept.ids}) == 1
    assert len({ids[: kept.prefix + 1].tobytes() for ids in kept.ids}) > 1
    assert len(distinct_samples(encoded, 6).ids) == 4  # type: ignore[union-attr]
    assert str(distinct_samples(encoded, 7)) == "too few responses: 6 responses, and 7 are to be taken"
