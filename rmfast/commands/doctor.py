"""rmfast doctor: whether a run folder is whole, and what the run would go on from."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rmfast.commands.examine import Finding, examine, unfinished
from rmfast.console import say
from rmfast.errors import RunError, UserError
from rmfast.outputs.marks import is_run


def doctor(options: Namespace) -> None:
    """rmfast doctor

    Raises:
        UserError: the folder is no run's. RunError: something in it is damaged.
    """
    run = Path(options.run_folder)
    if not run.is_dir() or not is_run(run):
        raise UserError(f"{run}: no run folder of rmfast; give the run.dir of a training run")
    findings = list(examine(run))
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        say(f"{'DAMAGED' if finding.damaged else 'ok':7}  {finding.name:{width}}  {finding.text}")
    for of, step in _resumed(findings).items():
        say(f"resume   {of or 'the run'} would go on from step {step}")
    for path in unfinished(run):
        say(f"sweep    {path.relative_to(run)}: not written to its end; may go if no run works here")
    if damaged := [finding for finding in findings if finding.damaged]:
        raise RunError(f"{run}: {len(damaged)} of {len(findings)} parts are damaged, the first {damaged[0].name}")


def _resumed(findings: Sequence[Finding]) -> dict[str, int]:
    """The step that each run would go on from, by its name in the folder; that of the folder itself is ""."""
    found = {}
    for finding in findings:
        if finding.step is not None:  # in their order: the newest is the last
            found[finding.name.rpartition("checkpoints/")[0].rstrip("/")] = finding.step
    return found
