"""How a run's processes meet and part: on GPUs, of which a CPU plays the part, and over gloo."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

import rmfast.tasks
from rmfast import signals
from rmfast.errors import Interrupted, RunError, UserError
from rmfast.models.network import Network
from rmfast.parallel import process_group
from rmfast.parallel.process_group import STEP, say_error, say_for_all
from rmfast.parallel.replicas import replicate
from rmfast.parallel.world import World
from rmfast.train import main
from tests.runs import ROOT, environment, fork_ranks, meeting_point, torchrun

GPU = torch.device("cuda", 0)


class Ended(BaseException):
    """What os._exit is in these tests."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """A machine with two GPUs and the first of two ranks; groups are gloo's, of this process alone. What is opened."""
    calls: list[tuple[Any, ...]] = []
    plain, closed = dist.init_process_group, dist.destroy_process_group

    def init(backend: str, *, timeout: timedelta, device_id: torch.device | None, **place: Any) -> None:
        calls.append(("open", backend, device_id))
        plain("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)

    def destroy() -> None:
        calls.append(("close",))
        closed()

    def end(code: int) -> None:
        raise Ended(code)

    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(dist, "destroy_process_group", destroy)
    monkeypatch.setattr(os, "_exit", end)
    say_error.cache_clear()
    yield calls
    if dist.is_initialized():
        closed()


def run(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> int:
    """A whole command whose task raises an error, or none."""

    def task(config: object, files: object) -> None:
        with World():
            if error is not None:
                raise error

    monkeypatch.setattr(rmfast.tasks, "run_task", task)
    return main(["--model.path", "m", "--data.train", "d"])


OPEN = ("open", "cpu:gloo,cuda:nccl", GPU)


@pytest.mark.parametrize(("error", "code"), [(UserError("disk full"), 2), (RunError("disk full"), 1)])
def test_an_error_on_gpus_ends_the_process_at_once(
    opened: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
) -> None:
    with pytest.raises(Ended) as end:
        run(monkeypatch, error)
    assert end.value.args == (code,) and opened == [OPEN]
    assert capsys.readouterr().err == "rmfast: disk full\n"


def test_so_does_an_error_that_rmfast_does_not_name(
    opened: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Ended) as end:
        run(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    assert end.value.args == (1,) and opened == [OPEN]
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and shown.endswith("OutOfMemoryError: CUDA out of memory\n")


@pytest.mark.parametrize("error", [None, Interrupted("saved")])
def test_a_run_that_ends_on_all_ranks_closes_its_groups(
    opened: list[Any], monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    assert run(monkeypatch, error) == 0
    assert opened == [OPEN, ("close",)] and not dist.is_initialized()


def test_another_rank_says_what_it_ends_of_where_rank_0_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say_error.cache_clear()
    store, rank = dist.HashStore(), 0
    monkeypatch.setattr(process_group, "GRACE", timedelta(seconds=0.1))
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    rank = 3
    say_for_all("disk full")
    say_for_all("disk full")
    assert capsys.readouterr().err == "rmfast: rank 3: disk full\n"
    rank = 0
    say_for_all("no such file")
    rank = 2
    say_for_all("no such file")
    assert capsys.readouterr().err == "rmfast: no such file\n"


def test_collectives_between_gpus_wait_ten_minutes_at_most(opened: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    class Backend:
        def _set_default_timeout(self, timeout: timedelta) -> None:
            waits.append(timeout)

    monkeypatch.setattr(dist.ProcessGroup, "_get_backend", lambda group, device: Backend())
    with World(timeout_minutes=60) as world:
        world.line([[0]])
    with World(timeout_minutes=2):
        pass
    assert waits == [STEP, STEP, timedelta(minutes=2)] and timedelta(minutes=10) == STEP


@pytest.mark.parametrize("ends", [True, False])
def test_who_has_ended_waits_while_others_show_that_they_work(monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    """For three times 50 minutes, of a world that waits for 60; then the other rank ends, or shows nothing more."""
    store, clock = dist.HashStore(), 0.0
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    first, other = World(), World()
    for rank, world in enumerate((first, other)):
        world.rank, world.size = rank, 2
    work = other.apart()
    show = work.__enter__()
    acts = iter([show, show, show, *([lambda: store.add("rmfast/work 1/arrived", 1)] if ends else [])])

    def sleep(seconds: float) -> None:
        nonlocal clock
        clock += 50 * 60
        next(acts, lambda: None)()

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    if ends:
        with first.apart():
            pass
        work.__exit__(None, None, None)
        assert clock == 4 * 50 * 60
        return
    with pytest.raises(RunError) as error, first.apart():
        pass
    assert str(error.value) == "1 of 2 processes have not shown for 60 minutes that they work"
    assert clock == 5 * 50 * 60


@pytest.mark.parametrize("local", [0, 3])
def test_more_processes_than_gpus_are_one_line(
    opened: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], local: int
) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.setenv("RANK", str(local))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert run(monkeypatch, None) == 2
    line = "rmfast: torchrun's --nproc_per_node: 4 processes on this machine and 2 GPUs that they see"
    shown = capsys.readouterr().err
    assert shown.startswith(line) and shown.count("\n") == 1 if local == 0 else not shown
    assert not opened


def test_a_machine_without_rank_0_says_so_itself(
    opened: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert run(monkeypatch, None) == 2
    assert capsys.readouterr().err.startswith(
        "rmfast: rank 8: torchrun's --nproc_per_node: 2 processes on this machine and 1 GPU that"
    )


TWO = """
import torch, torch.distributed as dist
from rmfast.parallel.world import World
with World() as world:
    print(dist.get_backend(), int(world.sum_(torch.tensor(1.0))), dist.is_initialized())
print(dist.is_initialized())
"""


FAILING = """
import os, sys
import rmfast.tasks
from rmfast.errors import UserError
from rmfast.parallel.world import World
from rmfast.train import main
def task(config, files):
    with World() as world:
        if str(world.rank) in sys.argv[1]:
            raise UserError("disk full")
rmfast.tasks.run_task = task
sys.exit(main(["--model.path", "m", "--data.train", "d"]))
"""


def test_a_signal_to_one_rank_ends_the_work_of_all_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of two ranks that compute one model, each in a data group of its own."""

    def work() -> None:
        with World() as world:
            group = world.line([[0], [1]])
            assert group is not None
            data = World.within(world, group)
            data.check_signals("before")
            signals.heard += ["SIGTERM"] * (world.rank == 0)
            with pytest.raises(Interrupted, match="nothing yet"):
                data.check_signals("nothing yet")
            with world.part(1, 1.0) as part:  # which works without the others
                if world.rank:
                    part.check_signals("other work")

    monkeypatch.setattr(signals, "heard", [])
    assert fork_ranks(2, work) == [0, 0]


def test_two_processes_over_gloo_meet_and_part() -> None:
    with meeting_point(2) as place:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", TWO],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment() | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]
        said = [one.communicate(timeout=120) for one in started]
    for one, (out, err) in zip(started, said, strict=True):
        assert (one.returncode, out) == (0, "gloo 2 True\nFalse\n"), err
        assert "destroy_process_group" not in err


class Layer(torch.nn.Linear):
    """As much of a network as is shared."""

    def parts(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return self.named_parameters()


@pytest.mark.parametrize("error", [None, RunError("not finite")])
def test_gloos_threads_end_with_a_world_whose_ddp_is_held(error: Exception | None) -> None:
    """Else they end where DDP is freed, which waits for them with the interpreter's lock that they may wait for."""

    def gloo() -> list[str]:
        names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
        return [name for name in names if "gloo" in name]

    def work() -> None:
        held = []
        with pytest.raises(RunError) if error else nullcontext(), World() as world:
            held.append(replicate(cast(Network, Layer(2, 2))))
            world.barrier()
            assert gloo()
            if error:
                raise error
        end = time.monotonic() + 5  # a thread that was joined may be listed a moment longer
        while gloo() and time.monotonic() < end:
            time.sleep(0.01)
        assert not gloo() and held

    assert fork_ranks(2, work) == [0, 0]


LOST = "another rank has ended without a word"


@pytest.mark.parametrize(
    ("failing", "how", "line"),
    [("0", "raise", "disk full"), ("1", "raise", "rank 1: disk full"), ("01", "raise", "disk full"),
     ("1", "kill", LOST), ("0", "kill", f"rank 1: {LOST}"),
     ("1", "hang", "another rank does not answer (parallel.timeout_minutes)")],
)  # fmt: skip
def test_ranks_that_wait_for_one_that_ends_say_one_line(
    failing: str, how: str, line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process_group, "GRACE", timedelta(seconds=0.2))

    def task(*_: object) -> None:
        with World(0.03 if how == "hang" else 1.0) as world:
            world.barrier()
            fails = str(world.rank) in failing
            if fails and how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fails and how == "hang":
                time.sleep(4)
                os._exit(9)
            if fails:
                raise UserError("disk full")
            world.barrier()

    monkeypatch.setattr("rmfast.tasks.run_task", task)

    def work() -> None:
        os._exit(main(["--model.path", "m", "--data.train", "d"]))

    codes = fork_ranks(2, work)
    # Nothing but torch's own log, which a run has switched off before torch is imported.
    said = [one for one in capfd.readouterr().err.splitlines() if not one.startswith("[rank")]
    end = {"raise": 2, "kill": -9, "hang": 9}[how]
    assert codes == [end if str(rank) in failing else 1 for rank in range(2)]
    assert len(said) == 1 and said[0].startswith(f"rmfast: {line}"), said


@pytest.mark.slow
def test_an_error_is_one_line_over_gloo_too(tmp_path: Path) -> None:
    """Of three processes as torchrun starts them."""
    (tmp_path / "fail.py").write_text(FAILING, encoding="utf-8")
    command = [*torchrun(3), str(tmp_path / "fail.py"), "1"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(command, env=environment() | {"PYTHONPATH": str(ROOT)}, **options)
    said = [shown for shown in done.stderr.splitlines() if "disk full" in shown or shown.startswith("rmfast:")]
    assert done.returncode and said == ["rmfast: rank 1: disk full"]
