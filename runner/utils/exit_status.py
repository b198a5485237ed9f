"""Exit statuses: how a command's end becomes one, and how launched processes report theirs."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from runner.utils.errors import user_message
from runner.utils.launch_environment import STATUS_FILE
from runner.utils.redaction import redact
from runner.utils.signals import Interrupted


def run_main(main: Callable[[], int | None], is_main_process: Callable[[], bool] = lambda: True) -> int:
    """Run `main` and return the exit status.

    0: success. 1: a bug, with its traceback. 2: an error that the user can fix, in one sentence on standard error.
    128 + signal: interrupted. Of several processes only one prints the sentence: under our launcher the first to
    fail, otherwise the one whose `is_main_process()` is true.
    """
    message: str | None = None
    try:
        status = main() or 0
    except Interrupted as interruption:
        status = 2 if interruption.peer_exited else 128 + interruption.signal
        message = str(interruption)
    except KeyboardInterrupt:
        status, message = 128 + signal.SIGINT, f"stopped by {signal.SIGINT.name}"
    except BrokenPipeError:  # `runner … | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except Exception as error:
        message = user_message(error)
        if message is None:
            print(redact(traceback.format_exc()), end="", file=sys.stderr)
            _report_failure(1, redact(f"{type(error).__name__}: {error}"))
            return 1
        status = 2
    if status and message:
        is_first = _report_failure(status, message)
        if is_first or (is_first is None and is_main_process()):
            print(f"runner: {message}", file=sys.stderr)
    return status


def is_rank_0() -> bool:
    """Whether this process is the first of its launch, or was not launched."""
    return os.environ.get("RANK", "0") == "0"


def _report_failure(status: int, reason: str) -> bool | None:
    """Write status and reason for the launcher. Only the first failure counts: the others are its consequences.

    Returns whether this process was the first to fail; None without a launcher of ours.
    """
    if not (file := os.environ.get(STATUS_FILE)):
        return None
    try:
        with Path(file).open("x") as status_file:
            status_file.write(f"{status}\n{os.getpid()}\n{reason}")
    except OSError:
        return False
    return True


def read_status(file: Path) -> int | None:
    """The exit status that a launched process reported; None if none failed."""
    try:
        return int(file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def peer_failure() -> str | None:
    """Why another process of this launch failed; None if none did. This process ends as a consequence."""
    try:
        _status, pid, reason = Path(os.environ.get(STATUS_FILE, "")).read_text().split("\n", 2)
    except (OSError, ValueError):
        return None
    return reason if pid != str(os.getpid()) and not reason.startswith("stopped by ") else None
