"""The failures that a user can mend, and the exit status that each way of ending has."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from runner.utils.redaction import redacted

PROCESSES = "RUNNER_PROCESSES"
"""Names the number of processes that a launcher was asked for."""
COMMAND = "RUNNER_COMMAND"
"""Holds the command that a launcher was called with."""
STATUS_FILE = "RUNNER_STATUS_FILE"
"""Names the file in which a launched process leaves its exit status: launchers replace it by their own."""


LAUNCHED = "RUNNER_LAUNCHED"
"""Tells a process that our launcher has started it: the launcher's process id."""
HEARING = 0.5
"""Seconds that our launcher has to say that it was told to stop, too."""
STOPPED = ".stopped"
"""Ends the name of the file, beside that one, which is there once our launcher has passed a signal on."""
BEREFT = (
    "Another process of this launch has ended without a word (killed, perhaps for want of memory), and the others end"
    " with it; the same command with --resume auto goes on."
)


class UserError(Exception):
    """A failure that its user caused or can mend: one sentence that says what, where and how to mend it.

    Passwords in it are hidden, whoever raises it.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(redacted(sentence))


class Diverged(UserError):  # noqa: N818 (it says what happened)
    """Training led to something that is not a number: to go on from there with the same settings is in vain."""


class NotResumable(UserError):  # noqa: N818 (it says what it is)
    """An interrupted run cannot go on as it was asked to: it stays what it was."""


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; {self.prog} --help shows its use.")


class Interrupted(BaseException):
    """The process was told to stop. Not an `Exception`: no handler of ordinary failures swallows it."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.bereft = number == signal.SIGTERM and _launcher_stops_us()
        """It was the launcher's word, since a peer has died: nobody wanted this process to stop."""
        super().__init__(BEREFT if self.bereft else f"stopped by {self.signal.name}")


def _launcher_stops_us() -> bool:
    """Whether torch's launcher ends this process because of another one: ours would have said that it passes on."""
    file = os.environ.get(STATUS_FILE)
    if not file or int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return False
    until = time.monotonic() + HEARING  # a cluster's scheduler tells all processes of a job at once
    while os.getppid() != 1 and not Path(f"{file}{STOPPED}").exists() and _launcher_lives():
        if time.monotonic() > until:
            return True
        time.sleep(0.02)
    return False


def _launcher_lives() -> bool:
    try:
        os.kill(int(os.environ.get(LAUNCHED, os.getpid())), 0)
    except (OSError, ValueError):
        return False
    return True


def stopping_signals() -> list[signal.Signals]:
    """The signals that ask a process to stop; not SIGHUP where it is ignored, as under nohup."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


def interrupt_on_signals() -> None:
    """Make signals raise `Interrupted` in the main thread, so that a run can close its records."""

    def raise_interrupted(number: int, _frame: FrameType | None) -> None:
        # A second signal must not break into the closing of the records that the first one began.
        for each in stopping_signals():
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    for each in stopping_signals():
        signal.signal(each, raise_interrupted)


class Held:
    """Signals to stop, held back: `number` is that of the one that came, if any did."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], object]] = {}

    def stop(self, number: int) -> None:
        """Let a signal count now, whether it came to this process or to a peer. Raises what its handler raises."""
        self._release()
        handler = self._before.get(number)
        if handler is not None:
            handler(number, None)
        raise Interrupted(number)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number

    def _take(self) -> None:
        for each in stopping_signals():
            if callable(handler := signal.getsignal(each)):
                self._before[each] = handler
                signal.signal(each, self._note)

    def _release(self) -> None:
        for each, handler in self._before.items():
            if signal.getsignal(each) == self._note:
                signal.signal(each, handler)


@contextmanager
def held() -> Iterator[Held]:
    """Within the block a signal to stop is only noted, so that what is half done is done; it counts at the end.

    For the main thread; a signal that ends the process at once, for want of a handler, still does.
    """
    noted = Held()
    if threading.current_thread() is threading.main_thread():
        noted._take()
    try:
        yield noted
    finally:
        noted._release()
    if noted.number is not None:
        noted.stop(noted.number)


def sentence(error: BaseException) -> str | None:
    """The one sentence for a failure that a user can mend; None for a fault of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full (writing {error.filename or 'a file'}); free some space and run the command again (train"
            " goes on with --resume auto)."
        )
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{error.filename or 'The disk'} cannot be written: its file system is read-only; choose another place."
    if isinstance(error, PermissionError):
        return f"No permission for {error.filename}; change its mode or choose another place."
    return None


def guarded(main: Callable[[], int | None], speaks: Callable[[], bool] = lambda: True) -> int:
    """Run `main` and turn every way it can end into an exit status.

    0: done; 2: a failure that the user can mend, said in one sentence on standard error; 128 + signal:
    interrupted; 1: a fault of ours, with its traceback. Of several processes the one speaks for which `speaks()` is
    true, or under our launcher the first to fail.
    """
    said = ""
    try:
        status = main() or 0
    except (Interrupted, KeyboardInterrupt) as stop:
        number = stop.signal if isinstance(stop, Interrupted) else signal.SIGINT
        status, said = 128 + number, f"stopped by {signal.Signals(number).name}"
        if isinstance(stop, Interrupted) and stop.bereft:
            status, said = 2, str(stop)
    except BrokenPipeError:  # `runner … | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except Exception as error:
        text = sentence(error)
        if text is None:
            print(redacted(traceback.format_exc()), end="", file=sys.stderr)
            _claim(1, redacted(f"{type(error).__name__}: {error}"))
            return 1
        status, said = 2, text
    if status and said:
        claimed = _claim(status, said)
        if claimed or (claimed is None and speaks()):
            print(f"runner: {said}", file=sys.stderr)
    return status


def _claim(status: int, reason: str) -> bool | None:
    """Leave status and reason for the launcher. Of several processes the first to fail has the reason to tell.

    True: this was the first; False: another was; None: there is no launcher of ours.
    """
    if not (file := os.environ.get(STATUS_FILE)):
        return None
    try:
        with Path(file).open("x") as once:
            once.write(f"{status}\n{os.getpid()}\n{reason}")
    except OSError:
        return False
    return True


def left_status(file: Path) -> int | None:
    """The exit status that a launched process left; None where none failed."""
    try:
        return int(file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def failed_elsewhere() -> str | None:
    """Why another process of this launch failed, where one did: the end of this one is its consequence."""
    try:
        _status, pid, reason = Path(os.environ.get(STATUS_FILE, "")).read_text().split("\n", 2)
    except (OSError, ValueError):
        return None
    return reason if pid != str(os.getpid()) and not reason.startswith("stopped by ") else None


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within the block signals to stop are ignored: records are being closed. For the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, signal.SIG_IGN) for each in stopping_signals()}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
