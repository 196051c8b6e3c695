"""rmfast compare: diagnostics of one result of rmfast eval, or of several side by side on the rows that all scored."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rmfast.commands.flags import out_files, read_by, write_file
from rmfast.console import say
from rmfast.errors import UserError
from rmfast.evaluation.diagnostics import diagnose
from rmfast.evaluation.diagnostics.common import on_common_rows
from rmfast.evaluation.diagnostics.selection import Candidates, read_candidates
from rmfast.evaluation.suites.find import find_suite
from rmfast.evaluation.suites.result import SuiteResult, read_result, result_json
from rmfast.outputs.kinds import DIAGNOSTICS, PAGE
from rmfast.outputs.overlap import Input
from rmfast.report.suite.console import compare_tables


def compare(options: Namespace) -> None:
    """rmfast compare"""
    paths = options.results
    inputs = [Input("RESULT", Path(path)) for path in paths] + read_by(options, "candidates", "gold", "suite")
    out, html = out_files(inputs, ("--out", options.out, DIAGNOSTICS), ("--html", options.html, PAGE))
    suite = find_suite(options.suite) if options.suite else None
    results = _with_names([read_result(path) for path in paths], paths)
    for path, result in zip(paths, results, strict=True):
        if not result.items:
            raise UserError(f"{path}: no row in it was scored")
    results, notes = on_common_rows(results, paths, suite)
    found = diagnose(results, suite, _candidates(options), notes)
    tables = compare_tables(results, found)
    if out is not None:  # before anything is printed: who reads it may have gone
        write_file(out, [result_json(found.to_json()).encode()])
    if html is not None:
        from rmfast.report.suite.page import suite_page

        write_file(html, [suite_page(results, found).encode()])
    say(tables)
    if out is not None:
        say(f"Figures: {out}")
    if html is not None:
        say(f"Page: {html}")


def _candidates(options: Namespace) -> Candidates | None:
    if bool(options.candidates) != bool(options.gold):
        raise UserError("--candidates and --gold belong together: scores of the same rows by the models and by gold")
    if not options.candidates:
        return None
    if len(options.candidates) != len(options.results):
        raise UserError(
            f"--candidates: {len(options.candidates)} files for {len(options.results)} results; "
            "give one for each result, in their order"
        )
    return read_candidates(options.candidates, options.gold)


def _with_names(results: Sequence[SuiteResult], paths: Sequence[str]) -> list[SuiteResult]:
    """The results; models that share a name are called by their files, too."""
    names = [result.name for result in results]
    return [
        replace(result, name=f"{result.name} ({path})") if names.count(result.name) > 1 else result
        for result, path in zip(results, paths, strict=True)
    ]
