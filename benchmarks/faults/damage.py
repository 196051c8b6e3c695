"""Damaged run folders: the next start says what is damaged and ends with the right weights, or is refused in a line."""

import contextlib
import io
import random
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import rmfast
from benchmarks.faults.cases import Case
from benchmarks.faults.results import other_bits, results
from benchmarks.faults.runs import Place, draw_of
from benchmarks.faults.starts import HUNG
from benchmarks.faults.targets import MODEL, TARGETS, Target
from benchmarks.faults.ways import Way
from rmfast.checkpoint.store import list_checkpoints
from rmfast.errors import UserError

ROWS = [{"prompt": "the cat", "responses": [" sat on a mat", " ran home"]}]


def cases(place: Place, seed: int) -> Iterator[Case]:
    """Each way of each target, once; then an exported model that is damaged and loaded."""
    for target in TARGETS:
        for way in target.ways:
            name = f"damage/{target.setup}, {target.base}/{target.path.replace('/', ' ')}/{way.__name__}"
            yield Case(name, partial(damaged, place, target, way, name, draw_of(seed, name)))
    for file, ways in MODEL.items():
        for way in ways:
            name = f"damage/load/{file}/{way.__name__}"
            yield Case(name, partial(loaded, place, file, way, name, draw_of(seed, name)))


def damaged(place: Place, target: Target, way: Way, name: str, draw: random.Random) -> dict[str, Any]:
    """Damage a copy of a run, start it again, and judge what comes of it."""
    base, run = place.run(_base(place, target)), place.run(name)
    shutil.copytree(base, run)
    for path in _paths(run, target.path, draw):
        way(path, draw)
    job = place.start(target.setup, f"{name}/run", data__cache=run / "cache")
    codes, said = job.wait(), job.said()
    return judged(codes, said) | {"flaw": _flaw(place, target, run / "run", codes, said)}


def judged(codes: Sequence[int], said: str) -> dict[str, Any]:
    """How a start ended, for the record."""
    refused = _refusal(said)
    return {"outcome": "ended" if not any(codes) else f"refused: {refused[0][:300]}" if refused else str(codes)}


def _flaw(place: Place, target: Target, run: Path, codes: Sequence[int], said: str) -> str:
    if flaw := end_flaw(codes, said):
        return flaw
    if any(codes):
        return "was refused, but had to go on" if target.ends else ""
    if target.ends is False:
        return "had to be refused"
    if flaw := other_bits(results(run, target.logged), place.whole(target.setup)[0], values=target.logged):
        return flaw
    return "" if re.search(target.said, said) else f"says nothing of it: {said[-500:]}"


def end_flaw(codes: Sequence[int], said: str) -> str:
    """Why a start did not end as any start has to: with 0, or with a line."""
    if "Traceback" in said:
        return f"a traceback: {said[-1500:]}"
    if HUNG in codes:
        return f"did not end: {said[-800:]}"
    if any(codes) and (not {*codes} <= {0, 1, 2} or len(_refusal(said)) != 1):
        return f"ended with {codes} and {len(_refusal(said))} lines: {said[-800:]}"
    return ""


def _refusal(said: str) -> list[str]:
    """Lines that end a start, less those by which ranks tell of another one's."""
    return [line for line in dict.fromkeys(said.splitlines()) if line.startswith("rmfast: ")]


def _base(place: Place, target: Target) -> str:
    """A run that was killed as soon as it had two checkpoints, or a whole one, with a data cache of its own."""
    name = f"bases/{target.setup}, {target.base}"
    base = place.run(name)
    if not (base / "made").exists():
        shutil.rmtree(base, ignore_errors=True)
        job = place.start(target.setup, f"{name}/run", data__cache=base / "cache")
        if target.base == "killed":
            job.until(lambda: any(len(list_checkpoints(c)) > 1 for c in (base / "run").rglob("checkpoints")))
            job.send(signal.SIGKILL)
            wanted = {-signal.SIGKILL}
        else:
            wanted = {0}
        if {*(codes := job.wait())} != wanted:
            raise RuntimeError(f"{name}: {codes}\n{job.said()}")
        (base / "made").touch()
    return name


def _paths(run: Path, path: str, draw: random.Random) -> list[Path]:
    """The files or folders that a target's path means."""
    if path.startswith("CACHE"):
        return [draw.choice(sorted((run / "cache").glob(f"[0-9a-f]*{path.removeprefix('CACHE')}")))]
    before, found, after = path.partition("checkpoints/")
    for word, number in (("NEWEST", -1), ("OLDER", -2)):
        if found and after.startswith(word):
            checkpoint = list_checkpoints(run / "run" / before / "checkpoints")[number]
            return [Path(f"{checkpoint}{after.removeprefix(word)}")]
    return sorted((run / "run").glob(path))


def loaded(place: Place, file: str, way: Way, name: str, draw: random.Random) -> dict[str, Any]:
    """Damage a copy of an exported model: it is refused, scores as before, or what it says names the file."""
    place.whole("reward")
    exported, model = place.run("whole reward") / "model", place.run(name)
    right = rmfast.load(str(exported)).score(ROWS)
    shutil.copytree(exported, model)
    way(model / file, draw)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            scores = rmfast.load(str(model)).score(ROWS)
    except UserError as error:
        return {"outcome": f"refused: {str(error)[:300]}", "flaw": "" if str(model) in str(error) else "names no file"}
    silent = scores != right and file not in said.getvalue()
    return {"outcome": f"loaded: {said.getvalue()[:300]}", "flaw": "other scores in silence" if silent else ""}


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """How many ended how."""
    outcomes = [record.get("outcome", "").partition(":")[0] for record in records]
    return {"damaged": len(records)} | {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
