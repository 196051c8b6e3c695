"""ensemble.mode heads: every member's head at once, on the features of one pass of the frozen trunk."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rmfast.checkpoint.export import ModelParts, publish_model, rows_to_check
from rmfast.console import say
from rmfast.data.table import GroupTable, select, table_edges
from rmfast.kernels import describe
from rmfast.models.config import DTYPES
from rmfast.models.network import Network
from rmfast.models.weights import HEAD
from rmfast.parallel.agree import all_or_none
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.tasks.build.choices import choices_line
from rmfast.tasks.build.inputs import step_plan
from rmfast.tasks.build.model import head_line
from rmfast.tasks.build.objective import adamw_options
from rmfast.tasks.build.run import rates, run_options
from rmfast.tasks.ensemble.features import make_features, response_places, trunk_tables
from rmfast.tasks.ensemble.head_batch import HeadData, HeadMember
from rmfast.tasks.ensemble.head_learner import HeadLearner, HeadOptions, head_scores
from rmfast.tasks.ensemble.members import (
    Ensemble,
    member_config,
    open_folder,
    whole_config,
    write_scores,
)
from rmfast.tasks.ensemble.together import (
    all_done,
    base_network,
    evaluations,
    first_head,
    forget,
    saved_members,
)
from rmfast.trainer.learner import Evaluation
from rmfast.trainer.loop import fit
from rmfast.trainer.run import Run
from rmfast.trainer.stop import StopRequest


def train_heads(ensemble: Ensemble, stop: StopRequest) -> None:
    """Train all heads and keep the rewards of each; what is there already is not done again. All ranks call it."""
    config, world = ensemble.config, ensemble.world
    members = config.ensemble.members
    saved = saved_members(ensemble.folder / "checkpoints", world, "heads/weight")
    if all_done(ensemble, saved, "heads"):
        return
    network, _ = base_network(ensemble)
    heads = torch.cat([first_head(network, ensemble, m) for m in range(members)])
    tables = trunk_tables(ensemble)
    place = response_places(ensemble, tables)
    if world.main:
        if saved not in (None, members):
            forget(ensemble, saved, "heads")
        open_folder(ensemble)
    engine = _engine(ensemble, network)
    features = make_features(ensemble, engine, tables)
    weights = engine.weights()

    def work() -> None:
        if world.main:
            _train(ensemble, network, weights, heads, tables, features, place, stop.alone())

    all_or_none(world, work)


def _engine(ensemble: Ensemble, network: Network) -> NativeEngine:
    config, world = ensemble.config, ensemble.world
    sharded = config.parallel.data == "fsdp"
    engine = NativeEngine(
        network.requires_grad_(False),
        world=world if sharded else World.alone(world),  # DDP would look for gradients
        options=AdamWOptions(),
        data_parallel=config.parallel.data,
    )
    if world.main:
        whole = sum(p.numel() for p in network.parameters())
        say(
            f"{config.model.path}: frozen trunk of {whole / 1e6:.1f} M weights, {config.model.dtype}, "
            f"{world.size} x {world.device.type}, {describe(world.device, config.model.kernels)}; "
            f"{config.ensemble.members} heads"
        )
        say(choices_line(config, world.device))
        say(head_line(config, ensemble.inputs.hf, ensemble.inputs.tokenizer))
    return engine


def _train(
    ensemble: Ensemble,
    network: Network,
    state: dict[str, Tensor],
    heads: Tensor,
    tables: dict[str, GroupTable],
    features: np.ndarray,
    place: np.ndarray,
    stop: StopRequest,
) -> None:
    """What rank 0 does alone: train the heads on the features, export, keep every member's rewards."""
    ends = np.cumsum([0, *(int(table.first_response[-1]) for table in tables.values())])
    spans = {name: slice(int(a), int(b)) for name, a, b in zip(tables, ends[:-1], ends[1:], strict=True)}
    held_out = {name: features[spans[f"eval:{name}"]] for name in ensemble.inputs.evals}
    data = HeadData(features=features, place=place, edges=table_edges(ensemble.inputs.table))
    learner = _learner(
        ensemble, heads, data, lambda weight: evaluations(ensemble, lambda name: head_scores(held_out[name], weight))
    )
    run = Run(
        ensemble.folder,
        World.alone(ensemble.world),
        replace(run_options(ensemble.config), evaluate_every=(ensemble.config.eval.every,)),
        config=whole_config(ensemble.config).dump(),
        settings={},  # the ensemble's
        data_key="",
    )
    run.resume(learner)
    if run.step:
        say(f"resumed from step {run.step} in {ensemble.folder}")
    fit(run, learner, stop)
    scores = head_scores(features, learner.weight)
    state[HEAD] = learner.weight.cpu()
    _export(ensemble, network, state, scores)
    responses = np.diff(ensemble.whole.first_response)
    for m in range(len(heads)):
        scored = np.repeat(ensemble.scores_groups(m), responses)
        evals = {name: scores[m, spans[f"eval:{name}"]] for name in ensemble.inputs.evals}
        write_scores(ensemble, m, np.where(scored, scores[m, spans["data"]], np.nan), evals)


def _learner(
    ensemble: Ensemble, heads: Tensor, data: HeadData, evaluate: Callable[[Tensor], list[Evaluation]]
) -> HeadLearner:
    config, members = ensemble.config, []
    for m in range(len(heads)):
        groups = ensemble.trains_on(m)
        plan, total = step_plan(member_config(config, m, ensemble.folder), select(ensemble.inputs.table, groups))
        members.append(HeadMember(plan=plan, groups=groups, total=total, rate=rates(config.optim, total)))
    adamw = adamw_options(config.optim, ensemble.world.device)
    options = HeadOptions(adamw=adamw, center=config.objective.center, impl=config.model.kernels)
    return HeadLearner(heads, members, data, options, ensemble.world.device, evaluate)


def _export(ensemble: Ensemble, network: Network, state: dict[str, Tensor], scores: np.ndarray) -> None:
    """One Hugging Face folder with a head for each member, checked against transformers."""
    folder, whole = ensemble.folder / "model", ensemble.whole
    rows = rows_to_check(whole)
    places = np.concatenate([np.arange(whole.first_response[row], whole.first_response[row + 1]) for row in rows])
    inputs, dtype = ensemble.inputs, DTYPES[ensemble.config.model.dtype]
    difference = publish_model(
        folder,
        ModelParts(inputs.hf, network.config, state, inputs.tokenizer, dtype, inputs.ends),
        sequences=[s for row in rows for s in whole.sequences_of(int(row))],
        scores=torch.from_numpy(scores[:, places].T.copy()).float(),
    )
    say(f"exported {folder} ({len(scores)} heads); transformers gives the same scores (difference {difference:.0e})")
