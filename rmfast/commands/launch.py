"""rmfast launch slurm: sbatch files of a run, of an ensemble's members and vote, or of a scaling sweep."""

import shlex
import subprocess
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rmfast.commands.flags import out_file, write_file
from rmfast.config import Config, load_config, split_arguments
from rmfast.console import say
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import RunError, UserError
from rmfast.launch.slurm import BREAK, Job, Notes, check, once, point, train, word, wrapped
from rmfast.models.config import decoder_config
from rmfast.models.hf import read_config
from rmfast.models.rows import open_rows
from rmfast.outputs.kinds import SCRIPT
from rmfast.outputs.overlap import Output, check_overlap
from rmfast.tasks.build.folder import config_inputs
from rmfast.tasks.build.model import network_heads
from rmfast.tasks.ensemble.members import check_ranks

MODES = ("weak", "strong")


Scripts = dict[Path, str]
"""Texts by path."""
Submit = Callable[[], list[str]]
"""Submits the scripts; the jobs' ids."""


def slurm(options: Namespace) -> None:
    """rmfast launch slurm"""
    arguments = [*options.config, *options.more]
    config = load_config(arguments)
    job = _job(options, config)
    check(job)
    if config.run.resume == "never":
        raise UserError("run.resume: a job that is queued again goes on from its checkpoint; never would start again")
    if config.task == "ensemble" and config.ensemble.spread == "ranks":
        check_ranks(config, job.nodes * max(1, job.gpus), "--nodes x --gpus-per-node")
    _check_model(config)
    out = Path(options.out or f"{job.name}.sbatch")
    make = _ensemble if options.array is not None else _sweep if options.scaling else _run
    scripts, submit = make(job, config, arguments, options, out)
    if not options.out and not options.submit:
        print("\n".join(scripts.values()), end="")
        return
    inputs = config_inputs(config, split_arguments(arguments)[0])
    check_overlap([Output("--logs", Path(job.logs), "name another folder", replaced=False)], inputs)
    for path in scripts:
        out_file("--out", str(path), SCRIPT, inputs)
    Path(job.logs).mkdir(parents=True, exist_ok=True)  # Slurm fails a job whose log has no folder, without a word
    for path, text in scripts.items():
        write_file(path, [text.encode()])
        say(f"wrote {path}")
    if config.checkpoint.every is None and not options.scaling:
        say("checkpoint.every is not set: only USR1 makes a checkpoint; after a node's death the run begins again")
    if not Path(config.model.path).exists():
        say(f"model.path: {config.model.path} is not on this machine, so not looked at")
    if options.submit:
        say(f"submitted: {' '.join(submit())}")


def _check_model(config: Config) -> None:
    """Refuse a model folder that the job would refuse; one that is not on this machine is left to the job.

    Raises:
        UserError: it says why, as a run does.
    """
    model = config.model
    if not Path(model.path).exists():
        return
    hf = read_config(model.path)
    decoder_config(hf, model.path)
    with open_rows(model.path, hf, seed=0, from_scratch=model.from_scratch, **network_heads(config)):
        load_tokenizer(model.path)


def _job(options: Namespace, config: Config) -> Job:
    same = ("time", "nodes", "partition", "account", "mem", "lead", "restarts", "logs")
    return Job(
        name=options.job_name or Path(config.run.dir).name,
        gpus=options.gpus_per_node,
        cpus=options.cpus_per_task,
        setup=tuple(options.setup),
        idle=options.idle_restarts,
        more=tuple(options.sbatch),
        **{name: getattr(options, name) for name in same},
    )


def _made_by(options: Namespace) -> str:
    return f"rmfast {' '.join(map(word, options.words))}"


def _run(job: Job, config: Config, arguments: list[str], options: Namespace, out: Path) -> tuple[Scripts, Submit]:
    nodes = "one node" if job.nodes == 1 else f"{job.nodes} nodes"
    does = f"Trains {config.run.dir} (task {config.task}) on {nodes}, and requeues itself until the run is finished."
    notes = Notes(does, _made_by(options), f"sbatch {word(out)}")
    return {out: train(job, notes, arguments, config.run.dir)}, lambda: [sbatch(out)]


def _ensemble(job: Job, config: Config, arguments: list[str], options: Namespace, out: Path) -> tuple[Scripts, Submit]:
    run, ensemble = config.run.dir, config.ensemble
    if config.task != "ensemble" or ensemble.mode != "full" or ensemble.spread != "turn" or ensemble.part is not None:
        raise UserError(
            "--array trains each member of an ensemble as a job: it needs task ensemble, ensemble.mode full, "
            "ensemble.spread turn and no ensemble.part"
        )
    vote = out.with_name(f"{out.stem}_vote{out.suffix}")
    # Not afterok, which waits for ever once a member has failed: the vote says which are missing.
    how = f"""members=$(sbatch --parsable {word(out)}) &&
#     sbatch --dependency=afterany:$members {word(vote)}
# Where members are missing the vote fails and names them:
#     sbatch --array=NUMBERS {word(out)}, and then the vote again"""
    does = f"Trains the {ensemble.members} members of {run}, each in a separate job."
    notes = Notes(does, _made_by(options), how)
    members = train(job, notes, arguments, run, members=ensemble.members, together=options.array)
    command = f"python -m rmfast.train {wrapped([*arguments, '--ensemble.part', 'vote'])}"
    does = f"The vote of the members of {run}: writes strengths, once all of them are done."

    def submit() -> list[str]:
        first = sbatch(out)
        return [first, sbatch(vote, f"--dependency=afterany:{first}")]

    return {out: members, vote: once(job, replace(notes, about=does), command)}, submit


def _sweep(job: Job, config: Config, arguments: list[str], options: Namespace, out: Path) -> tuple[Scripts, Submit]:
    results, collect = shlex.quote(f"{config.run.dir}/scaling"), out.with_name(f"{out.stem}_collect{out.suffix}")
    how = f"""
#   after=
#   for nodes in {" ".join(map(str, options.scaling))}; do for mode in {" ".join(MODES)}; do
#       after=$after:$(sbatch --parsable --nodes=$nodes {word(out)} $mode)
#   done; done
#   sbatch --dependency=afterany$after {word(collect)}"""
    does = f"Measures steps of {config.model.path} at one size; weak: a batch for each GPU, strong: one for all."
    command = f'benchmarks/scaling/run.py {wrapped(arguments)}{BREAK}--mode "$1" --out {results}'
    measured = point(job, Notes(does, _made_by(options), how), command)
    notes = Notes(f"A table and a plot from {config.run.dir}/scaling.", _made_by(options), f"see {word(out)}")

    def submit() -> list[str]:
        ids = [sbatch(out, f"--nodes={n}", after=(mode,)) for n in options.scaling for mode in MODES]
        return [*ids, sbatch(collect, f"--dependency=afterany:{':'.join(ids)}")]

    return {out: measured, collect: once(job, notes, f"python benchmarks/scaling/collect.py {results}")}, submit


def sbatch(path: Path, *options: str, after: tuple[str, ...] = ()) -> str:
    """Submit a file; the job's id.

    Raises:
        UserError: there is no Slurm. RunError: it refuses.
    """
    try:
        done = subprocess.run(["sbatch", "--parsable", *options, str(path), *after], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("--submit: there is no sbatch here; run this where jobs are submitted") from None
    if done.returncode:
        raise RunError(f"sbatch {path}: {done.stderr.strip().splitlines()[-1] if done.stderr else 'failed'}")
    return done.stdout.strip().split(";")[0]
