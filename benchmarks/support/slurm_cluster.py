"""A real SLURM cluster on hosts inside this machine: a controller and some nodes, all its files in one folder.

Partition `low` is the default one. A job in `high` preempts those in `low`, which are queued again.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.support.hosts import Host, network_of_hosts
from benchmarks.support.requirements import MissingRequirementError

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
RUN_LIMIT = 2
"""Minutes that `srun` may take: one that waits for a node waits for ever."""
COMMAND_TIMEOUT = 200
"""Seconds that a command may take, which `srun` ends before."""
START_TIMEOUT = 60
"""Seconds until all nodes are ready on a busy machine."""
CPUS = 4
"""Of each node, for SLURM. The hosts share this machine's."""
GPUS = ("/dev/null", "/dev/zero")
"""Devices that SLURM takes for the GPUs of each node."""

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=controller({controller})
SlurmUser=root
AuthType=auth/munge
# A job that is queued again starts no earlier than its old credential has expired.
AuthInfo=socket={socket},cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# What runs without cgroups of its own, without Open MPI and without accounting.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=20
SlurmdTimeout=20
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""


@dataclass
class SlurmCluster:
    """A cluster that is up.

    Args:
        controller: The host of slurmctld, on which the commands below run.
        nodes: The hosts that compute.
        others: Further hosts on its network.
        folder: Its configuration, states and logs.
    """

    controller: Host
    nodes: list[Host]
    others: list[Host]
    folder: Path

    def run(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the controller.

        Args:
            command: Its words.
            env: Its environment, but for SLURM's variable; None: this process's.
            cwd: Its working folder; None: that of the cluster's files.
        """
        environment = {**(os.environ if env is None else env), "SLURM_CONF": str(self.folder / "slurm.conf")}
        words = ["env", f"--chdir={cwd or self.folder}", *command]
        return self.controller.run(words, environment, timeout=COMMAND_TIMEOUT)

    def _output(self, *command: str) -> str:
        done = self.run(command)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}{done.stdout}")
        return done.stdout

    def sbatch(self, script: str, *options: str) -> str:
        """Submit a script; the job's id."""
        path = self.folder / f"job-{secrets.token_hex(4)}.sh"
        path.write_text(script)
        return self._output("sbatch", "--parsable", *options, str(path)).strip().partition(";")[0]

    def srun(self, *words: str) -> str:
        """What `srun` prints. It is ended after `RUN_LIMIT` minutes."""
        return self._output("srun", f"--time={RUN_LIMIT}", *words)

    def scontrol(self, *words: str) -> str:
        """What `scontrol` prints."""
        return self._output("scontrol", *words)

    def squeue(self, *words: str) -> str:
        """What `squeue` prints, without headings."""
        return self._output("squeue", "--noheader", *words)

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job, as `JobState`, `ExitCode` and `Restarts`."""
        text = self.scontrol("show", "job", "--oneliner", job)
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait_for(self, job: str, *states: str, restarts: int = 0, timeout: float = 120) -> dict[str, str]:
        """Wait until a job is in one of some states, and was queued again so many times; what SLURM knows of it.

        Raises RuntimeError, at once where the job ends otherwise.
        """
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL"}
        deadline = time.monotonic() + timeout
        while True:
            found = self.job(job)
            if found["JobState"] in states and int(found["Restarts"]) >= restarts:
                return found
            if found["JobState"] in ended or time.monotonic() > deadline:
                raise RuntimeError(
                    f"job {job} is not {states} after {restarts} restarts: {found}\n{self.logs()}"
                )
            time.sleep(0.2)

    def logs(self) -> str:
        """The ends of SLURM's logs."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))

    def start_node(self, node: Host) -> None:
        """Start slurmd on a node, as its boot does."""
        node.start(
            ["slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", node.name],
            stdout=subprocess.DEVNULL,
            stderr=self._log(f"slurmd-{node.name}"),
        )

    def reboot(self, node: Host) -> None:
        """Start a killed node again."""
        node.reboot()
        self.start_node(node)

    def wait_until_ready(self, nodes: Sequence[Host]) -> None:
        """Wait until some nodes take jobs."""
        deadline = time.monotonic() + START_TIMEOUT
        names = ",".join(node.name for node in nodes)
        while True:
            done = self.run(["sinfo", "--noheader", "--Node", f"--nodes={names}", "--format=%N %t"])
            states = dict(line.split() for line in done.stdout.splitlines())
            if done.returncode == 0 and all(states.get(node.name) == "idle" for node in nodes):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{done.stdout}{done.stderr}{self.logs()}")
            time.sleep(0.1)

    def _log(self, name: str) -> IO[str]:
        return (self.folder / f"{name}.stderr.log").open("a")

    def _start(self, socket: Path) -> None:
        """Start munged, slurmctld and the nodes."""
        options = {
            "key-file": self.folder / "munge.key",
            "pid-file": self.folder / "munged.pid",
            "seed-file": self.folder / "munged.seed",
            "log-file": self.folder / "munged.log",
            "socket": socket,
        }
        words = ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in options.items())]
        self.controller.start(words, stdout=subprocess.DEVNULL, stderr=self._log("munged"))
        deadline = time.monotonic() + START_TIMEOUT
        while not socket.exists():
            if time.monotonic() > deadline:
                raise RuntimeError(self.logs())
            time.sleep(0.02)
        self.controller.start(
            ["slurmctld", "-D", "-f", str(self.folder / "slurm.conf")],
            stdout=subprocess.DEVNULL,
            stderr=self._log("slurmctld"),
        )
        for node in self.nodes:
            self.start_node(node)
        self.wait_until_ready(self.nodes)


@contextmanager
def slurm_cluster(nodes: int, folder: Path, others: Sequence[str] = ()) -> Iterator[SlurmCluster]:
    """A cluster. Raises `MissingRequirementError` where it cannot be made.

    Args:
        nodes: Number of nodes, which are named node1, node2, …
        folder: For its files.
        others: Names of further hosts on its network.
    """
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise MissingRequirementError(f"SLURM is not installed: there is no {' and no '.join(missing)}")
    names = ["controller", *(f"node{number + 1}" for number in range(nodes)), *others]
    # The path of a socket must be short.
    with (
        tempfile.TemporaryDirectory(prefix="munge-", dir="/tmp") as sockets,
        network_of_hosts(len(names), folder / "hosts", names) as (controller, *rest),
    ):
        computing, further = rest[:nodes], rest[nodes:]
        own = folder / "slurm"
        (own / "state").mkdir(parents=True)
        socket = Path(sockets) / "socket"
        lines = [
            f"NodeName={node.name} NodeAddr={node.address} CPUs={CPUS} Gres=gpu:{len(GPUS)} State=UNKNOWN"
            for node in computing
        ]
        text = CONFIGURATION.format(
            controller=controller.address, socket=socket, folder=own, nodes="\n".join(lines)
        )
        (own / "slurm.conf").write_text(text)
        (own / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in GPUS))
        key = own / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        cluster = SlurmCluster(controller, computing, further, own)
        cluster._start(socket)
        yield cluster
