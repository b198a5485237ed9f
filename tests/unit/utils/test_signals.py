"""Stop signals are deferred to the end of a block, ignored, or raised."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from runner.utils.launch_environment import LAUNCHER_PID, STATUS_FILE
from runner.utils.signals import (
    AGAIN_SECONDS,
    Interrupted,
    defer_signals,
    handle_signals,
    interrupt_on_signals,
    stop_signals,
)


@pytest.fixture(autouse=True)
def restored_handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in stop_signals()}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
)
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


def test_a_second_signal_is_not_deferred_while_the_first_is_handled() -> None:
    interrupt_on_signals()
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
    with defer_signals() as outer, defer_signals() as inner:
        os.kill(os.getpid(), signal.SIGTERM)
    assert outer.received is inner.received is None


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_signal_is_ignored_while_the_exception_of_another_is_kept(is_kept: bool) -> None:
    interrupt_on_signals(resend_if_lost=True)
    with pytest.raises(Interrupted) as interrupted:
        os.kill(os.getpid(), signal.SIGTERM)
    kept = interrupted.value
    if not is_kept:
        kept.handled.set()  # it ends the process
        del kept, interrupted
    gc.collect()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(2 * AGAIN_SECONDS)
    assert all(callable(signal.getsignal(number)) for number in stop_signals()), "children would ignore them"
    if is_kept:
        kept.handled.set()


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
    assert signal.SIGHUP not in stop_signals()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert signal.SIGHUP in stop_signals()


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


SCRIPT = """
import gc, os, signal, sys, threading, time
from runner.utils.exit_status import run_script

def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)

def swallow(work):  # as code that is imported may do
    try:
        work()
    except BaseException:
        pass

def wait():  # for the signal that is sent again
    time.sleep(10)
    os._exit(1)

def swallow_in_a_cycle():
    try:
        stop()
    except BaseException as error:
        kept = error  # its traceback has this frame

class Stopping:
    def __del__(self):
        stop()

class Waiting:
    def __del__(self):
        wait()

def main(words):
    gc.disable()
    {lose}
    while True:
        time.sleep(0.1)

sys.exit(run_script(main))
"""


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param("swallow(stop); swallow(wait)", id="swallowed twice"),
        pytest.param("Stopping(); swallow(wait)", id="ignored, then swallowed"),
        pytest.param("swallow(stop); Waiting()", id="swallowed, then ignored"),
        pytest.param(
            "swallow_in_a_cycle(); threading.Thread(target=gc.collect).start()", id="freed by another thread"
        ),
    ],
)
def test_a_signal_whose_exception_gets_lost_ends_a_script_all_the_same(lose: str) -> None:
    script = SCRIPT.format(lose=lose)
    ended = subprocess.run([sys.executable, "-c", script], timeout=30, capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr == "runner: stopped by SIGTERM\n"
