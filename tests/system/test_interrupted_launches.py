"""Commands and launches of several processes that are stopped or killed, and resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import killed_runs
import psutil
import pytest
from commands import RUNNER, command, environment, one_sentence, runner, runs_of
from killed_runs import EVERY_STEP, Workspace, points

from runner.training import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_environment")]
Process: TypeAlias = subprocess.Popen[bytes]
Start: TypeAlias = Callable[[list[str], Path], Process]
FORTY_EPOCHS = ("--train.epochs", "40", "--schedule.kind", "constant", "--tracking.gallery", "0")


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(words, folder)`: a command that is killed after the test; its output goes to `folder`/output."""
    processes: list[Process] = []

    def start_command(words: list[str], folder: Path) -> Process:
        with (folder / "output").open("ab") as output:
            process = subprocess.Popen(words, env=environment(), stdout=output, stderr=output)
        processes.append(process)
        return process

    yield start_command
    for process in processes:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def on_two_processes(
    tmp_path_factory: pytest.TempPathFactory, images: Path, mlflow_template: Path
) -> Workspace:
    """An uninterrupted run on two processes."""
    folder = tmp_path_factory.mktemp("two") / "workspace"
    workspace = killed_runs.new_workspace(folder, images, mlflow_template)
    outcome = command(runner("train", *workspace.words, *FORTY_EPOCHS, "-n", "2"))
    assert outcome.returncode == 0, outcome.stderr
    return workspace


def output(workspace: Workspace) -> str:
    return (workspace.folder / "output").read_text()


def wait_for_snapshot(workspace: Workspace, process: Process) -> None:
    """Wait until a command has written a snapshot of its third epoch or a later one."""
    deadline = time.monotonic() + 150
    while not any(any(state.glob("00000[2-9]-*")) for state in workspace.states):
        assert process.poll() is None, output(workspace)
        assert time.monotonic() < deadline, output(workspace)
        time.sleep(0.02)


def ranks(process: Process) -> list[psutil.Process]:
    """The training processes of a launch, by rank."""
    found = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "train.py" in " ".join(child.cmdline()) and "RANK" in child.environ()
    ]
    return sorted(
        (child for child in found if "accelerate.commands" not in " ".join(child.cmdline())),
        key=lambda child: int(child.environ()["RANK"]),
    )


def assert_all_end(processes: list[psutil.Process], seconds: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE], "a process hangs"


def test_a_command_that_is_stopped_saves_its_last_step(
    workspace: Workspace, new_workspace: Callable[[Path], Workspace], start: Start
) -> None:
    whole = new_workspace(workspace.folder / "whole")
    assert whole.train(*FORTY_EPOCHS) == 0, whole.output
    process = start(runner("train", *workspace.words, *FORTY_EPOCHS, *EVERY_STEP), workspace.folder)
    wait_for_snapshot(workspace, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    (run,) = runs_of(workspace.client)
    assert (run.info.status, run.data.tags["runner.reason"]) == ("KILLED", "stopped by SIGTERM")
    saved, _ = snapshot.load_newest(workspace.states[0])
    assert saved is not None
    assert saved.step < 120
    assert workspace.train(*FORTY_EPOCHS, "--resume", "auto") == 0, workspace.output
    (run,), (other,) = runs_of(workspace.client), runs_of(whole.client)
    assert run.info.status == "FINISHED"
    assert run.data.tags["runner.resumed"] == f"step {saved.step}"
    assert points(workspace.client, run.info.run_id) == points(whole.client, other.info.run_id)


LONG = [pytest.param(each, marks=pytest.mark.long) for each in ("all", "rank 1", "launcher")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("who", ["rank 0", "all, then on one process", *LONG])
def test_two_processes_are_resumed(
    workspace: Workspace, on_two_processes: Workspace, start: Start, who: str
) -> None:
    """`who` is stopped by a signal (all) or killed (a rank, the launcher)."""
    train = runner("train", *workspace.words, *FORTY_EPOCHS)
    process = start([*train, *EVERY_STEP, "-n", "2"], workspace.folder)
    wait_for_snapshot(workspace, process)
    training = ranks(process)
    assert len(training) == 2
    if who.startswith("all"):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    elif who == "launcher":
        process.kill()
        process.wait(10)
    else:
        training[int(who[-1])].kill()
        process.wait(60)
    assert_all_end(training, 60)
    (run,) = runs_of(workspace.client)
    if who == "rank 1":
        assert process.returncode == 2, output(workspace)
        assert "--resume auto" in one_sentence(output(workspace))
        assert run.info.status == "FAILED"
        assert "exited unexpectedly" in run.data.tags["runner.reason"]
    elif who == "rank 0":
        assert process.returncode in (2, 128 + signal.SIGKILL), output(workspace)
        assert "--resume auto" in one_sentence(output(workspace))
        assert run.info.status in ("KILLED", "FAILED")
    else:
        assert run.info.status == "KILLED", output(workspace)
    processes = "1" if who.endswith("one process") else "2"
    outcome = command([*train, "-n", processes, "--resume", "auto"])
    assert outcome.returncode == 0, outcome.stderr
    (run,), (other,) = runs_of(workspace.client), runs_of(on_two_processes.client)
    assert run.info.status == "FINISHED"
    resumed = points(workspace.client, run.info.run_id)
    expected = points(on_two_processes.client, other.info.run_id)
    if processes == "2":
        assert resumed == expected
    else:
        assert_close(resumed, expected)
    assert list(workspace.journals.iterdir()) == []


def assert_close(resumed: dict[str, Any], expected: dict[str, Any]) -> None:
    """Sums in another order differ in their last digits, and more so after many epochs."""
    assert resumed.keys() == expected.keys()
    for name in ("train/loss", "val/loss"):
        for (step, value), (other_step, other) in zip(resumed[name], expected[name], strict=True):
            assert step == other_step
            assert value == pytest.approx(other, rel=1e-5 if step < 6 else 1e-3)


@pytest.mark.parametrize("seconds", [0.0, 1.0, 3.0])
def test_a_launch_that_is_killed_while_it_starts_leaves_no_process(
    workspace: Workspace, start: Start, seconds: float
) -> None:
    endless = ("--train.epochs", "100000", "--schedule.kind", "constant")
    process = start(runner("train", *workspace.words, *endless), workspace.folder)
    deadline = time.monotonic() + 60
    while not any("runner.train" in line for line in descendants(process).values()):
        assert process.poll() is None
        assert time.monotonic() < deadline
    time.sleep(seconds)
    launched = list(descendants(process))
    process.kill()
    assert_all_end(launched, 30)
    outcome = command(runner("train", *workspace.words, "--train.epochs", "1"))
    assert outcome.returncode == 0, outcome.stderr
    assert {run.info.status for run in runs_of(workspace.client)} <= {"FINISHED", "KILLED"}


def descendants(process: Process) -> dict[psutil.Process, str]:
    """The processes that a command has started, with their command lines."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            found[child] = " ".join(child.cmdline())
    return found


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_process_that_hangs_ends_the_launch(workspace: Workspace, start: Start, rank: int) -> None:
    words = runner("train", *workspace.words, *FORTY_EPOCHS, *EVERY_STEP, "-n", "2", "--train.timeout", "0.1")
    process = start(words, workspace.folder)
    wait_for_snapshot(workspace, process)
    training = ranks(process)
    training[rank].suspend()
    assert process.wait(90) == 2, output(workspace)
    assert "has not answered for 0.1 minutes" in one_sentence(output(workspace))
    assert_all_end(training, 10)


SLOW_RANK = """
import os, sys, time
from runner import train
from runner.features.sources import InMemorySource
if os.environ["RANK"] == "1":
    batches = InMemorySource.batches
    def slow(self, indices):
        for features in batches(self, indices):
            time.sleep(0.02)
            yield features
    InMemorySource.batches = slow
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_slow_process_changes_nothing(
    workspace: Workspace, on_two_processes: Workspace, tmp_path: Path
) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_RANK)
    words = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--num_processes", "2", "--num_cpu_threads_per_process", "1", str(script)),
        *(*workspace.words, *FORTY_EPOCHS, *EVERY_STEP),
    ]
    outcome = subprocess.run(
        words,
        env={**environment(), "PYTHONPATH": str(RUNNER.parent)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    (run,), (other,) = runs_of(workspace.client), runs_of(on_two_processes.client)
    expected = points(on_two_processes.client, other.info.run_id)
    assert points(workspace.client, run.info.run_id) == expected
