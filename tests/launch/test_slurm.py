"""The jobs of rmfast launch slurm on a real Slurm: they start, stop, come back, outlive nodes, and give up in vain."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from rmfast.cli import main
from rmfast.train import main as train
from tests.launch.mini_slurm import MiniSlurm, missing, starts
from tests.runs import ROOT, Case, arguments, final_weights, launch, read_lines
from tests.tasks.ensembles import command as ensemble_command
from tests.tasks.ensembles import no_plots, write_inputs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=f"no Slurm here: {missing()}")]

STAND_IN = """\
#!/bin/bash
# In place of torchrun: makes a checkpoint every 0.2 s until $TOTAL, obeys the file stop and TERM (of which torchrun
# fails, its trainer or not), and fails where $RUN/fail is.
[ "$SLURM_NODEID" = 0 ] || { while sleep 0.2; do [ ! -e "$RUN/over.$SLURM_RESTART_COUNT" ] || exit 0; done; }
trap 'term=1' TERM
step=$(ls "$RUN/checkpoints" 2> /dev/null | sed s/step-// | sort -n | tail -n 1)
for ((step = ${step:-0}; step < TOTAL; step++)); do
    sleep 0.2
    [ ! -e "$RUN/fail" ] || { rm "$RUN/fail"; exit 1; }
    [ -z "$SAVES" ] || mkdir -p "$RUN/checkpoints/step-$((step + 1))"
    [ ! -e "$RUN/hang" ] || { rm "$RUN/hang"; sleep 1000; }
    [ -z "${term:-}" ] || { printf 'stopped by SIGTERM: x\nsignals: SIGTERM\n' > "$RUN/requeue"; exit 1; }
    [ ! -e "$RUN/stop" ] || { rm "$RUN/stop"; touch "$RUN/requeue"; break; }
done
touch "$RUN/over.$SLURM_RESTART_COUNT"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[MiniSlurm]:
    with MiniSlurm(nodes=2, node_timeout=8) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("slurm"))


def options(*more: str, nodes: int = 1) -> list[str]:
    """Of rmfast launch slurm, for jobs that find this very Python and package."""
    here = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT} OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1"
    own = ["--nodes", str(nodes), "--gpus-per-node", "1", "--cpus-per-task", "1", "--time", "30", "--lead", "120"]
    return [*own, "--setup", here, *more]


def stand_in(folder: Path, name: str, *more: str, total: int, saves: bool = True, nodes: int = 1) -> Path:
    """A script whose trainer only pretends, which costs no import of torch; `more` words for the command."""
    run = folder / name
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "torchrun").write_text(STAND_IN)
    (folder / "bin" / "torchrun").chmod(0o755)
    values = {"TOTAL": total, "SAVES": "1" if saves else "", "RUN": run, "PATH": f"{folder / 'bin'}:$PATH"}
    setup = "export SLURM_RESTART_COUNT=${SLURM_RESTART_COUNT:-0} " + " ".join(f'{k}="{v}"' for k, v in values.items())
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"model": {"path": "x"}, "data": {"train": "x"}}))
    script = folder / f"{name}.sbatch"
    words = ["--run.dir", str(run), *options("--setup", setup, "--idle-restarts", "2", *more, nodes=nodes)]
    assert main(["launch", "slurm", str(folder / f"{name}.yaml"), *words, "--out", str(script)]) == 0
    return script


POINT = """\
#!{python}
import json, sys
words = sys.argv[1:]
mode, out = words[words.index("--mode") + 1], words[words.index("--out") + 1]
nodes = next(int(w.split("=")[1]) for w in words if w.startswith("--nnodes="))
if "--node_rank=0" in words:
    values = json.loads({values!r}) | {{"mode": mode, "ranks": nodes, "nodes": nodes, "groups": 4}}
    __import__("os").makedirs(out, exist_ok=True)
    open(f"{{out}}/{{mode}}-{{nodes:05d}}.json", "w").write(json.dumps(values))
"""


def reached(run: Path) -> int:
    return max((int(p.name[5:]) for p in (run / "checkpoints").glob("step-*")), default=0)


def ask(cluster: MiniSlurm, job: int | str) -> None:
    """What Slurm does some time before the limit."""
    cluster.run("scancel", "--batch", "--signal=USR1", str(job))


def test_training_on_two_nodes_goes_on_bit_for_bit(cluster: MiniSlurm, folder: Path) -> None:
    """USR1, as before a time limit; a checkpoint; the queue; the same job; the weights of a run without a break."""
    keys: dict[str, object] = {
        "model": {"path": str(folder / "model"), "dropout": 0.1},
        "data": {"train": str(folder / "rows.jsonl"), "cache": str(folder / "cache"), "max_length": 40},
        "run": {"max_steps": 300, "tensorboard": False, "log_every": 50},
        "optim": {"lr": 1e-3},
    }
    config, run = folder / "two.yaml", folder / "two"
    config.write_text(yaml.safe_dump(keys))
    script = folder / "two.sbatch"
    words = [str(config), "--data.tokens_per_pack", "48", "--run.dir", str(run)]
    assert main(["launch", "slurm", *words, *options(nodes=2), "--out", str(script)]) == 0
    job = cluster.sbatch(script, folder=folder)
    metrics, log = run / "metrics.jsonl", folder / f"two-{job}.log"
    cluster.until(lambda: metrics.exists() and len(read_lines(metrics)) > 20, 180, "steps")
    ask(cluster, job)
    shown = cluster.wait(job, "COMPLETED", 240)
    said = log.read_text()
    assert shown["Restarts"] == "1" and shown["NumNodes"] == "2" and starts(log) == 2, said
    saved = int(said.split("queued again, at ")[1].split("step-")[1].split()[0])
    assert 20 < saved < 300 and f"resumed from step {saved}" in said and "2 x cpu (ddp)" in said, said
    whole = [*words[:-1], str(folder / "whole")]
    assert launch(folder / "launch", [Case("whole", whole)], ranks=2) == {"whole": [0, 0]}
    ours, theirs = final_weights(run), final_weights(folder / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [[line["loss"] for line in read_lines(path / "metrics.jsonl")] for path in (run, folder / "whole")]
    assert losses[0] == losses[1] and len(losses[0]) == 300
    assert not list(run.glob(".slurm-*")) and not (run / "requeue").exists()


def test_members_train_as_an_array_and_then_vote(
    cluster: MiniSlurm, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ensemble_command(folder, "array", ensemble__members=2, run__max_steps=4)
    (folder / "ensemble.yaml").write_text("task: ensemble\n")
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    launched = ["launch", "slurm", "ensemble.yaml", *words, *options("--array", "2", "--submit")]
    assert main(launched) == 0
    array, vote = (int(word) for word in capsys.readouterr().out.split("submitted: ")[1].split())
    assert cluster.show(vote)["JobState"] == "PENDING"
    cluster.wait(vote, "COMPLETED", 300)
    for member in range(2):
        said = (folder / f"array-{array}_{member}.log").read_text()
        assert f"member {member} of 2:" in said and f"member {1 - member} of 2:" not in said, said
    with pytest.MonkeyPatch.context() as patch:
        no_plots(patch)
        assert train([*words, *arguments(run__dir=folder / "in one")]) == 0
    for name in ("data.jsonl", "summary.json"):
        assert (folder / "array" / name).read_bytes() == (folder / "in one" / name).read_bytes()
    assert "part: null" in (folder / "array" / "config.yaml").read_text()


def test_a_scaling_sweep_is_collected_at_its_end(
    cluster: MiniSlurm, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs of one and two nodes with a torchrun that pretends (tests/benchmarks runs the real one), and the table."""
    values = {
        "step_seconds": 1.0,
        "tokens_per_second": 100.0,
        "mfu": None,
        "memory_gib": 1.0,
        "model": "m",
        "weights": 1,
    }
    values |= {"dtype": "float32", "lengths": "hh", "device": "cpu", "tokens_per_pack": 1, "torch": "2", "commit": None}
    here = folder / "sweep bin"
    here.mkdir()
    text = POINT.format(python=sys.executable, values=json.dumps(values | {"parallel": {"data": "ddp"}}))
    (here / "torchrun").write_text(text)
    (here / "torchrun").chmod(0o755)
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"model": {"path": "x"}, "data": {"train": "x"}}))
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    words = ["launch", "slurm", "sweep.yaml", "--run.dir", "sweep", *options("--setup", f'export PATH="{here}:$PATH"')]
    assert main([*words, "--scaling", "1", "2", "--submit"]) == 0
    *points, last = (int(word) for word in capsys.readouterr().out.split("submitted: ")[1].split())
    assert len(points) == 4 and cluster.show(last)["JobState"] == "PENDING"
    cluster.wait(last, "COMPLETED", 120)
    rows = [line for line in (folder / "sweep" / "scaling" / "scaling.md").read_text().splitlines() if "| 100" in line]
    assert [row.split(" | ")[:2] for row in rows] == [[f"| {m}", n] for m in ("weak", "strong") for n in "12"]


def test_preempted_by_a_job_that_goes_before(cluster: MiniSlurm, folder: Path) -> None:
    """One job of which Slurm knows that the script wants USR1, and one without, whose trainer gets TERM."""
    jobs = {}
    for name, node in (("preempted", "n1"), ("by term", "n2")):
        script = stand_in(folder, name, total=60)
        if name == "by term":
            text = script.read_text()
            assert text.count("#SBATCH --signal=B:USR1@120\n") == 1
            script.write_text(text.replace("#SBATCH --signal=B:USR1@120\n", ""))
        jobs[name] = cluster.sbatch(script, f"--nodelist={node}", "--exclusive", folder=folder)
    cluster.until(lambda: all(reached(folder / name) > 3 for name in jobs), 60, "checkpoints")
    urgent = folder / "urgent.sbatch"
    count = "for run in preempted 'by term'; do ls \"$run/checkpoints\" | wc -l; done >> seen\n"
    urgent.write_text(f"#!/bin/bash\n{count}sleep 2\n{count}")
    high = cluster.sbatch(urgent, "--partition=high", "--nodes=2", "--exclusive", folder=folder)
    cluster.wait(high, "COMPLETED", 90)
    seen = list(map(int, (folder / "seen").read_text().split()))
    assert seen[:2] == seen[2:] and all(3 < steps < 60 for steps in seen), "none may have run beside the urgent job"
    for name, job in jobs.items():
        shown = cluster.wait(job, "COMPLETED", 120)
        log = (folder / f"{name}-{job}.log").read_text()
        assert shown["Restarts"] == "1" and starts(folder / f"{name}-{job}.log") == 2, log
        assert reached(folder / name) == 60 and "queued again, at" in log, log
        assert ("USR1: the trainer is asked" in log) == (name == "preempted"), log
        assert ("the trainer ended with code 1\n" in log) == (name == "by term"), log


def test_a_task_of_an_array_comes_back_alone_and_the_vote_comes_after_one_that_failed(
    cluster: MiniSlurm, folder: Path
) -> None:
    """The task whose own number is the array's is asked to stop, one fails, one trains on."""
    words = ["--task", "ensemble", "--ensemble.members", "3", "--array"]
    script, members = stand_in(folder, "tasks", *words, total=40), folder / "tasks" / "members"
    (members / "01").mkdir(parents=True)
    (members / "01" / "fail").touch()
    voter = folder / "bin" / "python"
    voter.write_text(f"#!/bin/bash\ncat /dev/null {members}/0[02]/over.* > {folder}/voted && exit 2\n")
    voter.chmod(0o755)
    array = cluster.sbatch(script, folder=folder)
    vote = cluster.sbatch(folder / "tasks_vote.sbatch", f"--dependency=afterany:{array}", folder=folder)
    try:
        cluster.until(lambda: min(reached(members / task) for task in ("00", "02")) > 3, 60, "checkpoints")
        tasks = dict(line.split() for line in cluster.run("squeue", "-r", "--noheader", "--format=%A %K").splitlines())
        own = f"{array}_{tasks[str(array)]}"
        assert own.endswith(("_0", "_2")), tasks
        ask(cluster, own)
        cluster.wait(vote, "FAILED", 120)
    finally:
        voter.unlink()
    restarts = {task: cluster.show(f"{array}_{task}")["Restarts"] for task in range(3)}
    assert restarts == {task: "1" if own == f"{array}_{task}" else "0" for task in range(3)}
    assert (folder / "voted").exists() and reached(members / "00") == reached(members / "02") == 40
    logs = [(folder / f"tasks-{array}_{task}.log") for task in range(3)]
    assert [starts(log) for log in logs] == [int(restarts[task]) + 1 for task in range(3)]
    assert "ended with code 1" in logs[1].read_text() and cluster.show(f"{array}_1")["JobState"] == "FAILED"


def test_a_dead_node_is_named_and_left_out_and_the_job_goes_on_elsewhere(cluster: MiniSlurm, folder: Path) -> None:
    """Slurm queues the job while the node is down; when the script next does, the node is well again, and shunned."""
    run = folder / "dead"
    job = cluster.sbatch(stand_in(folder, "dead", total=80), folder=folder)
    log = folder / f"dead-{job}.log"
    cluster.until(lambda: reached(run) > 3, 60, "checkpoints")
    node = cluster.show(job)["NodeList"]
    cluster.cut_power(node)
    saved = reached(run)
    try:
        cluster.until(lambda: starts(log) == 2, 120, "start 2")
        other = cluster.show(job)["NodeList"]
    finally:
        cluster.revive(node)
    ask(cluster, job)
    shown = cluster.wait(job, "COMPLETED", 120)
    said = log.read_text()
    assert shown["Restarts"] == "2" and other != node and reached(run) == 80, said
    # "mixed*": Slurm's star is for a node that does not answer, before and after it is called down.
    assert re.search(rf"start 2: of the nodes before, {node} is (down|\w+\*)", said), said
    assert saved < 80
    assert shown["ExcNodeList"] == node and shown["NodeList"] == other and f"leaves out {node}" in said, said


def test_peers_that_fail_first_wait_for_slurm_to_see_the_dead_node(cluster: MiniSlurm, folder: Path) -> None:
    """The batch script's node lives, its srun fails: without a dead node that would be the job's end. Slurm itself or
    the script's own look at the nodes brings it back, whichever is first (test_scripts.py has the second)."""
    run = folder / "peer"
    job = cluster.sbatch(stand_in(folder, "peer", total=80, nodes=2), folder=folder)
    cluster.until(lambda: reached(run) > 3, 60, "checkpoints")
    cluster.cut_power("n2")
    (run / "fail").touch()
    log = folder / f"peer-{job}.log"
    try:
        cluster.until(lambda: cluster.show(job).get("Restarts") == "1", 120, "restart")
    finally:
        cluster.revive("n2")
    cluster.wait(job, "COMPLETED", 120)
    said = log.read_text()
    assert ("n2 is " in said or "Node failure on n2" in said) and reached(run) == 80, said


def test_a_failure_without_a_dead_node_is_not_repeated(cluster: MiniSlurm, folder: Path) -> None:
    """Its names have blanks and quotes, which sbatch must take."""
    name = "it's a run"
    script = stand_in(folder, name, total=80)
    (folder / name).mkdir()
    (folder / name / "fail").touch()
    job = cluster.sbatch(script, folder=folder)
    assert cluster.wait(job, "FAILED", 60)["Restarts"] == "0"
    assert "the trainer ended with code 1" in (folder / f"{name}-{job}.log").read_text()


def test_a_loop_that_makes_no_progress_is_ended(cluster: MiniSlurm, folder: Path) -> None:
    """In its first start it does not even answer, and its step is killed, which is not the job's first."""
    script = stand_in(folder, "idle", "--setup", "srun true", total=10**6, saves=False)
    assert script.read_text().count("(asked + 60 - SECONDS)") == 1
    script.write_text(script.read_text().replace("(asked + 60 - SECONDS)", "(asked + 2 - SECONDS)"))
    (folder / "idle").mkdir()
    (folder / "idle" / "hang").touch()
    job = cluster.sbatch(script, folder=folder)
    log = folder / f"idle-{job}.log"
    for start in (1, 2):
        cluster.until(lambda start=start: starts(log) == start, 60, f"start {start}")  # type: ignore[misc]
        ask(cluster, job)
    assert cluster.wait(job, "FAILED", 60)["Restarts"] == "2"
    assert "no new checkpoint in 2 starts: not started again" in log.read_text()
