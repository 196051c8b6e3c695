"""What members that are trained at once, over one frozen trunk, have in common: heads alone, or top layers too."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedConfig

from rmfast.checkpoint.export import choose_pad_token
from rmfast.checkpoint.store import list_checkpoints, open_checkpoint, remove_checkpoint
from rmfast.checkpoint.whole import newest_whole
from rmfast.console import say
from rmfast.data.files import remove, sync
from rmfast.data.table import table_edges
from rmfast.evaluation.combine import combined_metrics
from rmfast.models.config import DTYPES
from rmfast.models.hf import load_network
from rmfast.models.network import Network, initialise
from rmfast.models.weights import HEAD
from rmfast.outputs.marks import kept_model
from rmfast.parallel.world import World
from rmfast.tasks.build.choices import attention_impl
from rmfast.tasks.build.model import stored_heads
from rmfast.tasks.ensemble.members import Ensemble, member_config, read_scores
from rmfast.trainer.held_out import keep_scores, table_prefix
from rmfast.trainer.learner import Evaluation


def all_done(ensemble: Ensemble, saved: int | None, what: str) -> bool:
    """Whether as many members as are asked for were trained and have scored this data. All ranks call it.

    Args:
        saved: members of the newest checkpoint. what: the members' name, for people.
    """
    world, members = ensemble.world, ensemble.config.ensemble.members
    done = saved == members and all(read_scores(ensemble, m) is not None for m in range(members))
    world.barrier()  # all ranks must have looked before rank 0 writes
    if done and world.main:
        say(f"all {members} {what}: done before")
    return done


def saved_members(folder: Path, world: World, name: str) -> int | None:
    """How many members the newest whole checkpoint holds; None where there is none.

    Args:
        name: of a tensor with a row for each.

    Raises:
        UserError: all are damaged.
    """
    found = newest_whole(folder, world)
    if found.path is None:
        return None
    with open_checkpoint(found.path) as (_, shapes):
        return shapes.get(name, (0,))[0]


def forget(ensemble: Ensemble, count: int | None, what: str) -> None:
    """Another number of members: all begin again. Their rewards go first, or a crash would leave old ones that look
    finished."""
    folder, members = ensemble.folder, ensemble.config.ensemble.members
    say(f"{folder} holds {count} {what}, now ensemble.members is {members}: all are trained again")
    for scores in sorted((folder / "members").glob("*/scores.npz")):
        scores.unlink()
        if kept_model(model := scores.parent / "model") is None:
            remove(model)
        with contextlib.suppress(OSError):  # something else is in it
            scores.parent.rmdir()
    if (folder / "members").is_dir():
        sync(folder / "members")
    for checkpoint in reversed(list_checkpoints(folder / "checkpoints")):
        remove_checkpoint(checkpoint)


def base_network(ensemble: Ensemble, **more: Any) -> tuple[Network, PreTrainedConfig]:
    """The network that all members begin with, but for their heads.

    Raises:
        UserError: it cannot be read, or be exported later.
    """
    config = ensemble.config
    model = config.model
    network, hf = load_network(
        model.path,
        new_heads=True,
        seed=config.run.seed,
        from_scratch=model.from_scratch,
        dtype=DTYPES[model.dtype],
        impl=model.kernels,
        attention=attention_impl(config, ensemble.world.device, ensemble.inputs.decoder),
        **more,
    )
    choose_pad_token(ensemble.inputs.tokenizer, network.config.vocabulary, ensemble.inputs.ends)
    return network, hf


def first_head(network: Network, ensemble: Ensemble, member: int) -> Tensor:
    """fp32 [1, d]: the head that the member's reward run would begin with, which is the network's from now on."""
    model = ensemble.config.model
    if model.from_scratch or not stored_heads(model.path):
        initialise(network, member_config(ensemble.config, member, ensemble.folder).run.seed, {HEAD})
    return network.get_parameter(HEAD).detach().clone()


def evaluations(ensemble: Ensemble, rewards: Callable[[str], np.ndarray]) -> list[Evaluation]:
    """The mean over members on the held-out data, as a reward run leaves it.

    Args:
        rewards: the members' [M, R] of a held-out table, by its name.
    """
    found = []
    for name, table in ensemble.inputs.evals.items():
        edges, scores = table_edges(table), rewards(name)
        metrics = combined_metrics(scores, edges, "mean", center=ensemble.config.objective.center)
        labels = np.repeat([table.label(g) for g in range(len(table))], np.diff(table.first_response))
        arrays = {"scores": scores.mean(0), "better": edges.better, "worse": edges.worse, "lengths": edges.length}
        keep = partial(keep_scores, name, arrays | {"labels": labels})
        found.append(Evaluation(name=name, metrics=metrics, prefix=table_prefix(name), keep=keep))
    return found
