"""Watches the other processes of a launch, which may run on other hosts, and ends this one if one of them is gone.

A host that loses power, or whose cable is cut, closes no connection: the others would wait for its part of a collective
operation until `train.timeout`. So each process counts up a number in the store through which the launch has met. The
first process looks at all numbers, the others at the first one's. Whoever fails says there why, for all to read.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Protocol, TypeVar

from runner.utils.launch_environment import STATUS_FILE
from runner.utils.redaction import redact

INTERVAL = 2.0
"""Seconds between two looks at the others."""
SILENCE = 25.0
"""Seconds without a sign of life after which a process counts as lost."""
UNWINDING = 5.0
"""Seconds that the main thread has to notice that its collective operation has failed; then it gets a signal."""
LAST_RESORT = 15.0
"""Seconds after the signal until the process is ended all the same."""
ANSWER = 2.0
"""Seconds that the store has to answer a request of a process that ends."""
FAILED = "runner/failed"
"""The key under which the first failure is stored."""
LOST = (
    "Nothing has been heard of {names} for {seconds:.0f} s (its host or its network has failed, or it was stopped), so"
    " the other processes stop too; run the same command with --resume auto to continue."
)
EXITED = (
    "A process of this launch{where} exited unexpectedly (it was killed, perhaps because memory ran out), so the others"
    " stop too; run the same command with --resume auto to continue."
)
CONNECTION_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)
"""Parts of the text when gloo or NCCL has lost another process."""
T = TypeVar("T")


class Store(Protocol):
    """What this module uses of torch's key-value stores."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def multi_get(self, keys: list[str]) -> list[bytes]: ...
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...
    def set_timeout(self, timeout: timedelta) -> None: ...


class PeerWatchdog:
    """The other processes of this launch.

    Args:
        store: Shared by all.
        rank: Of this process.
        labels: What each process is called, by rank.
        abort: Makes collective operations fail that wait for others.
        hosts: Names of the hosts, by address.
        store_label: What the process is called on whose host the store is; it need not be the first one.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        labels: Sequence[str],
        abort: Callable[[], None],
        hosts: Mapping[str, str] | None = None,
        store_label: str = "",
    ) -> None:
        self.store = store
        self.rank = rank
        self.labels = labels
        self.abort = abort
        self.hosts = hosts or {}
        self.store_label = store_label
        self.reason = ""
        """Why another process has ended; empty as long as all is well."""
        self.signal: int | None = None
        """The signal that asked another process to stop, if that is the reason."""
        self._watched = [other for other in range(len(labels)) if other != rank] if rank == 0 else [0]
        self._counts: dict[int, bytes] = {}
        self._silent = dict.fromkeys(self._watched, 0.0)
        """Seconds without a new number, as far as this process was awake to see it."""
        self._rounds = 0
        self._ended = threading.Event()
        self._noticed = threading.Event()

    def start(self) -> None:
        """Store a first number and begin to watch. All processes call this, then meet in a collective operation."""
        self.store.set_timeout(timedelta(seconds=SILENCE))
        self._beat()
        for work in (self._exchange_numbers, self._look_for_silence):
            threading.Thread(target=work, name="peers", daemon=True).start()

    def announce_end(self, failure: str = "", number: int | None = None, of_another: bool = False) -> None:
        """Stop watching: this process ends, as planned or for a reason.

        Args:
            failure: Why; empty: as planned.
            number: The signal that asked it to.
            of_another: It is the failure of another process.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        # Perhaps torch's launcher stops this process because another one was killed: the others notice that.
        from_launcher = number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ
        if failure and not (from_launcher and STATUS_FILE not in os.environ):
            self._publish(failure, number, of_another)
        _within(ANSWER, lambda: self.store.set(f"runner/left/{self.rank}", ""))

    def failure_reason(self) -> str:
        """Why another process has ended; empty if none has. Asked by what ends this process because of it."""
        if not self.reason:
            _within(ANSWER, self._read_failure)
        if self.reason:
            self._noticed.set()
        return self.reason

    def _beat(self) -> None:
        self._rounds += 1
        self.store.set(f"runner/beat/{self.rank}", str(self._rounds))

    def _exchange_numbers(self) -> None:
        """In a thread of its own: where no packet comes through, a request waits for ever."""
        keys = [f"runner/beat/{other}" for other in self._watched]
        while not self._ended.wait(INTERVAL):
            with suppress(Exception):  # counts as silence
                self._beat()
                for other, count in zip(self._watched, self.store.multi_get(keys), strict=True):
                    if self._counts.get(other) != count:
                        self._counts[other] = count
                        self._silent[other] = 0.0
                self._read_failure()
                if self.reason:
                    self._interrupt()

    def _read_failure(self) -> None:
        """Learn from the store why another process has ended, if one has."""
        if not self.reason and self.store.check([FAILED]):
            first = json.loads(self.store.get(FAILED))
            if first["rank"] != self.rank:
                self.signal = first["signal"]
                about = "" if first["of_another"] else f"{self.labels[first['rank']]}: "
                self.reason = about + first["reason"]

    def _look_for_silence(self) -> None:
        """Count how long the others have been silent. Time in which this process itself was stopped does not count."""
        last = time.monotonic()
        while not self._ended.wait(INTERVAL):
            now = time.monotonic()
            was_stopped = now - last > 3 * INTERVAL
            for other in self._watched:
                self._silent[other] = 0.0 if was_stopped else self._silent[other] + now - last
            last = now
            silent = [other for other in self._watched if self._silent[other] >= SILENCE]
            lost = self._lost_labels(silent) if silent else []
            if lost and not self.reason:
                names = ", ".join(lost[:5]) + ", …" * (len(lost) > 5)
                reason = LOST.format(names=names, seconds=SILENCE)
                self._publish(reason, of_another=True)
                self.reason = redact(reason)
                self._interrupt()

    def _lost_labels(self, silent: Sequence[int]) -> list[str]:
        """What those are called that have not ended as planned. If the store does not answer, its host is lost."""
        left = _within(ANSWER, lambda: [self.store.check([f"runner/left/{other}"]) for other in silent])
        if left is None and self.store_label not in ("", self.labels[self.rank]):
            return [self.store_label]
        has_left = left or [False] * len(silent)
        return [self.labels[other] for other, has in zip(silent, has_left, strict=True) if not has]

    def _publish(self, reason: str, number: int | None = None, of_another: bool = False) -> None:
        """Let the others know why this process ends, unless one has ended before."""
        content = json.dumps(
            {"rank": self.rank, "reason": redact(reason), "signal": number, "of_another": of_another}
        )
        _within(ANSWER, lambda: self.store.compare_set(FAILED, "", content))

    def _interrupt(self) -> None:
        """End this process: its collective operation fails; if it is in none, a signal interrupts it."""
        if self.signal is not None and not self._noticed.is_set():
            os.kill(os.getpid(), self.signal)
            self._noticed.wait(UNWINDING)
        with suppress(Exception):
            self.abort()
        if not (self._noticed.wait(UNWINDING) or self._ended.is_set()):
            os.kill(os.getpid(), signal.SIGTERM)
        if not (self._noticed.wait(LAST_RESORT) or self._ended.is_set()):
            with suppress(Exception):
                print(f"runner: {self.reason}", file=sys.stderr, flush=True)
            os._exit(2)
        self._ended.set()


def _within(seconds: float, ask: Callable[[], T]) -> T | None:
    """What a request to the store gives; None if it fails or takes longer: behind a cut cable nobody answers."""
    answers: list[T] = []

    def work() -> None:
        with suppress(Exception):
            answers.append(ask())

    thread = threading.Thread(target=work, name="peers", daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


_watchdog: PeerWatchdog | None = None


def watch(watchdog: PeerWatchdog) -> None:
    """Watch the other processes of this launch until `announce_end`."""
    global _watchdog
    _watchdog = watchdog
    watchdog.start()


def announce_end(failure: str = "", number: int | None = None, of_another: bool = False) -> None:
    """This process ends, as planned or for a reason; see `PeerWatchdog.announce_end`."""
    if _watchdog is not None:
        _watchdog.announce_end(failure, number, of_another)


def failure_reason() -> str:
    """Why another process of this launch has ended or is lost; empty if none is."""
    return _watchdog.failure_reason() if _watchdog is not None else ""


def acknowledge_failure() -> None:
    """Say that this process ends, perhaps because another one has, and needs time to save its work."""
    failure_reason()


def has_peers() -> bool:
    """Whether this process watches others."""
    return _watchdog is not None


def explain_lost_connection(error: BaseException) -> str:
    """What to say where an error is due to another process that is gone; empty if it is not, or nobody knows.

    It gives way to what that process has said itself, and to what others know.
    """
    text = " ".join(str(error).split())
    is_lost = isinstance(error, RuntimeError) and any(each in text for each in CONNECTION_LOST)
    is_lost = is_lost or any(base.__name__ == "DistError" for base in type(error).__mro__)
    if not is_lost and not (_watchdog and _watchdog.reason):
        return ""
    hosts = [
        host for address, host in (_watchdog.hosts if _watchdog else {}).items() if f"[{address}]" in text
    ]
    return failure_reason() or EXITED.format(where=f" on {hosts[0]}" if hosts else "")


def peer_signal() -> int | None:
    """The signal that asked another process of this launch to stop, if that is why this one ends."""
    return _watchdog.signal if _watchdog is not None else None
