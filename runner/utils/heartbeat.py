"""A function that a thread calls again and again, to show others that this process is alive."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Heartbeat:
    """Calls a function at intervals, from a thread that does not keep the process alive.

    Args:
        beat: The function. It raises nothing.
        interval: Seconds between two calls; the first comes one interval after the start.
    """

    def __init__(self, beat: Callable[[], object], interval: float) -> None:
        self.beat = beat
        self.interval = interval
        self._stopped: threading.Event | None = None

    def start(self) -> None:
        """Start the calls, unless they were started already."""
        if self._stopped is None:
            self._stopped = threading.Event()
            threading.Thread(target=self._run, args=(self._stopped,), name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """No call begins after this; one may still be running."""
        if self._stopped is not None:
            self._stopped.set()
            self._stopped = None

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(self.interval):
            self.beat()
