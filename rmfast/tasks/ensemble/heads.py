"""ensemble.mode heads: every member's head at once, on the features of one pass of the frozen trunk."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rmfast.checkpoint.export import choose_pad_token, publish_model, rows_to_check
from rmfast.checkpoint.store import list_checkpoints, open_checkpoint, remove_checkpoint
from rmfast.console import say
from rmfast.data.files import sync
from rmfast.data.table import GroupTable, select, table_edges
from rmfast.evaluation.combine import combined_metrics
from rmfast.kernels import describe
from rmfast.models.config import DTYPES
from rmfast.models.hf import load_network
from rmfast.models.network import Network, initialise
from rmfast.models.weights import HEAD
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.tasks.build.choices import attention_impl, choices_line
from rmfast.tasks.build.inputs import step_plan
from rmfast.tasks.build.model import head_line, stored_heads
from rmfast.tasks.build.objective import adamw_options
from rmfast.tasks.build.run import rates, run_options
from rmfast.tasks.ensemble.features import make_features, trunk_tables
from rmfast.tasks.ensemble.head_batch import HeadData, HeadMember
from rmfast.tasks.ensemble.head_learner import HeadLearner, HeadOptions, head_scores
from rmfast.tasks.ensemble.members import (
    Ensemble,
    all_or_none,
    member_config,
    open_folder,
    read_scores,
    whole_config,
    write_scores,
)
from rmfast.trainer.held_out import keep_scores, table_prefix
from rmfast.trainer.learner import Evaluation
from rmfast.trainer.loop import fit
from rmfast.trainer.run import Run
from rmfast.trainer.stop import StopRequest


def train_heads(ensemble: Ensemble, stop: StopRequest) -> None:
    """Train all heads and keep the rewards of each; what is there already is not done again. All ranks call it."""
    config, world = ensemble.config, ensemble.world
    members = config.ensemble.members
    saved = _saved_heads(ensemble.folder / "checkpoints")
    done = saved == members and all(read_scores(ensemble, m) is not None for m in range(members))
    world.barrier()  # all ranks must have looked before rank 0 writes
    if done:
        if world.main:
            say(f"all {members} heads: done before")
        return
    model = config.model
    network, _ = load_network(
        model.path,
        new_heads=True,
        seed=config.run.seed,
        from_scratch=model.from_scratch,
        dtype=DTYPES[model.dtype],
        impl=model.kernels,
        attention=attention_impl(config, world.device, ensemble.inputs.decoder),
    )
    # Found out now rather than at the export.
    choose_pad_token(ensemble.inputs.tokenizer, network.config.vocabulary, ensemble.inputs.ends)
    new = model.from_scratch or not stored_heads(model.path)
    heads = torch.cat([_first_head(network, ensemble, m, new) for m in range(members)])
    tables, place = trunk_tables(ensemble)
    if world.main:
        if saved not in (None, members):
            _forget(ensemble, saved)
        open_folder(ensemble)
    engine = _engine(ensemble, network)
    features = make_features(ensemble, engine, tables)
    weights = engine.weights()

    def work() -> None:
        if world.main:
            _train(ensemble, network, weights, heads, tables, features, place, stop.alone())

    all_or_none(world, work)


def _saved_heads(folder: Path) -> int | None:
    """How many heads the newest checkpoint holds; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return None
    with open_checkpoint(checkpoints[-1]) as (_, shapes):
        return shapes.get("heads/weight", (0,))[0]


def _forget(ensemble: Ensemble, count: int | None) -> None:
    """Another number of heads: all begin again. Their rewards go first, or a crash would leave old ones that look
    finished."""
    folder, members = ensemble.folder, ensemble.config.ensemble.members
    say(f"{folder} holds {count} heads, now ensemble.members is {members}: all are trained again")
    for scores in sorted((folder / "members").glob("*/scores.npz")):
        scores.unlink()
        with contextlib.suppress(OSError):  # something else is in it
            scores.parent.rmdir()
    if (folder / "members").is_dir():
        sync(folder / "members")
    for checkpoint in reversed(list_checkpoints(folder / "checkpoints")):
        remove_checkpoint(checkpoint)


def _first_head(network: Network, ensemble: Ensemble, member: int, new: bool) -> Tensor:
    """fp32 [1, d]: the head that the member's reward run would begin with."""
    if new:
        initialise(network, member_config(ensemble.config, member, ensemble.folder).run.seed, {HEAD})
    return network.head.weight.detach().clone()


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
    learner = _learner(ensemble, heads, data, lambda weight: _evaluate(ensemble, held_out, weight))
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


def _evaluate(ensemble: Ensemble, held_out: dict[str, np.ndarray], weight: Tensor) -> list[Evaluation]:
    """The mean over heads on the held-out data, as a reward run leaves it.

    Args:
        held_out: features of the held-out tables' responses, by name.
    """
    found = []
    for name, table in ensemble.inputs.evals.items():
        edges, scores = table_edges(table), head_scores(held_out[name], weight)
        metrics = combined_metrics(scores, edges, "mean", center=ensemble.config.objective.center)
        labels = np.repeat([table.label(g) for g in range(len(table))], np.diff(table.first_response))
        arrays = {"scores": scores.mean(0), "better": edges.better, "worse": edges.worse, "lengths": edges.length}
        keep = partial(keep_scores, name, arrays | {"labels": labels})
        found.append(Evaluation(name=name, metrics=metrics, prefix=table_prefix(name), keep=keep))
    return found


def _export(ensemble: Ensemble, network: Network, state: dict[str, Tensor], scores: np.ndarray) -> None:
    """One Hugging Face folder with a head for each member, checked against transformers."""
    folder, whole = ensemble.folder / "model", ensemble.whole
    rows = rows_to_check(whole)
    places = np.concatenate([np.arange(whole.first_response[row], whole.first_response[row + 1]) for row in rows])
    difference = publish_model(
        folder,
        hf=ensemble.inputs.hf,
        config=network.config,
        state=state,
        tokenizer=ensemble.inputs.tokenizer,
        dtype=DTYPES[ensemble.config.model.dtype],
        ends=ensemble.inputs.ends,
        sequences=[s for row in rows for s in whole.sequences_of(int(row))],
        scores=torch.from_numpy(scores[:, places].T.copy()).float(),
    )
    say(f"exported {folder} ({len(scores)} heads); transformers gives the same scores (difference {difference:.0e})")
