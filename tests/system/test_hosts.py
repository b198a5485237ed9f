"""Trainings on several hosts, which are lost, differ, or never come."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import killed_runs
import psutil
import pytest
from commands import ROOT, command, environment, one_sentence, runner, runs_of
from hosts import network_of_hosts, unlabelled
from killed_runs import EVERY_STEP, Workspace, points
from safetensors.torch import save_file
from torchvision.models import vgg11

from benchmarks.support.host_launches import HostLaunch, launch
from benchmarks.support.hosts import Host
from runner.utils.paths import PACKAGE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("plain_environment"),
]
EPOCHS = ("--train.epochs", "30", "--schedule.kind", "constant", "--tracking.gallery", "0")
LONG = pytest.mark.long
WAIT = 240.0
"""Seconds that a launch on a busy machine may take to come to a certain point."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Three hosts; the first two have one name."""
    with network_of_hosts(3, tmp_path_factory.mktemp("hosts"), ["worker", "worker", "spare"]) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def on_two_processes(
    tmp_path_factory: pytest.TempPathFactory, images: Path, mlflow_template: Path
) -> Workspace:
    """An uninterrupted run on two processes of one host."""
    workspace = killed_runs.new_workspace(
        tmp_path_factory.mktemp("one") / "workspace", images, mlflow_template
    )
    outcome = command(runner("train", *workspace.words, *EPOCHS, "-n", "2"))
    assert outcome.returncode == 0, outcome.stderr
    return workspace


def start(hosts: list[Host], workspace: Workspace, *words: str) -> HostLaunch:
    return launch(hosts, [[*workspace.words, *EPOCHS, *EVERY_STEP, *words]] * len(hosts))


def wait_for_snapshot(launched: HostLaunch, workspace: Workspace) -> None:
    """Wait until a snapshot of the third epoch or a later one has been written."""
    deadline = time.monotonic() + WAIT
    while not any(any(state.glob("00000[2-9]-*")) for state in workspace.states):
        assert all(each.poll() is None for each in launched.processes), launched.text(0)
        assert time.monotonic() < deadline, launched.text(0)
        time.sleep(0.05)


def assert_same_metrics(workspace: Workspace, other: Workspace) -> None:
    (run,), (whole,) = runs_of(workspace.client), runs_of(other.client)
    assert run.info.status == "FINISHED"
    assert points(workspace.client, run.info.run_id) == points(other.client, whole.info.run_id)


def training(host: Host) -> list[psutil.Process]:
    """The processes of `runner/train.py` on a host, and what they have started."""
    found = []
    for process in host.processes():
        with suppress(psutil.NoSuchProcess):
            if "train.py" in " ".join(process.cmdline()):
                found.append(process)
    return found


def cut(host: Host) -> Callable[[], None]:
    host.cut_cable()
    return host.mend_cable


def kill(host: Host) -> Callable[[], None]:
    host.kill()
    return host.reboot


def pause(host: Host) -> Callable[[], None]:
    host.pause()
    return host.unpause


@pytest.mark.parametrize(
    ("lost", "lose"),
    [
        (1, cut),
        pytest.param(0, cut, marks=LONG),
        pytest.param(1, kill, marks=LONG),
        pytest.param(0, kill, marks=LONG),
        pytest.param(1, pause, marks=LONG),
    ],
)
def test_a_lost_host_ends_the_run_on_the_other_which_is_resumed(
    workspace: Workspace,
    on_two_processes: Workspace,
    hosts: list[Host],
    lost: int,
    lose: Callable[[Host], Callable[[], None]],
) -> None:
    launched = start(hosts[:2], workspace)
    wait_for_snapshot(launched, workspace)
    restore, start_time = lose(hosts[lost]), time.monotonic()
    other = 1 - lost
    assert launched.wait(WAIT, [other]) == [2], launched.text(other)
    assert time.monotonic() - start_time < 120, "60 s are promised, on a machine that is not busy"
    error = launched.text(other)
    assert f"Nothing has been heard of worker#{lost + 1} (rank {lost})" in one_sentence(unlabelled(error))
    restore()
    for process in launched.processes:
        process.wait(120)
    resumed = start(hosts[:2], workspace, "--resume", "auto")
    assert resumed.wait(WAIT) == [0, 0], resumed.text(0)
    assert "resuming run" in resumed.text(0)
    assert_same_metrics(workspace, on_two_processes)


@pytest.mark.long
def test_another_number_of_hosts_resumes_to_nearly_the_same(
    workspace: Workspace, on_two_processes: Workspace, hosts: list[Host]
) -> None:
    launched = start(hosts[:2], workspace)
    wait_for_snapshot(launched, workspace)
    hosts[0].kill()
    assert launched.wait(WAIT, [1]) == [2], launched.text(1)
    resumed = start([hosts[2], hosts[1]][:1], workspace, "--resume", "auto")
    assert resumed.wait(WAIT) == [0], resumed.text(0)
    hosts[0].reboot()
    (run,), (whole,) = runs_of(workspace.client), runs_of(on_two_processes.client)
    for name, value in whole.data.metrics.items():
        if not name.startswith(killed_runs.DURATIONS):
            assert run.data.metrics[name] == pytest.approx(value, abs=1e-6), name


def test_a_signal_at_one_host_stops_all_with_their_work_saved(
    workspace: Workspace, on_two_processes: Workspace, hosts: list[Host]
) -> None:
    launched = start(hosts[:2], workspace)
    wait_for_snapshot(launched, workspace)
    for pause in (0.0, 0.5):  # a second one is harmless
        time.sleep(pause)
        for process in training(hosts[1]):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGUSR1)
    assert launched.wait(WAIT) == [128 + signal.SIGUSR1] * 2, launched.text(0)
    (run,) = runs_of(workspace.client)
    assert (run.info.status, run.data.tags["runner.reason"]) == ("KILLED", "stopped by SIGUSR1")
    resumed = start(hosts[:2], workspace, "--resume", "auto")
    assert resumed.wait(WAIT) == [0, 0], resumed.text(0)
    assert_same_metrics(workspace, on_two_processes)
    assert all(line.startswith("[worker#1:0] ") for line in resumed.text(0).splitlines())
    (run,) = runs_of(workspace.client)
    assert run.data.tags["runner.hosts"] == "worker#1, worker#2"


def test_hosts_that_differ_are_refused(workspace: Workspace, hosts: list[Host]) -> None:
    words = [*workspace.words, *EPOCHS]
    launched = launch(hosts[:2], [words, [*words, "--optim.lr", "0.5"]])
    assert launched.wait(WAIT) == [2, 2]
    for rank in (0, 1):
        error = one_sentence(unlabelled(launched.text(rank)))
        assert "worker#2 has another optim.lr (0.5 there" in error
    assert runs_of(workspace.client) == []


@pytest.mark.long
def test_hosts_with_other_images_are_refused(
    workspace: Workspace, hosts: list[Host], images: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    first, second, *_ = sorted(copy.rglob("*.png"))
    shutil.copyfile(first, second)
    words = [*workspace.words, *EPOCHS]
    launched = launch(hosts[:2], [words, [*words, "--data.root", str(copy)]])
    assert launched.wait(WAIT) == [2, 2]
    for rank in (0, 1):
        error = one_sentence(unlabelled(launched.text(rank)))
        assert "The data of this launch differ: worker#2 has another images or split" in error


@pytest.mark.long
def test_hosts_with_other_weights_are_refused(
    workspace: Workspace, hosts: list[Host], tmp_path: Path
) -> None:
    words = [*workspace.words, *EPOCHS, "--model.weights"]
    own = vgg11(weights=None).features.state_dict()
    for number in range(2):
        named = {f"features.{name}": value + number for name, value in own.items()}
        (tmp_path / str(number)).mkdir()
        save_file(named, tmp_path / str(number) / "weights.safetensors")
    files = [str(tmp_path / str(number) / "weights.safetensors") for number in range(2)]
    launched = launch(hosts[:2], [[*words, file] for file in files])
    assert launched.wait(WAIT) == [2, 2]
    for rank in (0, 1):
        error = one_sentence(unlabelled(launched.text(rank)))
        assert "The data of this launch differ: worker#2 has another pretrained weights" in error


@pytest.mark.long
def test_hosts_with_other_code_are_refused(workspace: Workspace, hosts: list[Host], tmp_path: Path) -> None:
    module = PACKAGE / "utils" / "text.py"
    (tmp_path / "text.py").write_text(module.read_text() + "\n")
    assert hosts[1].run(["mount", "--bind", str(tmp_path / "text.py"), str(module)]).returncode == 0
    try:
        launched = launch(hosts[:2], [[*workspace.words, *EPOCHS]] * 2)
        assert launched.wait(WAIT) == [2, 2]
    finally:
        hosts[1].run(["umount", str(module)])
    for rank in (0, 1):
        error = one_sentence(unlabelled(launched.text(rank)))
        assert "worker#2 has another version of the runner's code" in error


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=LONG)])
def test_a_killed_process_is_named_with_its_host(workspace: Workspace, hosts: list[Host], rank: int) -> None:
    launched = start(hosts[:2], workspace)
    wait_for_snapshot(launched, workspace)
    for process in training(hosts[rank]):
        process.kill()
    assert launched.wait(WAIT, [1 - rank]) == [2], launched.text(1 - rank)
    error = one_sentence(unlabelled(launched.text(1 - rank)))
    assert f"A process of this launch on worker#{rank + 1} exited unexpectedly" in error
    if rank:
        (run,) = runs_of(workspace.client)
        assert (run.info.status, run.data.tags["runner.reason"]) == ("FAILED", error)


def test_a_host_that_never_comes_is_a_sentence(workspace: Workspace, hosts: list[Host]) -> None:
    launched = launch(hosts[:1], [[*workspace.words, *EPOCHS]], count=2, RUNNER_JOIN_TIMEOUT="0.1")
    assert launched.wait(WAIT) == [2]
    assert "see whether all hosts have started" in one_sentence(unlabelled(launched.text(0)))


@pytest.mark.long
def test_torchrun_starts_the_processes_again_which_resume(
    workspace: Workspace, on_two_processes: Workspace, tmp_path: Path
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
    torchrun += ["--max-restarts", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    words = [str(ROOT / "runner" / "train.py"), *workspace.words, *EPOCHS, *EVERY_STEP]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen([*torchrun, *words], env=environment(), stdout=output, stderr=output)
    launched = HostLaunch([process], [tmp_path / "output"])
    try:
        wait_for_snapshot(launched, workspace)
        training = [each for each in psutil.Process(process.pid).children() if "RANK" in each.environ()]
        assert len(training) == 2
        training[1].kill()
        assert launched.wait(WAIT) == [0], launched.text(0)
    finally:
        process.terminate()
        process.wait(60)
    assert "resuming run" in launched.text(0)
    assert_same_metrics(workspace, on_two_processes)


def torchrun(rank: int, address: str) -> list[str]:
    where = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}", f"--master-addr={address}"]
    return ["-m", "torch.distributed.run", *where, "--master-port=29500"]


def accelerate_launch(rank: int, address: str) -> list[str]:
    count = ["--num_machines=2", "--num_processes=2", f"--machine_rank={rank}"]
    where = [f"--main_process_ip={address}", "--main_process_port=29500", "--same_network"]
    return ["-m", "accelerate.commands.launch", "--multi_gpu", *count, *where, "--mixed_precision=no"]


@pytest.mark.long
@pytest.mark.parametrize("launcher", [torchrun, accelerate_launch])
def test_other_launchers_on_two_hosts(
    workspace: Workspace,
    on_two_processes: Workspace,
    hosts: list[Host],
    launcher: Callable[[int, str], list[str]],
    tmp_path: Path,
) -> None:
    script = [str(ROOT / "runner" / "train.py"), *workspace.words, *EPOCHS]
    started = HostLaunch([], [])
    for rank, host in enumerate(hosts[:2]):
        command = [sys.executable, *launcher(rank, hosts[0].address), *script]
        started.outputs.append(tmp_path / f"output{rank}")
        with started.outputs[-1].open("w") as output:
            variables = {**environment(), "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
            started.processes.append(host.start(command, variables, stdout=output, stderr=output))
    assert started.wait(WAIT) == [0, 0], started.text(0) + started.text(1)
    assert_same_metrics(workspace, on_two_processes)
    (run,) = runs_of(workspace.client)
    assert run.data.tags["runner.hosts"] == "worker#1, worker#2"
