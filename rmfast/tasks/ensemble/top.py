"""ensemble.mode top_layers: every member's top layers at once, over the states that one frozen trunk gives."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rmfast.checkpoint.export import ModelParts, publish_model, rows_to_check
from rmfast.console import say
from rmfast.data.loader import StepLoader
from rmfast.data.table import GroupTable, select
from rmfast.errors import UserError
from rmfast.kernels import describe
from rmfast.models.config import DTYPES
from rmfast.models.members import Members, trunk_of
from rmfast.models.save import SharedWeights
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel.agree import main_alone
from rmfast.tasks.build.choices import attention_impl, choices_line
from rmfast.tasks.build.inputs import step_plan
from rmfast.tasks.build.model import head_line
from rmfast.tasks.build.objective import adamw_options, dropout
from rmfast.tasks.build.run import rates, run_options
from rmfast.tasks.ensemble.members import Ensemble, member_config, open_folder, whole_config, write_scores
from rmfast.tasks.ensemble.states import ComputedStates, States, common_batches, keep_states, states_gib
from rmfast.tasks.ensemble.together import (
    all_done,
    base_network,
    evaluations,
    first_head,
    forget,
    saved_members,
)
from rmfast.tasks.ensemble.top_batch import CommonBatches, SeparateOrders, bootstrap
from rmfast.tasks.ensemble.top_engine import TopEngine
from rmfast.tasks.ensemble.top_learner import Batches, TopLearner
from rmfast.trainer.loop import fit
from rmfast.trainer.run import Run
from rmfast.trainer.stop import StopRequest


def train_top(ensemble: Ensemble, stop: StopRequest) -> None:
    """Train all members, export each and keep its rewards; what is there already is not done again. All ranks call
    it."""
    config, world = ensemble.config, ensemble.world
    saved = saved_members(ensemble.folder / "checkpoints", world, "members/norm.weight")
    if all_done(ensemble, saved, "members"):
        return
    members, trunk = open_members(ensemble)
    if world.main:
        if saved not in (None, config.ensemble.members):
            forget(ensemble, saved, "members")
        open_folder(ensemble)
        _announce(ensemble, trunk, members)
    learner = open_learner(ensemble, members, trunk)
    batches = "common" if common_batches(ensemble) else "separate"
    run = Run(
        ensemble.folder,
        world,
        replace(run_options(config), evaluate_every=(config.eval.every,)),
        config=whole_config(config).dump(),
        settings={"the batches that members take (ensemble.state_memory)": batches},
        data_key="",
    )
    run.resume(learner)
    if run.step and world.main:
        say(f"resumed from step {run.step} in {ensemble.folder}")
    fit(run, learner, stop)
    _keep(ensemble, learner.engine, trunk)


def open_members(ensemble: Ensemble) -> tuple[Members, ComputedStates]:
    """Every member as its reward run would begin, and the trunk below them.

    Raises:
        UserError: the model cannot be read, or has no layer below those that are trained.
    """
    config, decoder, top_layers = ensemble.config, ensemble.inputs.decoder, ensemble.config.model.top_layers or 0
    if top_layers >= decoder.layers:
        raise UserError(
            f"model.top_layers: {top_layers}, and ensemble.mode top_layers needs a frozen layer below them; the model "
            f"has {decoder.layers} layers: set at most {decoder.layers - 1}, or ensemble.mode full"
        )
    network, _ = base_network(ensemble)
    members = Members(
        decoder,
        config.ensemble.members,
        top_layers,
        dtype=DTYPES[config.model.dtype],
        dropout=dropout(config),
        recompute=config.model.recompute,
        impl=config.model.kernels,
        attention=attention_impl(config, ensemble.world.device, decoder),
    )
    for m in range(members.count):
        first_head(network, ensemble, m)
        members.begin(m, network)
    return members, ComputedStates(trunk_of(network, top_layers), ensemble.world)


def open_learner(ensemble: Ensemble, members: Members, trunk: ComputedStates) -> TopLearner:
    """What trains the members; the trunk's states of all rows are there then, where the budget has room for them."""
    config, world = ensemble.config, ensemble.world
    states: States = trunk if common_batches(ensemble) else keep_states(ensemble, trunk)
    batches: Batches = _common(ensemble, states) if states is trunk else _separate_orders(ensemble, states)
    engine = TopEngine(
        members,
        states,
        world=world,
        options=adamw_options(config.optim, world.device),
        objective=RewardObjective(center=config.objective.center, impl=config.model.kernels),
        budget=config.data.tokens_per_pack,
    )
    return TopLearner(
        engine,
        batches,
        [rates(config.optim, total) for total in batches.totals],
        seed=config.run.seed,
        evaluate=lambda: evaluations(ensemble, lambda name: engine.score(f"eval:{name}", ensemble.inputs.evals[name])),
    )


def _announce(ensemble: Ensemble, trunk: ComputedStates, members: Members) -> None:
    config, world = ensemble.config, ensemble.world
    lower, upper = (sum(p.numel() for p in module.parameters()) for module in (trunk.trunk, members))
    model = config.model
    say(
        f"{model.path}: frozen trunk of {lower / 1e6:.1f} M weights, {model.dtype}, {world.size} x "
        f"{world.device.type}, {describe(world.device, model.kernels)}; {members.count} members with "
        f"{upper / members.count / 1e6:.1f} M weights each in the top {model.top_layers} of "
        f"{ensemble.inputs.decoder.layers} layers"
    )
    say(choices_line(config, world.device))
    say(head_line(config, ensemble.inputs.hf, ensemble.inputs.tokenizer))
    if common_batches(ensemble):
        size, memory = states_gib(ensemble), config.ensemble.state_memory
        say(
            f"the trunk's states of all rows take {size:.2f} GiB and ensemble.state_memory is {memory:g}: all members "
            "take the same batches, and differ by head, dropout and how often each row counts (Poisson(1), seeded)"
        )


def _loader(ensemble: Ensemble, table: GroupTable, member: int | None) -> StepLoader:
    """This rank's share of a member's steps, or of those that all members take."""
    config, world = ensemble.config, ensemble.world
    plan, total = step_plan(config if member is None else member_config(config, member, ensemble.folder), table)
    return StepLoader(
        table,
        plan,
        total=total,
        ranks=world.size,
        rank=world.rank,
        budget=config.data.tokens_per_pack,
        pin=world.device.type == "cuda",
    )


def _separate_orders(ensemble: Ensemble, states: States) -> SeparateOrders:
    groups = [ensemble.trains_on(m) for m in range(ensemble.config.ensemble.members)]
    loaders = [_loader(ensemble, select(ensemble.inputs.table, rows), m) for m, rows in enumerate(groups)]
    return SeparateOrders(loaders, groups, states)


def _common(ensemble: Ensemble, trunk: States) -> CommonBatches:
    config, table = ensemble.config, ensemble.inputs.table
    count = config.ensemble.members
    seeds = [member_config(config, m, ensemble.folder).run.seed for m in range(count)]
    weights = bootstrap(seeds, len(table))
    for m in range(count):  # nothing of a member's fold
        weights[m, np.setdiff1d(np.arange(len(table)), ensemble.trains_on(m))] = 0
    return CommonBatches(_loader(ensemble, table, None), weights, trunk)


def _keep(ensemble: Ensemble, engine: TopEngine, trunk: ComputedStates) -> None:
    """Every member's model, and its rewards of all data."""
    whole, count = ensemble.whole, engine.members.count
    rows = rows_to_check(whole)
    checked = torch.from_numpy(engine.score("data", whole, rows)).float()
    for line in main_alone(ensemble.world, lambda: _export(ensemble, engine, trunk, rows, checked)):
        say(line)
    evals = {name: engine.score(f"eval:{name}", table) for name, table in ensemble.inputs.evals.items()}
    rewards = np.full((count, int(whole.first_response[-1])), np.nan)
    for fold in range(ensemble.config.ensemble.folds or 1):  # members of a fold score the same groups
        judges = range(fold, count, ensemble.config.ensemble.folds or 1)
        scored = ensemble.scores_groups(fold)
        responses = np.repeat(scored, np.diff(whole.first_response))
        rewards[np.ix_(np.array(judges), responses)] = engine.score("data", whole, np.flatnonzero(scored), judges)
    if ensemble.world.main:
        for m in range(count):
            write_scores(ensemble, m, rewards[m], {name: scores[m] for name, scores in evals.items()})


def _export(
    ensemble: Ensemble, engine: TopEngine, trunk: ComputedStates, rows: np.ndarray, scores: Tensor
) -> list[str]:
    """A Hugging Face folder of each member, which have the trunk's file in common, checked against transformers."""
    inputs, members = ensemble.inputs, engine.members
    lower = {f"decoder.{name}": weight.cpu() for name, weight in trunk.trunk.state_dict().items()}
    sequences = [s for row in rows for s in ensemble.whole.sequences_of(int(row))]
    dtype, differences = DTYPES[ensemble.config.model.dtype], []
    for m in range(members.count):
        folder = ensemble.path(m) / "model"
        folder.parent.mkdir(parents=True, exist_ok=True)
        state = lower | {name: weight.cpu() for name, weight in members.member(m).items()}
        shared = SharedWeights(frozenset(lower), ensemble.path(0) / "model" if m else None)
        parts = ModelParts(inputs.hf, inputs.decoder, state, inputs.tokenizer, dtype, inputs.ends, shared=shared)
        differences.append(publish_model(folder, parts, sequences=sequences, scores=scores[m][:, None]))
    return [
        f"exported {members.count} models, {ensemble.folder}/members/*/model, which share their trunk's file; "
        f"transformers gives the same scores (largest difference {max(differences):.0e})"
    ]
