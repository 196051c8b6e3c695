"""The top layers of a decoder, trained many times over from what the layers below them once gave.

The lower layers are frozen: they run once over all data, and the hidden state of every token at the input of the top
layers is kept. A network of the top layers alone then reads its packs' tokens as row numbers of what was kept. All else
is the package's own: tables, packs, treatments, objectives, engine, loop.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.runs import Lines
from rmfast.data.denoise import Denoise
from rmfast.data.files import written_whole
from rmfast.data.loader import Step, StepLoader, rank_packs
from rmfast.data.pack import build_pack
from rmfast.data.plan import StepPlan
from rmfast.data.table import GroupTable, treat_table
from rmfast.evaluation.score import score_table
from rmfast.models.config import DecoderConfig
from rmfast.models.decoder import Decoder
from rmfast.models.layers import NativeLayers
from rmfast.models.reward import RewardNetwork, initialise
from rmfast.models.weights import HEAD
from rmfast.objectives.contrastive import ContrastiveObjective
from rmfast.objectives.meta import SUMS, DifferenceObjective
from rmfast.objectives.reward import RewardObjective, Statistics
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.trainer.loop import LoopOptions, Progress, fit, seed_dropout

BUDGET = 4096  # tokens of a pack
STEP_BUDGET = 16_384  # of a training step's pack


@dataclass(frozen=True)
class Kept:
    """A table whose stores' "tokens" are rows of `states` (fp32 [tokens, d]), which the table's packs then read."""

    table: GroupTable
    states: Tensor


@dataclass(frozen=True)
class Top:
    """The top layers as they begin: their own decoder's sizes, and all weights but the embedding's and the head's.

    `whole`: they are all layers, with the embedding, and read tokens; there are no kept states then. On a GPU they
    compute in bf16.
    """

    config: DecoderConfig
    weights: dict[str, Tensor]
    whole: bool = False

    def network(
        self, states: Tensor, *, seed: int, dropout: float = 0.0, prototypes: int | None = None
    ) -> RewardNetwork:
        """A network of its own, with a head drawn from `seed`, over some kept states."""
        factory = None if self.whole else _FromStates(states)
        dtype = torch.bfloat16 if World().device.type == "cuda" else torch.float32
        network = RewardNetwork(Decoder(self.config, dtype=dtype, dropout=dropout, factory=factory))
        absent = network.load_state_dict(self.weights, strict=False)
        assert absent.missing_keys == [HEAD] and not absent.unexpected_keys
        initialise(network, seed, {HEAD})
        if prototypes is not None:
            network.add_prototypes(prototypes, seed)
        return network


class _States(nn.Module):
    """In place of the embedding; holds no weight."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.register_buffer("states", states, persistent=False)

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        return self.states[tokens].to(dtype)


class _FromStates(NativeLayers):
    def __init__(self, states: Tensor) -> None:
        self.states = states

    def embedding(self, vocabulary: int, width: int) -> Any:
        return _States(self.states)


def everything(network: RewardNetwork) -> Top:
    """All layers of a network, and the embedding."""
    weights = {name: value.detach().clone() for name, value in network.state_dict().items() if name != HEAD}
    return Top(network.config, weights, whole=True)


def split(network: RewardNetwork, layers: int) -> tuple[Decoder, Top]:
    """The network's decoder without its top layers (a part of the network, which is spent by this), and these."""
    below = len(network.decoder.layers) - layers
    assert below > 0 and layers > 0
    own = network.config
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    kept = {}
    for name, value in weights.items():
        parts = name.split(".")
        if name.startswith("decoder.layers.") and int(parts[2]) >= below:
            kept[".".join([*parts[:2], str(int(parts[2]) - below), *parts[3:]])] = value
        elif name.startswith("norm."):
            kept[name] = value
    network.decoder.layers, network.decoder.held = network.decoder.layers[:below], range(below)
    return network.decoder.eval(), Top(replace(own, layers=layers, windows=own.windows[below:]), kept)


def numbered(table: GroupTable) -> GroupTable:
    """The table with a number in place of each token that its packs hold: 0, 1, ... group by group."""
    tokens = [np.full(len(store.tokens), -1, np.int32) for store in table.stores]
    at = 0
    for group in range(len(table)):
        number, g, cut = int(table.store[group]), int(table.index[group]), int(table.cut[group])
        store = table.stores[number]
        begin, end = int(store.token_start[g]), int(store.token_start[g + 1])
        bos = 0 if store.meta["bos_id"] is None else 1
        left = np.r_[begin : begin + bos, begin + bos + cut : end] if cut else np.arange(begin, end)
        tokens[number][left] = np.arange(at, at + len(left))
        at += len(left)
    stores = tuple(replace(store, tokens=own) for store, own in zip(table.stores, tokens, strict=True))
    return replace(table, stores=stores)


@torch.no_grad()
def keep(lower: Callable[[], Decoder], table: GroupTable, file: Path, width: int) -> Kept:
    """The hidden states that the lower layers give every token of a table; made once, then read from `file`."""
    numbers = numbered(table)
    if not file.is_file():
        device = World().device
        decoder = lower().to(device)
        states = np.zeros((int(table.stored.sum()), width), np.float32)
        for pack in rank_packs(table, np.arange(len(table)), ranks=1, rank=0, budget=BUDGET)[0]:
            there = pack.to(device)
            hidden = decoder(
                there.tokens, there.positions, there.layout, torch.arange(len(there.tokens), device=device)
            )
            states[build_pack(numbers, pack.groups).tokens.numpy()] = hidden.float().cpu().numpy()
        with written_whole(file) as temporary:
            np.save(temporary, states)
        print(f"{file.name}: {len(table):,} prompts, {len(states):,} tokens", flush=True)
    states = np.load(file)
    assert len(states) == table.stored.sum(), f"{file} was made from other data"
    return Kept(numbers, torch.from_numpy(states))


def with_strengths(table: GroupTable, strength: np.ndarray) -> GroupTable:
    """A table of pairs whose edges have these strengths."""
    assert len(table.stores) == 1 and (table.edges == 1).all()
    edges = table.store_edges[0]
    whole = np.full(len(edges.strength), np.nan, np.float32)
    whole[edges.start[table.index]] = strength
    return replace(table, store_edges=(replace(edges, strength=whole),))


def turned(table: GroupTable, flipped: np.ndarray) -> GroupTable:
    """A table of pairs with better and worse swapped where `flipped` (bool [G])."""
    return treat_table(with_strengths(table, np.where(flipped, -1.0, 1.0)), Denoise(flip=1.0))[0]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the top layers are trained: AdamW, the rate linear to 0 after 10 % of warm-up.

    `eta` and `rho`: MetaRM's ascent (Part II, algorithm 1), on `prompts` prompts a step.
    """

    epochs: float
    lr: float = 3e-4
    pairs: int = 16
    dropout: float = 0.0
    contrastive: ContrastiveObjective | None = None
    prototypes: int | None = None
    eta: float | None = None
    rho: float | None = None
    prompts: int = 4


def train(
    top: Top,
    states: Tensor,
    table: GroupTable,
    recipe: Recipe,
    seed: int,
    *,
    samples: GroupTable | None = None,
    at: Iterable[int] = (),
    evaluate: Callable[[int, NativeEngine], None] = lambda step, engine: None,
) -> tuple[NativeEngine, list[dict[str, Any]]]:
    """Train on a table over `states`; the order of the data and the head are the seed's.

    Args:
        samples: MetaRM's prompts, where the recipe has an ascent; over the same states.
        at: steps after which to call `evaluate`, and always after the last.

    Returns:
        The engine, which scores, and each step's metrics.
    """
    network = top.network(states, seed=seed, dropout=recipe.dropout, prototypes=recipe.prototypes)
    engine = NativeEngine(network, world=World(), options=AdamWOptions(), contrastive=recipe.contrastive)
    plan = StepPlan([len(table)], [1.0], groups_per_step=recipe.pairs, seed=seed)
    total = round(recipe.epochs * plan.first_step(1))
    shared: dict[str, Any] = {"first": 0, "last": total, "ranks": 1, "rank": 0, "budget": STEP_BUDGET}
    meta = None
    if samples is not None:
        own = StepPlan([len(samples)], [1.0], groups_per_step=recipe.prompts, seed=seed + 2**31)
        meta = StepLoader(samples, own, **shared)
    loader = StepLoader(table, plan, views="pass" if recipe.contrastive else None, meta=meta, **shared)
    lines = Lines()

    def checkpoint(step: int) -> dict[str, Any]:
        evaluate(step, engine)
        return {}

    options = LoopOptions(
        total=total, lr=recipe.lr, schedule="linear", warmup=round(0.1 * total), floor=0.0,
        evaluate_at=set(at).__contains__, checkpoint_every=None, on_nonfinite="stop", seed=seed,
    )  # fmt: skip
    fit(
        engine, loader, step_function(engine, recipe, seed), options, Progress(), log=lines,  # type: ignore[arg-type]
        evaluate=checkpoint, save=lambda progress: None, flops=lambda step: 0.0, peak=None,
    )  # fmt: skip
    evaluate(total, engine)
    return engine, lines.values


def step_function(engine: NativeEngine, recipe: Recipe, seed: int) -> Callable[[Step], Statistics]:
    """What leaves the gradients of a step; with an ascent as `task: meta` has it."""
    pairs, difference = RewardObjective(), DifferenceObjective()

    def compute(step: Step) -> Statistics:
        figures = {}
        if step.meta is not None:
            seed_dropout(seed, step.number, 0, 1)
            sums = engine.forward_backward(step.meta.packs, difference, step.meta.totals).sums
            figures = dict(zip(SUMS, sums, strict=True))
            figures["difference_grad_norm"] = engine.perturb(eta=recipe.eta or 0.0, rho=recipe.rho)
            figures["difference_loss_after"] = engine.measure(step.meta.packs, difference, step.meta.totals).sums[0]
            seed_dropout(seed, step.number, 0)
        statistics = engine.forward_backward(step.packs, pairs, step.totals)
        if step.meta is not None:
            engine.restore()
        return replace(statistics, figures=statistics.figures | figures)

    return compute


def scores(engine: NativeEngine, table: GroupTable) -> np.ndarray:
    """Rewards [R] of a table's responses."""
    return score_table(engine.score, table, budget=BUDGET)[:, 0]


def join(parts: Sequence[Kept]) -> tuple[Tensor, list[GroupTable]]:
    """What was kept of several tables as one tensor, and the tables over it."""
    starts = np.cumsum([0, *(len(part.states) for part in parts)])
    tables = []
    for part, start in zip(parts, starts[:-1].tolist(), strict=True):
        stores = tuple(replace(s, tokens=np.where(s.tokens < 0, -1, s.tokens + start)) for s in part.table.stores)
        tables.append(replace(part.table, stores=stores))
    return torch.cat([part.states for part in parts]), tables
