"""Suites by name: built-in ones, or a user's file. docs/evaluation.md says how to add one."""

import runpy
from pathlib import Path

from rmfast.errors import UserError
from rmfast.evaluation.suites import best_of_n, pairwise, reward_bench, reward_bench_2, rm_bench, rmb
from rmfast.evaluation.suites.base import Suite

_MODULES = (pairwise, best_of_n, rmb, reward_bench, reward_bench_2, rm_bench)
SUITES: dict[str, Suite] = {module.SUITE.name: module.SUITE for module in _MODULES}


def find_suite(name: str) -> Suite:
    """A built-in suite by its name, or a user's: a Python file that defines SUITE.

    Raises:
        UserError: no suite of that name, no such file, or a file that defines none.
    """
    if name in SUITES:
        return SUITES[name]
    if not name.endswith(".py"):
        raise UserError(f"suite {name}: no suite of that name; choose {', '.join(SUITES)}, or a .py file with SUITE")
    if not Path(name).is_file():
        raise UserError(f"suite {name}: no such file")
    try:
        suite = runpy.run_path(name).get("SUITE")
    except Exception as error:
        raise UserError(f"suite {name}: {type(error).__name__}: {error}") from error
    if not isinstance(suite, Suite):
        raise UserError(f"suite {name}: it must define SUITE, an rmfast.evaluation.suites.base.Suite")
    return suite
