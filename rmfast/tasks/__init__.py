"""What a config can ask for, each task in a file of its own."""

from collections.abc import Callable

from rmfast.config import Config


def run_task(config: Config) -> None:
    """Run the task that a config names."""
    from rmfast.tasks.ensemble import run as ensemble
    from rmfast.tasks.meta import run as meta
    from rmfast.tasks.reward import run as reward

    tasks: dict[str, Callable[[Config], None]] = {"reward": reward, "ensemble": ensemble, "meta": meta}
    tasks[config.task](config)
