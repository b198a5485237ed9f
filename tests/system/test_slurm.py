"""Jobs that `runner slurm` writes, on a real SLURM cluster inside this machine: queued again, they lose nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import killed_runs
import pytest
from commands import ROOT, runner, runs_of, user_environment
from killed_runs import Workspace, points
from slurm_cluster import SlurmCluster, slurm_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EPOCHS = ("--train.epochs", "40", "--schedule.kind", "constant", "--tracking.gallery", "0")
JOB_TIMEOUT = 240
"""Seconds that a job may take to its next state on a busy machine."""
Submit = Callable[..., str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if not (ROOT / ".venv" / ".ready").exists():
        pytest.skip("the jobs run launch.sh, whose environment is not ready (./launch.sh makes it)")
    with slurm_cluster(2, tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def submit(cluster: SlurmCluster) -> Submit:
    """`submit(workspace, "--nodes", "2")`: train there in a job; its id."""

    def train(workspace: Workspace, *options: str) -> str:
        words = runner("slurm", "train", *workspace.words, *EPOCHS, *options)
        done = cluster.run(words, user_environment(), workspace.folder)
        assert done.returncode == 0, done.stderr
        found = re.match(r"job (\d+) is queued", done.stdout)
        assert found, done.stdout
        return found[1]

    return train


def output(workspace: Workspace) -> str:
    return "".join(path.read_text() for path in (workspace.folder / "mlruns" / "slurm").glob("*.out"))


def finish(cluster: SlurmCluster, workspace: Workspace, job: str, restarts: int = 0) -> None:
    """Wait until a job has finished after so many restarts."""
    try:
        found = cluster.wait_for(job, "COMPLETED", restarts=restarts, timeout=JOB_TIMEOUT)
    except pytest.fail.Exception as failure:
        pytest.fail(f"{failure}\n{output(workspace)}")
    assert int(found["Restarts"]) == restarts, output(workspace)


def wait_for_epoch(cluster: SlurmCluster, workspace: Workspace, job: str, epoch: int = 3) -> None:
    """Wait until a job has printed the row of an epoch."""
    deadline = time.monotonic() + JOB_TIMEOUT
    while not re.search(rf"^ *{epoch}  ", output(workspace), re.MULTILINE):
        state = cluster.job(job)["JobState"]
        assert state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), (state, output(workspace))
        assert time.monotonic() < deadline, output(workspace)
        time.sleep(0.02)


def assert_as_undisturbed(workspace: Workspace, undisturbed: Workspace) -> None:
    """The only run of a workspace is finished, and has the metrics of another one in every bit."""
    (found,) = runs_of(workspace.client)
    (expected,) = runs_of(undisturbed.client)
    assert found.info.status == "FINISHED"
    assert points(workspace.client, found.info.run_id) == points(undisturbed.client, expected.info.run_id)


@pytest.fixture(scope="module")
def undisturbed(
    cluster: SlurmCluster,
    submit: Submit,
    tmp_path_factory: pytest.TempPathFactory,
    images: Path,
    mlflow_template: Path,
) -> Workspace:
    """A run of one job on one node, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("undisturbed") / "my run"
    workspace = killed_runs.new_workspace(folder, images, mlflow_template)
    finish(cluster, workspace, submit(workspace))
    return workspace


def test_srun_starts_a_task_on_each_node(cluster: SlurmCluster) -> None:
    script = "echo $SLURM_PROCID of $SLURM_NTASKS on $(hostname)"
    printed = cluster.srun("--nodes=2", "sh", "-c", script)
    assert sorted(printed.splitlines()) == ["0 of 2 on node1", "1 of 2 on node2"]


def test_a_job_trains_to_the_end(undisturbed: Workspace) -> None:
    (run,) = runs_of(undisturbed.client)
    assert run.info.status == "FINISHED"
    (script,) = (undisturbed.folder / "mlruns" / "slurm").glob("*.sh")
    assert script.with_suffix(".out").exists()


def test_a_job_that_is_queued_again_goes_on(
    cluster: SlurmCluster, submit: Submit, workspace: Workspace, undisturbed: Workspace
) -> None:
    job = submit(workspace)
    wait_for_epoch(cluster, workspace, job)
    cluster.scontrol("requeue", job)
    finish(cluster, workspace, job, restarts=1)
    assert_as_undisturbed(workspace, undisturbed)


def test_a_preempted_job_goes_on(
    cluster: SlurmCluster, submit: Submit, workspace: Workspace, undisturbed: Workspace
) -> None:
    job = submit(workspace, "--sbatch", "--nodelist=node1")
    wait_for_epoch(cluster, workspace, job)
    urgent = cluster.sbatch("#!/bin/sh\nsleep 1\n", "--partition=high", "--nodelist=node1", "--exclusive")
    cluster.wait_for(urgent, "COMPLETED", timeout=JOB_TIMEOUT)
    finish(cluster, workspace, job, restarts=1)
    assert_as_undisturbed(workspace, undisturbed)


@pytest.mark.parametrize("name", ["USR1", "USR2"])
def test_a_job_that_gets_the_signal_is_queued_again_and_goes_on(
    name: str, cluster: SlurmCluster, submit: Submit, workspace: Workspace, undisturbed: Workspace
) -> None:
    job = submit(workspace, "--signal", f"{name}@60", "--time", "20")
    wait_for_epoch(cluster, workspace, job)
    done = cluster.run(["scancel", f"--signal={name}", job])  # to the steps, as before the time limit
    assert done.returncode == 0, done.stderr
    finish(cluster, workspace, job, restarts=1)
    assert_as_undisturbed(workspace, undisturbed)
    assert f"stopped by SIG{name}" in output(workspace)


@pytest.mark.long
def test_a_job_is_queued_again_before_its_time_limit(
    cluster: SlurmCluster, submit: Submit, workspace: Workspace
) -> None:
    endless = ("--train.epochs", "100000")
    job = submit(workspace, *endless, "--time", "2", "--signal", "USR1@30")
    cluster.wait_for(job, "RUNNING", restarts=1, timeout=JOB_TIMEOUT)
    wait_for_epoch(cluster, workspace, job)
    deadline = time.monotonic() + JOB_TIMEOUT
    while "resumes" not in output(workspace):
        assert time.monotonic() < deadline, output(workspace)
        time.sleep(0.2)
    assert "stopped by SIGUSR1" in output(workspace)
    assert len(runs_of(workspace.client)) == 1
    cluster.run(["scancel", job])
