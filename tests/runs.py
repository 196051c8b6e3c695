"""Tiny training runs for tests: a model folder, rows, and processes that really start, share work and die.

As a script it runs the cases of a JSON file one after another, each rank in a fork of this process: every case has
processes of its own, with the variables that torchrun would set, and the imports are paid once.
"""

import json
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
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
    before the K-th checkpoint gets its manifest or its name (on the rank that writes). "step:K@R": on rank R alone.
    "signal:K" is no kill: SIGUSR1 reaches the last rank alone, in its K-th step. `ranks`: of the job, where it is not
    the launch's number."""

    name: str
    arguments: list[str]
    kill: str = ""
    port: int = 0
    ranks: int = 0


def launch(folder: Path, cases: Sequence[Case], *, ranks: int = 1) -> dict[str, list[int]]:
    """Run cases in order at a number of ranks (1: a plain process); each case's exit codes by rank, -9 for SIGKILL.

    What a rank printed is in folder/NAME-RANK.log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    placed = [
        replace(case, port=port, ranks=case.ranks or ranks)
        for case, port in zip(cases, free_ports(len(cases)), strict=True)
    ]
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in placed]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=300, env=environment()
    )
    assert done.returncode == 0, done.stderr
    codes: dict[str, list[int]] = json.loads((folder / "codes.json").read_text(encoding="utf-8"))
    for case in cases:
        for rank, code in enumerate(codes[case.name]):
            # A rank whose peer is killed may end in whatever the connection says.
            assert code != TRACEBACK or case.kill, (folder / f"{case.name}-{rank}.log").read_text(encoding="utf-8")
    return codes


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on. They lie below those that systems give to connections by themselves: one of
    these could be taken between this moment and the run's own."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"no {count} free ports")


def torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]


def environment() -> dict[str, str]:
    users = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return users | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _run_all(folder: Path) -> None:
    import rmfast.tasks.reward  # noqa: F401  (before the forks)

    cases = [Case(**case) for case in json.loads((folder / "cases.json").read_text(encoding="utf-8"))]
    if any("megatron" in case.arguments for case in cases):
        runpy.run_path(str(ROOT / "tests" / "megatron" / "standin.py"))["install"]()
        import rmfast.parallel.megatron.engine  # noqa: F401
    codes = {}
    for case in cases:
        ranks = [_fork(case, rank, folder / f"{case.name}-{rank}.log") for rank in range(case.ranks)]
        codes[case.name] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ranks]
    (folder / "codes.json").write_text(json.dumps(codes), encoding="utf-8")


def _fork(case: Case, rank: int, log: Path) -> int:
    """Start a rank; its process id."""
    child = os.fork()
    if child:
        return child
    code = TRACEBACK
    try:
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if case.ranks > 1:  # a meeting point of the case's own
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks, "LOCAL_WORLD_SIZE": case.ranks}
            os.environ |= {name: str(value) for name, value in own.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(case.port)}
        _set_trap(case.kill)
        from rmfast.train import main

        code = main(case.arguments)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _set_trap(kill: str) -> None:
    import rmfast.tasks.build.training as task
    import rmfast.tasks.ensemble.strength as strength
    from rmfast.checkpoint import store
    from rmfast.data import files
    from rmfast.parallel.stepping import Stepping
    from rmfast.tasks.ensemble.head_learner import HeadLearner

    # The plots take longer than all the rest of a tiny run.
    task.write_report = lambda folder: None
    strength.write_ensemble_report = lambda *_: []
    if not kill:
        return
    kill, _, rank = kill.partition("@")
    if rank and rank != os.environ.get("RANK", "0"):
        return
    where, count = kill.split(":")
    left = int(count)

    last = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1

    def strike(*_: object) -> None:
        nonlocal left
        left -= 1
        if not left and (where != "signal" or last):
            os.kill(os.getpid(), signal.SIGUSR1 if where == "signal" else signal.SIGKILL)

    step, heads_step, write_json, sync = Stepping.optimizer_step, HeadLearner.step, store._write_json, files.sync
    if where in ("step", "signal"):
        Stepping.optimizer_step = lambda self, lr: (strike(), step(self, lr))[1]  # type: ignore[method-assign]
        HeadLearner.step = lambda self, batch: (strike(), heads_step(self, batch))[1]  # type: ignore[method-assign]
    elif where == "manifest":
        store._write_json = lambda path, value: (path.name == store.MANIFEST and strike(), write_json(path, value))
    elif where == "rename":
        files.sync = lambda path: (path.name.endswith(".partial") and strike(), sync(path))
    else:
        raise ValueError(kill)


if __name__ == "__main__":
    del sys.path[0]  # tests/ holds no library
    _run_all(Path(sys.argv[1]))
