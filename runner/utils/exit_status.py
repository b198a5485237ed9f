"""Exit statuses: how a command's end becomes one, and how launched processes report theirs."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from runner.utils import peers
from runner.utils.errors import PeerLostError, user_message
from runner.utils.launch_environment import STATUS_FILE, provide_home
from runner.utils.output import discard, outlive_readers, prepare_output
from runner.utils.redaction import redact
from runner.utils.signals import Interrupted, ignore_stop_signals, interrupt_on_signals


@dataclass(frozen=True)
class Failure:
    """How a process failed."""

    status: int
    """Its exit status: 1 for a bug, 2 for an error that the user can fix, 128 + signal if it was interrupted."""
    reason: str
    traceback: str = ""
    """Of a bug."""
    pid: int = 0
    of_another: bool = False
    """Another process has failed, and this one as a consequence."""

    def print(self) -> None:
        """Print a bug's traceback, or the reason in one line."""
        print(self.traceback.rstrip() or f"runner: {self.reason}", file=sys.stderr, flush=True)


def run_script(main: Callable[[Sequence[str]], int]) -> int:
    """Run `main` of a script with the command line; returns the exit status. For scripts that are launched.

    Stop signals raise `Interrupted`, and the process outlives what reads its output.
    """
    interrupt_on_signals(resend_if_lost=True)
    outlive_readers()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost connection is a page of addresses

    def whole() -> int:
        status = main(sys.argv[1:])
        ignore_stop_signals()  # it has finished: a signal must not say that it has not
        return status

    status = run_main(whole, is_first_of_host)
    ignore_stop_signals()  # while Python shuts down, a second one would end the process with another status
    return status


def run_main(main: Callable[[], int | None], is_main_process: Callable[[], bool] = lambda: True) -> int:
    """Run `main` and return the exit status.

    0: success. 1: a bug, with its traceback. 2: an error that the user can fix, in one sentence on standard error.
    128 + signal: interrupted. Under our launcher the first process to fail says why, through a file: what several
    processes print at their end mixes. Otherwise the one whose `is_main_process()` is true prints the sentence, and
    each process its traceback.
    """
    prepare_output()
    provide_home()
    try:
        status = main() or 0
        peers.announce_end()
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError as error:
        if _output_is_closed():  # `runner … | head`: the reader has closed the pipe
            return 128 + signal.SIGPIPE
        failure = _describe(error)
    except (Exception, Interrupted, KeyboardInterrupt) as error:
        failure = _describe(error)
    peers.announce_end(
        failure.reason, failure.status - 128 if failure.status > 128 else None, failure.of_another
    )
    if not _report(failure):
        _report_to_torch(failure)
        if failure.traceback or is_main_process():
            failure.print()
    return failure.status


def is_first_of_host() -> bool:
    """Whether this process is the first of its launch on this host, or was not launched."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _describe(error: BaseException) -> Failure:
    pid = os.getpid()
    if isinstance(error, Interrupted):
        error.handled.set()
        if (reason := peers.failure_reason()) and peers.peer_signal() is None:
            return Failure(2, reason, pid=pid, of_another=True)
        return Failure(2 if error.peer_exited else 128 + error.signal, str(error), pid=pid)
    if isinstance(error, KeyboardInterrupt):
        return Failure(128 + signal.SIGINT, f"stopped by {signal.SIGINT.name}", pid=pid)
    if (message := user_message(error)) is not None:
        return Failure(2, message, pid=pid, of_another=isinstance(error, PeerLostError))
    if peers.has_peers() and (reason := peers.explain_lost_connection(error)):
        return Failure(2, reason, pid=pid, of_another=True)
    reason = redact(f"{type(error).__name__}: {error}")
    return Failure(1, reason, redact("".join(traceback.format_exception(error))), pid)


def _output_is_closed() -> bool:
    """Whether nothing reads standard output any more; what it holds is discarded then."""
    closed = False
    try:
        sys.stdout.flush()  # it may hold nothing: what could not be written is gone
    except BrokenPipeError:
        closed = True
    with suppress(OSError, ValueError):  # a notebook's output has no descriptor
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        closed = closed or any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        discard(sys.stdout)
    return closed


def _report(failure: Failure) -> bool:
    """Tell our launcher of a failure, unless a process has failed before: later failures are its consequences.

    Returns False if there is no launcher of ours, or if the file cannot be written (the disk is full).
    """
    if not (name := os.environ.get(STATUS_FILE)):
        return False
    file, own = Path(name), Path(f"{name}.{failure.pid}")
    try:
        own.write_text(json.dumps(asdict(failure)))
        os.link(own, file)  # complete, and only if there is none
    except OSError:
        return file.exists()
    finally:
        own.unlink(missing_ok=True)
    return True


def _report_to_torch(failure: Failure) -> None:
    """Let torchrun and `accelerate launch` name the reason at the end of their own report."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": failure.reason, "timestamp": int(time.time())}))


def read_failure(file: Path) -> Failure | None:
    """The first failure of a launched process; None if none was reported."""
    try:
        return Failure(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def peer_failure() -> str | None:
    """Why another process of this launch failed; None if none did. This process ends as a consequence."""
    failure = read_failure(Path(os.environ.get(STATUS_FILE, "")))
    if failure is None or failure.pid == os.getpid() or failure.reason.startswith("stopped by "):
        reason = peers.failure_reason()
        return reason if reason and peers.peer_signal() is None else None
    return failure.reason
