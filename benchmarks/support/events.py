"""A simulation by discrete events, whose processes are generators, and the two things that they wait for."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Generator

Wait = float | Callable[["Process"], None]
"""What a process yields: seconds to sleep, or a function that gets the process and starts it again later."""
Process = Generator[Wait, None, None]


class Simulation:
    """Runs processes in the order of their events. Simultaneous events have the order in which they were scheduled."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the start."""
        self._events: list[tuple[float, int, Process]] = []
        self._numbers = itertools.count()

    def start(self, process: Process, delay: float = 0.0) -> None:
        """Start a process, or let it go on, in `delay` seconds."""
        heapq.heappush(self._events, (self.now + delay, next(self._numbers), process))

    def run(self, limit: float = math.inf) -> None:
        """Run until all processes have ended. Raises RuntimeError if that is not so after `limit` simulated seconds."""
        while self._events:
            self.now, _, process = heapq.heappop(self._events)
            if self.now > limit:
                raise RuntimeError(f"the simulated processes have not ended after {limit:,.0f} s")
            try:
                wait = next(process)
            except StopIteration:
                continue
            if callable(wait):
                wait(process)
            else:
                self.start(process, wait)


class SharedServer:
    """A server that clients ask for operations, one after the other; it serves all clients at the same rate.

    Args:
        simulation: It belongs to this simulation.
        rate: Operations a second, over all clients.
        latency: Seconds that an operation takes at least.
    """

    def __init__(self, simulation: Simulation, rate: float, latency: float) -> None:
        self.simulation = simulation
        self.rate = rate
        self.latency = latency
        self.operations = 0
        self._clients: list[tuple[float, int, float, Process]] = []
        """When each will have got its operations, counted in operations of a client; its place; its operations."""
        self._numbers = itertools.count()
        self._served = 0.0
        """Operations that a client has got that was there from the start."""
        self._since = 0.0
        self._timers = 0

    def request(self, operations: float) -> Wait:
        """Wait until so many operations were done, one after the other."""

        def enter(process: Process) -> None:
            self._advance()
            entry = (self._served + operations, next(self._numbers), operations, process)
            heapq.heappush(self._clients, entry)
            self._schedule()

        return enter

    def _speed(self) -> float:
        return min(1 / self.latency, self.rate / max(1, len(self._clients)))

    def _advance(self) -> None:
        self._served += (self.simulation.now - self._since) * self._speed()
        self._since = self.simulation.now

    def _schedule(self) -> None:
        self._timers += 1
        if self._clients:
            delay = max(0.0, self._clients[0][0] - self._served) / self._speed()
            self.simulation.start(self._wake(self._timers), delay)

    def _wake(self, timer: int) -> Process:
        if timer == self._timers:  # else a client has come or gone since
            self._advance()
            first = self._clients[0][0]
            self._served = max(self._served, first)
            while self._clients and self._clients[0][0] <= self._served + 1e-9:
                _, _, operations, process = heapq.heappop(self._clients)
                self.operations += round(operations)
                self.simulation.start(process)
            self._schedule()
        return
        yield 0.0


class QueueLock:
    """A lock that waiting processes get in turn. A wait longer than a turn starts again at the end of the queue.

    Args:
        simulation: It belongs to this simulation.
        turn: Seconds.
    """

    def __init__(self, simulation: Simulation, turn: float = math.inf) -> None:
        self.simulation = simulation
        self.turn = turn
        self._held = False
        self._waiting: list[tuple[float, Process]] = []
        """Since when each process waits, in their order."""

    def acquire(self) -> Wait:
        """Wait for the lock."""

        def enter(process: Process) -> None:
            if self._held:
                self._waiting.append((self.simulation.now, process))
            else:
                self._held = True
                self.simulation.start(process)

        return enter

    def release(self) -> None:
        """Give it to the process that is next."""
        if not self._waiting:
            self._held = False
            return
        now, turn = self.simulation.now, self.turn
        place = 0
        if now - self._waiting[0][0] >= turn:  # whose present turn began first
            place = max(range(len(self._waiting)), key=lambda each: (now - self._waiting[each][0]) % turn)
        self.simulation.start(self._waiting.pop(place)[1])
