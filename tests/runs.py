"""Tiny training runs for tests: a model folder, rows, and processes that really start, share work and die.

As a script it is the process that all launches of a test session are forks of: the imports are paid once. A launch runs
its cases one after another, each rank in a fork: every case has processes of its own, with the variables that torchrun
would set.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import TCPStore
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "rmfast" / "train.py"
TRACEBACK = 70  # exit code of a case that ended in an error that rmfast does not name
DECODER = ROOT / "configs" / "quickstart" / "decoder"
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "home", "by", "sea", "with", "two", "red", "birds")


def write_model(
    folder: Path, *, tied: bool = False, heads: int = 0, seed: int = 0, layers: int = 2, vocabulary: int = 4096
) -> Path:
    """A Llama of 2 layers and width 32 with weights large enough that scores differ; untied unless asked."""
    shutil.copytree(DECODER, folder)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def text(draw: random.Random, low: int, high: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))


def write_rows(path: Path, count: int, *, seed: int = 0, extra: Sequence[dict[str, Any]] = ()) -> Path:
    """Preference pairs of random words, and the rows `extra` after them."""
    draw = random.Random(seed)
    rows = [
        {"prompt": text(draw, 2, 12), "chosen": " " + text(draw, 1, 5), "rejected": " " + text(draw, 6, 9)}
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *extra]), encoding="utf-8")
    return path


def arguments(**keys: object) -> list[str]:
    """Command line of keys written with __ for the dot; a tuple gives several words."""
    out: list[str] = []
    for name, value in keys.items():
        words = value if isinstance(value, tuple) else (value,)
        out += [f"--{name.replace('__', '.')}", *(json.dumps(w) if isinstance(w, bool) else str(w) for w in words)]
    return out


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def final_weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model" / "model.safetensors")


@dataclass(frozen=True)
class Case:
    """One run. `kill` says where SIGKILL strikes: "step:K", in the process's K-th step; "manifest:K" and "rename:K",
    before the K-th checkpoint gets its manifest or its name (on the rank that writes); "publish:K", before the K-th
    file or folder that is written whole gets its name; "read:K", before an engine reads scores, values or
    log-probabilities for the K-th time; "draw:K", before the K-th prompt is handed over with its samples; "any:K", at
    the K-th of these POINTS. "step:K@R": on rank R alone. "signal:K" and "signal draw:K" are no kill: SIGUSR1 reaches
    the last rank alone, in its K-th step or at another point. `ranks`: of the job, where it is not the launch's number.

    With a `kill` the log names each point that was reached, with the functions that say in which phase it was ("point
    read _experience read_values"), and each prompt that was drawn, by its draw's number ("drew 7"). "none:0" strikes
    nowhere."""

    name: str
    arguments: list[str]
    kill: str = ""
    ranks: int = 0


def launch(folder: Path, cases: Sequence[Case], *, ranks: int = 1, timeout: float = 300) -> dict[str, list[int]]:
    """Run cases in order at a number of ranks (1: a plain process); each case's exit codes by rank, -9 for SIGKILL.

    What a rank printed is in folder/NAME-RANK.log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    placed = [replace(case, ranks=case.ranks or ranks) for case in cases]
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in placed]), encoding="utf-8")
    asked = {"folder": str(folder.resolve()), "work": os.getcwd(), "environment": environment()}
    starter = _starter()
    print(json.dumps(asked), file=starter.stdin, flush=True)
    if not select.select([starter.stdout], [], [], timeout)[0]:
        starter.kill()
        raise subprocess.TimeoutExpired(f"launch {folder}", timeout)
    assert starter.stdout.readline() == "0\n", (folder / "launch.txt").read_text(encoding="utf-8")
    codes: dict[str, list[int]] = json.loads((folder / "codes.json").read_text(encoding="utf-8"))
    for case in cases:
        for rank, code in enumerate(codes[case.name]):
            # A rank whose peer is killed may end in whatever the connection says.
            assert code != TRACEBACK or case.kill, (folder / f"{case.name}-{rank}.log").read_text(encoding="utf-8")
    return codes


_started: list[subprocess.Popen[str]] = []


def _starter() -> subprocess.Popen[str]:
    """The process that launches are forks of, which ends with this one."""
    if not _started or _started[-1].poll() is not None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        _started.append(subprocess.Popen([sys.executable, __file__], env=environment(), **pipes))
    return _started[-1]


@contextlib.contextmanager
def meeting_point(ranks: int) -> Iterator[dict[str, str]]:
    """A place where ranks meet, held by this process as torchrun holds it; the variables that name it to them.

    The port is bound from here on: one that is looked for first may be taken before rank 0 binds it."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    yield {name: str(value) for name, value in place.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    del store


def fork_ranks(count: int, work: Callable[[], None]) -> list[int]:
    """Run something in forks of this process that torchrun could have started; their exit codes.

    As torch's threads do not survive a fork, a rank has one.
    """
    gc.collect()  # Triton's interpreter leaves tensors in cycles, some of them of gigabytes that a fork is refused for
    children = []
    with meeting_point(count) as place:
        for rank in range(count):
            if child := os.fork():
                children.append(child)
                continue
            code = TRACEBACK
            try:
                begin_fork()
                signal.alarm(300)
                torch.set_num_threads(1)
                os.environ |= place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                work()
                code = 0
            finally:
                _end(code)
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _end(code: int) -> None:
    """End a fork, and say the error that it ends of."""
    if sys.exc_info()[0]:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def begin_fork() -> None:
    """Leave garbage to the process that a rank is a fork of: destructors wait for threads that a fork lacks, and a
    collection looks at all that was imported for some 0.3 s."""
    gc.freeze()


def torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]


def environment() -> dict[str, str]:
    users = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return users | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _serve() -> None:
    """For each line of stdin a launch in a fork, and its exit code as a line."""
    for task in ("ensemble.run", "meta", "ppo", "reward", "sft"):
        importlib.import_module(f"rmfast.tasks.{task}")
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            folder, code = Path(asked["folder"]), 1
            try:
                _write_to(folder / "launch.txt")
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.chdir(asked["work"])
                os.environ.clear()
                os.environ.update(asked["environment"])
                _run_all(folder)
                code = 0
            finally:
                _end(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _write_to(log: Path) -> None:
    """Let a file have what this process prints."""
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def _run_all(folder: Path) -> None:
    cases = [Case(**case) for case in json.loads((folder / "cases.json").read_text(encoding="utf-8"))]
    if any("megatron" in case.arguments for case in cases):
        runpy.run_path(str(ROOT / "tests" / "megatron" / "standin.py"))["install"]()
        import rmfast.parallel.megatron.engine  # noqa: F401
    codes = {}
    for case in cases:
        with meeting_point(case.ranks) as place:
            place = place if case.ranks > 1 else {}
            ranks = [_fork(case, rank, place, folder / f"{case.name}-{rank}.log") for rank in range(case.ranks)]
            codes[case.name] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ranks]
    (folder / "codes.json").write_text(json.dumps(codes), encoding="utf-8")


def _fork(case: Case, rank: int, place: dict[str, str], log: Path) -> int:
    """Start a rank, which meets the others at a place (none: it is alone); its process id."""
    child = os.fork()
    if child:
        return child
    code = TRACEBACK
    try:
        begin_fork()
        _write_to(log)
        if place:
            os.environ |= place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        set_trap(case.kill)
        from rmfast.train import main

        code = main(case.arguments)
    finally:
        _end(code)


POINTS = ("step", "read", "draw", "publish", "manifest")
AROUND = ("_begin", "evaluate", "_experience", "_train", "save", "export", "keep", "score", "read_log_probs")
AROUND += ("read_values",)
"""Functions that say in which phase of a run a point is."""


def set_trap(kill: str) -> None:
    """Let this process reach the point that a case's `kill` says, and name all points before it."""
    import rmfast.tasks.build.training as task
    import rmfast.tasks.ensemble.strength as strength
    from rmfast.checkpoint import store
    from rmfast.data import files
    from rmfast.parallel.native import NativeEngine
    from rmfast.parallel.stepping import Stepping
    from rmfast.rollout.sampler import Sampler
    from rmfast.tasks.ensemble.head_learner import HeadLearner

    # The plots take longer than all the rest of a tiny run.
    task.write_report = lambda folder: None
    strength.write_ensemble_report = lambda *_: []
    if not kill:
        return
    kill, _, rank = kill.partition("@")
    where, count = kill.split(":") if rank in ("", os.environ.get("RANK", "0")) else ("none", "0")
    asked, left = where.startswith("signal"), int(count)
    struck = (where.removeprefix("signal").strip() or "step") if asked else where
    if struck not in (*POINTS, "rename", "any", "none"):
        raise ValueError(kill)
    last = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1

    def reach(point: str) -> None:
        nonlocal left
        # What is written beside the steps ends first, so that points come in one order; its own are reached in it.
        for thread in threading.enumerate():
            if thread.name == "save" and thread is not threading.current_thread():
                thread.join()
        names = [threading.current_thread().name, *(f.name for f in traceback.extract_stack())]
        within = dict.fromkeys(name for name in names if name in AROUND)
        print("point", point, *within, flush=True)
        if point == struck or (struck == "any" and point in POINTS):
            left -= 1
            if not left and (last or not asked):
                os.kill(os.getpid(), signal.SIGUSR1 if asked else signal.SIGKILL)

    def before(holder: Any, name: str, point: str, when: Callable[..., bool] = lambda *_: True) -> None:
        """Reach a point before each call of a function."""
        function = getattr(holder, name)

        def trapped(*arguments: Any) -> Any:
            if when(*arguments):
                reach(point)
            return function(*arguments)

        setattr(holder, name, trapped)

    before(Stepping, "optimizer_step", "step")
    before(HeadLearner, "step", "step")
    before(NativeEngine, "read", "read")
    before(files, "publish", "publish")
    before(store, "write_json", "manifest", lambda path, _: path.name == store.MANIFEST)
    before(files, "sync", "rename", lambda path: path.name.endswith(".partial"))
    draw = Sampler.sample

    def sample(self: Sampler, requests: Any, n: int, progress: Any = None, **more: Any) -> Iterator[Any]:
        for number, drafts in draw(self, requests, n, progress, **more):
            reach("draw")
            print("drew", requests[number].draw_number, flush=True)
            yield number, drafts

    Sampler.sample = sample  # type: ignore[method-assign]


if __name__ == "__main__":
    del sys.path[0]  # tests/ holds no library
    _serve()
