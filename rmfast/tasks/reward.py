"""task: reward. Trains a reward model, evaluates it, exports it and writes the report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rmfast.checkpoint.export import check_export, check_tokenizer, choose_pad_token, write_model, write_tokenizer
from rmfast.checkpoint.store import list_checkpoints, open_checkpoint, read_manifest, save_checkpoint
from rmfast.config import Config
from rmfast.data.columns import read_columns
from rmfast.data.files import write_text
from rmfast.data.loader import Step, StepLoader
from rmfast.data.pack import build_pack
from rmfast.data.plan import StepPlan
from rmfast.data.table import GroupTable
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reader import Reader
from rmfast.evaluation.scoring.score import evaluate_table
from rmfast.kernels import describe
from rmfast.models.config import DTYPES, context_window, decoder_config
from rmfast.objectives.reward import Statistics
from rmfast.outputs.marks import CONFIG, config_text
from rmfast.parallel.engine import tensor_name
from rmfast.parallel.world import World
from rmfast.report.html import write_report
from rmfast.report.summary import final_summary
from rmfast.tasks.attention import choose_attention
from rmfast.tasks.engines import describe_parallel, open_engine
from rmfast.tasks.inputs import open_inputs, open_world, step_plan
from rmfast.tasks.model import head_line
from rmfast.tasks.objectives import reward_objective, training_views
from rmfast.tasks.prepare import data_key
from rmfast.tasks.run_folder import RunFolder, run_folder
from rmfast.tasks.suites import open_suites, suite_line, suite_metrics, write_result
from rmfast.trainer.flops import peak_flops, step_flops
from rmfast.trainer.log import RunLog, finite_or_null, say
from rmfast.trainer.loop import LoopOptions, Progress, fit
from rmfast.trainer.stop import StopRequest, listening


def due(step: int, every: int | None) -> bool:
    """Whether something that is done every so many steps is due."""
    return every is not None and step % every == 0


def run(config: Config) -> None:
    """Train as the config says. All ranks call it.

    Raises:
        UserError: before anything is written to the run folder.
        RunError: a run that cannot go on.
        Interrupted: a run that was asked to stop.
    """
    world = open_world(config)
    with world, RunFolder(run_folder(config.run.dir), world) as folder:
        run_in(folder, RewardRun(config, world, *open_inputs(config, world)))


class RewardRun:
    """The parts of one run, and the order in which they work."""

    def __init__(
        self,
        config: Config,
        world: World,
        hf: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        table: GroupTable,
        evals: dict[str, GroupTable],
    ) -> None:
        self.config, self.world, self.hf, self.tokenizer = config, world, hf, tokenizer
        self.table, self.evals = table, evals
        self.folder = run_folder(config.run.dir)
        self.dtype = DTYPES[config.model.dtype]
        self.plan, self.total = step_plan(config, table)
        # Found out now rather than when the trained model is to be saved.
        self.ends = table.ends.union(*(held_out.ends for held_out in evals.values()))
        self.pad = choose_pad_token(tokenizer, decoder_config(hf).vocabulary, self.ends)
        self.engine = open_engine(config, world, hf)
        self.decoder_config = decoder_config(hf)
        top, layers = config.model.top_layers, self.decoder_config.layers
        self.first_trained = 0 if top is None else layers - top
        reader = Reader(tokenizer, context_window(hf))
        columns = read_columns(config.data.columns)
        self.suites = open_suites(config.eval.suites, reader, self.decoder_config.vocabulary, world, columns)
        self.attention = ""
        self.log: RunLog | None = None

    def run(self, stop: StopRequest | None = None) -> None:
        """Train, evaluate, export, report.

        Raises:
            Interrupted: `stop` said so; what was reached is saved.
        """
        config, world = self.config, self.world
        progress = self._resume()
        self.attention = choose_attention(
            config, self.decoder_config, self.table, self.plan, world, self.attention or None
        )
        self.engine.attend_with(self.attention)
        if world.main:
            self._announce(progress)
            write_text(self.folder / CONFIG, config_text(config.dump()))
            self.log = RunLog(
                self.folder,
                last_step=progress.step,
                total=self.total,
                every=config.run.log_every,
                tensorboard=config.run.tensorboard,
                wandb=config.run.wandb,
                config=config.dump(),
            )
        try:
            if progress.step == 0 and config.eval.at_start:
                self.evaluate(0)
            if progress.step < self.total:
                self.train(progress, stop)
                self.save(progress)
                if stop is not None and stop.asked_now():
                    raise stop.interrupted(f"the last step, {self.total},")
            metrics = self.evaluate(self.total, final=True)
            self._finish(metrics)
        finally:
            if self.log is not None:
                self.log.close()

    def _announce(self, progress: Progress) -> None:
        model, data = self.config.model, self.config.data
        whole, trained = self.engine.parameter_counts()
        mode = f" ({describe_parallel(self.config.parallel)})" if self.world.size > 1 else ""
        say(
            f"{model.path}: {whole / 1e6:.1f} M weights, {trained / 1e6:.1f} M trained, {model.dtype}, "
            f"{self.world.size} x {self.world.device.type}{mode}, {describe(self.world.device, model.kernels)}"
            f"{', flash attention' if self.attention == 'flash' else ''}; "
            f"{self.total:,} steps of {data.pairs_per_step} groups"
        )
        if progress.step:
            say(f"resumed from step {progress.step} in {self.folder}")
        else:
            say(head_line(self.config, self.hf, self.tokenizer))

    def train(self, progress: Progress, stop: StopRequest | None = None) -> None:
        """Take the steps that are left after `progress`, and no more: no evaluation at the end, no export, no report.

        Raises:
            Interrupted: `stop` said so; a checkpoint was saved.
            RunError: a loss or gradient that is not finite, where the config says to stop.
        """
        config, world = self.config, self.world
        optim = config.optim
        warmup = round(optim.warmup * self.total) if optim.warmup < 1 else round(optim.warmup)
        options = LoopOptions(
            total=self.total,
            lr=optim.lr,
            schedule=optim.schedule,
            warmup=warmup,
            floor=optim.floor,
            evaluate_at=lambda step: any(due(step, every) for every in (config.eval.every, config.eval.suites_every)),
            checkpoint_every=config.checkpoint.every,
            on_nonfinite=optim.on_nonfinite,
            seed=config.run.seed,
        )
        peak = peak_flops(world.device, self.dtype)
        fit(
            self.engine,
            self.loader(progress.step),
            self.step_function(),
            options,
            progress,
            log=self.log,
            evaluate=self.evaluate,
            save=self.save,
            flops=self.flops,
            peak=peak and peak * world.size,
            lm=config.objective.lm > 0,
            stop=stop,
        )

    def loader(self, first: int) -> StepLoader:
        """This rank's share of the steps from `first` on."""
        lm, views = self.config.objective.lm > 0, training_views(self.config)
        return self.steps_of(self.table, self.plan, first, lm=lm, views=views)

    def steps_of(self, table: GroupTable, plan: StepPlan, first: int, **options: Any) -> StepLoader:
        """This rank's share of a plan's steps; options are the loader's."""
        return StepLoader(
            table,
            plan,
            first=first,
            last=self.total,
            ranks=self.engine.data.size,
            rank=self.engine.data.rank,
            budget=self.config.data.tokens_per_pack,
            pin=self.world.device.type == "cuda",
            fixed=self.config.parallel.cuda_graphs,
            **options,
        )

    def step_function(self) -> Callable[[Step], Statistics]:
        """What leaves the gradients of a step."""
        objective = reward_objective(self.config)
        return lambda step: self.engine.forward_backward(step.packs, objective, step.totals)

    def flops(self, step: Step) -> float:
        """Work of all that a step computes."""
        lm = self.config.objective.lm > 0
        return sum(
            step_flops(self.decoder_config, part.totals, first_trained=self.first_trained, lm=lm and part is step)
            for part in step.parts
        )

    def evaluate(self, step: int, final: bool = False) -> dict[str, Any]:
        """Evaluate the held-out sources and suites that are due; log it; at last also keep the scores for the plots."""
        config, ends = self.config.eval, step == 0 or final
        merged: dict[str, Any] = {}
        if final or due(step, config.suites_every):
            merged |= self._evaluate_suites(step)
        for name, table in self.evals.items() if ends or due(step, config.every) else ():
            metrics, arrays = evaluate_table(
                self.engine.score,
                table,
                self.engine.data,
                budget=self.config.data.tokens_per_pack,
                center=self.config.objective.center,
            )
            prefix = "eval_" if name == "eval" else f"eval_{name}_"
            merged |= {f"{prefix}{key}": value for key, value in metrics.items()}
            if self.log is None:
                continue
            self.log.evaluation(step, name, {f"eval_{key}": value for key, value in metrics.items()})
            if final:
                (self.folder / "eval").mkdir(exist_ok=True)
                np.savez_compressed(self.folder / "eval" / f"{name}-final.npz", allow_pickle=False, **arrays)
        return merged

    def _evaluate_suites(self, step: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for one in self.suites:
            about = {"name": self.folder.name, "kind": "reward model", "model": str(self.folder), "step": step}
            result = one.run(self.engine.score, self.engine.data, self.config.data.tokens_per_pack, about)
            metrics = suite_metrics(result)
            merged |= {f"eval_{one.name}_{key}": value for key, value in metrics.items()}
            if self.log is not None:
                line = suite_line(one.name, step, result)
                self.log.evaluation(step, one.name, {f"eval_{k}": v for k, v in metrics.items()}, line=line)
                write_result(self.folder / "eval" / f"{one.name}-{step}.json", result)
        return merged

    def _resume(self) -> Progress:
        checkpoints = list_checkpoints(self.folder / "checkpoints")
        if not checkpoints:
            return Progress()
        newest = checkpoints[-1]
        saved = read_manifest(newest)["progress"]
        for key, value in self._settings().items():
            before = saved["settings"].get(key)
            if before != value:
                raise UserError(
                    f"{newest}: this run began with {key} {before}, now it is {value}; go back, set "
                    "run.resume to never (moves the run), or choose another run.dir"
                )
        if saved["data_key"] != self._data_key():
            raise UserError(
                f"{newest}: holds a run on other data, order or seed; set run.resume to never (moves it), "
                "or choose another run.dir"
            )
        if saved["step"] > self.total:
            raise UserError(
                f"{newest}: is at step {saved['step']}, beyond this run's {self.total}; raise run.max_steps"
            )
        with open_checkpoint(newest) as (read, shapes):
            state = self.engine.state()
            other = [n for key, shard in state.items() if shapes.get(n := tensor_name(key), ()) != shard.shape]
            # Ranks may hold different weights, and go on together or not at all.
            if self.world.sum_(torch.tensor(float(len(other)))):
                raise UserError(
                    f"{newest}: holds another model or other trained weights ({(other or ['one'])[0]} differs); set "
                    "run.resume to never (moves it), or choose another run.dir"
                )
            self.engine.load_state(read)
        self.attention = saved["attention"]
        return Progress(**{name: saved[name] for name in vars(Progress()) if name in saved})

    def _settings(self) -> dict[str, Any]:
        """What a resumed run must not change; data, order and seed are the data key's."""
        config = self.config.dump()
        kept = {"model": ("dtype", "top_layers", "dropout"), "objective": tuple(config["objective"])}
        kept["optim"] = tuple(key for key in config["optim"] if key != "on_nonfinite")
        values = {f"{section}.{key}": config[section][key] for section, keys in kept.items() for key in keys}
        return {"task": self.config.task} | values

    def _data_key(self) -> str:
        return data_key(self.table, self.config.data, self.config.run.seed)

    def save(self, progress: Progress) -> None:
        """Write a checkpoint of the step that was just done."""
        values = vars(progress) | {"data_key": self._data_key(), "settings": self._settings()}
        values["attention"] = self.attention

        def extras(folder: Path) -> None:
            self.hf.save_pretrained(folder)
            write_tokenizer(self.tokenizer, folder, self.pad)

        save_checkpoint(
            self.folder / "checkpoints",
            progress.step,
            self.engine.state(),
            values,
            self.world,
            write_extras=extras,
            keep=self.config.checkpoint.keep,
        )

    def _finish(self, metrics: dict[str, Any]) -> None:
        """Export, prove that transformers agrees, and write the report."""
        weights = self.engine.weights()
        table = next(iter(self.evals.values()), self.table)
        by_length = np.argsort(table.stored, kind="stable")
        rows = np.unique(by_length[[0, len(table) // 4, len(table) // 2]])
        pack = build_pack(table, rows)
        scores = self.engine.score([pack])[0].float().cpu()
        if not self.world.main:
            return
        folder = self.folder / "model"
        write_model(
            folder,
            hf=self.hf,
            config=self.decoder_config,
            state=weights,
            tokenizer=self.tokenizer,
            dtype=self.dtype,
            ends=self.ends,
        )
        del weights  # whole and on the CPU, and transformers now loads another copy
        sequences = [s for row in rows for s in table.sequences_of(int(row))]
        check_tokenizer(folder, self.tokenizer)
        difference = check_export(folder, sequences, scores, self.dtype)
        say(f"exported {folder}; transformers gives the same scores (largest difference {difference:.0e})")
        assert self.log is not None
        write_report(self.folder)
        name = next(iter(self.evals), None)
        prefix = "eval_" if name == "eval" else f"eval_{name}_"
        own = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
        source = self.config.data.eval[0] if self.config.data.eval else None
        summary = final_summary(
            own or None,
            model=folder,
            report=self.folder / "report",
            checkpoints=self.folder / "checkpoints",
            data=source,
        )
        say("\n" + summary)
        (self.folder / "summary.json").write_text(
            json.dumps(finite_or_null(metrics), indent=1) + "\n", encoding="utf-8"
        )


def run_in(folder: RunFolder, run: RewardRun) -> None:
    """Train to the end in a folder that is held, ready for requests to stop."""
    if run.config.run.resume == "never":
        folder.move_earlier()
    with listening(folder.path, folder.world) as stop:
        run.run(stop)
