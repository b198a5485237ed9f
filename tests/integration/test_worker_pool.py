"""The processes of a search, with small programs in place of workers: how they are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import QUIET
from studies import make_plan

from runner.study.options import Role
from runner.study.stale_trials import fail_lost_trial
from runner.study.study import Study
from runner.study.worker_pool import WorkerPool
from runner.utils.signals import Interrupted

FAILS = "import sys; print('runner: the disk is gone', file=sys.stderr); sys.exit(2)"
STARTS_SLOWLY = """
import signal, sys, time
time.sleep(1)
asked = []
signal.signal(signal.SIGURG, lambda *_: asked.append(1))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGURG])
deadline = time.monotonic() + 30
while not asked and time.monotonic() < deadline:
    time.sleep(0.05)
sys.exit(0 if asked else 5)
"""
SLEEPS = "import time; time.sleep(60)"
STOPPED_WHILE_IT_PRINTS = """
import os, signal, sys
from runner.study.worker_pool import WorkerPool
from runner.utils.console import Terminal

def stop_at(line):
    pool, lines = WorkerPool([], 1, 0, Terminal(enabled=False)), 0
    def trace(frame, event, _):
        nonlocal lines
        lines += event == "line"
        if event == "line" and lines == line:
            os.kill(os.getpid(), signal.SIGINT)
        return trace
    with pool._forward_signals(graceful=True):
        pool._output.put("a line of a worker")
        sys.settrace(trace)
        pool._print_output()
        sys.settrace(None)
    return bool(pool.stop_signals)

count = 0
while stop_at(count + 1):
    count += 1
print(count)
"""


class View:
    """Shows nothing."""

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def refresh(self) -> None:
        pass


class Programs(WorkerPool):
    """Runs a program for each worker; `started` are the indices of the workers that it started, in order."""

    def __init__(self, *programs: str, stop_while_spawning: int = 0) -> None:
        super().__init__([], len(programs), 0, QUIET)
        self.programs = programs
        self.stop_while_spawning = stop_while_spawning
        self.started: list[int] = []

    def _spawn(self, role: Role, capture: bool) -> subprocess.Popen[str]:
        self.started.append(role.worker)
        assert role.coordinator == os.getpid()
        words = [sys.executable, "-c", self.programs[role.worker]]
        pipe = subprocess.PIPE if capture else None
        process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True)
        if self.stop_while_spawning:
            os.kill(os.getpid(), self.stop_while_spawning)
        return process

    def run(self, retried: Sequence[int] = ()) -> int:
        study: Any = SimpleNamespace(
            lock=nullcontext(), requeue_stale_trials=list, retried_trials_of=lambda _pid: retried
        )
        view: Any = View()
        return self.run_trials(study, view)


def test_a_worker_that_has_no_handler_yet_is_stopped_once() -> None:
    pool = Programs(FAILS, STARTS_SLOWLY)
    assert pool.run() == 2
    assert pool.error == "the disk is gone"
    assert pool.started == [0, 1], "none is revived to run the study"


@pytest.mark.parametrize(
    ("retried", "clause"),
    [
        ([3], "; its trial 3 is tried again once"),
        ([3, 4, 8], "; its trials 3, 4 and 8 are tried again once"),
    ],
)
def test_a_warning_names_all_trials_that_are_tried_again(
    monkeypatch: pytest.MonkeyPatch, retried: list[int], clause: str
) -> None:
    pool, warnings = Programs("import os; os.kill(os.getpid(), 9)"), []
    monkeypatch.setattr("runner.study.worker_pool.MAX_RESTARTS", 1)
    monkeypatch.setattr(pool.terminal, "warn", warnings.append)
    assert pool.run(retried) == 128 + signal.SIGKILL
    assert warnings == [f"worker 1 was killed by SIGKILL{clause}"]


def test_all_trials_of_a_lost_worker_are_tried_again_but_not_a_second_time(tmp_path: Path) -> None:
    study = Study(make_plan(tmp_path / "studies.journal"), tmp_path)
    for expected in ([0, 1, 2], []):
        numbers = [trial.number for trial in (study.ask(), study.ask(), study.ask()) if trial is not None]
        for number in numbers:
            fail_lost_trial(study.optuna, study.trials()[number])
        assert [number for number in study.retried_trials_of(os.getpid()) if number in numbers] == expected


@pytest.mark.slow
def test_workers_are_not_revived_while_the_others_stop() -> None:
    pool = Programs(FAILS, "import os, signal, time; time.sleep(2); os.kill(os.getpid(), signal.SIGKILL)")
    assert pool.run() == 2
    assert pool.started == [0, 1]


@pytest.mark.parametrize(("number", "program"), [(signal.SIGINT, STARTS_SLOWLY), (signal.SIGTERM, SLEEPS)])
def test_a_stop_while_workers_are_started_reaches_them(number: signal.Signals, program: str) -> None:
    pool = Programs(program, program, stop_while_spawning=number)
    assert pool.run() == 0
    assert pool.stop_signals == [number]
    assert pool.started == [0], "no further one is started"


def test_a_stop_while_the_reporter_is_started_reaches_it() -> None:
    pool = Programs(SLEEPS, stop_while_spawning=signal.SIGTERM)
    with pytest.raises(Interrupted):
        pool.write_report()


def test_a_stop_at_any_line_of_printing_is_no_deadlock(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_WHILE_IT_PRINTS], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1
