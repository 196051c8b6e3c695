"""The tiny runs that faults come into: of each task, on one process and two, by both engines."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import same_numbers
from benchmarks.faults.results import Results, results
from benchmarks.faults.starts import Job, start
from rmfast.data.files import remove
from tests.ppo import tiny
from tests.tasks.test_sft import talks

Keys = Mapping[str, object]
SOURCES = {"train": "rows", "eval": "eval"}  # of sft


def _pairs(folder: Path, run: str, keys: Keys) -> list[str]:
    shared: Keys = {"run__max_steps": 12, "checkpoint__every": 3, "eval__every": 5, "parallel__timeout_minutes": 1}
    return same_numbers.command(folder / "pairs", str(folder / "runs" / run), same_numbers.Job({**shared, **keys}))


def _sft(folder: Path, run: str, keys: Keys) -> list[str]:
    data: Keys = {f"data__{key}": folder / "talks" / f"{name}.jsonl" for key, name in SOURCES.items()}
    shared: Keys = {"task": "sft", "data__pairs_per_step": 6, "data__max_length": 96, "run__max_steps": 9}
    return _pairs(folder, run, {**data, **shared, "model__dropout": 0.0, **keys})


def _ppo(folder: Path, run: str, keys: Keys) -> list[str]:
    return tiny.command(folder / "ppo", str(folder / "runs" / run), **{"checkpoint__every": 1, **keys})


@dataclass(frozen=True)
class Setup:
    """A command of so many ranks.

    Attributes:
        other: ranks at which a killed run goes on to the same figures but for rounding; 0 for none.
    """

    command: Callable[[Path, str, Keys], list[str]] = _pairs
    keys: Keys = field(default_factory=dict)
    ranks: int = 1
    other: int = 0


_META = {"task": "meta", "meta__prompts_per_step": 4, "meta__eta": 0.01, "meta__k": 3}
_HEADS = {"task": "ensemble", "ensemble__members": 3, "ensemble__mode": "heads", "model__dropout": 0.0}
_FULL = {"task": "ensemble", "ensemble__members": 2, "ensemble__mode": "full", "run__max_steps": 6}
_DDP, _FSDP = {"parallel__data": "ddp"}, {"parallel__data": "fsdp"}
_MEGATRON: Keys = {"parallel__engine": "megatron", "model__dropout": 0.0}
_TRICKS: Keys = {
    "ppo__preset": "ppo", "ppo__kl_in": "both", "ppo__kl_target": 1.0, "ppo__truncated": "mask", "ppo__entropy": 0.01,
    "ppo__epochs": 3, "ppo__critic_warmup": 0, "ppo__reward_norm": "running", "ppo__reward_warmup": 2,
}  # fmt: skip

SETUPS = {
    "reward": Setup(),
    "meta": Setup(keys=_META),
    "ensemble full": Setup(keys=_FULL),
    "ensemble heads": Setup(keys=_HEADS),
    "sft": Setup(_sft),
    "ppo": Setup(_ppo),
    "ppo, other keys": Setup(_ppo, _TRICKS),
    "reward ddp": Setup(keys=_DDP, ranks=2),
    "reward fsdp": Setup(keys=_FSDP, ranks=2),
    "ppo ddp": Setup(_ppo, _DDP, ranks=2),
    "ppo fsdp": Setup(_ppo, _FSDP, ranks=2),
    "megatron tp2": Setup(keys={**_MEGATRON, "parallel__tensor": 2}, ranks=2),
    "megatron pp2": Setup(keys={**_MEGATRON, "parallel__pipeline": 2, "objective__lm": 0.5}, ranks=2),
    # These go on at another number of ranks; dropout's masks are of a place in a pack, and packs differ.
    "reward, then ddp": Setup(keys={**_DDP, "model__dropout": 0.0}, ranks=1, other=2),
    "ddp, then reward": Setup(keys={**_DDP, "model__dropout": 0.0}, ranks=2, other=1),
    "fsdp, then reward": Setup(keys={**_FSDP, "model__dropout": 0.0}, ranks=2, other=1),
    "meta, then fsdp": Setup(keys={**_META, **_FSDP, "model__dropout": 0.0}, ranks=1, other=2),
    "sft ddp, then sft": Setup(_sft, _DDP, ranks=2, other=1),
}


@dataclass
class Place:
    """A folder with the inputs of all runs, and the runs that nothing came into."""

    folder: Path
    _whole: dict[str, tuple[Results, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.folder / "inputs").exists():
            for name in ("pairs", "talks", "runs"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            same_numbers.write_inputs(self.folder / "pairs")
            for seed, (name, count) in enumerate({"rows": 18, "eval": 7}.items()):
                talks(self.folder / "talks" / f"{name}.jsonl", count, seed)
            tiny.write_inputs(self.folder / "ppo")
            (self.folder / "inputs").touch()

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / name

    def remove(self, name: str) -> None:
        """Take away what a case left, its logs too."""
        for left in (self.run(name), *(self.folder / "logs" / name).parent.glob(f"{Path(name).name}[-.]*log")):
            remove(left)

    def command(self, setup: str, run: str, **keys: object) -> list[str]:
        """A setup's command in the folder of a run, with keys beyond its own."""
        return SETUPS[setup].command(self.folder, run, {**SETUPS[setup].keys, **keys})

    def start(
        self,
        setup: str,
        run: str,
        ranks: int = 0,
        prepare: Callable[[], None] = lambda: None,
        tag: str = "",
        **keys: object,
    ) -> Job:
        """Start a run, or start it again; its logs are longer each time.

        Args:
            tag: of the logs, where there is another start of it at the same time.
        """
        words = self.command(setup, run, **keys)
        return start(self.folder / "logs" / f"{run}{tag}", words, ranks or SETUPS[setup].ranks, prepare)

    def whole(self, setup: str) -> tuple[Results, float]:
        """What a run of a setup leaves that nothing came into, and how many seconds it took.

        Raises:
            RuntimeError: it does not end well.
        """
        if setup not in self._whole:
            run = self.run(f"whole {setup}")
            seconds = run.with_name(f"{run.name}.seconds")  # of a run that an earlier call made
            if not seconds.exists():
                job = self.start(setup, run.name)
                if any(codes := job.wait()):
                    raise RuntimeError(f"{run.name}: {codes}\n{job.said()}")
                seconds.write_text(str(job.seconds))
            self._whole[setup] = results(run), float(seconds.read_text())
        return self._whole[setup]


def draw_of(seed: int, name: str) -> random.Random:
    """The random choices of a case, which no other case changes."""
    return random.Random(f"{seed} {name}")
