"""Runs a script of the runner on as many processes as asked for: one directly, several under `accelerate launch`.

Several hosts are started by a scheduler, and each of its tasks calls this. It is one process of the script if a host
has several tasks; if each host has one, it launches that host's processes.

`accelerate launch` replaces a script's exit status by 1 and adds a traceback. So the first process that fails writes
how to a file (`runner.utils.exit_status`). This module prints that, once, and returns its status.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import psutil

from runner.cli.options import positive_integer
from runner.utils.cluster import ClusterTask, this_task
from runner.utils.command_line import CommandLineParser
from runner.utils.errors import UserError
from runner.utils.exit_status import read_failure
from runner.utils.launch_environment import (
    COMMAND,
    LAUNCHER_PID,
    PROCESS_COUNT,
    STATUS_FILE,
    STOPPED_SUFFIX,
    join_seconds,
)
from runner.utils.output import label_lines, outlive_readers
from runner.utils.paths import PACKAGE
from runner.utils.port_agreement import agree_on_port
from runner.utils.processes import cpu_count, gpu_count, pause_children
from runner.utils.redaction import redact
from runner.utils.signals import handle_signals

DEATH_REPORT = re.compile(r"died with <Signals\.(SIG\w+)|Signal \d+ \((SIG\w+)\)")
"""How Accelerate and torch report that a signal ended a process."""
JOIN_ERROR = re.compile(r"torch\.distributed\.Dist(?:Store|Network)Error: (.*)")
"""How a launcher ends that has not met those of the other hosts."""
ELASTIC_LOG_LINE = re.compile(r"[WE]\d{4} .*\btorch/distributed/elastic/")
"""How torch's launcher begins its report of a failure."""

ACCELERATE_CONFIG = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\n"
"""Read in place of the user's configuration, which may choose GPUs, plugins or another host."""


def take_processes(argv: Sequence[str]) -> tuple[int | None, list[str]]:
    """Split `-n N` (or `--processes N`) from the other words of a command line.

    Raises `UserError` if N is not a positive whole number.
    """
    parser = CommandLineParser(prog="runner", add_help=False, allow_abbrev=False)
    parser.add_argument("-n", "--processes", type=positive_integer)
    options, rest = parser.parse_known_args(argv)
    return options.processes, rest


def launch(script: str, argv: Sequence[str], processes: int | None) -> int:
    """Run `runner/SCRIPT` on as many processes as asked for, and return its exit status.

    If this is a task of a scheduler's step, and one of several on its host, it becomes a process of the script, and
    this does not return.

    Args:
        script: Path below `runner/`.
        argv: The script's words.
        processes: How many on this host; None: one per GPU, or one on the CPU.

    Raises `UserError` for more processes than GPUs, and if the other tasks of a step cannot be reached.
    """
    outlive_readers()
    gpus = gpu_count()
    task = this_task()
    if task is not None and not task.one_per_host:
        _exec_script(script, argv, processes, task)
    count = processes or max(1, gpus)
    if gpus and count > gpus:
        raise UserError(
            f"{count} processes were asked for, but there {'is' if gpus == 1 else 'are'} {gpus} GPU{'s' * (gpus > 1)};"
            f" use -n {gpus}, or set ACCELERATE_USE_CPU=true to compute on the CPU."
        )
    with tempfile.TemporaryDirectory(prefix="runner-") as folder:
        status_file = Path(folder) / "status"
        environment = {
            **os.environ,
            STATUS_FILE: str(status_file),
            COMMAND: shlex.join(["runner", *sys.argv[1:]]),
            LAUNCHER_PID: str(os.getpid()),
        }
        if not gpus:
            environment["ACCELERATE_USE_CPU"] = "true"
        if task is None:
            environment[PROCESS_COUNT] = str(count)
        if count == 1 and task is None:  # the launcher would take a second for what it sets
            environment |= {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": str(cpu_count())}
            module = ".".join((PACKAGE.name, *Path(script).with_suffix("").parts))
            return _supervise([*_child(module), *argv], environment, status_file, is_script=True)
        config = Path(folder) / "accelerate.yaml"
        config.write_text(ACCELERATE_CONFIG)
        command = [*_accelerate_launch(count, gpus, config, task), str(PACKAGE / script), *argv]
        return _supervise(
            command, environment, status_file, label=f"[{socket.gethostname()}] " if task else ""
        )


def _exec_script(script: str, argv: Sequence[str], processes: int | None, task: ClusterTask) -> NoReturn:
    """Replace this process by the script, which finds its ranks itself: the scheduler has started enough processes.

    Raises `UserError` if the command asks for several processes.
    """
    if processes is not None:
        raise UserError(
            f"-n {processes} does not go with {task.local_count} tasks of {task.scheduler} on one host, which are the"
            " processes; leave -n out, or start one task per host (srun --ntasks-per-node 1)."
        )
    environment = {**os.environ, COMMAND: shlex.join(["runner", *sys.argv[1:]])}
    if task.scheduler == "Open MPI":  # it gives its tasks a terminal, also where its own output is a file
        environment["TERM"] = "dumb"
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, str(PACKAGE / script), *argv], environment)  # noqa: S606 (our own words)


def _child(module: str) -> list[str]:
    """The command that runs a module in a process that exits with this one."""
    return [sys.executable, "-m", "runner.utils.child", str(os.getpid()), module]


def _accelerate_launch(count: int, gpus: int, config: Path, task: ClusterTask | None = None) -> list[str]:
    """The launch command. Every option is spelled out: a user's Accelerate configuration must not change it."""
    hosts = task.count if task else 1
    words = [
        *(*_child("accelerate.commands.launch"), "--config_file", str(config)),
        *("--num_machines", str(hosts), "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--num_processes", str(count * hosts)),
        *("--num_cpu_threads_per_process", str(max(1, cpu_count() // count))),
    ]
    if task:
        port = str(agree_on_port(task, join_seconds()))
        where = ("--main_process_ip", task.first_host, "--main_process_port", port, "--same_network")
        timeout = ("--rdzv_conf", f"timeout={max(1, round(join_seconds()))}")
        return [*words, "--multi_gpu", "--machine_rank", str(task.rank), *where, *timeout]
    if count > 1:  # --cpu would silently run one process
        return [*words, "--multi_gpu", "--main_process_port", "0"]
    return words if gpus else [*words, "--cpu"]


def _supervise(
    command: list[str],
    environment: dict[str, str],
    status_file: Path,
    is_script: bool = False,
    label: str = "",
) -> int:
    """Run a command to its end, and print how it failed: its exit status, or 128 + the signal that ended it.

    Args:
        command: To run.
        environment: Of the command.
        status_file: For how the first process failed.
        is_script: Whether it is the script itself, not a launcher of its processes.
        label: What is printed begins with it.
    """
    launcher = subprocess.Popen(  # noqa: S603 (words of our own command line, no shell)
        command,
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
        encoding=getattr(sys.stderr, "encoding", None) or "utf-8",
        errors="surrogateescape",
    )
    forwarded: list[int] = []
    relay = _StderrRelay(launcher.stderr, lambda: bool(forwarded) or status_file.exists())
    relay.start()
    with pause_children(), _forward_signals(launcher, is_script, forwarded, status_file):
        status = launcher.wait()
    relay.join(5)
    if is_script and status < 0:
        relay.fatal_signal = signal.Signals(-status).name
    if label:
        label_lines(label)
    failure = read_failure(status_file)
    if failure is not None:
        failure.print()
        status = failure.status
    elif forwarded and status:  # the signal came before a process could react
        print(f"runner: stopped by {signal.Signals(forwarded[0]).name}", file=sys.stderr)
    elif relay.fatal_signal:
        print(f"runner: {_describe_death(relay.fatal_signal)}", file=sys.stderr)
        status = 128 + signal.Signals[relay.fatal_signal]
    elif relay.join_error:
        print(
            f"runner: The launchers of this step's hosts have lost each other before training ({relay.join_error}); see"
            " what the other hosts print, and whether they reach each other at that port.",
            file=sys.stderr,
        )
        status = 2
    if forwarded and status:  # else the processes had finished: a scheduler need not start them again
        return 128 + forwarded[0]
    return status if status >= 0 else 128 - status


def _describe_death(name: str) -> str:
    out_of_memory = "by the system, which had no memory left, or by somebody"
    cause = out_of_memory if name == "SIGKILL" else "by a library fault"
    return (
        f"A process of this launch was ended by {name}, {cause}. Its results so far are saved: the same command with"
        " --resume auto continues (lower train.batch_size, features.batch_size or features.memory to use less memory)."
    )


class _StderrRelay(threading.Thread):
    """Copies a launcher's standard error to ours, without reports that only repeat how a process failed.

    Args:
        stream: The launcher's standard error.
        is_over: Tells whether a process has failed or was asked to stop: what follows are consequences.
    """

    def __init__(self, stream: IO[str] | None, is_over: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.stream = stream
        self.is_over = is_over
        self.fatal_signal = ""
        """Name of the signal that ended a launched process."""
        self.join_error = ""
        """Why the launcher has not met those of the other hosts."""

    def run(self) -> None:
        """Copy until the launcher ends. Its final report is held back until it is known whether it is needed."""
        report: list[str] = []
        traceback_start = ""  # the second line of a traceback tells whose it is
        has_traceback = False
        for line in self.stream or ():
            if (death := DEATH_REPORT.search(line)) and not self.fatal_signal:
                self.fatal_signal = death[1] or death[2]
            if report and (join_error := JOIN_ERROR.match(line)):
                self.join_error = join_error[1].rstrip(".")
            if report or ELASTIC_LOG_LINE.match(line) or (traceback_start and "<frozen runpy>" in line):
                report += [traceback_start, line]
                traceback_start = ""
            elif line.startswith("Traceback"):
                traceback_start = line
            else:
                has_traceback = has_traceback or bool(traceback_start)
                self._write([traceback_start, line])
                traceback_start = ""
        is_needless = self.fatal_signal or self.join_error or has_traceback
        self._write([traceback_start, *([] if is_needless else report)])

    def _write(self, lines: Sequence[str]) -> None:
        if not self.is_over():
            sys.stderr.writelines(map(redact, lines))
            sys.stderr.flush()


@contextmanager
def _forward_signals(
    launcher: subprocess.Popen[str], is_script: bool, forwarded: list[int], status_file: Path
) -> Iterator[None]:
    """Within the block, stop signals go to the launched processes, or to the launcher before it has any."""

    def forward(number: int, _frame: FrameType | None) -> None:
        forwarded.append(number)
        with suppress(OSError):
            Path(f"{status_file}{STOPPED_SUFFIX}").touch()
        try:
            process = psutil.Process(launcher.pid)
            ranks = [process] if is_script else process.children()
        except psutil.NoSuchProcess:
            return
        for process in ranks:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        if not ranks:
            launcher.terminate()

    with handle_signals(forward):
        yield
