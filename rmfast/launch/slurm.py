"""sbatch files: text in, text out. docs/slurm.md says how a job restarts; the templates can be read by themselves."""

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rmfast.errors import UserError

TEMPLATES = Path(__file__).with_name("templates")
EARLY = 60  # seconds by which Slurm may send the signal before its time, and that the shell needs at the end
ONCE, ONCE_CPUS = "1:00:00", 4  # of a job that reads what others wrote: an hour is ample for millions of rows
# What such a job keeps of --sbatch.
KEPT = r"--(account|partition|qos|reservation|wckey|clusters|comment|mail-type|mail-user)\b|-[ApqM]"


BREAK = " \\\n        "  # within a shell command


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked of Slurm. Where a value is None or empty, the cluster's default holds.

    Attributes:
        name: of the job. time: as sbatch takes it. setup: shell lines before all else.
        gpus: on a node; with 0 one process a node runs on the CPU.
        lead: seconds between USR1 and the time limit. restarts, idle: see the template.
        logs: folder of the log files. more: further options of sbatch.
    """

    name: str
    time: str
    nodes: int = 1
    gpus: int = 8
    partition: str | None = None
    account: str | None = None
    mem: str | None = None
    cpus: int | None = None
    setup: tuple[str, ...] = ()
    lead: int = 300
    restarts: int = 100
    idle: int = 3
    logs: str = "."
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Notes:
    """Comments in a script's first lines: what it does, the command that wrote it, and how it is submitted."""

    about: str
    made_by: str
    submit: str


def seconds(time: str) -> int | None:
    """Of a time limit in Slurm's forms (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S); None for no limit.

    Raises:
        UserError: `time` has none of these forms.
    """
    if time.lower() in ("infinite", "unlimited"):
        return None
    number = r"(\d{1,9})"  # of more digits no cluster's limit is
    found = re.fullmatch(rf"(?:{number}-)?{number}(?::{number})?(?::{number})?", time, re.ASCII)
    if not found:
        raise UserError(f"--time {time}: is no time limit of Slurm (minutes, 12:00:00 or 2-00:00:00)")
    days, *rest = found.groups()
    a, b, c = (int(part) if part else 0 for part in rest)
    if days is not None:
        return 86400 * int(days) + 3600 * a + 60 * b + c
    return 3600 * a + 60 * b + c if rest[2] is not None else 60 * a + b


def check(job: Job) -> None:
    """Refuse what Slurm would take and the job would not survive.

    Raises:
        UserError: it says what.
    """
    limit = seconds(job.time)
    if job.lead < 2 * EARLY:
        raise UserError(f"--lead {job.lead}: must be at least {2 * EARLY} s: Slurm is that inexact")
    if limit is not None and limit < 2 * job.lead:
        short = f"is less than twice --lead ({job.lead} s)"
        raise UserError(f"--time {job.time}: {short}: the job would be asked to stop before it gets anywhere")


def header(job: Job, *, survives: bool, array: str = "") -> str:
    """The #SBATCH lines.

    Args:
        survives: whether the job is asked to stop in time, and queued again.
        array: tasks, as sbatch takes them.
    """
    options = [f"--job-name={job.name}", f"--nodes={job.nodes}", "--ntasks-per-node=1"]
    options += [f"--gpus-per-node={job.gpus}"] if job.gpus else []
    asked = {"cpus-per-task": job.cpus, "mem": job.mem, "partition": job.partition, "account": job.account}
    options += [f"--{name}={value}" for name, value in asked.items() if value is not None]
    options += [f"--time={job.time}"]
    options += [f"--array={array}"] if array else []
    if survives:
        options += [f"--signal=B:USR1@{job.lead}", "--requeue", "--open-mode=append"]
    number = "%A_%a" if array else "%j"
    options += [f"--output={Path(job.logs, f'%x-{number}.log')}"]
    lines = [shlex.quote(option) for option in options] + list(job.more)  # sbatch reads quotes as a shell does
    broken = next((line for line in lines if "\n" in line), None)
    if broken is not None:
        raise UserError(f"{broken!r}: an option of sbatch is one line, this holds a line break")
    return "\n".join(f"#SBATCH {line}" for line in lines)


def train(
    job: Job, notes: Notes, arguments: Sequence[str], run: str, *, members: int = 0, together: int | None = None
) -> str:
    """A job that trains, and requeues itself until the run is finished.

    Args:
        arguments: of rmfast/train.py. run: run.dir.
        members: of an ensemble; the job is then an array whose task m trains member m. together: tasks that may run at
            once; None: as many as find room.
    """
    folder, command, array = shlex.quote(run), f"-m rmfast.train {wrapped(arguments)}", ""
    if members:
        array = f"0-{members - 1}" + (f"%{together}" if together else "")
        folder += '/members/$(printf %02d "$SLURM_ARRAY_TASK_ID")'
        command += f'{BREAK}--ensemble.part "$SLURM_ARRAY_TASK_ID"'
    return _fill("train.sbatch", job, notes, command, header(job, survives=True, array=array), run=folder)


def once(job: Job, notes: Notes, command: str) -> str:
    """A job of one command that reads files and writes some: of `job` it has who pays and where, not what training
    needs."""
    time = min(ONCE, job.time, key=lambda t: seconds(t) or math.inf)
    more = tuple(option for option in job.more if re.match(KEPT, option))
    small = replace(job, nodes=1, gpus=0, cpus=ONCE_CPUS, mem=None, time=time, more=more)
    return _fill("once.sbatch", small, notes, command, header(small, survives=False))


def point(job: Job, notes: Notes, command: str) -> str:
    """A job that measures one size; --nodes and the command's last arguments are given when it is submitted."""
    return _fill("point.sbatch", job, notes, command, header(job, survives=False))


def _fill(template: str, job: Job, notes: Notes, command: str, header: str, run: str = "") -> str:
    """A template with {{name}} replaced by its value."""
    values = {
        "about": " ".join(notes.about.split()),
        "made_by": notes.made_by,
        "submit": notes.submit,
        "header": header,
        "setup": "\n".join(job.setup) or "# (no --setup)",
        "command": command,
        "run": run,
        "processes": str(max(1, job.gpus)),
        "lead": str(job.lead),
        "grace": str(job.lead - EARLY),
        "restarts": str(job.restarts),
        "idle": str(job.idle),
    }
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], text)


def word(text: str | Path) -> str:
    """A word for a shell, on one line: scripts tell in comments how they were made."""
    text = str(text)
    if "\n" not in text and "\r" not in text:
        return shlex.quote(text)
    for plain, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f"$'{text}'"


def wrapped(arguments: Sequence[str]) -> str:
    """Words for a shell: files first, then a line for each key."""
    lines = [""]
    for word in arguments:
        if word.startswith("--"):
            lines.append("")
        lines[-1] += f" {shlex.quote(word)}"
    return BREAK.join(line.strip() for line in lines if line)
