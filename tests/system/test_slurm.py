"""Jobs that `runner slurm` writes, on a real SLURM cluster inside this machine: queued again, they lose nothing."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import killed_runs
import pytest
from commands import ROOT, RUNNER, runner, runs_of, user_environment
from killed_runs import Workspace, points
from slurm_cluster import slurm_cluster

from benchmarks.support.slurm_cluster import SlurmCluster
from runner.cli.slurm_script import Job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
EPOCHS = ("--train.epochs", "40", "--schedule.kind", "constant", "--tracking.gallery", "0")
JOB_TIMEOUT = 400
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
    except RuntimeError as failure:
        pytest.fail(f"{failure}\n{output(workspace)}")
    assert int(found["Restarts"]) == restarts, output(workspace)


def wait_for_epoch(cluster: SlurmCluster, workspace: Workspace, job: str, epoch: int = 3) -> None:
    """Wait until a job has printed the row of an epoch."""
    deadline = time.monotonic() + JOB_TIMEOUT
    row = re.compile(rf"^(\[\S+\] )? *{epoch}  ", re.MULTILINE)  # some launches name their host first
    while not row.search(output(workspace)):
        state = cluster.job(job)["JobState"]
        assert state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), (state, output(workspace))
        assert time.monotonic() < deadline, output(workspace)
        time.sleep(0.02)


def signal_steps(cluster: SlurmCluster, job: str, name: str) -> None:
    """Send a signal to all steps of a job, as SLURM does before the time limit."""
    done = cluster.run(["scancel", f"--signal={name}", job])
    assert done.returncode == 0, done.stderr


def assert_stopped_and_resumed(workspace: Workspace, signal_name: str) -> None:
    text = output(workspace)
    assert f"runner: stopped by {signal_name}" in text, text
    assert "resuming run" in text, text


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


@pytest.fixture(scope="module")
def on_two_nodes(
    cluster: SlurmCluster,
    submit: Submit,
    tmp_path_factory: pytest.TempPathFactory,
    images: Path,
    mlflow_template: Path,
) -> Workspace:
    """A run of one job on two nodes."""
    workspace = killed_runs.new_workspace(tmp_path_factory.mktemp("two") / "run", images, mlflow_template)
    finish(cluster, workspace, submit(workspace, "--nodes", "2"))
    return workspace


def test_srun_starts_a_task_on_each_node(cluster: SlurmCluster) -> None:
    script = "echo $SLURM_PROCID of $SLURM_NTASKS on $(hostname)"
    printed = cluster.srun("--nodes=2", "sh", "-c", script)
    assert sorted(printed.splitlines()) == ["0 of 2 on node1", "1 of 2 on node2"]


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """`program("echo …")`: a shell script in the place of launch.sh."""

    def write(script: str) -> str:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_a_job_has_what_it_asked_for(
    cluster: SlurmCluster, program: Callable[[str], str], tmp_path: Path
) -> None:
    asked = Job("train", ["a b"], "x", str(tmp_path), 2, gpus=2, cpus=3, further=["--comment=some words"])
    echo = (
        'echo "$SLURM_PROCID/$SLURM_NTASKS: $SLURM_CPUS_PER_TASK $SLURM_CPUS_ON_NODE $SLURM_GPUS_ON_NODE; $@"'
    )
    asked.folder.mkdir()
    job = cluster.sbatch(asked.script([program(echo)]))
    cluster.wait_for(job, "COMPLETED")
    assert cluster.squeue("--states=all", f"--jobs={job}", "--format=%k").strip() == "some words"
    lines = Path(asked.output(job)).read_text().splitlines()
    assert sorted(lines) == ["0/2: 3 3 2; train a b", "1/2: 3 3 2; train a b"]


def test_only_the_element_of_an_array_that_got_the_signal_is_queued_again(
    cluster: SlurmCluster, program: Callable[[str], str], tmp_path: Path
) -> None:
    asked = Job("search", [], "x", str(tmp_path), array="3")
    stop = f'[ "$SLURM_ARRAY_TASK_ID$SLURM_RESTART_COUNT" != 2 ] || exit {asked.signal.status}'
    asked.folder.mkdir()
    job = cluster.sbatch(asked.script([program(stop)]))
    cluster.wait_for(f"{job}_2", "COMPLETED", restarts=1)
    assert [cluster.job(f"{job}_{element}")["Restarts"] for element in range(2)] == ["0", "0"]


def test_a_job_trains_to_the_end(undisturbed: Workspace) -> None:
    (run,) = runs_of(undisturbed.client)
    assert run.info.status == "FINISHED"
    (script,) = (undisturbed.folder / "mlruns" / "slurm").glob("*.sh")
    assert script.with_suffix(".out").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", ["USR1", "USR2"])
def test_a_job_that_gets_the_signal_is_queued_again_and_goes_on(
    name: str, cluster: SlurmCluster, submit: Submit, workspace: Workspace, undisturbed: Workspace
) -> None:
    job = submit(workspace, "--signal", f"{name}@60", "--time", "20")
    wait_for_epoch(cluster, workspace, job)
    signal_steps(cluster, job, name)
    finish(cluster, workspace, job, restarts=1)
    assert_as_undisturbed(workspace, undisturbed)
    assert_stopped_and_resumed(workspace, f"SIG{name}")


@pytest.mark.long
def test_a_job_that_is_queued_again_goes_on(
    cluster: SlurmCluster, submit: Submit, workspace: Workspace, undisturbed: Workspace
) -> None:
    job = submit(workspace)
    wait_for_epoch(cluster, workspace, job)
    cluster.scontrol("requeue", job)
    finish(cluster, workspace, job, restarts=1)
    assert_as_undisturbed(workspace, undisturbed)
    assert_stopped_and_resumed(workspace, "SIGTERM")


@pytest.mark.long
def test_a_preempted_job_goes_on(
    cluster: SlurmCluster, submit: Submit, workspace: Workspace, undisturbed: Workspace
) -> None:
    job = submit(workspace, "--sbatch", "--nodelist=node1")
    wait_for_epoch(cluster, workspace, job)
    urgent = cluster.sbatch("#!/bin/sh\nsleep 1\n", "--partition=high", "--nodelist=node1", "--exclusive")
    cluster.wait_for(urgent, "COMPLETED", timeout=JOB_TIMEOUT)
    finish(cluster, workspace, job, restarts=1)
    assert_as_undisturbed(workspace, undisturbed)
    assert_stopped_and_resumed(workspace, "SIGTERM")


@pytest.mark.long
def test_a_job_is_queued_again_before_its_time_limit(
    cluster: SlurmCluster, submit: Submit, workspace: Workspace
) -> None:
    job = submit(workspace, "--train.epochs", "100000", "--time", "2", "--signal", "USR1@30")
    wait_for_epoch(cluster, workspace, job)
    cluster.wait_for(job, "RUNNING", restarts=1, timeout=JOB_TIMEOUT)
    deadline = time.monotonic() + JOB_TIMEOUT
    while "resuming run" not in output(workspace):
        assert time.monotonic() < deadline, output(workspace)
        time.sleep(0.2)
    assert_stopped_and_resumed(workspace, "SIGUSR1")
    assert len(runs_of(workspace.client)) == 1
    cluster.scontrol("update", f"JobId={job}", "Requeue=0")
    assert cluster.run(["scancel", job]).returncode == 0
    cluster.wait_for(job, "CANCELLED", timeout=JOB_TIMEOUT)


@pytest.mark.long
def test_two_nodes_give_what_one_gives(undisturbed: Workspace, on_two_nodes: Workspace) -> None:
    (one,), (two,) = runs_of(undisturbed.client), runs_of(on_two_nodes.client)
    assert two.info.status == "FINISHED"
    expected = points(undisturbed.client, one.info.run_id)
    found = points(on_two_nodes.client, two.info.run_id)
    assert found.keys() == expected.keys()
    for name in expected:
        assert [step for step, _ in found[name]] == [step for step, _ in expected[name]]
        assert [value for _, value in found[name]] == pytest.approx(
            [value for _, value in expected[name]], rel=1e-5, abs=1e-6
        )


@pytest.mark.long
@pytest.mark.parametrize("how", ["requeue", "signal", "power failure"])
def test_a_job_on_two_nodes_goes_on(
    how: str, cluster: SlurmCluster, submit: Submit, workspace: Workspace, on_two_nodes: Workspace
) -> None:
    job = submit(workspace, "--nodes", "2")
    wait_for_epoch(cluster, workspace, job)
    if how == "requeue":
        cluster.scontrol("requeue", job)
    elif how == "signal":
        signal_steps(cluster, job, "USR1")
    else:
        node = cluster.nodes[1]
        node.kill()
        cluster.wait_for(job, "PENDING", timeout=JOB_TIMEOUT)  # SLURM has noticed it
        cluster.reboot(node)
    finish(cluster, workspace, job, restarts=1)
    assert_as_undisturbed(workspace, on_two_nodes)


@pytest.mark.long
def test_the_tasks_of_a_node_are_processes_and_a_script_without_srun_is_local(
    cluster: SlurmCluster, workspace: Workspace
) -> None:
    """In one job: its script trains by itself, then on two tasks of each node, then those start the script itself."""
    words = shlex.join([*workspace.words, "--train.epochs", "1", "--tracking.gallery", "0"])
    launcher = shlex.join(runner("train"))
    script = shlex.join([sys.executable, str(RUNNER / "train.py")])
    srun = "srun --time=5 --nodes=2 --ntasks-per-node=2 --cpus-per-task=1"
    output = workspace.folder / "output"
    commands = [f"{launcher} {words}", f"{srun} {launcher} {words}", f"{srun} {script} {words}"]
    lines = ["#!/bin/sh", "set -e", f"exec >{shlex.quote(str(output))} 2>&1"]
    lines += ["export ACCELERATE_USE_CPU=true MLFLOW_DISABLE_TELEMETRY=true", *commands, ""]
    job = cluster.sbatch("\n".join(lines), "--nodes=2", "--ntasks-per-node=2", "--time=10")
    try:
        cluster.wait_for(job, "COMPLETED", timeout=JOB_TIMEOUT)
    except RuntimeError as failure:
        pytest.fail(f"{failure}\n{output.read_text()}")
    found = sorted(
        (run.data.tags["runner.world_size"], run.data.tags["runner.hosts"])
        for run in runs_of(workspace.client)
    )
    assert found == [("1", "node1"), ("4", "node1, node2"), ("4", "node1, node2")]
