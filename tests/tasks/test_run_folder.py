"""A run writes over nothing that is not a run's own, and no two runs write to one folder."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rmfast.data.files import temporary_name
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reward_model import find_folder
from rmfast.outputs import lock
from rmfast.outputs.lock import FolderLock
from rmfast.outputs.marks import CONFIG_MARK, LOCK, MODEL_MARK
from rmfast.outputs.process import read_process, this_process
from rmfast.parallel.world import World
from rmfast.tasks.build.folder import RunFolder
from rmfast.train import main
from rmfast.trainer.log import RunLog
from tests.checkpoint.saving import save_steps
from tests.runs import Case, arguments, fork_ranks, launch, read_lines, write_model, write_rows

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", 8)
    (folder / "chat.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def command(inputs: Path, run: Path, **more: object) -> list[str]:
    keys: dict[str, object] = {
        "model__path": inputs / "model",
        "data__train": inputs / "rows.jsonl",
        "data__cache": inputs / "cache",
        "data__pairs_per_step": 4,
        "data__tokens_per_pack": 96,
        "run__dir": run,
        "run__max_steps": 2,
        "run__tensorboard": False,
        "checkpoint__every": 1,
        "parallel__timeout_minutes": 1,
    }
    return arguments(**{key: value for key, value in (keys | more).items() if value is not None})


def of_ppo(inputs: Path) -> dict[str, object]:
    """What its config must have, and not have."""
    keys = {"ppo__reward": inputs / "model", "ppo__prompts": inputs / "rows.jsonl", "ppo__ptx": 0.1}
    keys |= {"ppo__ptx_data": inputs / "rows.jsonl", "ppo__max_new_tokens": 6, "ppo__critic_warmup": 0}
    return keys | {"data__train": None, "data__pairs_per_step": None}


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Everything below a folder, but for the lock's own words."""
    paths = sorted(path for path in folder.rglob("*") if path.name != LOCK)
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def refused(words: list[str], capsys: pytest.CaptureFixture[str], *watched: Path) -> str:
    """The one line that ends a command, which has changed nothing."""
    before = [contents(folder) for folder in watched]
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr()
    assert [contents(folder) for folder in watched] == before
    assert printed.err.startswith("rmfast: ") and printed.err.count("\n") == 1 and not printed.out, printed
    return printed.err


def soft(file: Path, name: Path) -> Path:
    name.symlink_to(file)
    return name


def hard(file: Path, name: Path) -> Path:
    os.link(file, name)
    return name


# --- inputs where the run would write


@pytest.mark.parametrize("other_name", [None, soft, hard])
@pytest.mark.parametrize(
    ("key", "name", "task"),
    [
        ("data__eval", "eval.jsonl", "reward"),
        ("data__train", "metrics.jsonl", "reward"),
        ("data__train", "report/rows.jsonl", "reward"),
        ("data__train", "checkpoints/mine/rows.jsonl", "reward"),
        ("data__train", "model/rows.jsonl", "reward"),
        ("data__train", "members/rows.jsonl", "ensemble"),
        ("data__train", "data.jsonl", "ensemble"),
        ("meta__data", "eval.jsonl", "meta"),
        ("data__chat_template", "summary.json", "reward"),
        ("data__train", "adapter/rows.jsonl", "sft"),
        ("ppo__prompts", "rollouts/rows.jsonl", "ppo"),
        ("ppo__eval_prompts", "eval/samples-2.jsonl", "ppo"),
        ("ppo__ptx_data", "critic/rows.jsonl", "ppo"),
    ],
)
def test_an_input_where_the_run_writes_is_refused(
    inputs: Path,
    run: Path,
    key: str,
    name: str,
    task: str,
    other_name: Callable[[Path, Path], Path] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = run / name
    file.parent.mkdir(parents=True)
    shutil.copy(inputs / ("chat.jinja" if key == "data__chat_template" else "rows.jsonl"), file)
    given = other_name(file, run.with_name("x.jsonl")) if other_name else file
    keys = of_ppo(inputs) if task == "ppo" else {}
    line = refused(command(inputs, run, task=task, **keys | {key: given}), capsys, run.parent)
    if other_name is hard and "/" in name:  # what would be replaced is a folder, and this name is outside it
        assert f"{run} holds {name} and no run" in line
        return
    top = run / Path(name).parts[0]
    kind = "would overwrite" if top == file else "which would be replaced, holds"
    assert f"run.dir: {top}" in line and kind in line and f"{key.replace('__', '.')}, {given}" in line
    assert "choose another run.dir" in line


def test_relative_and_absolute_spellings_are_one(
    inputs: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run.mkdir()
    shutil.copy(inputs / "rows.jsonl", run / "eval.jsonl")
    monkeypatch.chdir(run.parent)
    for given, folder in (("run/eval.jsonl", run), (run / "eval.jsonl", "./run/../run")):
        assert "would overwrite data.eval" in refused(
            command(inputs, Path(folder), run__dir=folder, data__eval=given), capsys, run
        )


def test_a_base_model_at_the_models_place_stays(inputs: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = shutil.copytree(inputs / "model", run / "model")
    (base / "README.md").write_text("precious")
    for given in (base, soft(base, run.with_name("base"))):
        line = refused(command(inputs, run, model__path=given), capsys, run)
        assert f"run.dir: {base} would overwrite model.path, {given}" in line
    line = refused(command(inputs, run), capsys, run)  # a model that is no input
    assert f"run.dir: {run} holds model/README.md and no run of rmfast; choose another run.dir" in line


def test_a_suite_at_the_results_place_stays(inputs: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(inputs / "model", run / "eval" / "rmb")
    line = refused(command(inputs, run, eval__suites=f"rmb={run / 'eval' / 'rmb'}"), capsys, run)
    assert f"{run / 'eval'}, which would be replaced, holds eval.suites, {run / 'eval' / 'rmb'}" in line
    code = run / "summary.json.py"
    code.write_text("SUITE = None")
    shutil.rmtree(run / "eval")
    os.replace(code, run / "eval.py")
    os.link(run / "eval.py", run / "eval.jsonl")
    line = refused(command(inputs, run, eval__suites=f"mine:{run / 'eval.py'}={inputs / 'rows.jsonl'}"), capsys, run)
    assert f"{run / 'eval.jsonl'} would overwrite eval.suites, {run / 'eval.py'}" in line


@pytest.mark.parametrize("key", ["run__dir", "data__cache"])
@pytest.mark.parametrize("given", ["model", "data"])
def test_a_folder_that_is_read_is_not_written_into(
    inputs: Path, tmp_path: Path, key: str, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "given"
    if given == "model":
        shutil.copytree(inputs / "model", folder)
    else:
        folder.mkdir()
        shutil.copy(inputs / "rows.jsonl", folder)
    read = {"model__path" if given == "model" else "data__train": folder}
    line = refused(command(inputs, tmp_path / "run", **read | {key: folder / "new"}), capsys, tmp_path)
    option = key.replace("__", ".")
    assert f"{option}: {folder / 'new'}" in line and f", {folder}, which is only read; choose another {option}" in line


# --- the config


def test_a_users_config_in_the_run_folder_is_refused_and_a_runs_own_is_taken(
    inputs: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.mkdir()
    config = run / "config.yaml"
    config.write_text(f"# mine\nmodel: {{path: {inputs / 'model'}}}\nrun: {{dir: {run}}}\n")
    more = command(inputs, run)[2:]
    for words in ([str(config), *more], command(inputs, run)):  # given, or only there
        line = refused(words, capsys, run)
        assert f"run.dir: {config} is no file of rmfast's, and the run would overwrite it; choose another" in line
    os.replace(config, run.with_name("mine.yaml"))
    assert main([str(run.with_name("mine.yaml")), *more]) == 0
    text = config.read_text()
    assert text.startswith(CONFIG_MARK) and yaml.safe_load(text)["run"]["dir"] == str(run)
    # The run's own repeats it, also after an edit in place.
    assert main([str(config)]) == 0
    config.write_text(text.replace("max_steps: 2", "max_steps: 3  # one more"))
    assert main([str(config)]) == 0
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [1, 2, 3]
    config.write_text(f"# mine\n{text.removeprefix(CONFIG_MARK)}")
    assert "is no file of rmfast's" in refused([str(config)], capsys, run)


def test_a_config_elsewhere_that_a_link_leads_to_is_not_written(inputs: Path, run: Path) -> None:
    assert main(command(inputs, run)) == 0
    mine = run.with_name("mine.yaml")
    mine.write_bytes((run / "config.yaml").read_bytes())
    before = mine.read_bytes()
    for link in (soft, hard):
        (run / "config.yaml").unlink()
        assert main([str(link(mine, run / "config.yaml")), "--run.max_steps", "3"]) == 0
        assert mine.read_bytes() == before and "max_steps: 3" in (run / "config.yaml").read_text()


# --- folders that hold something else


def test_a_folder_with_files_and_no_run_is_refused(inputs: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("report/report.html", "notes.txt", "config.yml", "checkpoints/step-2/manifest.json"):
        (run / name).parent.mkdir(parents=True)
        (run / name).write_text("{}")
        for more in ({}, {"run__resume": "never"}, {"task": "ensemble"}):
            line = refused(command(inputs, run, **more), capsys, run.parent)
            assert f"run.dir: {run} holds {name} and no run of rmfast; choose another run.dir" in line
        shutil.rmtree(run)


def test_the_folder_where_a_command_was_started_is_not_moved(
    inputs: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(inputs, run)) == 0
    monkeypatch.chdir(run / "checkpoints")
    line = refused(command(inputs, Path(".."), run__resume="never"), capsys, run.parent)
    assert "run.resume never cannot move .., where the command was started; choose another run.dir" in line


def test_logs_notes_of_jobs_inputs_and_the_cache_may_be_there_before(inputs: Path, run: Path) -> None:
    run.mkdir()
    for name in ("train.log", "slurm-7.out", ".slurm-7"):
        (run / name).write_text("x")
    shutil.copy(inputs / "rows.jsonl", run)
    (run / "mine.yaml").write_text(f"data: {{train: {run / 'rows.jsonl'}, cache: {run / 'cache'}}}")
    (run / "cache" / "0").mkdir(parents=True)
    (run / "cache" / "0" / "meta.json").write_text("{}")  # of a run that was killed while it read
    words = command(inputs, run)
    keys = {"--data.train", "--data.cache"}
    rest = [word for pair in zip(words[::2], words[1::2], strict=True) if pair[0] not in keys for word in pair]
    assert main([str(run / "mine.yaml"), *rest]) == 0
    assert (run / "rows.jsonl").read_bytes() == (inputs / "rows.jsonl").read_bytes()


def test_the_model_of_a_run_is_replaced_with_nothing_of_the_users(
    inputs: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(inputs, run)) == 0
    assert main(command(inputs, run, run__max_steps=3)) == 0  # its own is
    notes = run / "model" / "README.md"
    notes.write_text("precious")
    line = refused(command(inputs, run, run__max_steps=4), capsys, run)
    assert f"rmfast did not write {notes}" in line and "move it, or choose another run.dir" in line
    shutil.rmtree(run / "model")
    shutil.copytree(inputs / "model", run / "model")
    assert f"rmfast did not write {run / 'model'}," in refused(command(inputs, run, run__max_steps=4), capsys, run)
    os.replace(run / "model", run / "critic")
    line = refused(command(inputs, run, task="ppo", **of_ppo(inputs)), capsys, run)
    assert f"rmfast did not write {run / 'critic'}, and the run would remove it with the critic before" in line
    os.replace(run / "critic", run / "model")
    assert main(command(inputs, run, run__resume="never")) == 0  # moves it with the rest
    assert (run.with_name("run.1") / "model" / "model.safetensors").is_file()


def test_a_reward_run_does_not_begin_in_an_ensembles_folder(
    inputs: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.mkdir()
    (run / "ensemble.json").write_text('{"settings": {}}')
    assert f"{run} holds an ensemble" in refused(command(inputs, run), capsys, run)


def test_a_run_from_before_there_were_marks_goes_on(
    inputs: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(inputs, run)) == 0
    (run / LOCK).unlink()
    (run / "model" / MODEL_MARK).unlink()
    config = run / "config.yaml"
    config.write_text(config.read_text().removeprefix(CONFIG_MARK))
    assert main([str(config), "--run.max_steps", "3"]) == 0
    assert "resumed from step 2" in capsys.readouterr().out
    assert json.loads((run / "model" / MODEL_MARK).read_text())["files"]


# --- two at once


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_second_run_is_refused_while_the_first_works(
    inputs: Path, run: Path, resume: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(inputs, run)) == 0
    held = FolderLock(run)
    line = refused(command(inputs, run, run__max_steps=3, run__resume=resume), capsys, run.parent)
    assert f"run.dir: {run} is in use by process {os.getpid()} on " in line and "choose another run.dir" in line
    held.release()
    assert main(command(inputs, run, run__max_steps=3, run__resume=resume)) == 0


def test_all_ranks_of_a_second_run_end(inputs: Path, run: Path) -> None:
    held = FolderLock(run)
    cases = [Case("reward", command(inputs, run)), Case("ensemble", command(inputs, run, task="ensemble"))]
    codes = launch(run.with_name("launch"), cases, ranks=2)
    assert codes == {"reward": [2, 2], "ensemble": [2, 2]}
    for case in cases:
        said = [(run.with_name("launch") / f"{case.name}-{rank}.log").read_text() for rank in (0, 1)]
        assert "in use by process" in said[0] and "rmfast:" not in said[1] and "Traceback" not in "".join(said)
    assert [path.name for path in run.iterdir()] == [LOCK]
    held.release()


def test_a_run_that_was_killed_goes_on_at_once(inputs: Path, run: Path) -> None:
    again = command(inputs, run)
    assert launch(run.with_name("launch"), [Case("killed", again, "step:2"), Case("again", again)]) == {
        "killed": [-9],
        "again": [0],
    }
    assert "resumed from step 1" in (run.with_name("launch") / "again-0.log").read_text()


def test_a_job_that_is_started_again_after_a_nodes_death_takes_its_folder_over(
    inputs: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "GRACE", 0.01)
    assert main(command(inputs, run)) == 0
    dead = replace(this_process(), host="n7", boot="another", job="12")
    (run / LOCK).write_text(dead.text())
    line = refused_after(command(inputs, run, run__max_steps=3), capsys)
    assert "is in use by process" in line and " on n7, job 12, since " in line
    assert "; 3 minutes (parallel.lock_minutes) without a sign of it free the folder" in line
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(command(inputs, run, run__max_steps=3)) == 0
    said = capsys.readouterr().out
    assert f"run.dir: {run} was in use by {dead}, which is an earlier start of this job: its lock is taken over" in said
    assert "resumed from step 2" in said
    (run / LOCK).write_text(dead.text())
    os.utime(run / LOCK, (0, 0))
    monkeypatch.delenv("SLURM_JOB_ID")
    assert main(command(inputs, run, run__max_steps=4, parallel__lock_minutes=7)) == 0
    assert "which has given no sign for 7 minutes: its lock is taken over" in capsys.readouterr().out


def test_a_run_whose_folder_is_taken_over_saves_no_more(
    inputs: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def taken(log: RunLog, values: dict[str, object], seconds: float) -> None:
        (run / "new").write_text(replace(this_process(), host="n7").text())
        os.replace(run / "new", run / LOCK)

    monkeypatch.setattr(RunLog, "step", taken)
    assert main(command(inputs, run)) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "was taken over by process" in printed.err and "on n7" in printed.err
    assert not list(run.glob("checkpoints/*"))


# --- a disk that fails


def test_a_full_disk_ends_a_run_with_the_step_that_is_safe(
    inputs: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(inputs, run)) == 0
    for name in ("checkpoints/.step-9.partial", ".model.partial", "rollouts"):
        (run / name).mkdir(exist_ok=True)
    (run / "rollouts" / ".step-1.0.partial").touch()

    def full(log: RunLog, values: dict[str, object], seconds: float) -> None:
        if lost:
            (run / LOCK).unlink()
            (run / "checkpoints" / ".step-3.partial").mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / "metrics.jsonl"))

    lost = False
    monkeypatch.setattr(RunLog, "step", full)
    capsys.readouterr()
    assert main(command(inputs, run, run__max_steps=4)) == 1
    assert capsys.readouterr().err == (
        f"rmfast: {run / 'metrics.jsonl'}: cannot be written: No space left on device; free some space there; step 2 "
        "is saved, and the same command goes on from it\n"
    )
    assert not [*run.glob("checkpoints/.*"), *run.glob(".*")]
    (run / "checkpoints" / "step-2" / "config.json").write_text("{}")  # the newest is damaged: the one before is safe
    assert main(command(inputs, run, run__max_steps=4)) == 1
    assert "; step 1 is saved, and the same command goes on from it\n" in capsys.readouterr().err
    assert (run / "rollouts" / ".step-1.0.partial").exists()  # samples that the next start takes
    lost = True
    assert main(command(inputs, run, run__max_steps=4)) == 1
    assert (run / "checkpoints" / ".step-3.partial").exists()  # of whoever has the folder now


def test_what_is_safe_is_not_said_before_it_is_known(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, World(), 3.0)
    assert folder._safe() == "no step is saved yet, and the same command begins again"
    save_steps(tmp_path / "checkpoints", 1)
    assert folder._safe() == "the same command goes on from the newest checkpoint that is whole"
    folder.saver = save_steps(tmp_path / "checkpoints", 2)
    assert folder._safe() == "step 2 is saved, and the same command goes on from it"


def test_the_lock_names_the_torchrun_of_every_rank(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        rank = int(os.environ["RANK"])
        with pytest.MonkeyPatch.context() as patch, World() as world:
            patch.setattr("rmfast.parallel.gather.launcher", lambda: ("second", "first")[rank])
            with RunFolder(tmp_path, world, 3.0):
                if world.main:
                    holder = read_process((tmp_path / LOCK).read_text())
                    assert holder is not None and holder.launchers == ("first", "second")
                world.barrier()

    assert fork_ranks(2, work) == [0, 0], capfd.readouterr().err


def test_a_folder_that_cannot_be_moved_leaves_no_rank_waiting(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def work() -> None:
        def refused(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        with World() as world, RunFolder(run, world, 3.0) as folder, pytest.MonkeyPatch.context() as patch:
            if world.main:
                (run / "config.yaml").touch()
            patch.setattr(lock.os, "replace", refused)
            why = f"cannot move {run} to {run}.1: Permission denied" if world.main else "refused to the first rank"
            with pytest.raises(UserError, match=why):
                folder.move_earlier()

    assert fork_ranks(2, work) == [0, 0], capfd.readouterr().err


def test_what_killed_runs_left_is_finished_or_removed(inputs: Path, run: Path) -> None:
    assert main(command(inputs, run)) == 0
    os.rename(run / "model", run / ".model.old")  # killed between two renames
    with subprocess.Popen(["true"]) as child:
        child.wait()
    left = temporary_name(run / "summary.json")
    (run / "eval").mkdir(exist_ok=True)
    dead = run / "eval" / left.name.replace(f"-{os.getpid()}.", f"-{child.pid}.")
    partial = run / "checkpoints" / ".step-9.partial"
    partial.mkdir()
    dead.touch()
    assert find_folder(run) == find_folder(run / "model") == run / ".model.old"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmfast.tasks.build.training.Training.train", lambda training, stop: None)
        assert main(command(inputs, run)) == 0
    assert (run / "model" / "model.safetensors").is_file() and not (run / ".model.old").exists()
    assert not dead.exists() and not partial.exists()


def test_jobs_of_members_share_the_run_folder(inputs: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys: dict[str, object] = {"task": "ensemble", "ensemble__members": 2}
    held = FolderLock(run / "members" / "00")  # a job that works on the other one
    assert main(command(inputs, run, **keys, ensemble__part=1)) == 0
    line = refused_after(command(inputs, run, **keys, ensemble__part=0), capsys)
    assert f"{run / 'members' / '00'} is in use by process {os.getpid()}" in line
    held.release()
    whole = FolderLock(run)
    assert main(command(inputs, run, **keys, ensemble__part=0)) == 0  # two whole runs, or votes, are what clash
    assert f"{run} is in use by" in refused_after(command(inputs, run, **keys, ensemble__part="vote"), capsys)
    whole.release()


def refused_after(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line of a refusal that comes after the data was read."""
    capsys.readouterr()
    assert main(words) == 2
    return capsys.readouterr().err
