"""How processes end: who says why, what the launcher returns, and what must not disturb the records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from commands import one_sentence

from benchmarks.support.processes import free_port
from runner.cli import launcher
from runner.config.parser import parse
from runner.tracking.run_lifecycle import how_it_ended
from runner.utils import atomic_files, processes
from runner.utils.cluster import ClusterTask
from runner.utils.errors import UserError
from runner.utils.exit_status import peer_failure, read_failure, run_main
from runner.utils.launch_environment import LAUNCHER_PID, STATUS_FILE
from runner.utils.signals import Interrupted, handle_signals


@pytest.fixture
def status_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "status"
    monkeypatch.setenv(STATUS_FILE, str(path))
    return path


def fail(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


def test_the_first_process_to_fail_tells_the_reason(
    status_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(fail(UserError("the disk is gone")), is_main_process=lambda: False) == 2
    assert run_main(fail(UserError("a consequence")), is_main_process=lambda: True) == 2
    failure = read_failure(status_file)
    assert failure is not None
    assert (failure.status, failure.reason) == (2, "the disk is gone")
    assert capsys.readouterr().err == "", "the launcher prints it"
    failure.print()
    assert capsys.readouterr().err == "runner: the disk is gone\n"


def test_a_bug_is_reported_with_its_traceback(status_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(fail(ZeroDivisionError("ours"))) == 1
    failure = read_failure(status_file)
    assert failure is not None
    assert (failure.status, failure.reason) == (1, "ZeroDivisionError: ours")
    failure.print()
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_reason_that_no_file_can_take_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(STATUS_FILE, str(tmp_path / "missing" / "status"))
    assert run_main(fail(UserError("the disk is full"))) == 2
    assert capsys.readouterr().err == "runner: the disk is full\n"


@pytest.mark.parametrize("error", [BrokenPipeError("a server is gone"), ConnectionResetError("gone")])
def test_a_lost_connection_is_not_taken_for_a_closed_output(
    error: OSError, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(fail(error)) == 1
    assert "gone" in capsys.readouterr().err


BUG = (
    "import sys; from runner.utils.exit_status import run_script; sys.exit(run_script(lambda words: 1 // 0))"
)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(BUG, marks=pytest.mark.slow),
        f"import sys; print('Traceback?', file=sys.stderr, flush=True); {BUG}",
        "import runner.no_such_module",
    ],
)
def test_what_ends_a_launch_is_said_once(
    program: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Under Accelerate, which adds a traceback of its own."""
    (tmp_path / "script.py").write_text(program)
    words = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    status_file = tmp_path / "status"
    environment = {**os.environ, STATUS_FILE: str(status_file), LAUNCHER_PID: str(os.getpid())}
    status = launcher._supervise([*words, *plain, str(tmp_path / "script.py")], environment, status_file)
    errors = capfd.readouterr().err
    assert status == 1
    assert errors.count("Traceback (most") == 1, errors
    assert errors.count("Error: ") == 1, errors


def test_launchers_that_lose_each_other_end_with_a_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tasks have agreed on a port, but one of the two launchers never comes."""
    monkeypatch.setattr(launcher, "agree_on_port", lambda task, timeout: free_port())
    monkeypatch.setenv("RUNNER_JOIN_TIMEOUT", "0.05")
    config = tmp_path / "accelerate.yaml"
    config.write_text(launcher.ACCELERATE_CONFIG)
    for rank in range(2):
        task = ClusterTask("SLURM", "1.0", rank, 2, 0, 1, "127.0.0.1", one_per_host=True)
        command = [*launcher._accelerate_launch(1, 0, config, task), str(tmp_path / "script.py")]
        assert launcher._supervise(command, dict(os.environ), tmp_path / "status") == 2
        error = capfd.readouterr().err
        assert "The launchers of this step's hosts have lost each other" in one_sentence(error)


def test_torch_ends_its_own_report_with_the_reason(tmp_path: Path) -> None:
    """Without our launcher. What Accelerate adds for a single process cannot be avoided."""
    (tmp_path / "script.py").write_text(BUG.replace("1 // 0", "int('seven')"))
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--master-port", "0"]
    outcome = subprocess.run(
        [*words, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=120
    )
    root_cause = outcome.stderr.partition("Root Cause")[2]
    assert "traceback : ValueError: invalid literal for int() with base 10: 'seven'" in root_cause


def report(status_file: Path, pid: int, status: int, reason: str) -> None:
    status_file.write_text(json.dumps({"status": status, "pid": pid, "reason": reason}))


def test_the_end_that_another_process_caused_is_a_failure_with_its_reason(status_file: Path) -> None:
    report(status_file, os.getpid() + 1, 2, "an image has changed")
    assert peer_failure() == "an image has changed"
    assert how_it_ended(Interrupted(signal.SIGTERM)) == ("FAILED", "an image has changed")
    report(status_file, os.getpid() + 1, 143, "stopped by SIGTERM")
    assert how_it_ended(Interrupted(signal.SIGTERM)) == ("KILLED", "stopped by SIGTERM")
    report(status_file, os.getpid(), 2, "mine")
    assert peer_failure() is None


def test_closing_records_is_not_disturbed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handle_signals(signal.SIG_IGN):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    program = (
        "import os, signal, sys; from runner.utils.signals import Interrupted, interrupt_on_signals;"
        "interrupt_on_signals(); os.kill(os.getpid(), signal.SIGHUP); print('goes on')"
    )
    run_program = [sys.executable, "-c", program]
    plain = subprocess.run(run_program, capture_output=True, text=True)
    assert "Interrupted: stopped by SIGHUP" in plain.stderr
    kept = subprocess.run(["nohup", *run_program], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert kept.stdout == "goes on\n"


def test_a_launcher_that_has_launched_nothing_yet_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sleeper = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert launcher._supervise(sleeper, dict(os.environ), tmp_path / "status") == 128 + signal.SIGTERM
    assert "runner: stopped by SIGTERM" in capsys.readouterr().err


def test_signals_reach_the_launched_processes_as_they_are(tmp_path: Path) -> None:
    rank = (
        "import signal, sys, time, pathlib;"
        f"signal.signal(signal.SIGINT, lambda *_: (pathlib.Path({str(tmp_path / 'heard')!r}).write_text('SIGINT'),"
        " sys.exit(130)));"
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)"
    )
    parent = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {rank!r}]).returncode)"

    def interrupt() -> None:
        while not (tmp_path / "up").exists():
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    status = launcher._supervise([sys.executable, "-c", parent], dict(os.environ), tmp_path / "status")
    assert status == 128 + signal.SIGINT
    assert (tmp_path / "heard").read_text() == "SIGINT"


@pytest.mark.parametrize("status", [0, 138])
def test_what_has_finished_in_spite_of_a_signal_has_succeeded(status: int, tmp_path: Path) -> None:
    """A scheduler that has sent it need not start the command again."""
    rank = (
        "import os, signal, sys, time; heard = []; signal.signal(signal.SIGUSR1, lambda *_: heard.append(1));"
        f"os.kill({os.getpid()}, signal.SIGUSR1)\nwhile not heard: time.sleep(0.01)\nsys.exit({status})"
    )
    parent = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {rank!r}]).returncode)"
    command = [sys.executable, "-c", parent]
    assert launcher._supervise(command, dict(os.environ), tmp_path / "status") == status


def test_ctrl_z_stops_what_was_launched_too() -> None:
    """The processes are in a session of their own, so the terminal does not reach them."""
    program = (
        "import subprocess, sys; from runner.utils.processes import pause_children;"
        "sleep = 'import time; time.sleep(60)'; middle = f'import subprocess; subprocess.run([{sys.executable!r},"
        " \"-c\", {sleep!r}])'; child = subprocess.Popen([sys.executable, '-c', middle], start_new_session=True)\n"
        "with pause_children(): print(flush=True); child.wait()"
    )
    command = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, process_group=0)
    assert command.stdout is not None
    command.stdout.readline()
    until = time.monotonic() + 30
    while len(tree := psutil.Process(command.pid).children(recursive=True)) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    tree.append(psutil.Process(command.pid))
    try:
        for number, is_stopped in ((signal.SIGTSTP, True), (signal.SIGCONT, False)) * 2:
            command.send_signal(number)
            while {process.status() == psutil.STATUS_STOPPED for process in tree} != {is_stopped}:
                assert time.monotonic() < until, [process.status() for process in tree]
                time.sleep(0.05)
    finally:
        for process in tree:
            process.kill()
        command.wait()


def test_what_was_launched_dies_with_a_killed_launcher(tmp_path: Path) -> None:
    program = (
        "import os, subprocess, sys;"
        "words = ['-m', 'runner.utils.child', str(os.getpid()), 'sleeper', 'word'];"
        "child = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True);"
        "print(child.pid, child.stdout.readline(), flush=True); child.wait()"
    )
    (tmp_path / "sleeper.py").write_text("import sys, time; print(sys.argv, flush=True); time.sleep(60)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    pid, argv = parent.stdout.readline().split(" ", 1)
    assert argv == f"[{str(tmp_path / 'sleeper.py')!r}, 'word']\n"
    child = psutil.Process(int(pid))
    parent.kill()
    parent.wait()
    gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_what_was_launched_ends_where_its_launcher_is_gone_already(tmp_path: Path) -> None:
    """A launcher may be killed while Python starts in what it has launched."""
    late = (
        "import os, pathlib, sys, time; pathlib.Path(sys.argv[1], 'pid').write_text(str(os.getpid()));"
        "time.sleep(1); from runner.utils.processes import exit_with_launcher; exit_with_launcher();"
        "pathlib.Path(sys.argv[1], 'alone').touch(); time.sleep(60)"
    )
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {late!r}, sys.argv[1]])"
    gone = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env={**os.environ, LAUNCHER_PID: "0"}, timeout=30
    )
    assert gone.returncode == 0
    until = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or psutil.pid_exists(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < until, "it goes on alone"
        time.sleep(0.05)
    assert not (tmp_path / "alone").exists()


@pytest.mark.parametrize(("visible", "count"), [("0,1", 2), ("", 0), ("-1", 0), ("0,-1,1", 1), ("0", 1)])
def test_gpus_are_counted_as_cuda_counts_them(
    visible: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 2, nvmlShutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert processes.gpu_count() == count


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "gpu_count", lambda: 2)
    with pytest.raises(UserError, match="3 processes were asked for, but there are 2 GPUs"):
        launcher.launch("train.py", [], 3)


def test_files_of_several_threads_leave_the_umask_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    os.umask(before)
    threads = [
        threading.Thread(
            target=lambda n=n: [atomic_files.write_text(tmp_path / f"{n}", "x") for _ in range(50)]
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = os.umask(before)
    assert after == before
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~before}


def test_loading_a_model_leaves_the_umask_alone() -> None:
    """Other threads of the program may write files meanwhile."""
    code = (
        "import os; calls = []; umask = os.umask; os.umask = lambda mask: calls.append(mask) or umask(mask);"
        "from runner.serving import load; print(calls)"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "[]\n"


def test_overrides_count_wherever_they_stand() -> None:
    assert parse(["--train.epochs", "7", "--config", "quickstart"])[0].train.epochs == 7
