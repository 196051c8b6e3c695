"""ensemble.mode top_layers: members are reward runs, or take common batches; folds, resume, ranks, export."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from rmfast import cli
from rmfast.data.loader import Step
from rmfast.evaluation.scoring.shared import by_trunk
from rmfast.models.decoder import Decoder
from rmfast.models.hf import load_network
from rmfast.tasks.ensemble.members import member_seed
from rmfast.tasks.ensemble.top_batch import CommonBatches, SeparateOrders, bootstrap, weighted
from rmfast.tasks.ensemble.top_learner import TopLearner
from rmfast.train import main
from rmfast.trainer.batch_learner import BatchLearner
from tests.runs import Case, launch, read_lines
from tests.tasks.ensembles import MEMBERS, command, write_inputs

pytestmark = pytest.mark.usefixtures("no_plots")

TOP: dict[str, Any] = {"ensemble__mode": "top_layers", "model__top_layers": 1}
COMMON = TOP | {"ensemble__state_memory": 0}
KINDS = {"top": TOP, "common": COMMON}


class Interrupted(BaseException):
    """Not one of the errors that anything may catch."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("ensemble"))


def run_of(folder: Path, name: str, **more: Any) -> Path:
    assert main(command(folder, name, **more)) == 0
    return folder / name


@pytest.fixture(scope="module")
def top(folder: Path) -> Path:
    return run_of(folder, "top", **TOP)


@pytest.fixture(scope="module")
def common(folder: Path) -> Path:
    return run_of(folder, "common", **COMMON)


def models(run: Path) -> list[Path]:
    return [run / "members" / f"{m:02d}" / "model" for m in range(MEMBERS)]


def weights(model: Path) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in load_network(model)[0].named_parameters()}


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, weight in theirs.items():
        assert (ours[name] - weight).norm() <= 1e-5 * weight.norm(), name


def losses_of(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """The losses of all members [M] of every step that is taken from now on."""
    step, losses = TopLearner.step, []

    def watched(self: TopLearner, number: int) -> Any:
        figures = step(self, number)
        losses.append(figures.device["loss"].tolist())
        return figures

    monkeypatch.setattr(TopLearner, "step", watched)
    return losses


# --- what a member is


@pytest.mark.parametrize("over_long", ["drop", "truncate"])
def test_a_member_is_its_reward_run_in_its_order(over_long: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, more = losses_of(monkeypatch), {"data__over_long": over_long, "optim__weight_decay": 0.1}
    together = run_of(folder, f"{over_long}-top", **TOP, **more, optim__clip=0.5)
    common = {"task": "reward", "model__top_layers": 1, "optim__clip": 0.5}
    alone = run_of(folder, f"{over_long}-alone", **common, **more, run__seed=member_seed(0, 1))
    theirs = [line["loss"] for line in read_lines(alone / "metrics.jsonl")]
    assert len(theirs) == 6 and [of_step[1] for of_step in losses] == pytest.approx(theirs, rel=1e-5)
    assert losses[0][0] != pytest.approx(losses[0][1], rel=1e-3)
    assert_near(weights(models(together)[1]), weights(alone / "model"))
    start = load_network(folder / "model", new_heads=True)[0]
    found = weights(models(together)[1])
    moved = {name for name, p in start.named_parameters() if not torch.equal(found[name], p)}
    assert moved == {n for n in found if n.startswith(("decoder.layers.1.", "norm", "head"))}
    out = folder / f"{over_long}.jsonl"
    scores = ["score", *map(str, models(together)), "--data", str(folder / "rows.jsonl"), "--out", str(out)]
    assert cli.main(scores) == 0
    scored = [row for row in read_lines(out) if row.keys() != {"rewards", "error"}]
    for ours, other in zip(read_lines(together / "data.jsonl"), scored, strict=True):
        for key in ("rewards", "strength_mean", "strength_std", "votes") if ours["rewards"] else ():
            assert np.array(ours[key]) == pytest.approx(np.array(other[key]), abs=2e-5)


def test_members_of_common_batches_are_runs_with_weights_of_rows(
    folder: Path, common: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward run in the ensemble's order whose steps are weighted as member 1's are."""
    gradients = BatchLearner.gradients

    def reweighted(self: BatchLearner, number: int) -> Any:
        table = self.loader.table
        step = weighted(self.loader.build(number), table, bootstrap([member_seed(0, 1)], len(table))[0])
        monkeypatch.setattr(self.loader, "step", lambda number: step)
        return gradients(self, number)

    monkeypatch.setattr(BatchLearner, "gradients", reweighted)
    drawn = load_network(folder / "model", new_heads=True, seed=member_seed(0, 1))[0].get_parameter("head.weight")

    def with_head(path: str, **options: Any) -> Any:
        network, hf = load_network(path, **options)
        network.get_parameter("head.weight").data.copy_(drawn.detach())
        return network, hf

    monkeypatch.setattr("rmfast.tasks.build.engine.load_network", with_head)
    alone = run_of(folder, "weighted", task="reward", model__top_layers=1)
    assert_near(weights(models(common)[1]), weights(alone / "model"))
    assert not torch.allclose(weights(models(common)[0])["norm.weight"], weights(models(common)[1])["norm.weight"])
    assert not (common / "states.npy").exists()


def test_rows_count_as_often_as_they_were_drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = bootstrap([5, 6], 4000)
    assert drawn.shape == (2, 4000) and drawn.mean() == pytest.approx(1, abs=0.05)
    assert (drawn == 0).mean() == pytest.approx(np.exp(-1), abs=0.02) and (drawn[0] != drawn[1]).any()
    steps: list[tuple[Step, Step, np.ndarray, Any]] = []
    call = CommonBatches.__call__

    def watched(self: CommonBatches, number: int) -> Any:
        batch, plain = call(self, number), self.loader.build(number)
        placed = zip(batch.steps, self.weights, strict=True)
        steps.extend((plain, step, w, self.loader.table) for step, w in placed if step)
        return batch

    monkeypatch.setattr(CommonBatches, "__call__", watched)
    run_of(folder, "drawn", **COMMON, run__max_steps=2, ensemble__folds=3)
    assert len(steps) == 2 * MEMBERS
    for plain, step, of_rows, table in steps:
        total = sum(float(pack.edges.weight.sum()) for pack in step.packs)
        assert step.totals.weight == pytest.approx(total)
        assert total == pytest.approx(sum(table.weight[row] * of_rows[row] for row in plain.rows))
        assert step.totals.edges == sum(len(pack.edges.weight) for pack in step.packs)
        assert all((pack.edges.weight > 0).all() for pack in step.packs)


def test_the_budget_decides_and_says_so(
    folder: Path, top: Path, common: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, words in ((top, TOP), (common, COMMON)):
        (run / "data.jsonl").unlink()
        assert main(command(folder, run.name, **words)) == 0
        said = capsys.readouterr().out
        assert f"all {MEMBERS} members: done before" in said
        assert ("All members took the same batches" in said) == (run is common)
    assert main(command(folder, "budget", **COMMON, run__max_steps=1)) == 0
    said = capsys.readouterr().out
    assert re.search(r"take \d\.\d\d GiB and ensemble.state_memory is 0: all members take the same batches", said)
    array = np.load(top / "states.npy", mmap_mode="r")
    assert array.shape[1] == 32 and array.dtype == np.float32


def test_members_over_bf16_states_are_near_those_over_fp32(folder: Path, top: Path) -> None:
    half = run_of(folder, "bf16", **TOP, model__dtype="bfloat16", run__max_steps=1)
    full = run_of(folder, "fp32", **TOP, run__max_steps=1)
    assert np.load(half / "states.npy", mmap_mode="r").dtype == np.int16
    rewards = [np.load(run / "members" / "00" / "scores.npz")["data"] for run in (half, full)]
    assert np.abs(rewards[0] - rewards[1]).max() < 0.2 * np.abs(rewards[1]).max()


def test_a_member_that_is_not_finite_keeps_its_weights_and_the_others_learn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TopLearner.step

    def broken(self: TopLearner, number: int) -> Any:
        self.engine.weights[1]["head.weight"].data.fill_(torch.inf)
        before = [{name: w.detach().clone() for name, w in of.items()} for of in self.engine.weights]
        figures = step(self, number)
        same = [
            all(torch.equal(w, old[name]) for name, w in of.items())
            for of, old in zip(self.engine.weights, before, strict=True)
        ]
        line = figures.line({name: values.tolist() for name, values in figures.device.items()})
        assert same == [False, True, False] and "member 1" in str(line.error) and line.values["skipped"] == [1]
        assert np.isfinite(line.values["loss"]) and [float(o.steps) for o in self.engine.optimizers] == [1, 0, 1]
        raise Interrupted

    monkeypatch.setattr(TopLearner, "step", broken)
    with pytest.raises(Interrupted):
        main(command(folder, "broken", **TOP))


# --- folds


@pytest.mark.parametrize("kind", KINDS)
def test_no_member_judges_a_row_that_it_learnt_from(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = [set() for _ in range(MEMBERS)]
    for source in (SeparateOrders, CommonBatches):
        call = source.__call__

        def watched(self: Any, number: int, call: Any = call) -> Any:
            batch = call(self, number)
            for m, step in enumerate(batch.steps):
                for pack in step.packs if step else ():
                    groups = pack.groups[pack.group[pack.edges.better].numpy()]
                    rows = groups if isinstance(self, CommonBatches) else self.groups[m][groups]
                    seen[m] |= set(rows.tolist())
            return batch

        monkeypatch.setattr(source, "__call__", watched)
    run = run_of(folder, f"folds-{kind}", **KINDS[kind], ensemble__folds=2, run__epochs=6)
    lines = [line for line in read_lines(run / "data.jsonl") if line["rewards"]]
    usable = [line for line in lines if line["prompt"] != "the sea" and len(line["prompt"]) < 80]
    judged = [{i for i, line in enumerate(usable) if m in line["members"]} for m in range(MEMBERS)]
    assert judged[0] == judged[2] and not judged[0] & judged[1]
    for m in range(MEMBERS):
        assert seen[m] and not seen[m] & judged[m]
        if kind == "top":
            assert seen[m] | judged[m] == set(range(len(usable)))


# --- resume and ranks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [1, 3, 6])
def test_interrupted_members_go_on_bit_for_bit(
    kind: str, after: int, folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole: Path = request.getfixturevalue(kind)
    step = TopLearner.step
    run = command(folder, f"stopped-{kind}-{after}", **KINDS[kind])

    def stops(self: TopLearner, number: int) -> Any:
        if number == after:
            raise Interrupted
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(TopLearner, "step", stops)
        if after == 6:
            patch.setattr("rmfast.tasks.ensemble.top._export", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            main(run)
    capsys.readouterr()
    assert main(run) == 0
    said = capsys.readouterr().out
    assert ("states.npy: made before" in said) == (kind == "top") and ("resumed from step" in said) == (after > 2)
    again = folder / f"stopped-{kind}-{after}"
    assert (again / "data.jsonl").read_bytes() == (whole / "data.jsonl").read_bytes()
    for ours, theirs in zip(models(again), models(whole), strict=True):
        assert all(torch.equal(w, weights(theirs)[name]) for name, w in weights(ours).items())


def test_a_checkpoint_of_other_batches_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(folder, "other-batches", **TOP)
    (run / "members" / "01" / "scores.npz").unlink()
    assert main(command(folder, "other-batches", **COMMON)) == 2
    assert "began with the batches that members take (ensemble.state_memory)" in capsys.readouterr().err


def test_another_number_of_members_trains_all_again_on_the_same_states_and_damaged_ones_are_made_again(
    folder: Path, top: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(top, folder / "fewer"))
    assert main(command(folder, "fewer", **TOP, ensemble__members=2)) == 0
    said = capsys.readouterr().out
    assert "holds 3 members, now ensemble.members is 2: all are trained again" in said and "made before" in said
    assert sorted(path.name for path in (run / "members").iterdir()) == ["00", "01"]
    assert_near(weights(models(run)[1]), weights(models(top)[1]))
    rows = zip(read_lines(run / "data.jsonl"), read_lines(top / "data.jsonl"), strict=True)
    assert all(np.allclose(a["rewards"], b["rewards"][:2], atol=1e-5) for a, b in rows if b["rewards"])
    states = bytearray((run / "states.npy").read_bytes())
    states[len(states) // 2] ^= 1
    (run / "states.npy").write_bytes(states)
    (run / "members" / "01" / "scores.npz").unlink()
    assert cli.main(["doctor", str(run)]) == 1 and "states.npy is not what was written" in capsys.readouterr().out
    assert main(command(folder, "fewer", **TOP, ensemble__members=2)) == 0
    assert "states.npy: damaged" in capsys.readouterr().out
    assert (run / "states.npy").read_bytes() == (top / "states.npy").read_bytes()
    assert cli.main(["doctor", str(run)]) == 0


@pytest.mark.slow
def test_two_ranks_give_what_one_gives(folder: Path, top: Path, common: Path) -> None:
    cases = [Case(f"two-{kind}", command(folder, f"two-{kind}", **KINDS[kind])) for kind in KINDS]
    codes = launch(folder / "launch", cases, ranks=2)
    assert codes == {f"two-{kind}": [0, 0] for kind in KINDS}
    for kind, one in (("top", top), ("common", common)):
        for ours, theirs in zip(models(folder / f"two-{kind}"), models(one), strict=True):
            assert_near(weights(ours), weights(theirs))


# --- what is exported


def test_members_share_their_trunk_on_disk_and_when_they_score(
    folder: Path, common: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = models(common)
    files = [sorted(path.glob("*.safetensors")) for path in paths]
    assert [len(of) for of in files] == [2] * MEMBERS
    assert [len({of[i].stat().st_ino for of in files}) for i in (0, 1)] == [1, MEMBERS]
    with safe_open(files[1][1], "pt") as held:
        assert all(name.startswith(("model.layers.1.", "model.norm", "score")) for name in held.keys())  # noqa: SIM118
    assert by_trunk([path.parent for path in paths]) == [[path.parent for path in paths]]
    forward, calls = Decoder.forward, []

    def counted(self: Decoder, *rest: Any, **more: Any) -> Tensor:
        calls.append(self.held)
        out: Tensor = forward(self, *rest, **more)
        return out

    monkeypatch.setattr(Decoder, "forward", counted)
    out = folder / "figures.json"
    common_words = ["--data", str(folder / "eval.jsonl"), "--combine", "mean", "--out", str(out)]
    assert cli.main(["eval", *(str(path.parent) for path in paths), *common_words]) == 0
    assert calls == [range(1), range(1, 2)]
    theirs = json.loads((common / "summary.json").read_text())["eval"]["eval"]
    assert json.loads(out.read_text())["members"] == pytest.approx(theirs["members"])
    evaluated = [line for line in read_lines(common / "eval.jsonl") if line["step"] == 6]
    assert [line["eval_accuracy"] for line in evaluated] == [theirs["rules"]["mean"]["accuracy"]]
    assert f"{MEMBERS} models share a trunk" in capsys.readouterr().out
    assert cli.main(["score", str(common), "--data", str(folder / "eval.jsonl"), "--out", str(folder / "s.jsonl")]) == 2
    assert "name its members" in capsys.readouterr().err


# --- what is refused


@pytest.mark.parametrize(
    "more, line",
    [
        ({"model__top_layers": 2}, "needs a frozen layer below them; the model has 2 layers: set at most 1"),
        ({"model__top_layers": 0}, "model.top_layers says how many layers ensemble.mode top_layers trains"),
        ({"objective__lm": 0.1}, "objective.lm reads a head that ensemble.mode top_layers does not train"),
        ({"objective__contrastive": "simcse"}, "objective.contrastive trains nothing in ensemble.mode top_layers"),
        ({"parallel__data": "fsdp"}, "ensemble.mode top_layers needs ddp"),
        ({"ensemble__spread": "ranks"}, "top_layers trains all members at once: it takes no ensemble.spread ranks"),
        ({"ensemble__mode": "full", "ensemble__state_memory": 1}, "ensemble.state_memory belongs to ensemble.mode top"),
    ],
)
def test_what_it_does_not_take_is_one_line(
    more: dict[str, Any], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, "refused", **(TOP | more))) == 2
    error = capsys.readouterr().err
    assert line in error and len(error.strip().splitlines()) == 1 and not (folder / "refused" / "states.npy").exists()
