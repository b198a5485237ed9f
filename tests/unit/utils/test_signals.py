"""Stop signals are deferred to the end of a block, ignored, or raised."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from runner.utils.launch_environment import LAUNCHER_PID, STATUS_FILE
from runner.utils.signals import (
    Interrupted,
    defer_signals,
    handle_signals,
    interrupt_on_signals,
    stop_signals,
)


@pytest.fixture(autouse=True)
def restored_handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_raises_interrupted(number: signal.Signals) -> None:
    interrupt_on_signals()
    with pytest.raises(Interrupted, match=f"stopped by {number.name}") as interrupted:
        os.kill(os.getpid(), number)
    assert interrupted.value.signal == number
    assert not interrupted.value.peer_exited


def test_a_second_signal_does_not_interrupt_the_handling_of_the_first() -> None:
    interrupt_on_signals()
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_comes_where_exceptions_are_ignored_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupting:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    interrupt_on_signals()

    def work() -> None:
        Interrupting()
        time.sleep(60)

    with pytest.raises(Interrupted, match="SIGTERM"):
        work()


def test_a_deferred_signal_is_raised_at_the_end_of_the_block() -> None:
    interrupt_on_signals()
    steps: list[object] = []

    def work() -> None:
        with defer_signals() as deferred:
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append(deferred.received)
            steps.append("completed")

    with pytest.raises(Interrupted, match="SIGTERM"):
        work()
    assert steps == [signal.SIGTERM, "completed"]


def test_a_block_without_a_signal_restores_the_handlers() -> None:
    interrupt_on_signals()
    handler = signal.getsignal(signal.SIGTERM)
    with defer_signals() as deferred:
        assert signal.getsignal(signal.SIGTERM) != handler
    assert deferred.received is None
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_signal_of_a_peer_can_be_delivered_within_the_block() -> None:
    interrupt_on_signals()
    with pytest.raises(Interrupted, match="SIGINT"), defer_signals() as deferred:
        deferred.deliver(signal.SIGINT)


def test_ignored_signals_are_lost() -> None:
    interrupt_on_signals()
    handler = signal.getsignal(signal.SIGTERM)
    with handle_signals(signal.SIG_IGN):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_hangups_stay_ignored_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert stop_signals() == [signal.SIGTERM, signal.SIGINT]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert stop_signals() == [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize("forwarded", [False, True])
def test_a_peer_has_exited_if_the_launcher_forwarded_no_signal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str], forwarded: bool
) -> None:
    status_file = f"{tmp_path}/status"
    monkeypatch.setenv(STATUS_FILE, status_file)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(LAUNCHER_PID, str(os.getpid()))
    monkeypatch.setattr("runner.utils.signals.LAUNCHER_GRACE", 0.05)
    if forwarded:
        open(f"{status_file}.stopped", "w").close()
    with monkeypatch.context() as patch:
        patch.setattr(
            "runner.utils.signals.time.sleep", lambda _: pytest.fail("it waits in a signal handler")
        )
        interrupted = Interrupted(signal.SIGTERM)
    assert interrupted.peer_exited is not forwarded
    assert ("exited unexpectedly" in str(interrupted)) is not forwarded


SWALLOWED = """
import signal, sys, threading, time, os
from runner.utils.exit_status import run_script

def main(words):
    for _ in range(2):  # as code that is imported may do
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except BaseException:
            pass
    while True:
        time.sleep(0.1)

sys.exit(run_script(main))
"""


def test_a_signal_whose_exception_is_swallowed_ends_a_script_all_the_same() -> None:
    ended = subprocess.run([sys.executable, "-c", SWALLOWED], timeout=60, capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in ended.stderr
