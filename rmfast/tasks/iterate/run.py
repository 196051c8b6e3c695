"""task: iterate. SFT, a reward model, then rounds of samples from the policy, MetaRM on them, and PPO against it."""

import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rmfast.config import Config
from rmfast.config.stages import checked_stages
from rmfast.console import hushed, say
from rmfast.data.files import write_text
from rmfast.errors import UserError
from rmfast.evaluation.judge.backend import Backend
from rmfast.evaluation.metrics import Floats
from rmfast.evaluation.rounds.figures import figures_of, pairs_to_compare
from rmfast.evaluation.rounds.findings import findings
from rmfast.evaluation.scoring.reward_model import find_folder
from rmfast.jsonio import finite_or_null
from rmfast.outputs.marks import CONFIG, config_text
from rmfast.parallel.agree import all_or_none, main_alone
from rmfast.parallel.world import World
from rmfast.report.rounds.page import write_rounds_report
from rmfast.report.rounds.words import summary
from rmfast.tasks.build.folder import RunFolder, check_run, run_folder
from rmfast.tasks.build.inputs import open_demonstrations, open_inputs, open_prompts, open_world
from rmfast.tasks.build.training import Training, train_held
from rmfast.tasks.iterate.judging import LOG, ask, judge_of
from rmfast.tasks.iterate.measure import Measures
from rmfast.tasks.iterate.record import Record
from rmfast.tasks.iterate.sampling import draw_answers, draw_samples
from rmfast.tasks.iterate.stages import Plan, Stage, plan
from rmfast.tasks.meta import open_meta
from rmfast.tasks.ppo import open_ppo
from rmfast.tasks.reward import open_reward
from rmfast.tasks.sft import open_sft
from rmfast.trainer.stop import StopRequest, listening

OPEN: dict[str, Callable[[Config, World], Training]] = {
    "sft": lambda config, world: open_sft(config, world, open_demonstrations(config, world)),
    "reward": lambda config, world: open_reward(config, world, open_inputs(config, world)),
    "meta": lambda config, world: open_meta(config, world, open_inputs(config, world)),
    "ppo": lambda config, world: open_ppo(config, world, open_prompts(config, world)),
}


def run(config: Config) -> None:
    """Run the stages that are left, each in its folder, with a report after each round. All ranks call it.

    Raises:
        UserError: before anything is written to the run folder, but where a stage finds what none could before.
        RunError: a stage that cannot go on.
        Interrupted: a run that was asked to stop.
    """
    world, path, judge = open_world(config), run_folder(config.run.dir), judge_of(config)
    with world, RunFolder(path, world, config.parallel.lock_minutes) as folder, listening(path, world) as stop:
        stages = plan(config)
        if config.run.resume == "never":
            _look(config, world)
            folder.move_earlier()
        record = all_or_none(world, lambda: Record.read(stages, path) if world.main else None)
        if config.run.resume != "never" and not _any(world, record):
            _look(config, world)
        iteration = _Iteration(stages, world, record, stop)
        main_alone(world, lambda: iteration.begin(path))
        done = [*stages.begin]
        for stage in stages.begin:
            iteration.stage(stage, "")
        for number, of_round in enumerate(stages.rounds, start=1):
            new = [iteration.stage(stage, f"round {number} of {len(stages.rounds)}, ") for stage in of_round]
            done += of_round
            if any(new) or number == len(stages.rounds):
                iteration.report(done, judge)


def _any(world: World, record: Record | None) -> bool:
    """Whether a stage is done."""
    return world.any(record is not None and bool(record.stages))


def _look(config: Config, world: World) -> None:
    """Refuse what a later stage would refuse of the data, before hours of others; all of it is read (and cached)."""
    if world.main:
        say("looking through the data of all stages")
    readers = {"sft": open_demonstrations, "reward": open_inputs, "ppo": open_prompts}
    for task, of_stage in checked_stages(config).items():
        if task in readers:
            with hushed():  # each stage says it in its turn
                readers[task](of_stage, world)
        for key, folder in of_stage.ppo.models() if task == "ppo" else ():
            if not (find_folder(folder) / "config.json").is_file():
                raise UserError(f"ppo.{key}: {folder} is no folder of a model: there is no config.json")


class _Iteration:
    """Runs stages, and notes what is done."""

    def __init__(self, stages: Plan, world: World, record: Record | None, stop: StopRequest) -> None:
        self.plan, self.world, self.record, self.stop = stages, world, record, stop

    def begin(self, path: Path) -> list[str]:
        """Write what a run folder begins with."""
        assert self.record is not None
        write_text(path / CONFIG, config_text(self.plan.config.dump()))
        self.record.write()
        return []

    def stage(self, stage: Stage, where: str) -> bool:
        """A stage, unless it is done before; whether it was not."""
        if self._done(stage):
            return False
        if self.stop.asked_now():
            raise self.stop.interrupted("the stage before")
        if self.world.main:
            say(f"\n{where}{stage.name}: {stage.title}")
        if stage.kind == "samples":
            draw_samples(stage, self.world, self.plan.config.iterate.prompts)
        elif stage.kind == "answers":
            draw_answers(stage, self.world)
        else:
            check_run(stage.config, ())
            self.world.barrier()  # all ranks must have looked before rank 0 writes
            train_held(stage.config, self.world, lambda world: OPEN[stage.kind](stage.config, world), self.stop)
        main_alone(self.world, lambda: self._note(stage))
        release(self.world)
        return True

    def _note(self, stage: Stage) -> list[str]:
        assert self.record is not None
        self.record.add(stage)
        return []

    def _done(self, stage: Stage) -> bool:
        """Whether a stage is done; rank 0 looks, and says so."""

        def look() -> list[str]:
            assert self.record is not None
            done, line = self.record.done(stage)
            if line:
                say(line)
            if done:
                say(f"{stage.name}: done before")
            return ["done"] if done else []

        return self.world.any(bool(main_alone(self.world, look)))

    def report(self, done: Sequence[Stage], judge: Backend | None) -> None:
        """Figures of the rounds so far, and the page."""
        answers = [stage for stage in done if stage.kind == "answers"]
        measures = Measures(self.plan, self.world, self.record, answers)
        measures.take()
        votes: dict[tuple[str, str], Floats] = {}
        with self.world.apart() as alive:
            if self.world.main and judge is not None:
                path = run_folder(self.plan.config.run.dir)
                pairs = pairs_to_compare(measures.rows)
                votes = ask(judge, measures.rows, pairs, path / LOG, alive)
        for line in main_alone(self.world, lambda: self._write(measures, votes)):
            say(line)
        release(self.world)

    def _write(self, measures: Measures, votes: dict[tuple[str, str], Floats]) -> list[str]:
        path, measured = run_folder(self.plan.config.run.dir), measures.measured(votes)
        found = figures_of(measured)
        said = findings(measured, found)
        page = write_rounds_report(path, measured, found, said, measures.rows)
        last = found.to_json()["policies"][f"round-{found.rounds}"]
        write_text(path / "summary.json", json.dumps(finite_or_null(last), indent=1) + "\n")
        return summary(found, said, page)


def release(world: World) -> None:
    """Give back the memory of a stage's models."""
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
