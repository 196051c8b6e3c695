"""A real Slurm on this machine for tests: slurmctld, a slurmd for each virtual node, munge; nothing under /etc changes.

    with MiniSlurm(nodes=2) as cluster:
        job = cluster.sbatch(Path("run.sbatch"), "--time=10")
        cluster.wait(job, "COMPLETED", timeout=60)

Needs root and Debian's slurmctld, slurmd, slurm-client and munge. Each node has a hostname of its own, 64 cores, 8 GPUs
that do not exist, and two partitions: `low` (the default), whose jobs jobs of `high` put back into the queue.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "unshare")
CONF = """\
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool-%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd-%n.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=2
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
SlurmdTimeout={timeout}
SlurmctldTimeout=30
MinJobAge=300
FirstJobId={job}
ReturnToService=2
GresTypes=gpu
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)} (apt-get install slurmctld slurmd slurm-client munge)"
    if os.geteuid() != 0:
        return "needs root"
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        return "may not make namespaces (unshare --uts --mount)"
    return None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


class MiniSlurm:
    """A context manager that starts the cluster and ends it with all its jobs.

    Args:
        nodes: how many, called n1, n2, ... node_timeout: seconds after which a silent node is down.
        grace: seconds between the signal and the end of a job that is preempted.
    """

    def __init__(self, nodes: int = 2, *, node_timeout: int = 10, grace: int = 60) -> None:
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self.node_timeout, self.grace = node_timeout, grace
        self.base = Path()
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "MiniSlurm":
        self.base = Path(tempfile.mkdtemp(prefix="mini-slurm-"))
        try:
            self._write()
            self._start_munge()
            self._start("slurmctld", ["slurmctld", "-D", "-f", str(self.base / "slurm.conf")])
            for node in self.nodes:
                self.start_node(node)
            self.until(lambda: all(self._state(node) == "idle" for node in self.nodes), 60, "idle nodes")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "slurmctld" in self.daemons:
            jobs = self.run("squeue", "--noheader", "--format=%A", check=False).split()
            if jobs:
                self.run("scancel", "--full", "--signal=KILL", *jobs, check=False)
                self.run("scancel", *jobs, check=False)
                time.sleep(1)
        for node in self.nodes:
            self._kill_inside(node)
        for daemon in self.daemons.values():
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.base, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need to find this cluster."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        return inherited | {"SLURM_CONF": str(self.base / "slurm.conf"), "PATH": _path()}

    def run(self, *command: str, check: bool = True) -> str:
        """A command of Slurm; what it printed."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def sbatch(self, script: Path, *options: str, folder: Path) -> int:
        """Submit a script to run in a folder; the job's id."""
        return int(self.run("sbatch", "--parsable", f"--chdir={folder}", *options, str(script)).split(";")[0])

    def show(self, job: int | str) -> dict[str, str]:
        """What Slurm knows about a job, or a task of an array: "7_2"."""
        words = self.run("scontrol", "--oneliner", "show", "job", str(job)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: int | str, state: str, timeout: float) -> dict[str, str]:
        """Wait until a job is in a state."""
        ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"} - {state}

        def there() -> bool:
            now = self.show(job)["JobState"]
            assert now not in ends, f"job {job} is {now}, not {state}: {self.show(job)}"
            return now == state

        self.until(there, timeout, f"{state} of job {job}")
        return self.show(job)

    def until(self, there: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait for something."""
        end = time.monotonic() + timeout
        while not there():
            assert time.monotonic() < end, f"no {what} within {timeout} s: {self._report()}"
            time.sleep(0.25)

    def _report(self) -> str:
        """Queue, nodes, and the ends of all logs."""
        shown = [self.run(*c, check=False) for c in (["squeue", "--all"], ["sinfo", "--Node", "--long"])]
        logs = {path.name: path.read_text(errors="replace")[-1500:] for path in self.base.glob("*.log")}
        return "\n".join([*shown, *(f"--- {name}\n{text}" for name, text in logs.items())])

    def start_node(self, node: str) -> None:
        """A slurmd with a hostname of its own, which it and its jobs can resolve."""
        inside = 'hostname "$1"; mount --bind "$2" /etc/hosts; exec slurmd -D -f "$3" -N "$1"'
        words = (node, str(self.base / "hosts"), str(self.base / "slurm.conf"))
        self._start(node, ["unshare", "--uts", "--mount", "bash", "-c", inside, "bash", *words])

    def cut_power(self, node: str) -> None:
        """SIGKILL to everything that runs on a node: no daemon, no job, no word to anybody."""
        self._kill_inside(node)
        self.daemons.pop(node).wait()

    def revive(self, node: str) -> None:
        """Start a node whose power was cut, and wait until it takes jobs."""
        self.start_node(node)
        # Its dead job may be "completing" for another minute, which keeps no other from the rest of the node.
        self.until(lambda: re.search(r"down|unknown|\*", self._state(node)) is None, 60, f"answer of {node}")

    def _state(self, node: str) -> str:
        return self.run(
            "sinfo", "--noheader", "--Node", "--partition=low", f"--nodes={node}", "--format=%T", check=False
        ).strip()

    def _kill_inside(self, node: str) -> None:
        daemon = self.daemons.get(node)
        if daemon is None or daemon.poll() is not None:
            return
        space = os.readlink(f"/proc/{daemon.pid}/ns/uts")
        if space == os.readlink("/proc/self/ns/uts"):  # not unshared yet
            daemon.kill()
            return
        for _ in range(3):  # what was forked meanwhile too
            for entry in Path("/proc").iterdir():
                try:
                    if entry.name.isdigit() and os.readlink(entry / "ns" / "uts") == space:
                        os.kill(int(entry.name), signal.SIGKILL)
                except OSError:  # it ended by itself
                    continue

    def _write(self) -> None:
        self.base.chmod(0o755)  # munge refuses a socket in a folder that others cannot enter
        for name in ("munge", "state"):
            (self.base / name).mkdir(mode=0o755)
        for i in range(8):
            (self.base / f"gpu{i}").touch()
        first, *ports = _ports(len(self.nodes) + 1)
        host = socket.gethostname()
        lines = [
            f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port} CPUs=64 RealMemory=500000 Gres=gpu:8"
            for node, port in zip(self.nodes, ports, strict=True)
        ]
        # Jobs take ports by their number: another cluster on this machine must have others.
        values = {
            "base": self.base,
            "host": host,
            "port": first,
            "job": random.randrange(1, 50_000),
            "nodes": "\n".join(lines),
        }
        conf = CONF.format(**values, timeout=self.node_timeout, grace=self.grace)
        (self.base / "slurm.conf").write_text(conf)
        (self.base / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={self.base}/gpu[0-7]\n")
        hosts = Path("/etc/hosts").read_text() + "".join(f"\n127.0.0.1 {name}" for name in (*self.nodes, host))
        (self.base / "hosts").write_text(hosts + "\n")

    def _start_munge(self) -> None:
        folder = self.base / "munge"
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o400)
        names = {"key": "key", "socket": "socket", "pid": "pid", "log": "log", "seed": "seed"}
        flags = [f"--{option}-file={folder / name}" for option, name in names.items() if option != "socket"]
        self._start("munged", ["munged", "--force", "--foreground", f"--socket={folder / 'socket'}", *flags])
        self.until(lambda: (folder / "socket").exists(), 20, "munge socket")

    def _start(self, name: str, command: list[str]) -> None:
        with (self.base / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )


def _ports(count: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def starts(log: Path) -> int:
    """How often a job of rmfast launch began, by its log."""
    return len(re.findall(r" start \d+: on ", log.read_text(encoding="utf-8"))) if log.exists() else 0
