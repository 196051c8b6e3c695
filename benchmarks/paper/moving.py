"""Findings of Part II that need a trunk which moves: the top layers trained from kept states, on real pairs.

    python -m benchmarks.paper.moving --model FOLDER --data PAIRS --other ANSWERS --samples ANSWERS --json OUT

Ensembles of whole top layers; the presets over epochs, where noise can be memorised; one decile of strength alone; the
contrastive terms; MetaRM. Every label of the data counts as true; where noise is wanted a share of the training labels
is turned. What is done is kept in --keep, by experiment and seed, and not done again. README.md beside it says what
came out.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.origin import origin, write_json
from benchmarks.paper.common import Rows, Shown, auc, planted, report
from benchmarks.paper.moving_data import FOLDS, Data, K, read_data
from benchmarks.paper.top_layers import BUDGET, Recipe, scores, train, turned, with_strengths
from rmfast.data.denoise import PRESETS, Denoise
from rmfast.data.loader import rank_packs
from rmfast.data.table import GroupTable, table_edges, treat_table
from rmfast.evaluation.metrics import pairwise_metrics
from rmfast.kernels import difference_loss
from rmfast.objectives.contrastive import BETA, PROTOTYPES, TEMPERATURE, ContrastiveObjective, feature_overlap
from rmfast.objectives.meta import difference_variance
from rmfast.parallel.native import NativeEngine
from rmfast.tasks.folds import select
from rmfast.tasks.heads import Trunk
from rmfast.tasks.objectives import DROPOUT

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
ASCENTS: dict[str, dict[str, float] | None] = {
    "plain": None, "eta 5e-6": {"eta": 5e-6}, "rho 0.05": {"rho": 0.05}, "rho 0.5": {"rho": 0.5}
}  # fmt: skip


@dataclass(frozen=True)
class Lab:
    """The data, where what is done is kept, planted shares for detection, a recipe's learning rate, and the sizes of
    in-sample ensembles."""

    data: Data
    keep: Path
    noises: tuple[float, ...]
    lr: float
    sizes: tuple[int, ...] = SIZES

    def steps(self, of: GroupTable, epochs: Sequence[int]) -> dict[int, int]:
        """Number of a step -> the epoch that it ends."""
        return {epoch * -(-len(of) // Recipe(epochs=1).pairs): epoch for epoch in epochs}

    def train(self, of: GroupTable, seed: int, epochs: int, **options: Any) -> tuple[NativeEngine, Rows]:
        recipe = Recipe(epochs=epochs, lr=self.lr, **options.pop("recipe", {}))
        return train(self.data.top, self.data.states, of, recipe, seed, **options)


def gaps(engine: NativeEngine, of: GroupTable) -> np.ndarray:
    """Reward of better less that of worse for each edge of a table."""
    edges, rewards = table_edges(of), scores(engine, of)
    return rewards[edges.better] - rewards[edges.worse]


def member_strengths(lab: Lab, noise: float, folds: bool, seed: int) -> np.ndarray:
    """Each member's strengths of the training pairs, [epochs read, members, pairs]; nan where it is no judge."""
    file = lab.keep / f"strengths-{'folds' if folds else 'all'}-{noise}-{seed}.npy"
    if file.is_file():
        return np.load(file)
    data = lab.data
    noisy = turned(data.train, planted(len(data.train), noise, seed))
    out = np.full((len(READ), FOLDS if folds else max(lab.sizes), len(noisy)), np.nan)
    for m in range(out.shape[1]):
        judged = data.fold == m if folds else np.ones(len(noisy), dtype=bool)
        own = select(noisy, np.flatnonzero(~judged)) if folds else noisy
        judge, when = select(noisy, np.flatnonzero(judged)), lab.steps(own, READ)

        def read(step: int, engine: NativeEngine) -> None:
            out[READ.index(when[step]), m, judged] = gaps(engine, judge)  # noqa: B023

        lab.train(own, 100 * seed + m, READ[-1], at=when, evaluate=read)
    np.save(file, out)
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
    rows: Rows = []
    for name, options in PRESETS.items():
        treated, _ = treat_table(labelled, options)
        when = lab.steps(treated, PRESET_READ)

        def read(step: int, engine: NativeEngine) -> None:
            right = gaps(engine, lab.data.test) > 0
            rows.append({"preset": name, "epoch": when[step], "clean": float(right.mean()),  # noqa: B023
                         "noisy": float((right ^ noise).mean()), "agreed": float(right[~noise].mean()),
                         "memorised": float((gaps(engine, wrong) > 0).mean())})  # fmt: skip

        lab.train(treated, seed, PRESET_READ[-1], at=when, evaluate=read)
    return rows


def deciles(lab: Lab, seed: int) -> Rows:
    """Test accuracy after training on one decile of strength alone."""
    flipped, labelled, strength = strength_of(lab, seed)
    rows = []
    for d, part in enumerate(np.array_split(np.argsort(strength, kind="stable"), 10)):
        engine, _ = lab.train(select(labelled, np.sort(part)), seed, DECILE_EPOCHS)
        rows.append({"decile": d + 1, "planted": float(flipped[part].mean()),
                     "accuracy": float((gaps(engine, lab.data.test) > 0).mean())})  # fmt: skip
    return rows


def strongest(lab: Lab, seed: int) -> Rows:
    """The strongest decile alone, treated in four ways: test accuracy, test and training loss over epochs."""
    _, labelled, strength = strength_of(lab, seed)
    top = np.sort(np.argsort(strength, kind="stable")[-(len(strength) // 10) :])
    rows: Rows = []
    for name, options in STRONGEST.items():
        own = select(treat_table(labelled, options)[0], top)
        when = lab.steps(own, STRONGEST_READ)

        def read(step: int, engine: NativeEngine) -> None:
            values = {}
            for which, of in (("test", lab.data.test), ("train", select(labelled, top))):
                edges = table_edges(of)
                values[which] = pairwise_metrics(scores(engine, of), edges.better, edges.worse)
            rows.append({"treatment": name, "epoch": when[step], "accuracy": values["test"]["accuracy"],  # noqa: B023
                         "test_loss": values["test"]["loss"], "train_loss": values["train"]["loss"]})  # fmt: skip

        lab.train(own, seed, STRONGEST_READ[-1], at=when, evaluate=read)
    return rows


def contrastive(lab: Lab, seed: int) -> Rows:
    """The terms with the paper's weights: overlap of features on test pairs, accuracy at home and elsewhere."""
    rows = []
    for name in CONTRASTIVE:
        kind, _, diff = name.partition("-")
        recipe: dict[str, Any] = {}
        if kind != "none":
            on = "difference" if diff else "pair"
            recipe = {"dropout": DROPOUT, "prototypes": PROTOTYPES[on] if kind == "swav" else None}
            recipe["contrastive"] = ContrastiveObjective(
                kind=kind, on=on, beta=BETA[kind, on], temperature=TEMPERATURE[kind]  # type: ignore[arg-type]
            )  # fmt: skip
        engine, _ = lab.train(lab.data.train, seed, CONTRASTIVE_EPOCHS, recipe=recipe)
        found = {"accuracy": lab.data.test, "other": lab.data.other}
        row = {"term": name} | {key: float((gaps(engine, of) > 0).mean()) for key, of in found.items()}
        rows.append(
            row
            | {f"overlap{tail}": overlap(engine, of) for tail, of in (("", lab.data.test), ("_other", lab.data.other))}
        )
    return rows


@torch.no_grad()
def overlap(engine: NativeEngine, of: GroupTable) -> float:
    """Mean cosine of the features of better and worse; the engine is spent by it."""
    trunk = Trunk(engine.network).eval()
    packs, _ = rank_packs(of, np.arange(len(of)), ranks=1, rank=0, budget=BUDGET)
    own = [pack.to(engine.device) for pack in packs]
    cosines = sum(float(feature_overlap(trunk(pack).scores, pack)) for pack in own)
    return cosines / int((table_edges(of).weight > 0).sum())


def meta(lab: Lab, seed: int) -> Rows:
    """MetaRM and the plain recipe: how far apart rewards of held-out answers of the shifted distribution lie."""
    rows = []
    other, edges = lab.data.other, table_edges(lab.data.other)
    within = np.arange(int(other.first_response[-1])) - np.repeat(
        other.first_response[:-1], np.diff(other.first_response)
    )
    group = torch.from_numpy(np.repeat(np.arange(len(other)), K))
    for name, ascent in ASCENTS.items():
        samples = None if ascent is None else lab.data.samples
        engine, lines = lab.train(lab.data.train, seed, META_EPOCHS, recipe=ascent or {}, samples=samples)
        rewards, home = scores(engine, other), gaps(engine, lab.data.test)
        sampled = torch.from_numpy(rewards[within < K])
        spread = (sampled.reshape(-1, K, 1) - sampled.reshape(-1, 1, K)).abs().sum() / (len(other) * K * (K - 1))
        rises = [line["difference_loss_after"] - line["difference_loss"] for line in lines if ascent]
        rows.append({"ascent": name, "J": float(difference_loss(sampled, group)), "spread": float(spread),
                     "variance": float(difference_variance(sampled, group)) / len(other),
                     "relative": float(spread / np.abs(home).mean()), "accuracy": float((home > 0).mean()),
                     "other": float((rewards[edges.better] > rewards[edges.worse]).mean()),
                     "rise": float(np.mean(rises)) if rises else 0.0})  # fmt: skip
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
    add("--keep", type=Path, default=Path("runs/paper/moving"), help="hidden states and rows (default: %(default)s)")
    add("--json", type=Path, required=True, help="where all rows go")
    add("--plots", type=Path, help="folder for the figures")
    args = parser.parse_args(arguments)
    for folder in (args.keep, args.json.parent):
        folder.mkdir(parents=True, exist_ok=True)
    data = read_data(
        args.model, args.data, args.other, args.samples, layers=args.layers, limit=args.limit, prompts=args.prompts,
        tokens=args.tokens, folder=args.keep,
    )  # fmt: skip
    lab = Lab(data, args.keep, tuple(args.noises), args.lr, tuple(args.sizes))
    result: dict[str, Any] = {
        **origin("cuda" if torch.cuda.is_available() else "cpu"),
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
                rows = [{"seed": seed} | row for row in EXPERIMENTS[name](lab, seed)]
                file.write_text(json.dumps(rows), encoding="utf-8")
                print(f"{name}: seed {seed} done", flush=True)
            result[name] += json.loads(file.read_text(encoding="utf-8"))
    write_json(args.json, result, None)
    print(report(result, SHOWN))
    if args.plots:
        from benchmarks.paper.moving_plots import draw

        draw(result, args.plots)


if __name__ == "__main__":
    main()
