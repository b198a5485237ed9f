"""A simulation of many workers that compute the features of one store on a shared file server, and of hosts that die.

The rules are those of `runner/features/work_sharing.py` and `claims.py`: images are divided into parts by the first
bits of their digests; a worker claims parts by files, reads the claims of all others, computes what is missing, and
touches its claims. A claim that was not touched for the time of the lease is removed by whoever sees it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

from benchmarks.support.events import Process, SharedServer, Simulation, Wait
from benchmarks.support.lease_settings import (
    CREATE,
    LISTING,
    PROBE,
    READ,
    RELEASE,
    REMOVE,
    TOUCH,
    WRITE,
    LeaseResult,
    LeaseSettings,
)
from runner.features import shard_store, work_sharing

MANY = 500
"""Parts, of which so few are claimed that the next free one is near."""


@dataclass
class _Part:
    """Images whose digests begin with the same bits. They are computed in their order."""

    images: float
    stored: float = 0.0
    """Images with features in the store."""
    history: list[tuple[float, float]] = field(default_factory=list)
    """Times, and `stored` from then on."""


@dataclass
class _Host:
    """A host that stops at a time: it dies, or freezes and goes on."""

    stops_at: float = math.inf
    up_at: float = math.inf
    dies: bool = False


@dataclass
class _Worker:
    number: int
    host: _Host
    life: int = 0
    """How often it has died."""
    parts: list[int] = field(default_factory=list)
    """What it has claimed."""
    seen: int = 0
    """Shards whose headers it has read."""
    image_seconds: float | None = None
    """Seconds that an image took in the last round."""
    idle_since: float = math.inf
    """When it first found nothing to claim."""

    @property
    def token(self) -> tuple[int, int]:
        """In its claims."""
        return self.number, self.life


@dataclass
class _Claim:
    token: tuple[int, int]
    touched: float


class LeaseSimulation:
    """Simulates until all features are stored."""

    def __init__(self, settings: LeaseSettings) -> None:
        self.settings = settings
        self.random = random.Random(settings.seed)  # noqa: S311 (not for cryptography)
        self.simulation = Simulation()
        self.server = SharedServer(self.simulation, settings.server_rate, settings.latency)
        self.parts = [_Part(settings.images / settings.parts) for _ in range(settings.parts)]
        self.hosts = [_Host() for _ in range(settings.hosts)]
        self.visible = set(range(settings.parts))
        """Parts that a listing shows as incomplete."""
        self.claims: dict[int, _Claim] = {}
        self.result = LeaseResult(0.0, settings.ideal, 0.0, 0.0, 0, 0, 0.0, 0)
        self._shards = 0
        self._first_end = 0.0
        """No claim ends before."""

    def run(self, limit: float = 1e7) -> LeaseResult:
        """Simulate. Raises RuntimeError if it takes more than `limit` simulated seconds."""
        settings, result = self.settings, self.result
        if settings.deaths_per_host_hour + settings.freezes_per_host_hour:
            for host in self.hosts:
                self.simulation.start(self._stop_again_and_again(host))
        for number in range(settings.workers):
            worker = _Worker(number, self.hosts[number % settings.hosts])
            self.simulation.start(self._work(worker), self.random.random())
        self.simulation.run(limit)
        result.stored = sum(part.stored for part in self.parts)
        result.operations = self.server.operations
        return result

    def _work(self, worker: _Worker) -> Process:
        """What a worker does until nothing is missing: `SharedWork.next`, and the computation."""
        request = self.server.request
        while True:
            yield from self._wait_until_up(worker)
            yield request(len(worker.parts) * RELEASE + self._refresh(worker))
            self._release(worker)
            if not self.visible:
                self.result.ended = self.simulation.now
                return
            yield request(self._look_at_claims())
            ended = self._remove_ended(worker)
            if ended:
                yield request(ended * REMOVE)
            wanted = self._choose(worker)
            if wanted:
                yield request(len(wanted) * CREATE)
            worker.parts = [number for number in wanted if number not in self.claims]
            for number in worker.parts:
                self.claims[number] = _Claim(worker.token, self.simulation.now)
            if not worker.parts:
                worker.idle_since = min(worker.idle_since, self.simulation.now)
                yield self.random.uniform(0, 2 * work_sharing.POLL)
                continue
            worker.idle_since = math.inf
            self.simulation.start(self._renew(worker, worker.parts), self.settings.renewal)
            yield request(self._look_at_claims() + PROBE + self._refresh(worker))
            yield from self._compute(worker)

    def _compute(self, worker: _Worker) -> Process:
        """Compute and write the claimed parts shard by shard; the host may die or freeze meanwhile."""
        settings, start, own, done = self.settings, self.simulation.now, worker.parts, 0.0
        for number in own:
            part, position = self.parts[number], self._listed(number)
            while position < part.images:
                shard = min(
                    settings.shard_images,
                    part.images - position,
                    shard_store.SHARD_SECONDS * settings.images_per_second,
                )
                spent = yield from self._spend(worker, shard / settings.images_per_second)
                self.result.computed += spent * settings.images_per_second
                if spent < shard / settings.images_per_second:
                    worker.parts, worker.seen, worker.image_seconds = [], 0, None
                    worker.life += 1
                    return
                position += shard
                self._store(number, position)
                done += shard
        worker.image_seconds = (self.simulation.now - start) / done if done else None

    def _spend(self, worker: _Worker, seconds: float) -> Generator[Wait, None, float]:
        """Compute for so long; pauses while the host is frozen. Returns less if the host died after that time."""
        left, host = seconds, worker.host
        while self.simulation.now + left >= host.stops_at:
            usable = max(0.0, host.stops_at - self.simulation.now)
            dies = host.dies
            yield usable
            left -= usable
            if dies:
                return seconds - left
            yield from self._wait_until_up(worker)
        yield left
        return seconds

    def _renew(self, worker: _Worker, parts: list[int]) -> Process:
        """Touch the claims of a round as long as it lasts and the host is alive."""
        token = worker.token
        while worker.parts is parts and worker.token == token:
            if self.simulation.now >= worker.host.stops_at:
                if worker.host.dies:
                    return
                yield from self._wait_until_up(worker)
            yield self.server.request(TOUCH * len(parts))
            for number in parts:
                if (claim := self.claims.get(number)) is not None and claim.token == token:
                    claim.touched = self.simulation.now
            yield self.settings.renewal

    def _wait_until_up(self, worker: _Worker) -> Process:
        while self.simulation.now >= worker.host.stops_at:
            yield max(1e-3, worker.host.up_at - self.simulation.now)

    def _stop_again_and_again(self, host: _Host) -> Process:
        """A host stops and comes back until all is stored."""
        settings, result = self.settings, self.result
        deaths, freezes = settings.deaths_per_host_hour, settings.freezes_per_host_hour
        while True:
            delay = self.random.expovariate((deaths + freezes) / 3600)
            host.dies = self.random.random() < deaths / (deaths + freezes)
            pause = settings.reboot if host.dies else settings.frozen
            host.stops_at = self.simulation.now + delay
            host.up_at = host.stops_at + pause
            yield delay
            if not self.visible:
                host.stops_at = math.inf
                return
            result.deaths += host.dies
            result.freezes += not host.dies
            yield pause

    def _refresh(self, worker: _Worker) -> int:
        """Operations to list the store and read what is new in it."""
        if not self.settings.reads_each_shard:
            return LISTING + READ
        new, worker.seen = self._shards - worker.seen, self._shards
        return LISTING + READ * new

    def _look_at_claims(self) -> int:
        """Operations to see what others have claimed, and whether those still live."""
        return PROBE + LISTING + READ * len(self.claims) * self.settings.reads_each_claim

    def _choose(self, worker: _Worker) -> list[int]:
        """Parts that a worker tries to claim."""
        start = self.random.randrange(len(self.parts))
        # Claims of complete parts are about to be given up.
        count = max(0, len(self.visible) - len(self.claims))
        images = self.settings.images / len(self.parts)
        holders = len({claim.token for claim in self.claims.values()})
        limit = work_sharing.images_at_once(count * images, holders, worker.image_seconds)
        count = max(1, int(limit / images + 1e-9))
        if len(self.visible) < MANY:
            free: Iterable[int] = self.visible - self.claims.keys()
            free = sorted(free, key=lambda number: (number < start, number))
        else:
            near = itertools.chain(range(start, len(self.parts)), range(start))
            free = (number for number in near if number in self.visible and number not in self.claims)
        return [*itertools.islice(free, count)]

    def _release(self, worker: _Worker) -> None:
        for number in worker.parts:
            if (claim := self.claims.get(number)) is not None and claim.token == worker.token:
                del self.claims[number]
        worker.parts = []

    def _remove_ended(self, worker: _Worker) -> int:
        """Remove claims that were not touched for the time of the lease: how many."""
        now, lease = self.simulation.now, self.settings.lease
        if now < self._first_end:
            return 0
        ended = [number for number, claim in self.claims.items() if now - claim.touched > lease]
        for number in ended:
            waited = now - max(worker.idle_since, self.claims.pop(number).touched)
            self.result.longest_wait = max(self.result.longest_wait, waited)
        self._first_end = lease + min((claim.touched for claim in self.claims.values()), default=now)
        return len(ended)

    def _listed(self, number: int) -> float:
        """Images of a part that a listing shows."""
        latest = self.simulation.now - self.settings.listing_lag
        history: Iterable[tuple[float, float]] = reversed(self.parts[number].history)
        return next((stored for when, stored in history if when <= latest), 0.0)

    def _store(self, number: int, position: float) -> None:
        """Write a shard, after which the images of a part up to a position are stored."""
        part = self.parts[number]
        self._shards += 1
        self.simulation.start(self._write())
        if position <= part.stored:
            return  # another worker has stored them already
        part.stored = position
        part.history.append((self.simulation.now, position))
        if part.stored >= part.images:
            self.result.seconds = self.simulation.now
            self.simulation.start(self._show_complete(number), self.settings.listing_lag)

    def _show_complete(self, number: int) -> Process:
        self.visible.discard(number)
        return
        yield 0.0

    def _write(self) -> Process:
        yield self.server.request(WRITE)
