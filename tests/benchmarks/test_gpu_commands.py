"""What the GPU harness starts: it ends with the harness, leaves its progress, and counts only what was tested."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import check
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.parts import Call, Cut, Failed
from benchmarks.gpu.stages import real
from tests.benchmarks.test_gpu import ROOT, settings


def test_commands_leave_nothing_running_and_know_no_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    call = Call(settings(tmp_path), time.monotonic() + 2.0)
    show = "import os; print(os.environ.get('TRITON_INTERPRET'))"
    assert call.run(sys.executable, "-c", show) == "None\n"
    pidfile = tmp_path / "pid"
    child = (
        f"import subprocess as s; p = s.Popen(['sleep', '60']); open({str(pidfile)!r}, 'w').write(str(p.pid)); p.wait()"
    )
    with pytest.raises(Cut):
        call.run(sys.executable, "-c", child)
    time.sleep(0.2)
    status = Path(f"/proc/{pidfile.read_text()}/status")
    assert not status.is_file() or "zombie" in status.read_text()
    with pytest.raises(Cut):
        call.run(sys.executable, "-c", "")
    both = Call(settings(tmp_path), time.monotonic() + 9.0)
    with ThreadPoolExecutor(2) as pool:  # a command that ends leaves the others alone
        slow = pool.submit(both.run, "sh", "-c", "sleep 1; echo end")
        both.run("sh", "-c", "true")
        assert slow.result() == "end\n"
    with pytest.raises(Failed, match="code 3"):
        Call(settings(tmp_path), time.monotonic() + 9.0).run(sys.executable, "-c", "raise SystemExit(3)")


HARNESS = """
import time
from pathlib import Path
from benchmarks.gpu.parts import Call, Settings
settings = Settings(Path("{0}"), Path("{0}"), True, "cpu", 90, None, None)
Call(settings, time.monotonic() + 60).run("sh", "-c", "sleep 50 & echo $! > {0}/pid; wait")
"""


def test_a_harness_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    own = subprocess.Popen([sys.executable, "-c", HARNESS.format(tmp_path)], cwd=ROOT)
    pidfile = tmp_path / "pid"
    while not (pidfile.is_file() and pidfile.read_text().strip()):
        assert own.poll() is None
        time.sleep(0.02)
    own.kill()
    own.wait()
    status = Path(f"/proc/{pidfile.read_text().strip()}/status")
    end = time.monotonic() + 5
    while status.is_file() and "zombie" not in status.read_text():
        assert time.monotonic() < end, "the command's child still runs"
        time.sleep(0.02)


def test_a_call_that_is_stopped_starts_no_further_command(tmp_path: Path) -> None:
    call = Call(settings(tmp_path), time.monotonic() + 30.0)
    started = tmp_path / "second"

    def warm() -> None:
        with contextlib.suppress(Failed, Cut):
            call.run("sleep", "20")
        call.run("touch", started)

    with ThreadPoolExecutor(1) as pool:
        both = pool.submit(warm)
        time.sleep(0.3)
        call.stop()
        with pytest.raises(Cut):
            both.result()
    assert not started.exists()


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


def test_what_experiments_have_done_is_packed_while_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "PACK_EVERY", 0.02)
    own = settings(tmp_path)
    own.out.mkdir()
    call, over = Call(own, time.monotonic() + 9.0), threading.Event()
    folder = call.folder("moving") / "seed-0"
    folder.mkdir()
    (folder / "deciles-0.json").write_text("[1]")
    (folder / "presets-0.json").write_text("[1, ")  # is being written
    thread = threading.Thread(target=real.pack_often, args=(call, over))
    thread.start()
    while not (own.out / real.KEPT).is_file():
        time.sleep(0.02)
    over.set()
    thread.join()
    other = Call(settings(tmp_path, scratch=tmp_path / "other"), call.deadline)
    real.unpack(other)
    assert [path.name for path in other.folder("moving").rglob("*.json")] == ["deciles-0.json"]


def test_what_a_failed_file_leaves(tmp_path: Path) -> None:
    file = tmp_path / "test_bad.py"
    file.write_text("def test_good(): pass\n\ndef test_bad(): assert 1 == 2\n")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.testing", str(file), str(tmp_path / "out.json")], cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["passed"], found["failed"]) == (1, 1) and "test_bad" in found["failures"][0]["test"]
    one = [sys.executable, "-m", "benchmarks.gpu.testing", f"{file}::test_good", str(tmp_path / "out.json")]
    assert subprocess.run(one, cwd=ROOT, capture_output=True).returncode == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["passed"], found["failed"]) == (1, 0)


def test_the_programs_understand_what_the_real_plan_asks_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part's command as it is on a card, up to where the program would begin its work."""
    pytest.importorskip("triton")
    from benchmarks.gpu import plan, search
    from benchmarks.kernels import registry, run
    from benchmarks.steps import compare

    asked: list[tuple[str, list[str]]] = []

    def python(_: Call, program: str, *words: object, **_more: str) -> str:
        asked.append((program, [str(word) for word in words]))
        raise Cut

    monkeypatch.setattr(Call, "python", python)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compare, "unavailable", lambda *_: None)
    own = settings(tmp_path, tiny=False, device="cuda")
    for part in plan.parts(own, ("kernels", "tiles", "steps")):
        with contextlib.suppress(Cut):
            part.run(Call(own, time.monotonic() + 60.0))
    read = {"benchmarks.kernels.run": run.parse, "benchmarks.steps.compare": compare.parse}
    parsed = [read[program](words) for program, words in asked if program in read]
    targets = {target.name for target in search.targets()}
    for program, words in asked:
        if program == "benchmarks.gpu.search":
            assert set(words[1 : words.index("--arch")]) <= targets
    assert len(asked) == len(plan.parts(own, ("kernels", "tiles", "steps"))) and len(parsed) > 30
    for args in parsed:
        if hasattr(args, "only"):
            assert not args.tests and set(args.only or ()) <= set(registry.OPS[args.op[0]].sizes)
        else:
            assert args.breakdown and args.device == "cuda" and args.steps > 4 and 75 <= args.limit <= 180
    (first,) = (args for args in parsed if getattr(args, "model", "") == "llama-1b" and "trl" in args.modes
                and args.lengths == "hh")  # fmt: skip
    assert first.modes == ["trl", "trl-no-checkpointing", "hf-packed", "rmfast"] and first.pairs_per_step == 128
