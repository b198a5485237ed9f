"""A simulation of a study whose many workers share a database, with one lock around the start of a trial.

The rules are those of `runner/study/study.py`, `database.py` and `database_lock.py`: a worker that holds the lock looks
for trials whose workers are dead, counts the trials and starts the next one. The time that this takes grows with the
running trials, all of which it reads. A trial without heartbeats counts as lost when it was found silent twice, some
heartbeats apart; a lost one does not count, so that another is started instead.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Generator
from dataclasses import dataclass, field

from benchmarks.support.events import Process, QueueLock, Simulation, Wait
from runner.study import database, database_lock, storage, study

POLL = study.POLL_INTERVAL


@dataclass(frozen=True)
class StudySettings:
    """What is simulated. Times are in seconds."""

    workers: int = 1_000
    trials: int = 3_000
    trial_seconds: float = 600.0
    """Mean; each trial takes between half and one and a half of it."""
    hold: float = 0.05
    """For which a worker holds the lock if no trial runs."""
    hold_per_running: float = 0.0005
    """How much longer, for each running trial."""
    deaths_per_worker_hour: float = 0.0
    returns: float = 300.0
    """Until a dead worker is replaced."""
    dead_holder: float = 30.0
    """Until the database notices that the host of the lock's holder has vanished."""
    heartbeat: float = storage.HEARTBEAT_INTERVAL
    grace: float = storage.HEARTBEAT_GRACE
    turn: float = database_lock.LOCK_TIMEOUT_MS / 1000
    """After which a wait for the lock starts again, at the end of the queue."""
    locked: bool = True
    """Without the lock, workers count and start trials at the same time."""
    seed: int = 0


@dataclass
class StudyResult:
    """What came out."""

    seconds: float = 0.0
    """Until the last trial had ended."""
    ended: float = 0.0
    """Until the last worker had."""
    trials: int = 0
    """Trials that ended with a value."""
    overshot: int = 0
    """Those that are too many."""
    lost: int = 0
    """Trials whose worker died, so that others were started instead."""
    asks: int = 0
    """Times that a worker held the lock."""
    training_seconds: float = 0.0
    """Of the trials that ended with a value."""
    mean_wait: float = 0.0
    """For the lock."""
    longest_wait: float = 0.0
    held: float = 0.0
    """Seconds for which somebody held the lock."""
    peak_running: int = 0

    @property
    def asks_per_second(self) -> float:
        """Over the whole study."""
        return self.asks / self.ended

    @property
    def lock_busy(self) -> float:
        """Share of the study's time for which the lock was held."""
        return self.held / self.ended


@dataclass
class _Trial:
    last_heartbeat: float = math.inf
    """Of a dead worker; infinite while its worker lives."""
    suspected: float = math.inf
    """When it was found silent first."""


@dataclass
class StudySimulation:
    """Simulates a study to its end."""

    settings: StudySettings
    result: StudyResult = field(default_factory=StudyResult)

    def __post_init__(self) -> None:
        self.random = random.Random(self.settings.seed)  # noqa: S311 (not for cryptography)
        self.simulation = Simulation()
        self.lock = QueueLock(self.simulation, self.settings.turn)
        self._running: dict[int, _Trial] = {}
        self._silent: set[int] = set()
        """Running trials whose workers are dead."""
        self._numbers = itertools.count()
        self._started = 0
        self._waits = 0.0

    def run(self, limit: float = 1e8) -> StudyResult:
        """Simulate. Raises RuntimeError if it takes more than `limit` simulated seconds."""
        for _ in range(self.settings.workers):
            self.simulation.start(self._work(), self.random.random())
        self.simulation.run(limit)
        result = self.result
        result.ended = self.simulation.now
        result.mean_wait = self._waits / max(1, result.asks)
        result.overshot = max(0, result.trials - self.settings.trials)
        return result

    @property
    def heartbeats_per_second(self) -> float:
        """At the most, which the database gets outside of the lock."""
        return self.result.peak_running / self.settings.heartbeat

    def _work(self) -> Process:
        """A worker, and those that replace it after its death."""
        settings, idle_since = self.settings, math.inf
        while True:
            dies_in = math.inf
            if settings.deaths_per_worker_hour:
                dies_in = self.random.expovariate(settings.deaths_per_worker_hour / 3600)
            start = self.simulation.now
            yield from self._acquire()
            number = yield from self._ask(start + dies_in)
            if number is None and start + dies_in > self.simulation.now:
                idle_since = min(idle_since, self.simulation.now)
                # Until each other trial has shown a sign of life, or is found dead.
                if not self._silent and self.simulation.now - idle_since >= settings.heartbeat:
                    return
                yield POLL
                continue
            idle_since = math.inf
            if number is not None:
                yield from self._train(number, start + dies_in)
            if self.simulation.now >= start + dies_in:
                yield settings.returns

    def _acquire(self) -> Generator[Wait, None, None]:
        """Wait for the lock, however many have it before."""
        start = self.simulation.now
        if self.settings.locked:
            yield self.lock.acquire()
        waited = self.simulation.now - start
        self._waits += waited
        self.result.asks += 1
        self.result.longest_wait = max(self.result.longest_wait, waited)

    def _ask(self, dies_at: float) -> Generator[Wait, None, int | None]:
        """Start a trial under the lock, unless none is left or the worker dies."""
        settings, start = self.settings, self.simulation.now
        self._look_for_dead()
        has_trials_left = self._started < settings.trials
        hold = settings.hold + settings.hold_per_running * len(self._running)
        number = None
        if start + hold >= dies_at:
            yield max(0.0, dies_at - start) + settings.dead_holder
        else:
            yield hold
            if has_trials_left:
                number = next(self._numbers)
                self._started += 1
                self._running[number] = _Trial()
                self.result.peak_running = max(self.result.peak_running, len(self._running))
        self.result.held += self.simulation.now - start
        if settings.locked:
            self.lock.release()
        return number

    def _train(self, number: int, dies_at: float) -> Process:
        start, result = self.simulation.now, self.result
        seconds = self.settings.trial_seconds * self.random.uniform(0.5, 1.5)
        if start + seconds >= dies_at:
            yield max(0.0, dies_at - start)
            self._running[number].last_heartbeat = self.simulation.now
            self._silent.add(number)
            return
        yield seconds
        del self._running[number]
        result.trials += 1
        result.training_seconds += seconds
        result.seconds = max(result.seconds, self.simulation.now)

    def _look_for_dead(self) -> None:
        """Find silent trials; those that were found before, some heartbeats ago, are lost."""
        now, settings = self.simulation.now, self.settings
        for number in [*self._silent]:
            trial = self._running[number]
            if now - trial.last_heartbeat <= settings.grace:
                continue
            trial.suspected = min(trial.suspected, now)
            if now - trial.suspected > database.SECOND_LOOK_INTERVALS * settings.heartbeat:
                self._silent.discard(number)
                del self._running[number]
                self.result.lost += 1
                self._started -= 1


def shortest_trial(workers: int, hold: float, hold_per_running: float) -> float:
    """Seconds of a trial at which the lock is held all the time: with shorter ones, workers wait for it.

    In that time each worker starts one trial, while all others run.
    """
    return workers * (hold + hold_per_running * workers)
