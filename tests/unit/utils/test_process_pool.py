"""Processes of a pool leave stop signals to their parent."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from runner.utils.process_pool import process_pool
from runner.utils.signals import Interrupted, interrupt_on_signals, stop_signals


@pytest.fixture
def interrupted_by_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in stop_signals()}
    interrupt_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@pytest.mark.usefixtures("interrupted_by_signals")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_to_all_processes_of_a_job_is_the_parents(number: signal.Signals) -> None:
    with process_pool(1) as pool:
        (pid,) = {pool.submit(pid_after, 0.0).result()}
        os.kill(pid, number)  # it waits
        work = pool.submit(pid_after, 0.2)
        os.kill(pid, number)  # it may work
        assert work.result() == pid
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), number)
