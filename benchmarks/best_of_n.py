"""Over-optimisation by best-of-N on real answers: proxies trained on little, gold on more, over one frozen decoder.

    python -m benchmarks.best_of_n --model FOLDER --data ANSWERS.jsonl.gz [...] --json OUT.json --plots FOLDER

Answers of many models to one instruction each, which a judge (GPT-4 in AlpacaEval) preferred to a baseline's answer or
not, are the responses to choose from. Heads are trained on the features of a decoder's first layers to rank the
preferred ones above the others: the proxies on a few instructions each, gold on many others. On held-out instructions
each proxy, and the rules that combine them, choose the best of N; gold says how good the choice is, and so does the
judge. docs/best-of-n.md says what was found.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.best_of_n_data import Instruction, features_of, read_instructions
from benchmarks.origin import origin, write_json
from rmfast.data.example import Example
from rmfast.evaluation.best_of_n.curves import candidates_of, curves
from rmfast.evaluation.metrics import Floats
from rmfast.jsonio import finite_or_null
from rmfast.kernels import ranking_loss
from rmfast.report.best_of_n.plots import best_of_n_plots
from rmfast.report.plots import render

LEAST, MOST, LETTERS = 16, 24, 1000  # answers of an instruction; letters of an answer
HELD_OUT, GOLD = 80, 85  # instructions; the others are the proxies'
DECAYS = (1e-3, 1e-2, 1e-1, 1.0)  # weights of |head|^2, of which gold's is chosen by folds of its instructions
FOLDS = 5
Part = Sequence[tuple[np.ndarray, Instruction]]
"""Features [N, d] of an instruction's answers, and the instruction."""


@dataclass(frozen=True)
class Head:
    """A linear reward over standardised features."""

    weight: Floats  # [d]
    mean: Floats
    std: Floats

    def rewards(self, features: np.ndarray) -> Floats:
        """[N] of features [N, d]."""
        return np.asarray((features - self.mean) / self.std @ self.weight)


def edges_of(part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Better, worse and weight of all pairs of a preferred answer and one that was not, answers numbered through;
    each instruction weighs the same."""
    better, worse, weight = [np.empty(0, int)], [np.empty(0, int)], [np.empty(0)]
    begin = 0
    for _, instruction in part:
        won = np.array(instruction.won)
        pairs = np.argwhere(won[:, None] & ~won)
        better.append(begin + pairs[:, 0])
        worse.append(begin + pairs[:, 1])
        weight.append(np.full(len(pairs), 1 / max(len(pairs), 1)))
        begin += len(won)
    return np.concatenate(better), np.concatenate(worse), np.concatenate(weight)


def train(part: Part, decay: float) -> Head:
    """The head that minimises the ranking loss plus `decay` |head|^2, from 0 by L-BFGS in fp64."""
    features = np.concatenate([of for of, _ in part]).astype(np.float64)
    mean, std = features.mean(0), features.std(0) + 1e-6
    inputs = torch.from_numpy((features - mean) / std)
    better, worse, weight = map(torch.from_numpy, edges_of(part))
    head = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([head], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = ranking_loss(inputs @ head, better, worse, weight=weight) + decay * head.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return Head(head.detach().numpy(), mean, std)


def accuracy(head: Head, part: Part) -> float:
    """Share of pairs that a head ranks as the judge does, a mean over instructions."""
    rewards = np.concatenate([head.rewards(features) for features, _ in part])
    better, worse, weight = edges_of(part)
    return float(np.average(rewards[better] > rewards[worse], weights=weight))


def best_decay(part: Part) -> float:
    """Of DECAYS the one of the best accuracy on folds of instructions."""
    folds = [(part[fold::FOLDS], [one for i, one in enumerate(part) if i % FOLDS != fold]) for fold in range(FOLDS)]
    return max(DECAYS, key=lambda decay: np.mean([accuracy(train(rest, decay), fold) for fold, rest in folds]))


def experiment(parts: dict[str, Part], gold: Head, members: int, instructions: int, decay: float) -> dict[str, Any]:
    """Proxies that learn from so many instructions each: their accuracy, and curves against gold and the judge."""
    draw, pool = np.random.default_rng(1), parts["proxies"]
    proxies = [train([pool[row] for row in draw.choice(len(pool), instructions, replace=False)], decay)
               for _ in range(members)]  # fmt: skip
    held_out = parts["held out"]
    examples = [Example(one.prompt, tuple(one.answers)) for _, one in held_out]
    rewards = [np.array([proxy.rewards(features) for proxy in proxies]) for features, _ in held_out]
    judges = {
        "gold": [gold.rewards(features) for features, _ in held_out],
        "judge": [np.array(one.won, dtype=np.float64) for _, one in held_out],
    }
    names = [f"proxy {number}" for number in range(1, members + 1)]
    return {
        "instructions": instructions,
        "accuracy": [accuracy(proxy, held_out) for proxy in proxies],
        "curves": {name: curves(candidates_of(examples, rewards, of), names, standardised=True)
                   for name, of in judges.items()},
    }  # fmt: skip


def parts_of(whole: Part) -> dict[str, Part]:
    """The instructions to choose on, with LEAST answers each, and those that gold and the proxies learn from."""
    held_out = [(features[:LEAST], Instruction(one.prompt, one.answers[:LEAST], one.won[:LEAST]))
                for features, one in whole[:HELD_OUT]]  # fmt: skip
    return {"held out": held_out, "gold": whole[HELD_OUT : HELD_OUT + GOLD], "proxies": whole[HELD_OUT + GOLD :]}


def report(found: dict[str, Any]) -> str:
    """An experiment's gold by N, as lines of text."""
    lines = [f"{found['instructions']} instructions a proxy, accuracy {np.round(found['accuracy'], 3).tolist()}"]
    for name, of in found["curves"].items():
        lines.append(f"by {name}: ceiling {of.ceiling[-1].value:+.2f} at N = {of.counts[-1]}")
        for curve in [*of.members, *of.rules]:
            by_n = " ".join(f"{one.value:+.2f}" for one in curve.gold)
            last = curve.gold[-1]
            lines.append(f"  {curve.name:<12} {by_n} [{last.low:+.2f}, {last.high:+.2f}]")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a Llama decoder, as make smollm2 prepares")
    add("--data", nargs="+", required=True, help="preference pairs of many models' answers against one baseline's")
    add("--layers", type=int, default=15, help="of the decoder, from the first (default: %(default)s)")
    add("--members", type=int, default=5, help="proxies (default: %(default)s)")
    add("--instructions", type=int, nargs="+", default=[4, 16], help="that each proxy learns from (default: 4 16)")
    add("--decay", type=float, default=1e-3, help="of the proxies (default: %(default)s)")
    add("--keep", type=Path, default=Path("runs/best_of_n"), help="folder of the features (default: %(default)s)")
    add("--json", type=Path, required=True)
    add("--plots", type=Path, help="folder of the plots of the first number of instructions, against gold")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    instructions = read_instructions(args.data, answers=(LEAST, MOST), letters=LETTERS)
    features = features_of(args.model, args.layers, instructions, args.keep)
    parts = parts_of(list(zip(features, instructions, strict=True)))
    decay = best_decay(parts["gold"])
    gold = train(parts["gold"], decay)
    found = [experiment(parts, gold, args.members, each, args.decay) for each in args.instructions]
    result = origin() | {
        "model": args.model.name, "layers": args.layers, "data": [Path(source).name for source in args.data],
        "parts": {name: {"instructions": len(part), "answers": sum(len(of) for of, _ in part)}
                  for name, part in parts.items()},
        "wins": float(np.mean([one.won for _, one in parts["held out"]])),
        "gold": {"decay": decay, "accuracy": accuracy(gold, parts["held out"])}, "decay": args.decay,
        "experiments": [one | {"curves": {name: of.to_json() for name, of in one["curves"].items()}} for one in found],
    }  # fmt: skip
    write_json(args.json, finite_or_null(result), None)
    if args.plots:
        args.plots.mkdir(parents=True, exist_ok=True)
        for plot in best_of_n_plots(found[0]["curves"]["gold"]):
            (args.plots / f"{plot.name}.png").write_bytes(render(plot))
    print(f"gold: {result['gold']}; the judge prefers {result['wins']:.3f} of the answers to the baseline's")
    print("\n\n".join(map(report, found)))


if __name__ == "__main__":
    main()
