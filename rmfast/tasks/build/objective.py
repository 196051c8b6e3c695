"""From a config to what a run minimises, and how."""

import torch

from rmfast.config import Config, OptimConfig
from rmfast.data.views import Views
from rmfast.objectives.contrastive import BETA, PROTOTYPES, TEMPERATURE, ContrastiveObjective
from rmfast.objectives.reward import RewardObjective
from rmfast.parallel.contrast import Contrast
from rmfast.parallel.optimizer import AdamWOptions, optimizer_backend
from rmfast.parallel.world import World

DROPOUT = 0.05
"""Of the two views of a contrastive term (Part II, appendix B.2)."""


def reward_objective(config: Config, width: int, data: World) -> RewardObjective:
    """The ranking loss, with an LM term and a contrastive one if asked.

    Args:
        width: of a feature. data: the ranks that share the groups of a batch.
    """
    contrastive = contrastive_objective(config)
    return RewardObjective(
        center=config.objective.center,
        lm=config.objective.lm,
        batch_term=None if contrastive is None else Contrast(contrastive, width, data),
        impl=config.model.kernels,
    )


def adamw_options(optim: OptimConfig, device: torch.device) -> AdamWOptions:
    """The optimizer's options on a device.

    Raises:
        UserError: optim.backend cannot be had.
    """
    return AdamWOptions(
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        clip=optim.clip,
        backend=optimizer_backend(optim.backend, device),
    )


def contrastive_objective(config: Config) -> ContrastiveObjective | None:
    """The contrastive term, with the paper's values where the config has null; None without one."""
    objective = config.objective
    if objective.contrastive == "none":
        return None
    return ContrastiveObjective(
        kind=objective.contrastive,
        on=objective.on,
        beta=BETA[objective.contrastive, objective.on] if objective.beta is None else objective.beta,
        temperature=objective.temperature or TEMPERATURE[objective.contrastive],
        epsilon=objective.epsilon,
        iterations=objective.iterations,
        queue=objective.queue,
        freeze=objective.freeze_prototypes,
        impl=config.model.kernels,
    )


def training_views(config: Config) -> Views | None:
    """How training packs hold two dropout views of each response; None where they hold one."""
    return None if config.objective.contrastive == "none" else config.objective.views


def prototypes(config: Config) -> int | None:
    """How many prototypes a network needs; None without SwAV."""
    objective = config.objective
    return (objective.prototypes or PROTOTYPES[objective.on]) if objective.contrastive == "swav" else None


def dropout(config: Config) -> float:
    """Probability on the residual branches."""
    if config.model.dropout is not None:
        return config.model.dropout
    return DROPOUT if config.objective.contrastive != "none" else 0.0
