"""The ensemble task whole: strengths from dumped rewards, members, folds that leak nothing, and what is refused."""

import json
import random
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rmfast import cli
from rmfast.tasks.build import training
from rmfast.tasks.ensemble.head_learner import HeadLearner
from rmfast.tasks.ensemble.members import member_seed
from rmfast.train import main
from rmfast.trainer.batch_learner import BatchLearner
from rmfast.trainer.run import Run
from rmfast.trainer.stop import StopRequest
from tests.runs import arguments, read_lines, text, write_rows
from tests.tasks.ensembles import BAD, LONG, MEMBERS, TWINS, command, trained, write_inputs

pytestmark = pytest.mark.usefixtures("no_plots")

COLUMNS = ("strength_mean", "strength_std", "votes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def full(folder: Path) -> Path:
    return trained(folder, "full")


@pytest.fixture(scope="module")
def heads(folder: Path) -> Path:
    return trained(folder, "heads")


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def edges_of(row: dict[str, Any]) -> list[tuple[int, int]]:
    return [(0, 1), (0, 2), (1, 2)] if "responses" in row else [(0, 1)]


# --- strengths


@pytest.mark.parametrize("mode", ["full", "heads"])
def test_strengths_are_those_of_the_dumped_rewards(mode: str, folder: Path, request: pytest.FixtureRequest) -> None:
    """Part II, equation 4, by python's statistics in place of numpy."""
    run: Path = request.getfixturevalue(mode)
    rows, given = read_lines(run / "data.jsonl"), (folder / "rows.jsonl").read_text().splitlines()
    assert len(rows) == 24 and len(given) == 25
    for row, line in zip(rows, given, strict=False):
        columns = json.loads(line)
        assert {key: row[key] for key in columns if key != "strength_mean"} == {
            key: value for key, value in columns.items() if key != "strength_mean"
        }
    *scored, bad = rows
    assert bad == BAD | {"rewards": None, "error": bad["error"]} and bad["error"].startswith("missing column")
    for row in scored:
        assert np.shape(row["rewards"]) == (MEMBERS, 3 if "responses" in row else 2)
        assert row.keys() == {*COLUMNS, "rewards", *json.loads(given[rows.index(row)])}
        for number, (better, worse) in enumerate(edges_of(row)):
            gaps = [own[better] - own[worse] for own in row["rewards"]]
            mean, std, votes = (as_list(row[name])[number] for name in COLUMNS)
            assert mean == pytest.approx(statistics.fmean(gaps), abs=1e-12)
            assert std == pytest.approx(statistics.pstdev(gaps), abs=1e-12)
            assert votes == sum(gap > 0 for gap in gaps)
    stds = [row["strength_std"] for row in scored if "responses" not in row and row["prompt"] != TWINS["prompt"]]
    assert min(stds) > 1e-3  # members differ on every pair
    assert len({tuple(row["rewards"][0]) for row in scored}) == len(scored)
    twins = next(row for row in scored if row["prompt"] == TWINS["prompt"])
    assert [twins[name] for name in COLUMNS] == [0.0, 0.0, 0]
    figures = json.loads((run / "summary.json").read_text())
    means = [mean for row in scored for mean in as_list(row["strength_mean"])]
    assert figures["edges"] == len(means) == 25
    assert figures["negative_share"] == pytest.approx(np.mean(np.array(means) < 0))
    gaps = np.array(
        [[row["rewards"][m][b] - row["rewards"][m][w] for row in scored for b, w in edges_of(row)] for m in range(3)]
    )
    side = np.sign(gaps)
    pairs = [(side[0] == side[1]).mean(), (side[0] == side[2]).mean(), (side[1] == side[2]).mean()]
    assert figures["agreement"] == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("mode", ["full", "heads"])
def test_score_gives_the_same(
    mode: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Path = request.getfixturevalue(mode)
    models = [str(run / "members" / f"{m:02d}") for m in range(MEMBERS)] if mode == "full" else [str(run)]
    out = tmp_path / "scored.jsonl"
    assert cli.main(["score", *models, "--data", str(folder / "rows.jsonl"), "--out", str(out)]) == 0
    assert ("(3 heads)" in capsys.readouterr().out) == (mode == "heads")
    ours, scored = read_lines(run / "data.jsonl"), read_lines(out)
    theirs = [row for row in scored if row.keys() != {"rewards", "error"}]
    assert len(ours) == len(theirs) == len(scored) - 1  # a line that is no JSON cannot be written back
    for mine, other in zip(ours, theirs, strict=True):
        assert list(mine) == list(other)
        for key in mine:
            if key in ("rewards", "strength_mean", "strength_std") and mine["rewards"]:
                assert np.array(mine[key]) == pytest.approx(np.array(other[key]), abs=2e-5)
            else:
                assert mine[key] == other[key]


# --- members


def test_members_differ_in_order_and_head_and_each_is_a_whole_run(full: Path) -> None:
    assert len({member_seed(seed, m) for seed in range(30) for m in range(30)}) == 900
    assert all(0 <= member_seed(seed, 0) < 2**31 for seed in (0, 2**31 - 1))
    starts, losses = [], []
    for m in range(MEMBERS):
        own = full / "members" / f"{m:02d}"
        assert f"seed: {member_seed(0, m)}\n" in (own / "config.yaml").read_text()
        assert {"model", "checkpoints", "summary.json", "scores.npz"} <= {path.name for path in own.iterdir()}
        losses.append([line["loss"] for line in read_lines(own / "metrics.jsonl")])
        starts.append([line["num_tokens"] for line in read_lines(own / "metrics.jsonl")])
    assert len(losses[0]) == 6 and len({loss[0] for loss in losses}) == len({tuple(start) for start in starts}) == 3


@pytest.mark.parametrize("over_long", ["drop", "truncate"])
def test_a_member_of_heads_is_a_reward_run_that_trains_the_head_alone(over_long: str, folder: Path) -> None:
    both = {"data__over_long": over_long}
    run = command(folder, f"head-only-{over_long}", task="reward", model__top_layers=0, run__seed=member_seed(0, 1))
    assert main([*run, *arguments(**both)]) == 0
    assert main(command(folder, f"cut-heads-{over_long}", ensemble__mode="heads", eval__every=4, **both)) == 0
    heads = folder / f"cut-heads-{over_long}"
    alone = load_file(folder / f"head-only-{over_long}" / "model" / "model.safetensors")
    together = load_file(heads / "model" / "model.safetensors")
    assert together["score.weight"].shape == (MEMBERS, 32)
    start = load_file(folder / "model" / "model.safetensors")
    assert torch.equal(together["model.norm.weight"], start["model.norm.weight"])
    mine, other = together["score.weight"][1], alone["score.weight"][0]
    assert (mine - other).norm() < 1e-5 * other.norm()
    own, its = (read_lines(f / "metrics.jsonl") for f in (heads, folder / f"head-only-{over_long}"))
    assert [line["step"] for line in read_lines(heads / "eval.jsonl")] == [0, 4, 6]
    assert len(own) == len(its) == 6 and own[0]["loss"] != pytest.approx(its[0]["loss"], rel=1e-3)  # a mean of three
    # Judged at full length either way, as `rmfast score` does.
    out = folder / f"cut-{over_long}.jsonl"
    ((long,), (scored,)) = (
        [row for row in rows if row.get("prompt") == LONG["prompt"]]
        for rows in (read_lines(heads / "data.jsonl"), score_rows(str(heads), folder / "rows.jsonl", out))
    )
    assert np.array(long["rewards"]) == pytest.approx(np.array(scored["rewards"]), abs=2e-5)


def test_held_out_figures_of_members_and_rules(folder: Path, full: Path, tmp_path: Path) -> None:
    figures = json.loads((full / "summary.json").read_text())["eval"]["eval"]
    models = [str(full / "members" / f"{m:02d}") for m in range(MEMBERS)]
    out = tmp_path / "figures.json"
    rewards = np.array(
        [[row["rewards"] for row in score_rows(model, folder / "eval.jsonl", tmp_path / "s.jsonl")] for model in models]
    )  # [members, rows, 2]
    gaps = rewards[..., 0] - rewards[..., 1]
    assert figures["members"] == pytest.approx((gaps > 0).mean(1))
    scaled = (rewards - rewards.mean((1, 2), keepdims=True)) / rewards.std((1, 2), keepdims=True)
    rules: dict[str, Callable[[Any], Any]] = {
        "mean": lambda r: r.mean(0),
        "median": lambda r: np.median(r, axis=0),
        "worst": lambda r: r.min(0),
        "mean-k-std": lambda r: r.mean(0) - 2 * r.std(0),
    }
    common = ["--data", str(folder / "eval.jsonl"), "--out", str(out)]
    for rule, by_hand in rules.items():
        for extra, given in (([], rewards), (["--standardise"], scaled)):
            k = ["--k", "2"] if rule == "mean-k-std" else []
            assert cli.main(["eval", *models, *common, "--combine", rule, *k, *extra]) == 0
            result = json.loads(out.read_text())
            pair = by_hand(given)
            assert result["accuracy"] == pytest.approx((pair[:, 0] > pair[:, 1]).mean())
            assert result["margin"] == pytest.approx((pair[:, 0] - pair[:, 1]).mean(), abs=1e-4)
            assert result["combine"] == rule and result["members"] == pytest.approx(figures["members"])
            assert ("k" in result, result["standardised"]) == (bool(k), bool(extra))
            key = f"{rule}, standardised" if extra else rule
            if rule != "mean-k-std":
                assert figures["rules"][key]["accuracy"] == pytest.approx(result["accuracy"])
    assert cli.main(["eval", *models, *common, "--combine", "majority"]) == 0
    votes = (gaps > 0).sum(0)
    result = json.loads(out.read_text())
    assert result["accuracy"] == figures["rules"]["majority"]["accuracy"] == pytest.approx((votes >= 2).mean())
    assert "loss" not in result and result["models"] == models


def score_rows(model: str, data: Path, out: Path) -> list[dict[str, Any]]:
    assert cli.main(["score", model, "--data", str(data), "--out", str(out)]) == 0
    return read_lines(out)


def test_eval_of_heads_as_members_and_as_one(folder: Path, heads: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    common = ["eval", str(heads), "--data", str(folder / "eval.jsonl"), "--out", str(out)]
    assert cli.main(common) == 0
    mean = json.loads(out.read_text())
    assert mean["models"] == [str(heads)]
    assert cli.main([*common, "--combine", "mean"]) == 0
    both = json.loads(out.read_text())
    assert both["loss"] == pytest.approx(mean["loss"]) and len(both["members"]) == MEMBERS


@pytest.mark.parametrize(
    "more, line",
    [
        (["--k", "1"], "--k belongs to --combine mean-k-std"),
        (["--combine", "mean", "--k", "1"], "--k belongs to --combine mean-k-std"),
        (["--combine", "median"], "one model with one head: nothing to combine"),
        (["--standardise"], "one model with one head: nothing to combine"),
    ],
)
def test_combining_nothing_is_one_line(
    more: list[str], line: str, folder: Path, full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", str(full / "members" / "00"), "--data", str(folder / "eval.jsonl"), *more]) == 2
    printed = capsys.readouterr()
    assert line in printed.err and "Accuracy" not in printed.out


# --- folds


def write_copies(path: Path) -> Path:
    """Twelve pairs, the first four twice: as they are, and with their sides swapped."""
    write_rows(path, 12, seed=3)
    rows = read_lines(path)
    again = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[2:4]]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, *rows[:2], *again]))
    return path


@pytest.mark.parametrize("mode", ["full", "heads"])
def test_no_member_judges_an_edge_that_it_saw(
    mode: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = write_copies(folder / f"copies-{mode}.jsonl")
    rows = read_lines(copies)
    seen: list[set[str]] = []  # by member: prompts, which tell these rows apart

    def prompts(labels: list[str]) -> set[str]:
        return {rows[int(label.rsplit(":", 1)[1]) - 1]["prompt"] for label in labels}

    if mode == "full":
        fit = training.fit

        def watched(run: Run, learner: BatchLearner, stop: StopRequest) -> dict[str, Any]:
            loader = learner.loader
            steps = [loader.build(number) for number in range(loader.total)]
            seen.append(prompts([loader.table.label(int(g)) for step in steps for p in step.packs for g in p.groups]))
            return fit(run, learner, stop)

        monkeypatch.setattr(training, "fit", watched)
    else:
        batch = HeadLearner.batch

        def watched_batch(self: HeadLearner, step: int) -> Any:
            out = batch(self, step)
            edges = self.data.edges
            for m in range(len(self.members)):
                seen.extend([set()] if len(seen) <= m else [])
                # From the features that the head multiplies, back to rows: nothing that the trainer says of itself.
                for side in (out.better, out.worse):
                    values = out.features[side[m][out.counted[m]]].numpy()
                    found = (self.data.features[None] == values[:, None]).all(-1)
                    responses = np.flatnonzero(np.isin(self.data.place, np.flatnonzero(found.any(0))))
                    groups = edges.group[np.isin(edges.better, responses) | np.isin(edges.worse, responses)]
                    seen[m] |= prompts([f":{g + 1}" for g in groups])  # one group a row, none is left out
            return out

        monkeypatch.setattr(HeadLearner, "batch", watched_batch)
    run = command(folder, f"folds-{mode}", data__train=copies, ensemble__mode=mode, ensemble__members=4)
    assert main([*run, "--ensemble.folds", "3", "--data.eval", str(folder / "eval.jsonl")]) == 0
    lines = read_lines(folder / f"folds-{mode}" / "data.jsonl")
    assert len(seen) == 4 and len(lines) == 16
    everything = {row["prompt"] for row in rows}
    for m, own in enumerate(seen):
        judged = {line["prompt"] for line in lines if m in line["members"]}
        assert len(judged) == 4 and not own & judged and own | judged == everything
    for line in lines:
        assert line["members"] == [m for m in range(4) if m % 3 == line["fold"]]
        assert len(line["rewards"]) == len(line["members"])
        assert (line["strength_std"] == 0) == (len(line["members"]) == 1)
    assert {line["fold"] for line in lines} == {0, 1, 2}
    assert "out of sample, 3 folds" in capsys.readouterr().out


def test_in_sample_strengths_lean_to_the_labels_and_folds_do_not(folder: Path) -> None:
    """Labels at random: nothing can be learnt of them but themselves."""
    draw = random.Random(5)
    rows = []
    for number in range(60):
        # Lengths alike on both sides, so that no rule tells them apart.
        sides = [" " + text(draw, 6, 6), " " + text(draw, 6, 6)]
        rows.append({"prompt": f"{number} {text(draw, 2, 4)}", "chosen": sides[0], "rejected": sides[1]})
    data = folder / "random.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    shares = {}
    for folds in (None, 2):
        run = command(folder, f"random-{folds}", data__train=data, ensemble__mode="heads", ensemble__members=6)
        run += arguments(run__epochs=30, optim__lr=0.1, **({} if folds is None else {"ensemble__folds": folds}))
        assert main(run) == 0
        lines = read_lines(folder / f"random-{folds}" / "data.jsonl")
        shares[folds] = float(np.mean([line["strength_mean"] > 0 for line in lines]))
    assert shares[None] > 0.75 and 0.3 < shares[2] < 0.7


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive one scores above a negative one, ties counting half."""
    above = score[positive][:, None] - score[~positive][None]
    return float((above > 0).mean() + (above == 0).mean() / 2)


@pytest.mark.parametrize("folds", [None, 4])
def test_strengths_find_planted_flips(folds: int | None, folder: Path) -> None:
    draw = random.Random(7)
    rows = []
    for number in range(160):
        good, poor = (f" {text(draw, 2, 5)} {word}" for word in ("birds", "mat"))
        flipped = draw.random() < 0.2
        row = {"prompt": f"{number} {text(draw, 2, 5)}", "chosen": good, "rejected": poor, "flipped": flipped}
        rows.append(row | {"chosen": poor, "rejected": good} if flipped else row)
    data = folder / "planted.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run = command(folder, f"planted-{folds}", data__train=data, ensemble__mode="heads", ensemble__members=4)
    assert main([*run, *arguments(run__epochs=4, **({} if folds is None else {"ensemble__folds": folds}))]) == 0
    lines = read_lines(folder / f"planted-{folds}" / "data.jsonl")
    mean, flipped = (np.array([line[key] for line in lines]) for key in ("strength_mean", "flipped"))
    assert 15 < flipped.sum() < 60 and auc(-mean, flipped) > 0.75
    assert abs(auc(np.arange(160), flipped) - 0.5) < 0.2


# --- bad config


@pytest.mark.parametrize(
    "more, line",
    [
        ({"ensemble__members": 1}, "ensemble.members"),
        ({"ensemble__folds": 1}, "ensemble.folds"),
        ({"ensemble__folds": 4}, "ensemble.folds (4) is above ensemble.members (3)"),
        ({"data__shuffle": False}, "data.shuffle false gives all members"),
        ({"ensemble__mode": "head"}, "ensemble.mode"),
        ({"ensemble__mode": "heads", "model__top_layers": 1}, "no model.top_layers"),
        ({"ensemble__mode": "heads", "model__dropout": 0.1}, "model.dropout"),
        ({"ensemble__mode": "heads", "model__heads": 2}, "model.heads (2) above 1"),
        ({"model__heads": 2}, "model.heads (2) above 1"),
        ({"data__denoise": "soft_margin"}, "task ensemble is there to make: leave them out"),
        ({"ensemble__mode": "heads", "objective__lm": 1.0}, "objective.lm"),
        ({"ensemble__mode": "heads", "ensemble__spread": "ranks"}, "no ensemble.spread ranks"),
        ({"ensemble__mode": "heads", "objective__contrastive": "simcse"}, "objective.contrastive trains nothing"),
        ({"ensemble__folds": 30, "ensemble__members": 30}, "30 folds need as many different prompts, the data has 23"),
    ],
)
def test_what_cannot_be_is_one_line(
    more: dict[str, Any], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, "refused", **more)) == 2
    error = capsys.readouterr().err
    assert line in error and len(error.strip().splitlines()) == 1 and not (folder / "refused").exists()


def test_a_broken_trunk_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "model", folder / "broken")
    state = load_file(folder / "broken" / "model.safetensors")
    state["model.norm.weight"][3] = torch.nan
    save_file(state, folder / "broken" / "model.safetensors", metadata={"format": "pt"})
    assert main(command(folder, "nan", model__path=folder / "broken", ensemble__mode="heads")) == 1
    responses = 20 * 2 + 3 + 2 + 2 + 12 * 2  # over-long ones and held-out ones too
    assert f"the trunk gives {responses} responses features that are not finite" in capsys.readouterr().err
