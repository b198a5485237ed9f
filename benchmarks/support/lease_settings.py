"""What a simulation of workers that share a feature store is given, and what comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from runner.features import claims, work_sharing

PROBE, LISTING, READ, CREATE, RELEASE, TOUCH, REMOVE, WRITE = 2, 1, 1, 3, 2, 2, 3, 2
"""Operations at the file server: to ask its clock (a file is made and removed), to list a folder, to read a claim or
the header of a shard, to make a claim (a file, a link, the file removed), to give one up, to touch one, to remove one
that has ended, to write a shard. A test counts the runner's."""


@dataclass(frozen=True)
class LeaseSettings:
    """What is simulated. Times are in seconds, rates per second unless they say otherwise."""

    workers: int = 1_000
    hosts: int = 125
    images: int = 10_000_000
    images_per_second: float = 25.0
    """Of a worker."""
    shard_images: int = 1_820
    """Images in a shard of `SHARD_BYTES`."""
    part_images: int = 256
    """Images in a part, if there are not more than 2^max_splits parts."""
    max_splits: int = work_sharing.MAX_SPLITS
    lease: float = claims.LEASE
    renewal: float = claims.RENEWAL
    deaths_per_host_hour: float = 0.0
    freezes_per_host_hour: float = 0.0
    frozen: float = 60.0
    """How long a frozen host does nothing. Then it goes on."""
    reboot: float = 300.0
    """Until the workers of a dead host begin again."""
    server_rate: float = 20_000.0
    """Operations that the file server does."""
    latency: float = 0.0005
    """Seconds of an operation."""
    listing_lag: float = 0.0
    """How much later a shard is seen than written, although the runner asks for a fresh listing."""
    reads_each_shard: bool = True
    """Whether each worker reads the header of each new shard; else one file is the index of all."""
    reads_each_claim: bool = True
    """Whether each worker opens the claim of each other; else the listing tells what is claimed and when."""
    seed: int = 0

    @property
    def parts(self) -> int:
        """As `work_sharing` divides the images."""
        return 2 ** min(self.max_splits, int(math.log2(max(1.0, self.images / self.part_images))))

    @property
    def ideal(self) -> float:
        """Seconds if all workers computed all the time."""
        return self.images / (self.workers * self.images_per_second)


@dataclass
class LeaseResult:
    """What came out."""

    seconds: float
    """Until all features were stored."""
    ideal: float
    computed: float
    """Images computed, over all workers."""
    stored: float
    """Images in the store at the end."""
    deaths: int
    freezes: int
    longest_wait: float
    """The longest time that a worker with nothing to do waited for a claim that was then removed, since it was touched
    last: for a dead or frozen host."""
    operations: int
    """At the file server."""
    ended: float = 0.0
    """When the last worker had seen that all is stored."""

    @property
    def twice(self) -> float:
        """Images computed more than once, or lost with a host before they were written."""
        return self.computed - self.stored

    @property
    def lost(self) -> float:
        """Share of the workers' time that was not used."""
        return 1 - self.ideal / self.seconds

    @property
    def operations_per_second(self) -> float:
        """At the file server, until the last worker had ended."""
        return self.operations / self.ended
