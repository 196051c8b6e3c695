"""What the GPU harness starts: it ends with the harness, leaves its progress, and counts only what was tested."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import check
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.parts import run
from tests.benchmarks.test_gpu import ROOT, settings


def wait_for_end(pidfile: Path) -> None:
    """A process's children may outlive it by a moment."""
    status = Path(f"/proc/{pidfile.read_text().strip()}/status")
    end = time.monotonic() + 5
    while status.is_file() and "zombie" not in status.read_text():
        assert time.monotonic() < end, "the command's child still runs"
        time.sleep(0.02)


def test_commands_leave_nothing_running_and_know_no_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    own, (pipe, life) = settings(tmp_path), os.pipe()
    show = "import os; print(os.environ.get('TRITON_INTERPRET'))"
    assert run([sys.executable, "-c", show], own, seconds=9.0, pipe=pipe) == (0, "None\n")
    child = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    assert run(["sh", "-c", child], own, seconds=1.0, pipe=pipe) == (None, "")
    wait_for_end(tmp_path / "pid")
    assert run(["sh", "-c", "sleep 5"], own, seconds=-1.0, pipe=pipe)[0] is None
    with ThreadPoolExecutor(2) as pool:  # a command that ends leaves the others alone
        slow = pool.submit(run, ["sh", "-c", "sleep 1; echo end"], own, seconds=9.0, pipe=pipe)
        run(["true"], own, seconds=9.0, pipe=pipe)
        assert slow.result() == (0, "end\n")
    assert run([sys.executable, "-c", "raise SystemExit(3)"], own, seconds=9.0, pipe=pipe)[0] == 3
    assert run(["sh", "-c", "kill -9 $$"], own, seconds=9.0, pipe=pipe)[0] == 137  # not by us: memory of the machine
    with ThreadPoolExecutor(1) as pool:  # stopped from outside: what runs ends, and nothing starts any more
        running = pool.submit(run, ["sleep", "20"], own, seconds=30.0, pipe=pipe)
        time.sleep(0.3)
        os.close(life)
        assert running.result() == (None, "")
    assert run(["sleep", "20"], own, seconds=30.0, pipe=pipe) == (None, "")
    os.close(pipe)


HARNESS = """
import os
from pathlib import Path
from benchmarks.gpu.parts import Settings, run
settings = Settings(Path("{0}"), Path("{0}"), True, "cpu", 90)
run(["sh", "-c", "sleep 50 & echo $! > {0}/pid; wait"], settings, seconds=60.0, pipe=os.pipe()[0])
"""


def test_a_harness_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    own = subprocess.Popen([sys.executable, "-c", HARNESS.format(tmp_path)], cwd=ROOT)
    pidfile = tmp_path / "pid"
    while not (pidfile.is_file() and pidfile.read_text().strip()):
        assert own.poll() is None
        time.sleep(0.02)
    own.kill()
    own.wait()
    wait_for_end(pidfile)


def test_nothing_is_timed_beside_other_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "smi"
    script.write_text("#!/bin/sh\necho '4711, python, 40000 MiB'\n")
    script.chmod(0o755)
    assert check.others([str(script)]) == ["4711, python, 40000 MiB"] and check.others(["no-such-smi"]) == []
    device = {"cuda": True, "name": "card", "capability": 90, "memory_gib": 80.0}
    monkeypatch.setattr(check, "probe", lambda: device)
    monkeypatch.setattr(check, "others", lambda: ["4711, python, 40000 MiB"])
    assert main(["--out", str(tmp_path / "out"), "--commit", "c"]) == 1
    assert "4711, python" in capsys.readouterr().err


def test_what_a_failed_file_leaves(tmp_path: Path) -> None:
    file = tmp_path / "test_bad.py"
    file.write_text("def test_good(): pass\n\ndef test_bad(): assert 1 == 2\n")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.testing", str(file), "--json", str(tmp_path / "out.json")], cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["passed"], found["failed"]) == (1, 1) and "test_bad" in found["failures"][0]["test"]
    one = [sys.executable, "-m", "benchmarks.gpu.testing", f"{file}::test_good", "--json", str(tmp_path / "out.json")]
    assert subprocess.run(one, cwd=ROOT, capture_output=True).returncode == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["passed"], found["failed"]) == (1, 0)


def test_the_programs_understand_what_the_real_plan_asks_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part's command as it is on a card, up to where the program would begin its work."""
    pytest.importorskip("triton")
    from benchmarks.gpu import plan, search
    from benchmarks.kernels import cases, run
    from benchmarks.steps import compare

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compare, "unavailable", lambda *_: None)
    parts = plan.parts(settings(tmp_path, tiny=False, device="cuda"))
    parts = [part for part in parts if part.stage in ("kernels", "tiles", "steps")]
    asked = [(part.command[0], [str(word) for word in part.command[1:]]) for part in parts]
    read = {"benchmarks.kernels.run": run.parse, "benchmarks.steps.compare": compare.parse}
    parsed = [read[program](words) for program, words in asked if program in read]
    targets = {target.name for target in search.targets()}
    for program, words in asked:
        if program == "benchmarks.gpu.search":
            assert set(words[1 : words.index("--arch")]) <= targets
    assert len(parsed) > 30
    for args in parsed:
        if hasattr(args, "only"):
            assert args.suite == tmp_path / "out" / "suite.json"
            assert set(args.only or ()) <= set(cases.OPS[args.op[0]].sizes)
        else:
            assert args.breakdown and args.device == "cuda" and args.steps > 4 and 75 <= args.limit <= 180
    (first,) = (args for args in parsed if getattr(args, "model", "") == "llama-1b" and "trl" in args.modes
                and args.lengths == "hh")  # fmt: skip
    assert first.modes == ["trl", "trl-no-checkpointing", "hf-packed", "rmfast"] and first.pairs_per_step == 128
