"""Part II's findings on real pairs: a decoder's top layers, or all of them, trained many times over.

    python -m benchmarks.paper.moving --model FOLDER --data PAIRS --other ANSWERS --samples ANSWERS --json OUT

Ensembles and their strengths; the presets over epochs, where noise can be memorised; one decile of strength alone; the
contrastive terms; MetaRM. Every label of the data counts as true; where noise is wanted a share of the training labels
is turned. Every training is a run of `task: reward` or `meta`. What is done is kept in --keep, by experiment and seed,
and not done again. README.md beside it says what was found.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.origin import origin, write_json
from benchmarks.paper.common import Rows, Shown, auc, planted, report
from benchmarks.paper.moving_data import FOLDS, Data, K, read_data, turned, with_strengths
from benchmarks.runs import MeasuredRun, open_run
from rmfast.config import load_config
from rmfast.data.denoise import PRESETS, Denoise
from rmfast.data.denoise_table import denoise_table
from rmfast.data.loader import rank_packs
from rmfast.data.table import GroupTable, select, table_edges
from rmfast.evaluation.metrics import pairwise_metrics
from rmfast.evaluation.scoring.score import score_table
from rmfast.kernels import difference_loss
from rmfast.models.network import Reads
from rmfast.objectives.contrastive import feature_overlap
from rmfast.objectives.meta import difference_variance
from rmfast.parallel.world import World

NOISE = 0.3  # planted share, but for detection
NOISES = (0.1, 0.2, 0.3, 0.4)
STRONGEST = {
    "plain": Denoise(),
    "margin": Denoise(margin="mean"),
    "soft label": Denoise(smooth=0.1, smooth_slice="all"),
    "soft label + margin": Denoise(smooth=0.1, smooth_slice="all", margin="mean"),
}
"""Treatments of the strongest decile alone (the paper's Figure 6)."""
SIZES = (1, 3)  # in-sample ensembles, where --sizes names no others; out of sample each edge has one judge
READ = (1, 3)  # epochs after which members are read
PRESET_READ = (1, 3)
DECILE_EPOCHS, STRONGEST_READ = 5, (1, 2, 4, 8, 16)
CONTRASTIVE = ("none", "simcse", "simcse-diff", "swav", "swav-diff")
CONTRASTIVE_EPOCHS = META_EPOCHS = 1  # as in the paper
ASCENTS = {"plain": None, "eta 5e-6": {"eta": 5e-6}, "rho 0.05": {"rho": 0.05}, "rho 0.5": {"rho": 0.5}}
PAIRS, BUDGET = 16, 4096  # of a step; tokens of a pack that is scored


@dataclass(frozen=True)
class Lab:
    """The data, where what is done is kept, planted shares for detection, sizes of in-sample ensembles, and the keys
    that all runs share."""

    data: Data
    keep: Path
    noises: tuple[float, ...]
    sizes: tuple[int, ...]
    keys: dict[str, Any]

    def train(
        self,
        of: GroupTable,
        seed: int,
        epochs: Sequence[int],
        read: Callable[[MeasuredRun], dict[str, Any]],
        **keys: Any,
    ) -> tuple[Rows, Rows]:
        """Train on a table to the last of some epochs; what `read` finds after each, and each step's metrics."""
        given = self.keys | {"run.seed": seed, "run.epochs": epochs[-1]} | keys
        config = load_config([f"--{key}={value}" for key, value in given.items()])
        run, done = open_run(config, World(), of), count()
        when = {epoch * -(-len(of) // PAIRS): epoch for epoch in epochs}
        rows: Rows = []

        def mark() -> None:
            if (epoch := when.get(next(done))) is not None:
                rows.append(({"epoch": epoch} if len(epochs) > 1 else {}) | read(run))

        return rows, run.measure(mark)


def scores(run: MeasuredRun, of: GroupTable) -> np.ndarray:
    """Rewards [R] of a table's responses."""
    return score_table(run.engine.score, of, budget=BUDGET)[:, 0]


def gaps(run: MeasuredRun, of: GroupTable) -> np.ndarray:
    """Reward of better less that of worse for each edge of a table."""
    edges, rewards = table_edges(of), scores(run, of)
    return rewards[edges.better] - rewards[edges.worse]


def right(run: MeasuredRun, of: GroupTable) -> float:
    """Share of edges that are ranked as labelled."""
    return float((gaps(run, of) > 0).mean())


def member_strengths(lab: Lab, noise: float, folds: bool, seed: int) -> np.ndarray:
    """Each member's strengths of the training pairs, [epochs read, members, pairs]; nan where it is no judge."""
    file = lab.keep / f"strengths-{'folds' if folds else 'all'}-{noise}-{seed}.json"
    if file.is_file():
        return np.array(json.loads(file.read_text(encoding="utf-8")))
    noisy = turned(lab.data.train, planted(len(lab.data.train), noise, seed))
    out = np.full((len(READ), FOLDS if folds else max(lab.sizes), len(noisy)), np.nan)
    for m in range(out.shape[1]):
        judged = np.flatnonzero(lab.data.fold == m) if folds else np.arange(len(noisy))
        seen, judge = select(noisy, np.flatnonzero(lab.data.fold != m)) if folds else noisy, select(noisy, judged)
        rows, _ = lab.train(seen, 100 * seed + m, READ, lambda run, judge=judge: {"gaps": gaps(run, judge)})
        out[:, m, judged] = [row["gaps"] for row in rows]
    write_json(file, out.tolist(), None)
    return out


def strength_of(lab: Lab, seed: int) -> tuple[np.ndarray, GroupTable, np.ndarray]:
    """Planted flips, the training pairs labelled so with their out-of-sample strengths, and these."""
    flipped = planted(len(lab.data.train), NOISE, seed)
    strength = np.nanmean(member_strengths(lab, NOISE, True, seed)[-1], 0)
    return flipped, with_strengths(turned(lab.data.train, flipped), strength), strength


def detection(lab: Lab, seed: int) -> Rows:
    """AUC of minus the strength for planted flips, and the share of negative strengths."""
    rows = []
    for noise in lab.noises:
        flipped = planted(len(lab.data.train), noise, seed)
        for way, folds in (("in-sample", False), (f"{FOLDS}-fold", True)):
            found = member_strengths(lab, noise, folds, seed)
            for e, epoch in enumerate(READ):
                for members in (1,) if folds else lab.sizes:
                    mean = np.nanmean(found[e] if folds else found[e, :members], 0)
                    rows.append({"noise": noise, "strength": way, "epoch": epoch, "members": members,
                                 "auc": auc(-mean, flipped), "negative": float((mean < 0).mean())})  # fmt: skip
    return rows


def presets(lab: Lab, seed: int) -> Rows:
    """The five presets, epoch by epoch: accuracy on test labels, and the share of planted flips that are learnt."""
    flipped, labelled, _ = strength_of(lab, seed)
    wrong = select(turned(lab.data.train, flipped), np.flatnonzero(flipped))
    noise = planted(len(lab.data.test), NOISE, seed + 500)

    def read(run: MeasuredRun) -> dict[str, float]:
        clean = gaps(run, lab.data.test) > 0
        return {"clean": float(clean.mean()), "noisy": float((clean ^ noise).mean()),
                "agreed": float(clean[~noise].mean()), "memorised": right(run, wrong)}  # fmt: skip

    return [
        {"preset": name} | row
        for name, options in PRESETS.items()
        for row in lab.train(denoise_table(labelled, options)[0], seed, PRESET_READ, read)[0]
    ]


def deciles(lab: Lab, seed: int) -> Rows:
    """Test accuracy after training on one decile of strength alone."""
    flipped, labelled, strength = strength_of(lab, seed)
    rows = []
    for d, part in enumerate(np.array_split(np.argsort(strength, kind="stable"), 10)):
        (row,), _ = lab.train(
            select(labelled, np.sort(part)), seed, [DECILE_EPOCHS], lambda run: {"accuracy": right(run, lab.data.test)}
        )
        rows.append({"decile": d + 1, "planted": float(flipped[part].mean())} | row)
    return rows


def strongest(lab: Lab, seed: int) -> Rows:
    """The strongest decile alone, treated in four ways: test accuracy, test and training loss over epochs."""
    _, labelled, strength = strength_of(lab, seed)
    top = np.sort(np.argsort(strength, kind="stable")[-(len(strength) // 10) :])

    def metrics(run: MeasuredRun, of: GroupTable) -> dict[str, Any]:
        edges = table_edges(of)
        return pairwise_metrics(scores(run, of), edges.better, edges.worse)

    def read(run: MeasuredRun) -> dict[str, float]:
        test, train = metrics(run, lab.data.test), metrics(run, select(labelled, top))
        return {"accuracy": test["accuracy"], "test_loss": test["loss"], "train_loss": train["loss"]}

    return [
        {"treatment": name} | row
        for name, options in STRONGEST.items()
        for row in lab.train(select(denoise_table(labelled, options)[0], top), seed, STRONGEST_READ, read)[0]
    ]


def contrastive(lab: Lab, seed: int) -> Rows:
    """The terms with the paper's weights: overlap of features on test pairs, accuracy at home and elsewhere."""
    tables = {"": lab.data.test, "_other": lab.data.other}

    def read(run: MeasuredRun) -> dict[str, float]:
        row = {"accuracy": right(run, lab.data.test), "other": right(run, lab.data.other)}
        return row | {f"overlap{tail}": overlap(run, of) for tail, of in tables.items()}

    rows = []
    for name in CONTRASTIVE:
        kind, _, diff = name.partition("-")
        keys = {"objective.contrastive": kind}
        if kind != "none":
            keys |= {"objective.on": "difference" if diff else "pair", "objective.views": "pass"}
        rows += [{"term": name} | row for row in lab.train(lab.data.train, seed, [CONTRASTIVE_EPOCHS], read, **keys)[0]]
    return rows


@torch.no_grad()
def overlap(run: MeasuredRun, of: GroupTable) -> float:
    """Mean cosine of the features of better and worse."""
    packs, _ = rank_packs(of, np.arange(len(of)), ranks=1, rank=0, budget=BUDGET)
    there = [pack.to(run.engine.device) for pack in packs]
    read = run.engine.read(packs, lambda pack: Reads(scores=pack.scored, features=True))
    cosines = sum(float(feature_overlap(out.features, pack)) for out, pack in zip(read, there, strict=True))
    return cosines / int((table_edges(of).weight > 0).sum())


def meta(lab: Lab, seed: int) -> Rows:
    """MetaRM and the plain recipe: how far apart rewards of held-out answers of the shifted distribution lie."""
    other, edges = lab.data.other, table_edges(lab.data.other)
    first = other.first_response
    sampled_rows = np.arange(first[-1]) - np.repeat(first[:-1], np.diff(first)) < K
    group = torch.from_numpy(np.repeat(np.arange(len(other)), K))

    def read(run: MeasuredRun) -> dict[str, float]:
        rewards, home = scores(run, other), gaps(run, lab.data.test)
        sampled = torch.from_numpy(rewards[sampled_rows])
        spread = (sampled.reshape(-1, K, 1) - sampled.reshape(-1, 1, K)).abs().sum() / (len(other) * K * (K - 1))
        return {"J": float(difference_loss(sampled, group)), "spread": float(spread),
                "variance": float(difference_variance(sampled, group)) / len(other),
                "relative": float(spread / np.abs(home).mean()), "accuracy": float((home > 0).mean()),
                "other": float((rewards[edges.better] > rewards[edges.worse]).mean())}  # fmt: skip

    rows = []
    for name, ascent in ASCENTS.items():
        keys: dict[str, Any] = {}
        if ascent is not None:
            keys = {"task": "meta", "meta.data": lab.data.samples, "meta.k": K, "meta.prompts_per_step": 4,
                    "meta.check_every": 1} | {f"meta.{key}": value for key, value in ascent.items()}  # fmt: skip
        (row,), lines = lab.train(lab.data.train, seed, [META_EPOCHS], read, **keys)
        rises = [line["difference_loss_after"] - line["difference_loss"] for line in lines if ascent]
        rows.append({"ascent": name, "rise": float(np.mean(rises)) if rises else 0.0} | row)
    return rows


EXPERIMENTS: dict[str, Callable[[Lab, int], Rows]] = {
    run.__name__: run for run in (detection, presets, deciles, strongest, contrastive, meta)
}
SHOWN: Shown = {
    "detection": (("strength", "noise", "epoch", "members"), None, ("auc", "negative")),
    "presets": (("epoch",), ("preset", "baseline"), ("clean", "noisy", "agreed", "memorised")),
    "meta": ((), ("ascent", "plain"), ("J", "spread", "variance", "relative", "accuracy", "other", "rise")),
    "contrastive": ((), ("term", "none"), ("overlap", "overlap_other", "accuracy", "other")),
    "strongest": (("epoch",), ("treatment", "plain"), ("accuracy", "test_loss", "train_loss")),
    "deciles": (("decile",), None, ("accuracy", "planted")),
}


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All experiments of all seeds, those that are kept included."""
    sizes = {"limit": args.limit, "prompts": args.prompts, "tokens": args.tokens}
    data = read_data(args.model, args.data, args.other, args.samples, folder=scratch, **sizes)
    cuda = torch.cuda.is_available()
    keys = {
        "model.path": args.model, "model.top_layers": args.layers or "null", "data.train": args.data,
        "model.dtype": "bfloat16" if cuda else "float32", "data.pairs_per_step": PAIRS, "optim.lr": args.lr,
        "optim.schedule": "linear", "optim.warmup": 0.1, "optim.floor": 0.0, "run.dir": scratch / "run",
        "data.cache": scratch / "cache",
    }  # fmt: skip
    lab = Lab(data, args.keep, tuple(args.noises), tuple(args.sizes), keys)
    result: dict[str, Any] = {
        **origin("cuda" if cuda else "cpu"),
        **{name: Path(getattr(args, name)).name for name in ("model", "data", "other", "samples")},
        "layers": args.layers, "lr": args.lr, "noise": NOISE, "seeds": args.seeds,
        "pairs": len(data.train) + len(data.test), "test_pairs": len(data.test),
        "other_pairs": int(data.other.edges.sum()),
    }  # fmt: skip
    for name in args.experiments:
        result[name] = []
        for seed in args.seeds:
            file = args.keep / f"{name}-{seed}.json"
            if not file.is_file():
                write_json(file, [{"seed": seed} | row for row in EXPERIMENTS[name](lab, seed)], None)
                print(f"{name}: seed {seed} done", flush=True)
            result[name] += json.loads(file.read_text(encoding="utf-8"))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not done yet, print it, keep it, draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="Hugging Face folder of the decoder")
    add("--data", required=True, help="preference pairs")
    add("--other", required=True, help="answers of many models against a baseline's: other pairs, held-out samples")
    add("--samples", required=True, help="the same of other instructions: MetaRM's samples")
    add("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="(default: all)")
    add("--layers", type=int, default=1, help="on top, that are trained; 0: all (default: %(default)s)")
    add("--limit", type=int, default=1472, help="pairs drawn at most (default: %(default)s)")
    add("--prompts", type=int, default=60, help="of --other; half as many of --samples (default: %(default)s)")
    add("--tokens", type=int, default=256, help="pairs with more in all are left out (default: %(default)s)")
    add("--noises", type=float, nargs="+", default=NOISES, help="planted shares for detection (default: %(default)s)")
    add("--lr", type=float, default=3e-4, help="peak learning rate (default: %(default)s)")
    add("--sizes", type=int, nargs="+", default=SIZES, help="of in-sample ensembles (default: %(default)s)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: %(default)s)")
    add("--keep", type=Path, default=Path("runs/paper/moving"), help="strengths and rows (default: %(default)s)")
    add("--json", type=Path, required=True, help="where all rows go")
    add("--plots", type=Path, help="folder for the figures")
    args = parser.parse_args(arguments)
    for folder in (args.keep, args.json.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(args, Path(scratch))
    write_json(args.json, result, None)
    print(report(result, SHOWN))
    if args.plots:
        from benchmarks.paper.moving_plots import draw

        draw(result, args.plots)


if __name__ == "__main__":
    main()
