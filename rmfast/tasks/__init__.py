"""What a config can ask for, each task in one file or folder."""

from collections.abc import Callable, Sequence

from rmfast.config import Config


def run_task(config: Config, files: Sequence[str] = ()) -> None:
    """Run the task that a config names, unless it would overwrite what is no run's.

    Args:
        files: of the config.
    """
    from rmfast.tasks.build.folder import check_run
    from rmfast.tasks.ensemble.run import run as ensemble
    from rmfast.tasks.iterate.run import run as iterate
    from rmfast.tasks.meta import run as meta
    from rmfast.tasks.ppo import run as ppo
    from rmfast.tasks.reward import run as reward
    from rmfast.tasks.sft import run as sft

    tasks: dict[str, Callable[[Config], None]] = {
        "reward": reward, "ensemble": ensemble, "meta": meta, "sft": sft, "ppo": ppo, "iterate": iterate,
    }  # fmt: skip
    check_run(config, files)
    tasks[config.task](config)
