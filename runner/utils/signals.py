"""Signals that ask a process to stop: raise them as exceptions, defer them, ignore them."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from types import FrameType

from runner.utils.launch_environment import LAUNCHER_PID, STATUS_FILE, STOPPED_SUFFIX
from runner.utils.peers import EXITED

LAUNCHER_GRACE = 0.5
"""Seconds that our launcher has to report that it was asked to stop, too."""
AGAIN_SECONDS = 0.05
"""Until a stop signal is sent again whose exception got lost."""


class Interrupted(BaseException):
    """The process was asked to stop. Not an `Exception`, so that ordinary handlers do not swallow it.

    It is raised in signal handlers, which may interrupt a thread that holds a lock: creating it waits for nothing.

    Attributes:
        signal: The signal that asked.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)
        self._deadline = time.monotonic() + LAUNCHER_GRACE
        self.handled = threading.Event()
        """Set by what ends the process because of it."""

    @cached_property
    def peer_exited(self) -> bool:
        """Whether nobody asked: torch's launcher stops this process because another one has exited."""
        return self.signal == signal.SIGTERM and _is_stopped_for_a_peer(self._deadline)

    def __str__(self) -> str:
        return EXITED.format(where="") if self.peer_exited else f"stopped by {self.signal.name}"


def _is_stopped_for_a_peer(deadline: float) -> bool:
    """Whether torch's launcher stops this process because of another one. Our launcher reports what it forwards.

    A cluster's scheduler signals all processes of a job at once, so the launcher's report may come later: this waits
    for it until `deadline`, in seconds of the monotonic clock.
    """
    status_file = os.environ.get(STATUS_FILE)
    if not status_file or int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return False
    while os.getppid() != 1 and not Path(f"{status_file}{STOPPED_SUFFIX}").exists() and _launcher_is_alive():
        if time.monotonic() > deadline:
            return True
        time.sleep(0.02)
    return False


def _launcher_is_alive() -> bool:
    try:
        os.kill(int(os.environ.get(LAUNCHER_PID, os.getpid())), 0)
    except (OSError, ValueError):
        return False
    return True


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a process to stop; without SIGHUP if it is ignored, as under nohup.

    SLURM sends SIGUSR1 or SIGUSR2, as its option `--signal` says, some time before a job's end.
    """
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, *hangup]


def ignore_stop_signals() -> None:
    """Let no stop signal reach this process from now on: its parent ends it, or it has nothing left to save."""
    for stop_signal in stop_signals():
        signal.signal(stop_signal, signal.SIG_IGN)


def interrupt_on_signals(resend_if_lost: bool = False) -> None:
    """Make stop signals raise `Interrupted` in the main thread, so that a run can close its records.

    The first signal raises it; later ones are ignored, unless it gets lost.

    Args:
        resend_if_lost: Send a signal again if its exception is gone before it is handled. Code that is being imported
            may catch and drop any exception, and the process would run on and ignore further signals.
    """
    interrupter = _Interrupter(resend_if_lost)
    handler = interrupter.handle
    for stop_signal in stop_signals():
        signal.signal(stop_signal, handler)
    hook = sys.unraisablehook
    report = hook.report if isinstance(hook, _SignalAgain) else hook
    sys.unraisablehook = _SignalAgain(interrupter, report)


class _Interrupter:
    """Raises `Interrupted` for the first stop signal, and for the next one after an exception that got lost.

    Args:
        resend_if_lost: See `interrupt_on_signals`.
    """

    def __init__(self, resend_if_lost: bool) -> None:
        self._resend_if_lost = resend_if_lost
        self._is_stopping = False
        self._watched: weakref.ref[Interrupted] | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        if self._is_stopping:  # a second signal must not interrupt the closing of the records
            return
        self._is_stopping = True
        error = Interrupted(number)
        if self._resend_if_lost:
            self._watched = weakref.ref(error, partial(self._on_freed, error.handled, number))
        try:
            raise error
        finally:
            del error  # else its own traceback would keep it

    def ignores(self, _number: int) -> bool:
        """Whether a signal is ignored now, because another one is being handled."""
        return self._is_stopping

    def send_again(self, number: int) -> None:
        """Send a signal again a moment later, and raise `Interrupted` then. May be called in any thread."""
        self._watched = None  # so that it is not sent twice
        self._is_stopping = False
        # threading.Thread would wait for a lock that this thread may hold: garbage is collected anywhere.
        with suppress(RuntimeError):  # the interpreter shuts down
            _thread.start_new_thread(_send_later, (number,))

    def _on_freed(self, handled: threading.Event, number: int, _freed: weakref.ref[Interrupted]) -> None:
        """Called in the thread that has freed the exception, which may be any."""
        if not handled.is_set():
            self.send_again(number)


def _send_later(number: int) -> None:
    time.sleep(AGAIN_SECONDS)
    os.kill(os.getpid(), number)


class _SignalAgain:
    """A hook for exceptions that Python ignores: those of destructors, and of callbacks as imports have them.

    A stop signal whose `Interrupted` was ignored is sent again a moment later.

    Args:
        interrupter: Raises the exception again.
        report: The hook for other exceptions.
    """

    def __init__(self, interrupter: _Interrupter, report: Callable[[sys.UnraisableHookArgs], object]) -> None:
        self.interrupter = interrupter
        self.report = report

    def __call__(self, ignored: sys.UnraisableHookArgs) -> None:
        if not isinstance(ignored.exc_value, Interrupted):
            self.report(ignored)
        elif not ignored.exc_value.handled.is_set():
            self.interrupter.send_again(ignored.exc_value.signal)


class DeferredSignals:
    """Stop signals that are not acted on yet. `received` is the number of the last one, if any."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}

    def deliver(self, number: int) -> None:
        """Act on a signal now, whether this process or a peer received it. Raises what its handler raises."""
        self._restore()
        if handler := self._handlers.get(number):
            handler(number, None)
        raise Interrupted(number)

    def ignores(self, number: int) -> bool:
        """Whether the handler that a signal is deferred for ignores it now, because another one is being handled."""
        owner = getattr(self._handlers[number], "__self__", None)
        return isinstance(owner, (_Interrupter, DeferredSignals)) and owner.ignores(number)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.ignores(number):
            self.received = number

    def _install(self) -> None:
        handlers = {number: signal.getsignal(number) for number in stop_signals()}
        self._handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
        for number in self._handlers:
            signal.signal(number, self._note)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)


@contextmanager
def defer_signals() -> Iterator[DeferredSignals]:
    """Defer stop signals to the end of the block, so that its work is completed.

    For the main thread; in other threads it does nothing. A signal without a Python handler still ends the process.
    """
    deferred = DeferredSignals()
    if threading.current_thread() is threading.main_thread():
        deferred._install()
    try:
        yield deferred
    finally:
        deferred._restore()
    if deferred.received is not None:
        deferred.deliver(deferred.received)


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    """Let `handler` act on stop signals within the block; `signal.SIG_IGN` ignores them.

    For the main thread; in other threads it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in stop_signals()}
    try:
        yield
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)
