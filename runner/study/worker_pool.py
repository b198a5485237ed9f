"""The processes that `runner search` starts: workers that run trials, then one that writes the report."""

from __future__ import annotations

import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO

from runner.study.live_view import LiveView
from runner.study.options import STOP_SIGNAL, Role
from runner.study.study import Study
from runner.utils.console import Terminal
from runner.utils.launch_environment import COMMAND, STATUS_FILE
from runner.utils.paths import PACKAGE
from runner.utils.processes import pause_children
from runner.utils.redaction import redact
from runner.utils.signals import Interrupted, handle_signals
from runner.utils.text import joined

POLL_INTERVAL = 0.5
"""Seconds between two looks at workers and study."""
MAX_RESTARTS = 3
"""Restarts of a worker that was killed."""


class WorkerPool:
    """The workers of one command: long-lived processes, each with its share of the cores or its GPU.

    Args:
        argv: The command line, which the workers get, too.
        count: Number of workers.
        gpus: GPUs of this host; 0: workers compute on the CPU.
        terminal: Shows the workers' output.
    """

    def __init__(self, argv: Sequence[str], count: int, gpus: int, terminal: Terminal) -> None:
        self.argv = list(argv)
        self.count = count
        self.gpus = gpus
        self.terminal = terminal
        self.stop_signals: list[int] = []
        """Signals that asked this command to stop."""
        self.error = ""
        """The message of the first worker that failed with a user error."""
        self._graceful = False
        """Whether one Ctrl-C lets the processes finish their trials."""
        self._stopping = False
        """Whether the workers were asked to stop because one of them failed."""
        self._output: queue.SimpleQueue[str] = queue.SimpleQueue()
        """What workers and signal handlers print. Its `put` takes no lock that the interrupted thread may hold."""
        self._readers: list[threading.Thread] = []
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._restarts = dict.fromkeys(range(count), 0)

    def run_trials(self, study: Study, view: LiveView) -> int:
        """Run workers until all have ended. Returns 0, or the exit status of the first that failed."""
        failure = 0
        with self._forward_signals(graceful=True), view:
            for index in range(self.count):
                self._start_worker(index)
            while self._processes:
                time.sleep(POLL_INTERVAL)
                self._print_output()
                for index, process in list(self._processes.items()):
                    if process.poll() is not None:
                        del self._processes[index]
                        failure = failure or self._handle_end(index, process, study)
                view.refresh()
            for reader in self._readers:
                reader.join(5)
            self._print_output()
            view.refresh()
        return failure

    def write_report(self) -> int:
        """Write the study's report in a process that may use the whole machine. Returns its exit status."""
        with self._forward_signals(graceful=False):
            reporter = self._spawn(Role(runs_trials=False, coordinator=os.getpid()), capture=False)
            self._processes = {0: reporter}
            self._stop_if_asked(reporter)
            status = reporter.wait()
        if self.stop_signals:
            raise Interrupted(self.stop_signals[0])
        return _exit_status(status)

    def _start_worker(self, index: int) -> None:
        if self.stop_signals:
            return
        role = Role(writes_report=False, worker=index, workers=self.count, coordinator=os.getpid())
        # The worker inherits that the signal is blocked: one that comes before it has a handler waits for that.
        signal.pthread_sigmask(signal.SIG_BLOCK, [STOP_SIGNAL])
        try:
            self._processes[index] = worker = self._spawn(role, capture=True)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [STOP_SIGNAL])
        self._stop_if_asked(worker)
        for stream in (worker.stdout, worker.stderr):
            assert stream is not None  # noqa: S101 (for types: both are captured)
            reader = threading.Thread(target=self._read, args=(index, stream), daemon=True)
            self._readers.append(reader)
            reader.start()

    def _spawn(self, role: Role, capture: bool) -> subprocess.Popen[str]:
        environment = {**os.environ, **role.to_environment(), COMMAND: shlex.join(["runner", *sys.argv[1:]])}
        environment.pop(STATUS_FILE, None)
        if self.gpus:
            every = ",".join(map(str, range(self.gpus)))
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", every).split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[role.worker % self.gpus]
        else:
            environment["ACCELERATE_USE_CPU"] = "true"
        pipe = subprocess.PIPE if capture else None
        return subprocess.Popen(  # noqa: S603 (words of our own command line, no shell)
            [sys.executable, str(PACKAGE / "search.py"), *self.argv],
            env=environment,
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def _read(self, index: int, stream: IO[str]) -> None:
        """Queue the lines of a worker; its user error becomes the command's."""
        for line in map(redact, stream):
            if line.startswith("runner: "):
                self.error = self.error or line.removeprefix("runner: ").rstrip()
            else:
                self._output.put((f"worker {index + 1}: " if self.count > 1 else "") + line.rstrip())

    def _print_output(self) -> None:
        while not self._output.empty():
            self.terminal.line(self._output.get())

    def _handle_end(self, index: int, process: subprocess.Popen[str], study: Study) -> int:
        """Restart a worker that was killed; stop the others after one that failed, and return its exit status."""
        status = process.returncode
        if status == 0 or self.stop_signals or self._stopping:
            return 0
        if status < 0 and self._restarts[index] < MAX_RESTARTS:
            self._restarts[index] += 1
            with study.lock:
                study.requeue_stale_trials()
            lost = [str(number) for number in study.retried_trials_of(process.pid)]
            several, are = ("s", "are") if len(lost) > 1 else ("", "is")
            trials = f"; its trial{several} {joined(lost)} {are} tried again once" if lost else ""
            self.terminal.warn(f"worker {index + 1} was killed by {signal.Signals(-status).name}{trials}")
            self._start_worker(index)
            return 0
        self._stopping = True
        for worker in self._processes.values():
            worker.send_signal(STOP_SIGNAL)
        return _exit_status(status)

    @contextmanager
    def _forward_signals(self, graceful: bool) -> Iterator[None]:
        """Pass stop signals on to the processes.

        With `graceful` the first Ctrl-C lets workers finish their trials; any other signal stops them at once.
        """

        self._graceful = graceful

        def forward(number: int, _frame: FrameType | None) -> None:
            self.stop_signals.append(number)
            for process in list(self._processes.values()):
                self._stop_if_asked(process)
            if self._finishes_trials:
                self._output.put("finishing the running trials; press Ctrl-C again to stop at once")

        with pause_children(), handle_signals(forward):
            yield

    @property
    def _finishes_trials(self) -> bool:
        return self._graceful and self.stop_signals == [signal.SIGINT]

    def _stop_if_asked(self, process: subprocess.Popen[str]) -> None:
        """Stop a process if this command was asked to stop, perhaps while it started the process."""
        if self.stop_signals:
            process.send_signal(STOP_SIGNAL if self._finishes_trials else signal.SIGTERM)


def _exit_status(returncode: int) -> int:
    """The exit status for a process's return code, which is negative if a signal killed it."""
    return returncode if returncode >= 0 else 128 - returncode
