"""Processes that a scheduler has started on one host or several: SLURM's `srun`, Open MPI's `mpirun`.

Each is one task of a step. Its environment says which; here that becomes the ranks that torch expects.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

from runner.utils.errors import UserError

SLURM_STARTERS = ("slurmstepd",)
OPEN_MPI_STARTERS = ("orted", "prted", "mpirun", "mpiexec", "orterun", "prterun")
"""Programs that start the tasks of a step. Where none has started this process, the variables are left over."""
MACHINE_PROCESSES = "pid:[4026531836]"
"""The process namespace of a machine itself. In a container's, the starter may be out of sight."""
COUNT_VARIABLES = {"SLURM": "SLURM_STEP_NUM_TASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
"""The variables without which a process is no task of a scheduler."""
ELSEWHERE = "192.0.2.1"
"""An address that is no host's (RFC 5737)."""


@dataclass(frozen=True)
class ClusterTask:
    """This process as one of several that a scheduler has started together.

    Args:
        scheduler: What has started them, for people.
        step: What distinguishes them from other tasks of the scheduler.
        rank: Of this one among all.
        count: Of all.
        local_rank: Of this one on its host.
        local_count: Of those on this host.
        first_host: Name or address of the host of rank 0; empty if the scheduler does not say.
        one_per_host: Each host has one task, which may start several processes there. Only SLURM says so.
    """

    scheduler: str
    step: str
    rank: int
    count: int
    local_rank: int
    local_count: int
    first_host: str
    one_per_host: bool = False

    @property
    def others(self) -> str:
        """The other tasks, in words, and how to do without them: the variables may be left over, as in a container."""
        return (
            f"the other {self.count - 1} tasks of the {self.scheduler} step {self.step} (to run on this host alone,"
            f" unset {COUNT_VARIABLES[self.scheduler]})"
        )

    def ranks(self) -> dict[str, str]:
        """The variables from which torch and Accelerate read ranks, if each task is one process."""
        numbers = {
            "RANK": self.rank,
            "WORLD_SIZE": self.count,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_count,
        }
        return {name: str(number) for name, number in numbers.items()}

    def threads(self, cores: int) -> int:
        """Threads for this task, which may run on so many cores: all, if the scheduler has bound it to some."""
        return cores if cores < (os.cpu_count() or 1) else max(1, cores // self.local_count)


def this_task(environment: Mapping[str, str] = os.environ) -> ClusterTask | None:
    """The task that this process is; None if it is alone, as in an interactive shell of a cluster.

    Raises `UserError` if the scheduler's variables contradict each other.
    """
    for count, starters, read in (
        # Open MPI first: within a job of SLURM, its daemons are tasks of a step, and pass that on.
        (COUNT_VARIABLES["Open MPI"], OPEN_MPI_STARTERS, _open_mpi_task),
        (COUNT_VARIABLES["SLURM"], SLURM_STARTERS, _slurm_task),
    ):
        if environment.get(count, "1") == "1" or (is_started := _is_started_by(starters)) is False:
            continue
        try:
            if (task := read(environment)) is not None:
                return task
        except (KeyError, ValueError, IndexError) as error:
            if is_started is None:  # somebody has set a part of the variables
                continue
            raise UserError(
                f"The scheduler's variables in the environment cannot be read ({type(error).__name__}: {error}); start"
                f" the command with srun or mpirun itself, or unset {count} to run on this host alone."
            ) from None
    return None


def _is_started_by(programs: Collection[str]) -> bool | None:
    """Whether one of some programs has started this process, directly or not; None if that cannot be seen."""
    with suppress(psutil.Error):
        if any(each.name() in programs for each in psutil.Process().parents()):
            return True
    try:
        return False if os.readlink("/proc/self/ns/pid") == MACHINE_PROCESSES else None
    except OSError:
        return None


def _slurm_task(environment: Mapping[str, str]) -> ClusterTask | None:
    # The environment of sbatch's script and of salloc's shell describes the job; only srun's describes a step.
    # A shell of `srun --pty` is a task, but what is typed in it is run once.
    count = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if count <= 1 or "SLURM_PROCID" not in environment or "SLURM_PTY_PORT" in environment:
        return None
    index, rank = int(environment["SLURM_NODEID"]), int(environment["SLURM_PROCID"])
    counts = tasks_per_host(environment["SLURM_STEP_TASKS_PER_NODE"])
    return ClusterTask(
        "SLURM",
        f"{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}.{environment.get('SLURM_RESTART_COUNT', 0)}",
        rank=rank,
        count=count,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_count=counts[index],
        first_host=first_host(environment["SLURM_STEP_NODELIST"]),
        one_per_host=set(counts) == {1} and rank == index,
    )


def _open_mpi_task(environment: Mapping[str, str]) -> ClusterTask | None:
    count = int(environment.get("OMPI_COMM_WORLD_SIZE", "1"))
    if count <= 1:
        return None
    local_count = int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"])
    return ClusterTask(
        "Open MPI",
        environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid", ""),
        rank=int(environment["OMPI_COMM_WORLD_RANK"]),
        count=count,
        local_rank=int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]),
        local_count=local_count,
        first_host="127.0.0.1" if local_count == count else _address_of_mpirun(environment),
    )


def _address_of_mpirun(environment: Mapping[str, str]) -> str:
    """MASTER_ADDR, or the host where mpirun runs, which by default has rank 0."""
    if address := environment.get("MASTER_ADDR"):
        return address
    found = re.search(r"tcp4?://([\d.]+)", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    return found[1] if found else ""


def tasks_per_host(text: str) -> list[int]:
    """SLURM's numbers of tasks on each node: `2(x3),1` → [2, 2, 2, 1]. Raises ValueError for other texts."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise ValueError(f"{text!r} is no list of tasks per node")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first of SLURM's list of nodes: `gpu[007-9,12],login` → `gpu007`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else ""


def choose_network_interface(address: str) -> str | None:
    """The network interface of this host on which others reach it; None if that is not known.

    gloo would take the one that this host's own name resolves to: often the loopback, which no other host reaches.

    Args:
        address: Of the host of rank 0, which may be this one.
    """
    own, states = own_address(address), psutil.net_if_stats()
    interfaces = [
        (name, each.address.partition("%")[0])
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family in (socket.AF_INET, socket.AF_INET6) and name in states and states[name].isup
    ]
    outer = [(name, each) for name, each in interfaces if not ipaddress.ip_address(each).is_loopback]
    # Without a route to elsewhere, as in a network of its own, any interface will do.
    return next((name for name, each in outer if each == own), outer[0][0] if outer else None)


def own_address(address: str) -> str:
    """This host's address towards another, or towards any other if that is itself; empty if there is no way."""
    found = [_source(target) for target in (address, ELSEWHERE)]
    return next((each for each in found if each and not ipaddress.ip_address(each).is_loopback), "")


def _source(target: str) -> str:
    """The address from which this host would send to another; empty if there is no way."""
    try:
        family, _, _, _, address = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return ""
