"""What a scheduler's variables say about this process."""

from __future__ import annotations

import socket

import psutil
import pytest

from runner.utils import cluster
from runner.utils.cluster import choose_network_interface, first_host, tasks_per_host, this_task
from runner.utils.errors import UserError

STEP = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[07-08],login",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "830",
    "OMPI_MCA_orte_hnp_uri": "830.0;tcp://10.1.2.3,192.168.0.3:41235",
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler has really started this process."""
    monkeypatch.setattr(cluster, "_is_started_by", lambda programs: True)


@pytest.mark.usefixtures("started")
def test_a_task_of_slurm() -> None:
    task = this_task(STEP)
    assert task is not None
    assert (task.scheduler, task.step, task.first_host) == ("SLURM", "71.0.0", "gpu07")
    ranks = {"RANK": "3", "WORLD_SIZE": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert task.ranks() == ranks
    assert not task.one_per_host
    assert this_task({**STEP, "SLURM_RESTART_COUNT": "2"}).step == "71.0.2"  # type: ignore[union-attr]


@pytest.mark.usefixtures("started")
def test_one_task_of_slurm_on_each_host() -> None:
    alone = {"SLURM_STEP_TASKS_PER_NODE": "1(x5)", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    task = this_task({**STEP, **alone})
    assert task is not None
    assert task.one_per_host
    uneven = {
        "SLURM_STEP_TASKS_PER_NODE": "1,4",
        "SLURM_PROCID": "0",
        "SLURM_NODEID": "0",
        "SLURM_LOCALID": "0",
    }
    task = this_task({**STEP, **uneven})
    assert task is not None
    assert not task.one_per_host, "the other host has several"


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    "changes",
    [{"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_PTY_PORT": "33001"}, {"SLURM_STEP_NUM_TASKS": ""}],
    ids=["one task", "interactive", "batch script"],
)
def test_what_is_no_step_of_several_tasks(changes: dict[str, str]) -> None:
    environment = {name: value for name, value in {**STEP, **changes}.items() if value}
    assert this_task(environment) is None


def test_a_part_of_the_variables_is_left_over_where_their_origin_cannot_be_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "_is_started_by", lambda programs: None)
    assert this_task({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}) is None
    assert this_task(MPI) is not None


def test_variables_that_are_left_over_count_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "MACHINE_PROCESSES", cluster.os.readlink("/proc/self/ns/pid"))
    assert this_task(STEP) is None
    assert this_task(MPI) is None
    monkeypatch.setattr(cluster, "SLURM_STARTERS", (psutil.Process().parent().name(),))
    assert this_task(STEP) is not None


@pytest.mark.usefixtures("started")
def test_a_task_of_open_mpi() -> None:
    task = this_task(MPI)
    assert task is not None
    assert (task.rank, task.count, task.local_count, task.first_host) == (2, 4, 2, "10.1.2.3")
    assert not task.one_per_host, "it is not known where rank 0 of a host is"
    assert this_task({**MPI, "MASTER_ADDR": "node1"}).first_host == "node1"  # type: ignore[union-attr]
    local = this_task({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
    assert local is not None
    assert local.first_host == "127.0.0.1"


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("name", ["SLURM_NODEID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"])
def test_variables_that_make_no_sense_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="scheduler's variables in the environment cannot be read"):
        this_task({**STEP, name: "x"})


@pytest.mark.usefixtures("started")
def test_a_node_without_tasks_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        this_task({**STEP, "SLURM_NODEID": "3"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[007-9,12],login", "gpu007"),
        ("rack[1-2]node[3,5]", "rack1node3"),
        ("n[4,6-7].site,x", "n4.site"),
    ],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_per_host() -> None:
    assert tasks_per_host("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(ValueError, match="no list of tasks"):
        tasks_per_host("2(x")


def test_threads_are_shared_unless_the_scheduler_has_bound_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_is_started_by", lambda programs: True)
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 8)
    task = this_task(STEP)
    assert task is not None
    assert task.threads(8) == 4
    assert task.threads(3) == 3


def test_the_interface_is_one_that_others_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on rank 0's host, whose name often resolves to the loopback."""
    for target in ("127.0.0.1", "127.0.1.1", "no-such-host.invalid"):
        name = choose_network_interface(target)
        if name is not None:
            addresses = [each.address for each in psutil.net_if_addrs()[name]]
            assert not any(each.startswith("127.") for each in addresses), target
    monkeypatch.setattr(cluster.psutil, "net_if_addrs", dict)
    assert choose_network_interface("127.0.0.1") is None


def test_the_interface_of_an_own_address() -> None:
    states = psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            is_up = name in states and states[name].isup
            if each.family == socket.AF_INET and is_up and not each.address.startswith("127."):
                assert choose_network_interface(each.address) == name


def test_open_mpi_in_a_job_of_slurm_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its daemons are tasks of a step, whose variables the processes get."""
    monkeypatch.setattr(cluster, "_is_started_by", lambda programs: True)
    task = this_task({**STEP, **MPI})
    assert task is not None
    assert task.scheduler == "Open MPI"
