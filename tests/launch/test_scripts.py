"""What rmfast launch slurm writes: the committed examples, refusals, and the scripts run by bash with a false Slurm."""

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from rmfast.cli import main
from rmfast.errors import UserError
from rmfast.launch.slurm import TEMPLATES, Job, Notes, header, once, seconds
from tests.runs import ROOT, write_model

EXAMPLES = ROOT / "configs" / "slurm"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump({"model": {"path": "x"}, "data": {"train": "x"}, "run": {"dir": str(tmp_path / "run")}})
    )
    return path


def launched(*words: object) -> int:
    return main(["launch", "slurm", *map(str, words)])


# --- the examples


@pytest.mark.parametrize("name", ["one_node", "many_nodes", "ensemble", "scaling"])
def test_examples_are_what_the_command_writes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (EXAMPLES / f"{name}.sbatch").read_text(encoding="utf-8")
    made_by = re.search(r"^# Made by: rmfast (.*)$", text, re.M)
    assert made_by is not None
    for folder in ("configs", "rmfast"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "configs").unlink()
    (tmp_path / "configs" / "slurm").mkdir(parents=True)
    for path in (ROOT / "configs").glob("*.yaml"):
        (tmp_path / "configs" / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(made_by[1])) == 0
    made = sorted((tmp_path / "configs" / "slurm").iterdir())
    assert f"{name}.sbatch" in [path.name for path in made]
    for path in made:
        assert path.read_text(encoding="utf-8") == (EXAMPLES / path.name).read_text(encoding="utf-8"), path.name


def test_every_example_is_bash(tmp_path: Path) -> None:
    scripts = sorted(EXAMPLES.glob("*.sbatch"))
    assert len(scripts) == 6
    for script in scripts:
        done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert "{{" not in script.read_text()
        assert max(map(len, (line for line in script.read_text().splitlines() if "Made by" not in line))) <= 120


# --- options


def test_header_holds_what_was_asked() -> None:
    job = Job(name="x", time="1-00:00:00", nodes=4, cpus=96, mem="0", partition="p", account="a", more=("--qos=high",))
    lines = header(job, survives=True).splitlines()
    asked = {"--nodes=4", "--gpus-per-node=8", "--cpus-per-task=96", "--mem=0", "--partition=p", "--account=a"}
    asked |= {"--time=1-00:00:00", "--signal=B:USR1@300", "--requeue", "--open-mode=append", "--qos=high"}
    assert asked <= {line.removeprefix("#SBATCH ") for line in lines}
    assert all(line.startswith("#SBATCH --") for line in lines)
    assert "signal" not in header(job, survives=False) and "gpus" not in header(
        Job(name="x", time="1", gpus=0), survives=True
    )


def test_a_job_that_only_reads_asks_for_little() -> None:
    more = ("--exclusive", "--qos=high", "--mem-per-gpu=80G", "--mail-type=END", "--constraint=h100", "-A lab")
    job = Job(name="x", time="2-0", nodes=4, cpus=96, mem="0", partition="p", more=more)
    text = once(job, Notes("", "", ""), "true")
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    small = ["job-name=x", "nodes=1", "ntasks-per-node=1", "cpus-per-task=4", "partition=p", "time=1:00:00"]
    assert lines == [*small, "output=%x-%j.log", "qos=high", "mail-type=END", "#SBATCH -A lab"]
    assert "#SBATCH --time=20\n" in once(Job(name="x", time="20"), Notes("", "", ""), "true")


def test_an_array_is_followed_by_its_vote_whatever_becomes_of_it(config: Path) -> None:
    out = config.with_name("two words.sbatch")
    words = ["--task", "ensemble", "--ensemble.members", "3", "--array", "--time", "60"]
    assert launched(config, *words, "--job-name", "my run", "--logs", config.parent / "my logs", "--out", out) == 0
    said = out.read_text()
    vote = f"'{config.parent}/two words_vote.sbatch'"
    assert f"--dependency=afterany:$members {vote}" in said and f"sbatch --array=NUMBERS '{out}'" in said
    assert "#SBATCH '--job-name=my run'\n" in said
    assert f"#SBATCH '--output={config.parent}/my logs/%x-%A_%a.log'\n" in said


def test_line_breaks_stay_where_they_are_meant(config: Path, tmp_path: Path) -> None:
    """In a line of --setup they are; in what the script says of itself they would begin a command."""
    script = rendered(config, "--setup", "export A=it\\'s\ntouch made", "--data.train", "a\ntouch damaged")
    assert run(script, tmp_path).returncode == 0
    assert (tmp_path / "made").exists() and not (tmp_path / "damaged").exists()
    made_by = next(line for line in script.read_text().splitlines() if line.startswith("# Made by: rmfast "))
    words = made_by.removeprefix("# Made by: rmfast ")
    told = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, text=True)
    assert "export A=it\\'s\ntouch made" in told.stdout.split("\0") and "a\ntouch damaged" in told.stdout.split("\0")


def test_an_option_with_a_line_break_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launched(config, "--time", "60", "--sbatch=--comment=a\nrm x") == 2
    assert "an option of sbatch is one line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("time", "expected"),
    [("90", 5400), ("90:30", 5430), ("12:00:00", 43200), ("2-0", 172800), ("1-02:30", 95400), ("1-00:00:01", 86401)],
)
def test_times_as_slurm_reads_them(time: str, expected: int) -> None:
    assert seconds(time) == expected


@pytest.mark.parametrize("time", ["", "x", "1:2:3:4", "1-", "-5", "5m"])
def test_times_that_are_none(time: str) -> None:
    with pytest.raises(UserError, match="no time limit"):
        seconds(time)
    assert seconds("UNLIMITED") is None


GROUPS = ("--ensemble.spread", "ranks", "--ensemble.ranks_per_member", "4")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--time", "5m"], "--time 5m: is no time limit"),
        (["--time", "9999999999:00"], "--time 9999999999:00: is no time limit"),
        (["--time", "9"], "--time 9: is less than twice --lead (300 s)"),
        (["--time", "60", "--lead", "30"], "--lead 30: must be at least"),
        (["--time", "60", "--run.resume", "never"], "run.resume:"),
        (["--time", "60", "--run.dirr", "x"], "run.dirr: unknown key; did you mean run.dir?"),
        (["--time", "60", "--array"], "--array trains each member of an ensemble"),
        (
            [*["--time", "60", "--nodes", "2", "--gpus-per-node", "3", "--task", "ensemble"], *GROUPS],
            "ensemble.ranks_per_member 4 does not divide the 6 ranks of this run (--nodes x --gpus-per-node)",
        ),
        (["--time", "60", "--out", "/no/such/folder/x.sbatch"], "there is no folder /no/such/folder"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    config: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(config.parent.iterdir())
    assert launched(config, *words) == 2
    printed = capsys.readouterr()
    assert line in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert set(config.parent.iterdir()) == before


def test_without_out_it_is_printed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launched(config, "--time", "60", "--optim.lr", "1e-4", "--nodes", "2") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#!/bin/bash\n") and "--optim.lr 1e-4" in printed and "#SBATCH --nodes=2" in printed
    assert not list(config.parent.glob("*.sbatch"))


def test_submit_without_slurm_is_one_line(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(config.parent))
    monkeypatch.chdir(config.parent)
    assert launched(config, "--time", "60", "--submit") == 2
    assert "there is no sbatch here" in capsys.readouterr().err


def test_words_of_the_user_reach_the_trainer_whole(config: Path, tmp_path: Path) -> None:
    odd = "a b'c$(touch damaged)"
    script = rendered(config, "--data.train", odd, "--run.dir", tmp_path / "my run")
    assert run(script, tmp_path).returncode == 0
    called = (tmp_path / "srun.called").read_text()
    assert f"{odd}\n" in called and not (tmp_path / "damaged").exists()
    assert (tmp_path / "my run").is_dir()


# --- the script's own decisions, with programs of Slurm that say what a test wants


def rendered(config: Path, *words: object, **values: str) -> Path:
    script = config.with_suffix(".sbatch")
    assert (
        launched(config, *words, "--time", "60", "--gpus-per-node", "0", "--idle-restarts", "2", "--out", script) == 0
    )
    return script


def run(
    script: Path,
    folder: Path,
    *,
    srun: str = "true",
    sinfo: str = "true",
    restarts: int = 0,
    nodes: int = 1,
    patience: str = "/bin/sleep 0.01",
    excluded: str = "(null)",
    preempted: str = "None",
    **slurm: str,
) -> subprocess.CompletedProcess[str]:
    """Run a script; `srun` and `sinfo` are bash. What srun was called with, and what was queued again, is in files."""
    false = folder / "false"
    false.mkdir(exist_ok=True)
    programs = {
        "srun": f'printf "%s\\n" "$@" > {folder}/srun.called\n{srun}',
        "sinfo": sinfo,
        "scontrol": f"""case "$*" in
            *"show job"*) echo "JobId=7 PreemptTime={preempted} ReqNodeList=n9 ExcNodeList={excluded} NodeList=n1" ;;
            show*) echo n1; echo n2 ;;
            *) echo "$@" >> {folder}/scontrol.called ;;
        esac""",
        "sleep": patience,
        "squeue": 'printf "%s\\n" "7.0 setup" "7.3 trainer" "7.batch batch"',
        "scancel": f'echo "$@" >> {folder}/scancel.called',
    }
    for name, text in programs.items():
        (false / name).write_text(f"#!/bin/bash\n{text}\n")
        (false / name).chmod(0o755)
    slurm |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_JOB_NODELIST": f"n[1-{nodes}]"}
    slurm["SLURM_JOB_PARTITION"] = "low"
    again = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    environment = {"PATH": f"{false}:{os.environ['PATH']}"} | slurm | again
    return subprocess.run(
        ["bash", str(script)], env=environment, cwd=folder, capture_output=True, text=True, timeout=60
    )


def until(there: str) -> str:
    """Bash that waits for a file, for ten seconds at most."""
    return f"for i in {{1..100}}; do [ ! -e {there} ] || break; /bin/sleep 0.1; done"


def queued_again(folder: Path) -> bool:
    file = folder / "scontrol.called"
    return file.exists() and "requeue 7\n" in file.read_text()


def test_a_run_that_ends_well_is_not_queued_again(config: Path, tmp_path: Path) -> None:
    done = run(rendered(config), tmp_path)
    assert done.returncode == 0 and not queued_again(tmp_path), done.stdout + done.stderr
    assert not list((tmp_path / "run").iterdir())


def test_a_failing_run_is_not_queued_again(config: Path, tmp_path: Path) -> None:
    for nodes in (1, 2):
        done = run(rendered(config), tmp_path, srun="exit 3", nodes=nodes)
        assert done.returncode == 3 and not queued_again(tmp_path)


def test_a_failing_run_whose_node_died_is(config: Path, tmp_path: Path) -> None:
    """Here the node shows only at the third look."""
    looks = f'echo >> {tmp_path}/looks; [ $(wc -l < {tmp_path}/looks) -lt 3 ] || echo "n2 is idle*: Not responding"'
    done = run(rendered(config), tmp_path, srun="exit 3", sinfo=looks, nodes=2)
    assert queued_again(tmp_path) and "n2 is idle*: Not responding" in done.stdout


def nodes_of(*names: str, dead: str) -> str:
    """What sinfo says: of the partition's nodes, and of those that are looked after."""
    return f'case "$*" in *partition=low*) printf "%s\\n" {" ".join(names)} ;; *) {dead} ;; esac'


def test_a_node_that_died_is_left_out(config: Path, tmp_path: Path) -> None:
    """Beside what the user leaves out, and after the requeue: Slurm refuses it of a job that runs."""
    sinfo = nodes_of("n1", "n2", "n2", "n20", dead='echo "n2 is down*: Not responding"')
    done = run(rendered(config), tmp_path, srun="exit 3", sinfo=sinfo, nodes=2, excluded="n[7-8]")
    called = (tmp_path / "scontrol.called").read_text()
    assert called == "requeue 7\nupdate JobId=7 ExcNodeList=n[7-8],n2\n", done.stdout + done.stderr
    assert "leaves out n[7-8],n2" in done.stdout


def test_it_is_not_where_too_few_would_remain(config: Path, tmp_path: Path) -> None:
    sinfo = nodes_of("n1", "n2", dead='echo "n2 is down*: Not responding"')
    done = run(rendered(config), tmp_path, srun="exit 3", sinfo=sinfo, nodes=2)
    assert (tmp_path / "scontrol.called").read_text() == "requeue 7\n"
    assert "only 1 nodes would remain: n2" in done.stderr


def test_nodes_that_died_before_are_left_out_when_the_script_next_queues_the_job(config: Path, tmp_path: Path) -> None:
    """Slurm itself queued it after the first death, and then the script could not."""
    script, asked = rendered(config), "trap '' USR1; kill -USR1 $PPID; /bin/sleep 0.2; touch run/requeue"
    three = ("n1", "n2", "n3", "n4")
    run(script, tmp_path, srun="mkdir -p run/checkpoints/step-0; kill -KILL $PPID", sinfo=nodes_of(*three, dead="true"))
    died = nodes_of(*three, dead='echo "n2 is down: Node unexpectedly rebooted"')
    run(script, tmp_path, srun="mkdir -p run/checkpoints/step-1; kill -KILL $PPID", sinfo=died, restarts=1)
    again = nodes_of(*three, dead='echo "n4 is drained: bad"')
    for restarts, sinfo in ((2, again), (3, nodes_of(*three, dead="true"))):  # n2 is well again, then n4
        run(script, tmp_path, srun=f"mkdir -p run/checkpoints/step-{restarts}; {asked}", sinfo=sinfo, restarts=restarts)
        assert (tmp_path / "scontrol.called").read_text() == "requeue 7\nupdate JobId=7 ExcNodeList=n2,n4\n"
        (tmp_path / "scontrol.called").unlink()


def test_well_nodes_are_not_taken_for_dead(config: Path, tmp_path: Path) -> None:
    sinfo = 'echo "n1 is allocated: none"; echo "n2 is mixed: none"; echo "n2 is idle: was down once"'
    run(rendered(config), tmp_path, srun="exit 3", sinfo=sinfo, nodes=2)
    assert not queued_again(tmp_path)


@pytest.mark.parametrize(
    ("srun", "again"),
    [  # a signal to the shell
        ('kill -USR1 $PPID; /bin/sleep 0.3; touch "run/requeue"', True),  # stopped and said so
        ("kill -USR1 $PPID; /bin/sleep 0.3; exit 1", True),  # died on the way
        ("kill -USR1 $PPID; /bin/sleep 0.3", False),  # was through
        # A signal to the trainer; torchrun fails of it.
        ('printf "stopped by SIGTERM: x\\nsignals: SIGTERM\\n" > run/requeue; exit 1', True),
        ('printf "stopped by SIGTERM: x\\nsignals: SIGTERM\\n" > run/requeue', True),
        ("echo stopped by run/stop: x > run/requeue", False),  # stopped by a person's file
    ],
)
def test_asked_by_slurm_an_unfinished_run_is_queued_again(config: Path, tmp_path: Path, srun: str, again: bool) -> None:
    done = run(rendered(config), tmp_path, srun=f"trap '' USR1; {srun}")
    assert queued_again(tmp_path) is again, done.stdout + done.stderr


@pytest.mark.parametrize(("code", "preempted", "again"), [(1, True, True), (1, False, False), (0, True, False)])
def test_a_trainer_that_dies_of_preemption_is_queued_again(
    config: Path, tmp_path: Path, code: int, preempted: bool, again: bool
) -> None:
    """As while it imports, before it can take note of TERM."""
    time = "2026-11-21T22:56:15" if preempted else "None"
    run(rendered(config), tmp_path, srun=f"exit {code}", preempted=time)
    assert queued_again(tmp_path) is again


def test_the_trainer_has_as_long_after_term_as_after_usr1(config: Path, tmp_path: Path) -> None:
    run(rendered(config), tmp_path, srun=f"echo $TORCH_ELASTIC_SHUTDOWN_TIMEOUT > {tmp_path}/seconds")
    assert (tmp_path / "seconds").read_text() == "300\n"


def test_a_task_of_an_array_speaks_of_itself_alone(config: Path, tmp_path: Path) -> None:
    """The task whose SLURM_JOB_ID is the array's: by that number Slurm would queue all tasks again."""
    sinfo = nodes_of("n1", "n2", "n3", dead='echo "n2 is down*: Not responding"')
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    done = run(rendered(config), tmp_path, srun="exit 3", sinfo=sinfo, nodes=2, **task)
    called = (tmp_path / "scontrol.called").read_text()
    assert called == "requeue 7_2\nupdate JobId=7_2 ExcNodeList=n2\n", done.stdout + done.stderr


def test_a_signal_before_the_trainer_is_kept_for_it(config: Path, tmp_path: Path) -> None:
    """In --setup, say: the shell must not die of it, and the time that is left is counted from the signal."""
    slept = tmp_path / "slept"
    setup = ["--setup", "kill -USR1 $$; SECONDS=$((SECONDS + 1000))"]
    obeys = f"{until('slept')}; [ ! -e run/stop ] || touch run/requeue"
    done = run(rendered(config, *setup), tmp_path, srun=obeys, patience=f'echo "$1" >> {slept}; exec /bin/sleep 5')
    assert queued_again(tmp_path) and "USR1: the trainer is asked" in done.stdout, done.stdout + done.stderr
    assert slept.read_text() == "0\n"


def test_a_run_that_is_through_while_it_is_asked_is_not_queued_again(config: Path, tmp_path: Path) -> None:
    """srun ends while the shell is in its trap, so that `wait` tells the trap's code, not srun's."""
    (tmp_path / "false").mkdir()
    slow = tmp_path / "false" / "touch"
    slow.write_text('#!/bin/bash\n/bin/sleep 1; exec /usr/bin/touch "$@"\n')
    slow.chmod(0o755)
    done = run(rendered(config), tmp_path, srun="kill -USR1 $PPID; /bin/sleep 0.2")
    assert done.returncode == 0 and "ended with code 0" in done.stdout and not queued_again(tmp_path), done.stdout
    assert not list((tmp_path / "run").iterdir())  # no file `stop` that the next command would obey


@pytest.mark.parametrize("torn", ["", "n1\n", "n1\n1 2\n"])
def test_a_torn_note_is_no_note(config: Path, tmp_path: Path, torn: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".slurm-7").write_text(torn)
    done = run(rendered(config), tmp_path, restarts=1)
    assert done.returncode == 0 and "on n[1-1], 0 starts without" in done.stdout, done.stdout + done.stderr


def test_a_note_is_replaced_whole(config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    note = tmp_path / "run" / ".slurm-7"
    note.write_text("n1\n1 2\n1\n\n")
    (tmp_path / "false").mkdir()
    (tmp_path / "false" / "mv").write_text("#!/bin/bash\nkill -KILL $PPID\n")
    (tmp_path / "false" / "mv").chmod(0o755)
    assert run(rendered(config), tmp_path, restarts=1).returncode == -9
    assert note.read_text() == "n1\n1 2\n1\n\n"


@pytest.mark.parametrize(("given", "seen"), [({}, "unset\n"), ({"SLURM_CPUS_PER_TASK": "12"}, "12\n")])
def test_cores_of_the_step(config: Path, tmp_path: Path, given: dict[str, str], seen: str) -> None:
    """Where none are asked for, a job on whole nodes must not train on one core."""
    run(rendered(config), tmp_path, srun=f"echo ${{SRUN_CPUS_PER_TASK-unset}} > {tmp_path}/cores", **given)
    assert (tmp_path / "cores").read_text() == seen


def test_a_trainer_that_does_not_end_is_killed(config: Path, tmp_path: Path) -> None:
    """Its step alone, whose number is not 0 where a line of --setup had a step."""
    run(rendered(config), tmp_path, srun=f"trap '' USR1; kill -USR1 $PPID; {until('scancel.called')}; exit 137")
    assert (tmp_path / "scancel.called").read_text() == "7.3\n" and queued_again(tmp_path)


def test_nothing_is_left_that_would_kill_the_next_start(config: Path, tmp_path: Path) -> None:
    """Not even where Slurm sends the signal twice."""
    twice = "kill -USR1 $PPID; /bin/sleep 0.2; kill -USR1 $PPID; /bin/sleep 0.2"
    srun = f"trap '' USR1; {twice}; touch run/requeue"
    done = run(rendered(config), tmp_path, srun=srun, patience="/bin/sleep 1")
    assert done.stdout.count("the trainer is asked") == 1
    time.sleep(1.5)
    assert queued_again(tmp_path) and not (tmp_path / "scancel.called").exists()


def test_starts_in_vain_are_counted_and_ended(config: Path, tmp_path: Path) -> None:
    script, steps = rendered(config), tmp_path / "run" / "checkpoints"
    asked = "trap '' USR1; kill -USR1 $PPID; /bin/sleep 0.2; touch run/requeue"
    codes = []
    for restarts, saved in enumerate([None, 1, None, None]):  # a new checkpoint in the second start
        if saved:
            asked_and_saved = f"mkdir -p {steps}/step-{saved}; {asked}"
        codes.append(run(script, tmp_path, srun=asked_and_saved if saved else asked, restarts=restarts).returncode)
    assert codes == [0, 0, 0, 0]
    last = run(script, tmp_path, srun=asked, restarts=4)
    assert last.returncode == 1 and "no new checkpoint in 2 starts" in last.stdout
    assert (tmp_path / "scontrol.called").read_text().count("requeue 7") == 4


def test_restarts_are_capped(config: Path, tmp_path: Path) -> None:
    script = rendered(config, "--restarts", "4")
    assert run(script, tmp_path, restarts=4).returncode == 0
    over = run(script, tmp_path, restarts=5)
    assert over.returncode == 1 and "more than 4 restarts" in over.stdout


def test_templates_have_no_name_that_nobody_fills(config: Path) -> None:
    assert {path.name for path in TEMPLATES.iterdir()} == {"train.sbatch", "once.sbatch", "point.sbatch"}


def test_a_model_folder_that_the_job_would_refuse_is_refused_before(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "adapter", tmp_path / "job.sbatch"
    model.mkdir()
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "base", "peft_type": "LORA"}')
    words = (config, "--time", "30", "--lead", "120", "--out", out)
    assert launched(*words, "--model.path", model) == 2
    assert "a PEFT adapter (adapter_config.json, LORA of base)" in capsys.readouterr().err and not out.exists()
    assert launched(*words) == 0 and "model.path: x is not on this machine" in capsys.readouterr().out
    assert launched(*words, "--model.path", write_model(tmp_path / "model")) == 0
