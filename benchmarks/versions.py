"""Which versions of the libraries the tests pass with: one environment after another, each with the tests it concerns.

    python benchmarks/versions.py [--only NAME ...] [--again] [--keep]

An environment is what the Makefile installs with the pins of constraints.txt, but for the versions that it is about and
for pins that those do not allow. It is built in runs/versions and deleted once its tests have run. Its record goes to
benchmarks/results/versions.json at once: a call that was cut off goes on where it stopped, and what has a record of
this commit is not run again. `make test-versions` also makes docs/versions.md of the records (benchmarks/figures.py).
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the repository's root instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.gpu.testing import outcome
from benchmarks.origin import ROOT, write_json

CONSTRAINTS = ROOT / "constraints.txt"
RECORDS = ROOT / "benchmarks" / "results" / "versions.json"
FOLDER = ROOT / "runs" / "versions"
SHOWN = ("torch", "triton", "transformers", "datasets", "numpy", "pyarrow")
NOT_RUN = "not run"

EVERY = ("tests",)
OF_TORCH = ("tests/models", "tests/objectives", "tests/parallel", "tests/trainer", "tests/checkpoint", "tests/kernels",
            "tests/test_train.py")  # fmt: skip
OF_TRITON = ("tests/kernels", "tests/launch/test_cost.py")
OF_TRANSFORMERS = ("tests/models", "tests/checkpoint", "tests/data", "tests/evaluation", "tests/test_train.py")
OF_DATASETS = ("tests/data", "tests/test_train.py")


@dataclass(frozen=True)
class Environment:
    """Versions in place of those of constraints.txt, pins that they do not allow, the interpreter, and what is run."""

    tests: tuple[str, ...]
    moved: Mapping[str, str] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    python: str = "python3.11"
    extras: str = ""  # of setup.py, instead of all that the Makefile names
    pinned: bool = True  # False: the newest versions that install


# PyPI's torch for Linux asks for one Triton: the two move together.
ENVIRONMENTS = {
    "pinned": Environment(EVERY),
    "newest": Environment(EVERY, pinned=False),
    "torch-oldest": Environment(OF_TORCH, {"torch": "2.11.0", "triton": "3.6.0"}, free=("setuptools",)),
    "torch-newest": Environment(OF_TORCH, {"torch": "2.14.1", "triton": "3.8.0"}),
    "triton-oldest": Environment(OF_TRITON, {"triton": "3.6.0"}),
    "triton-newest": Environment(OF_TRITON, {"triton": "3.9.0"}),
    "transformers-oldest": Environment(OF_TRANSFORMERS, {"transformers": "5.17.0"}, free=("huggingface-hub",)),
    "transformers-newest": Environment(OF_TRANSFORMERS, {"transformers": "5.24.0"}),
    "datasets-oldest": Environment(
        OF_DATASETS, {"datasets": "4.0.0"}, free=("dill", "fsspec", "multiprocess"),
        extras="test,gguf",  # TRL asks for a newer datasets
    ),
    "datasets-newest": Environment(OF_DATASETS, {"datasets": "5.2.0"}),
    "python-3.12": Environment(EVERY, python="python3.12"),
    "python-3.13": Environment(EVERY, python="python3.13"),
}  # fmt: skip


def pins(one: Environment) -> str:
    """The constraints of an environment."""
    lines = []
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        name = re.split("==|#", line)[0].lower().replace("_", "-")
        if name in one.moved:
            lines.append(f"{name}=={one.moved[name]}")
        elif name and name not in one.free:
            lines.append(line)
    return "\n".join(lines) + "\n"


def run(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Of the repository, as a user would type it: `make` tells its children what it was called with."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONPATH")}
    return subprocess.run(words, cwd=ROOT, env=kept | environment, capture_output=True, text=True)


def starts(python: str) -> bool:
    return shutil.which(python) is not None and run([python, "--version"]).returncode == 0


def last_error(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()]
    return next((line.strip() for line in lines if not line.startswith("make")), f"exit code {done.returncode}")


def measured(name: str, one: Environment, keep: bool) -> dict[str, Any]:
    """Builds an environment and runs its tests: versions and outcome, or why there is none."""
    if not starts(one.python):
        return {"why": f"{NOT_RUN}: no {one.python}"}
    venv, constraints = FOLDER / name, FOLDER / f"{name}.txt"
    FOLDER.mkdir(parents=True, exist_ok=True)
    constraints.write_text(pins(one), encoding="utf-8")
    given = f"CONSTRAINTS={constraints.relative_to(ROOT) if one.pinned else ''}"
    inside = str(venv.relative_to(ROOT))
    extras = [f"EXTRAS={one.extras}"] if one.extras else []
    made = run(["make", f"VENV={inside}", given, f"PYTHON={one.python}", "TORCH=torch", *extras, f"{inside}/.dev"])
    try:
        if made.returncode:
            return {"why": f"does not install: {last_error(made)}"}
        python, report = str(venv / "bin" / "python"), FOLDER / f"{name}.xml"
        asked = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {SHOWN}}}))"
        found = json.loads(run([python, "-c", asked]).stdout)
        version = run([python, "-c", "import platform; print(platform.python_version())"]).stdout.strip()
        report.unlink(missing_ok=True)
        run([python, "benchmarks/figures.py"])  # a test compares the page with the records, which are of this call
        pytest = [python, "-m", "pytest", "-n", "3", "-p", "no:cacheprovider", f"--junitxml={report}", *one.tests]
        done = run(pytest, OMP_NUM_THREADS="1")
        (FOLDER / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode not in (0, 1):
            return {"why": f"pytest: {last_error(done)}"}
        counts = outcome(report)
        counts["failed"] = [failure["test"] for failure in counts.pop("failures")]
        return {"python": version, "versions": found, "tests": list(one.tests)} | counts
    finally:
        if not keep:
            shutil.rmtree(venv, ignore_errors=True)


def commit() -> str:
    """HEAD, with "-dirty" where files differ from it; what this program writes does not count."""
    written = [f":!{path.relative_to(ROOT)}" for path in (RECORDS, ROOT / "docs" / "versions.md")]
    head = run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
    return head + ("-dirty" if run(["git", "status", "--porcelain", "--", ".", *written]).stdout.strip() else "")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 1 if an environment does not install or a test fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=ENVIRONMENTS, metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}")
    add("--again", action="store_true", help="also what has run at this commit")
    add("--keep", action="store_true", help="keep the environments (some gigabytes each)")
    args = parser.parse_args(arguments)
    records = json.loads(RECORDS.read_text(encoding="utf-8"))["environments"] if RECORDS.is_file() else {}
    now = commit()
    for name in args.only or ENVIRONMENTS:
        if records.get(name, {}).get("commit") == now and not args.again:
            continue
        print(f"{name} ...", flush=True)
        records[name] = measured(name, ENVIRONMENTS[name], args.keep) | {
            "commit": now, "date": datetime.date.today().isoformat(), "platform": platform.platform(terse=True),
        }  # fmt: skip
        ordered = {each: records[each] for each in ENVIRONMENTS if each in records}
        write_json(RECORDS, {"environments": ordered})
        print(f"{name}: {said(records[name])}", *records[name].get("failed", ()), sep="\n  ", flush=True)
    made = [records[name] for name in args.only or ENVIRONMENTS]
    return int(any(one.get("failed") or not one.get("why", NOT_RUN).startswith(NOT_RUN) for one in made))


def said(record: Mapping[str, Any]) -> str:
    """The outcome in words."""
    if "why" in record:
        return str(record["why"])
    counts = {"failed": len(record["failed"]), "passed": record["passed"], "skipped": record["skipped"]}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


if __name__ == "__main__":
    sys.exit(main())
