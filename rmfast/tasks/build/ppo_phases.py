"""From a config to the phases of PPO's steps: which models are on the device in each, and what they take in words."""

from collections.abc import Iterable, Sequence

from torch import nn

from rmfast.config import Config
from rmfast.parallel.residence import Movable, Residence
from rmfast.parallel.world import World
from rmfast.trainer.ppo.models import Models
from rmfast.trainer.ppo.phases import Phase, Phases


def ppo_phases(config: Config, world: World, models: Models) -> Phases:
    """The phases of a run's steps, between which models leave the device as `ppo.offload` says."""
    if config.ppo.offload == "none" or world.device.type == "cpu":
        return Phases(world.device)
    engines, needs = [engine for _, engine in _engines(models)], _needs(models)
    residence = Residence(engines, world.device, moments=config.ppo.offload == "all")
    return Phases(world.device, lambda phase: residence.bring(needs[phase], updating=phase == "updating"))


def _engines(models: Models) -> list[tuple[str, Movable]]:
    """All that holds weights on the device, with the names of what it computes."""
    named: list[tuple[str, Movable | None]] = [("policy", models.policy), ("critic", models.critic)]
    named += [("reference", models.reference)]
    named += [("reward", scorer.held) for scorer in models.reward.scorers]
    named += [] if models.gold is None else [("gold", models.gold.held)]
    return [(name, held) for name, held in named if held is not None]


def _needs(models: Models) -> dict[Phase, Sequence[Movable]]:
    """Whose weights a phase reads."""

    def of(*names: str) -> list[Movable]:
        return [engine for name, engine in _engines(models) if name in names]

    return {
        "beginning": of("reference", "reward"),
        "sampling": of("policy"),
        "scoring": of("reward"),
        "reading": of("policy", "reference", "critic"),
        "updating": of("policy", "critic"),
        "evaluating": of("policy", "reference", "reward", "gold"),
    }


def memory_lines(config: Config, world: World, models: Models) -> tuple[str, ...]:
    """What each model of a run takes in this process, weights that several share counted with the first of them."""
    seen: set[int] = set()
    parts, total = [], 0
    for name, engine in _engines(models):
        shares = not seen.isdisjoint(map(id, engine.parameters()))
        weights = _bytes(p for p in engine.parameters() if id(p) not in seen)
        moments = engine.moment_bytes()
        seen |= {id(parameter) for parameter in engine.parameters()}
        total += weights + 3 * moments // 2
        trained = f" + gradients {moments / 2e6:,.1f} + optimizer {moments / 1e6:,.1f}" if moments else ""
        parts.append(f"{name} {weights / 1e6:,.1f}{trained}{' over a shared trunk' if shares else ''}")
    lines = [f"each process holds, in MB: {', '.join(parts)}; {total / 1e6:,.1f} in all"]
    if config.ppo.offload != "none" and world.device.type == "cpu":
        lines.append(f"ppo.offload {config.ppo.offload} does nothing on a CPU, where there is no device to leave")
    return tuple(lines)


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
