"""Entry point: torchrun rmfast/train.py CONFIG.yaml [MORE.yaml ...] [--section.key value ...]"""

import os
import sys
import traceback
from pathlib import Path

# Run as a file, this folder comes first on the path, and its module names would hide libraries of the same name.
if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):
    del sys.path[0]

from rmfast import signals  # noqa: E402
from rmfast.console import unbreakable  # noqa: E402
from rmfast.environment import end_with_launcher, nobody_reads, prepare  # noqa: E402
from rmfast.errors import Interrupted  # noqa: E402
from rmfast.outputs.failure import ending  # noqa: E402

prepare()


def main(arguments: list[str]) -> int:
    """Run a config; the exit code: 0, also where it was asked to stop; 2 for the user's errors, 1 for a run that cannot
    go on."""
    if not arguments or {"-h", "--help"} & set(arguments):
        from rmfast.config import config_help

        try:
            print(f"{__doc__}\n\nLater files and keys win. Keys:\n{config_help()}", flush=True)
        except BrokenPipeError:
            if not nobody_reads():
                raise
        return 0 if arguments else 2
    with signals.noted(), unbreakable():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    end_with_launcher()
    from rmfast.config import load_config, split_arguments  # it takes a while: after signals are noted

    rank = int(os.environ.get("RANK", 0))
    try:
        config = load_config(arguments)
        # After the config, so that a misspelt key is answered before the seconds that torch takes to import.
        from rmfast.tasks import run_task

        run_task(config, split_arguments(arguments)[0])
    except Interrupted as stopped:
        if rank == 0:
            print(f"rmfast: {stopped}", flush=True)
    except BaseException as error:
        if (end := ending(error)) is not None:
            if _left_open():
                _abandon(*end)
            if end[1] and (rank == 0 or isinstance(error, OSError)):  # which may be this machine's alone
                print(f"rmfast: {end[1]}", file=sys.stderr, flush=True)
            return end[0]
        if not _left_open():
            raise
        if isinstance(error, SystemExit | KeyboardInterrupt):
            _abandon(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 130)
        traceback.print_exc()
        _abandon(1)
    return 0


def _left_open() -> bool:
    """Whether `World` left its process group open, as it does after an error on GPUs."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_initialized()


def _abandon(code: int, line: str | None = None) -> None:
    """End this process without what an interpreter does at its end, which would wait for NCCL.

    Args:
        line: that says why, where nothing has said it.
    """
    from rmfast.parallel.process_group import say_for_all

    try:
        if line:
            say_for_all(line)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
