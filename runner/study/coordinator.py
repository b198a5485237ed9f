"""`runner search`: starts the workers of a study, shows how it goes, and sees that it ends well."""

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
from functools import partial
from types import FrameType
from typing import IO

from runner.study.live_view import View
from runner.study.mlflow_run import close_parent, open_parent
from runner.study.options import STOP, WORKER, make_plan, parse
from runner.study.plan import check_sampler
from runner.study.study import Study
from runner.tracking.mlflow_server import ask, server
from runner.tracking.sessions import Records
from runner.tracking.uploader import recover
from runner.training.preflight import check
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.launch_environment import COMMAND, STATUS_FILE
from runner.utils.paths import PACKAGE
from runner.utils.processes import exit_with_parent, gpu_count
from runner.utils.redaction import redact
from runner.utils.signals import Interrupted, stop_signals

LOOK = 0.5
"""Seconds between two looks at the storage."""
REVIVALS = 3
"""Times that a worker which died is started again."""


def search(argv: Sequence[str]) -> int:
    """Run a study as the command line says: its exit status. Raises `UserError` for what its user can mend."""
    options, rest = parse(argv)
    check_sampler(options.sampler)
    plan = make_plan(options, rest, checked=False)
    gpus = gpu_count()
    if gpus and options.workers > gpus:
        raise UserError(
            f"{options.workers} workers were asked for, but there are {gpus} GPUs; each worker needs one."
        )
    ask(server(plan.baseline.tracking.root).uri)
    terminal = Terminal()
    check(plan.baseline, terminal)
    records = Records(plan.baseline, None, terminal)
    study = Study(plan, records.server.root)
    with study.alone():
        study.sweep()
    parent = open_parent(study, records)
    crew = Crew(argv, options.workers, gpus, terminal)
    status = "KILLED"
    try:
        returned = crew.work(study, View(plan, study, terminal))
        if crew.stopped:
            terminal.line(f"study {plan.name} stopped; the same command goes on with it")
            raise Interrupted(crew.stopped[0])
        status = "FAILED"
        if returned and crew.reason:
            raise UserError(crew.reason)
        returned = returned or crew.finish()
        status = "FAILED" if returned else "FINISHED"
        return returned
    finally:
        assert records.client is not None  # noqa: S101 (for types: it was begun without peers)
        recover(records.server, records.client, terminal)  # the runs of workers that were killed
        close_parent(study, records, parent, status)


class Crew:
    """The workers of one command: long-lived processes, each with its share of the cores or its GPU.

    Args:
        argv: The command line that they share.
        count: Their number.
        gpus: GPUs of this host; 0: they compute on the processor.
        terminal: Says what they say.
    """

    def __init__(self, argv: Sequence[str], count: int, gpus: int, terminal: Terminal) -> None:
        self.argv = list(argv)
        self.count = count
        self.gpus = gpus
        self.terminal = terminal
        self.stopped: list[int] = []
        """Signals that told this command to stop."""
        self.reason = ""
        """Why the first worker failed, where it said so."""
        self.said: queue.Queue[str] = queue.Queue()
        self.workers: dict[int, subprocess.Popen[str]] = {}
        self.revivals = dict.fromkeys(range(count), 0)
        self.listeners: list[threading.Thread] = []

    def work(self, study: Study, view: View) -> int:
        """Run the workers to their end: 0, or the status of the one that failed."""
        failed = 0
        with self._signals(), view:
            for place in range(self.count):
                self._start(place)
            while self.workers:
                time.sleep(LOOK)
                self._relay()
                for place, worker in list(self.workers.items()):
                    if worker.poll() is not None:
                        del self.workers[place]
                        failed = failed or self._ended(place, worker, study)
                view.look()
            for listener in self.listeners:
                listener.join(5)
            self._relay()
            view.look()
        return failed

    def finish(self) -> int:
        """Write the study's report with the whole machine: its exit status."""
        self.count = 1
        with self._signals():
            finisher = self._spawn("finish", 0, capture=False)
            self.workers = {0: finisher}
            status = finisher.wait()
        if self.stopped:
            raise Interrupted(self.stopped[0])
        return status if status >= 0 else 128 - status

    def _start(self, place: int) -> None:
        worker = self._spawn(f"{place}/{self.count}", place, capture=True)
        self.workers[place] = worker
        for stream in (worker.stdout, worker.stderr):
            assert stream is not None  # noqa: S101 (for types: both are captured)
            listener = threading.Thread(target=self._listen, args=(place, stream), daemon=True)
            self.listeners.append(listener)
            listener.start()

    def _spawn(self, role: str, place: int, capture: bool) -> subprocess.Popen[str]:
        environment = {**os.environ, WORKER: role, COMMAND: shlex.join(["runner", *sys.argv[1:]])}
        environment.pop(STATUS_FILE, None)
        if not self.gpus:
            environment["ACCELERATE_USE_CPU"] = "true"
        else:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(self.gpus)))).split(",")
            environment["CUDA_VISIBLE_DEVICES"] = (
                visible[place % self.gpus] if role != "finish" else visible[0]
            )
        pipe = subprocess.PIPE if capture else None
        return subprocess.Popen(  # noqa: S603 (words of our own command line, no shell)
            [sys.executable, str(PACKAGE / "search.py"), *self.argv],
            env=environment,
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=partial(exit_with_parent, os.getpid()),
        )

    def _listen(self, place: int, stream: IO[str]) -> None:
        for line in map(redact, stream):
            if line.startswith("runner: "):  # its last word, which becomes ours
                self.reason = self.reason or line.removeprefix("runner: ").rstrip()
            else:
                self.said.put((f"worker {place + 1}: " if self.count > 1 else "") + line.rstrip())

    def _relay(self) -> None:
        while not self.said.empty():
            self.terminal.line(self.said.get())

    def _ended(self, place: int, ended: subprocess.Popen[str], study: Study) -> int:
        """See to a worker that has ended: revive one that died, stop the others behind one that failed."""
        status = ended.returncode
        if status == 0 or self.stopped:
            return 0
        if status < 0 and self.revivals[place] < REVIVALS:
            self.revivals[place] += 1
            with study.alone():
                study.sweep()
            lost = study.lost_by(ended.pid)  # another worker may have swept before
            trial = f"; trial {lost} is lost and tried again once" if lost is not None else ""
            self.terminal.warn(f"worker {place + 1} was killed by {signal.Signals(-status).name}{trial}")
            self._start(place)
            return 0
        for worker in self.workers.values():
            worker.send_signal(STOP)
        return status if status > 0 else 128 - status

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C lets the workers end their trials; a second one, or SIGTERM, stops them at once."""

        def told(number: int, _frame: FrameType | None) -> None:
            gently = number == signal.SIGINT and not self.stopped and self.count_trials
            self.stopped.append(number)
            for worker in list(self.workers.values()):
                if worker.poll() is None:
                    worker.send_signal(STOP if gently else signal.SIGTERM)
            if gently:
                self.said.put("stopping behind the running trials; Ctrl-C again stops at once")

        before = {each: signal.signal(each, told) for each in stop_signals()}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    @property
    def count_trials(self) -> bool:
        """Whether the processes run trials, which they may end, and not the report."""
        return any(worker.stdout is not None for worker in self.workers.values())
