"""Deals the features that a store lacks out to the runs that need them, so that each is computed once.

On one host a run claims everything, and others wait for its results. In a cache that several hosts share, it claims a
part at a time, so that all of them compute: the images whose digests begin with some bits.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import numpy as np

from runner.features.claims import Claim, Claims
from runner.features.keys import FeatureKeys
from runner.features.shard_store import ShardStore

POLL = 0.2
"""Mean seconds between two looks at what others compute."""
ROUND_SECONDS = 20.0
"""Work that is claimed at once, at the speed of the last round: what others may have to wait for in the end."""
LAST_SECONDS = 5.0
"""What takes no longer is not divided any further: each round costs some tenths of a second."""
MAX_SPLITS = 10
"""2^this is the largest number of parts."""


class SharedWork:
    """What a store lacks of some features. A context manager, which gives up its claims at the end.

    Args:
        store: Of the features.
        keys: The features that are needed.
        part: Images in a part, about; None: everything is one part.
        on_wait: Called with the name of a host before this process first waits for one there.
    """

    def __init__(
        self, store: ShardStore, keys: FeatureKeys, part: int | None, on_wait: Callable[[str], None]
    ) -> None:
        self.store = store
        self.keys = keys
        self.part = part
        self.on_wait = on_wait
        self.claims = Claims(store.folder / "claims")
        self._length: int | None = None
        """Bits by which the parts differ: as many for the whole work, so that parts stay what they are."""
        self._taken = np.zeros(len(keys), bool)
        """What was computed here; it is not tried again."""
        self._round_images = 0
        """Images of the current round."""
        self._has_waited = False

    def __enter__(self) -> SharedWork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.claims.release()

    def next(self, seconds: float = 0.0) -> np.ndarray | None:
        """Indices of keys to compute now; the features of the call before must be stored.

        Empty: others compute what is left; ask again. None: nothing is left. Raises OSError.

        Args:
            seconds: That computing the features of the call before took.
        """
        self.claims.release()
        seconds_per_image = seconds / self._round_images if self._round_images else None
        self._round_images = 0
        self.store.refresh()
        while len(missing := self._missing()):
            self.store.create()
            parts = self._parts(missing)
            others = self.claims.others(self.keys.view)
            free = self._free(parts, others)
            wanted = _parts_at_once(free, len({claim.owner for claim in others}), seconds_per_image)
            claimed = self.claims.claim(self.keys.view, map(self._bits, wanted)) if wanted else []
            if not claimed:
                time.sleep(random.uniform(0, 2 * POLL))  # noqa: S311 (so that two do not collide again)
                return np.empty(0, np.int64)
            # What others have stored since the last look is not computed again.
            self.store.refresh(uncached=True)
            missing = self._missing()
            own = missing[
                np.isin(self._parts(missing), [part for part in wanted if self._bits(part) in claimed])
            ]
            if len(own):
                self._taken[own] = True
                self._round_images = len(own)
                return own
            self.claims.release()
        return None

    def _missing(self) -> np.ndarray:
        missing = self.store.missing(self.keys)
        return missing[~self._taken[missing]]

    def _parts(self, indices: np.ndarray) -> np.ndarray:
        """The part of each key: the number that the first bits of its image's digest are."""
        first = np.ascontiguousarray(self.keys.digests[indices, :4]).view(">u4")[:, 0].astype(np.int64)
        if self._length is None:
            self._length = _prefix_length(first, self.part)
        return first >> (32 - self._length)

    def _bits(self, part: int) -> str:
        """The bits that the digests of a part begin with."""
        return f"{part:0{self._length}b}" if self._length else ""

    def _free(self, parts: np.ndarray, others: Sequence[Claim]) -> dict[int, int]:
        """Images of each part that none of the others has claimed, in an order that other processes hardly share."""
        numbers, images = np.unique(parts, return_counts=True)
        needed: dict[int, int] = dict(zip(numbers.tolist(), images.tolist(), strict=True))
        holders = {part: self._holder(others, part) for part in needed}
        free = [part for part, holder in holders.items() if holder is None]
        if not free and not self._has_waited:
            self._has_waited = True
            self.on_wait(next(holder.host_name for holder in holders.values() if holder))
        start = random.randrange(len(free)) if free else 0  # noqa: S311 (no secret)
        return {part: needed[part] for part in [*free[start:], *free[:start]]}

    def _holder(self, others: Sequence[Claim], part: int) -> Claim | None:
        bits = self._bits(part)
        return next((claim for claim in others if claim.overlaps(self.keys.view, bits)), None)


def images_at_once(free: float, others: int, seconds_per_image: float | None) -> float:
    """Images to claim for a round: half of this run's share, as in factoring (Hummel et al. 1992, CACM 35(8)).

    Args:
        free: Images that nobody has claimed.
        others: Runs that compute as well.
        seconds_per_image: In the last round; None: the first round is one part, to learn it.
    """
    if seconds_per_image is None:
        return 0.0
    if free * seconds_per_image <= LAST_SECONDS:
        return free
    return min(free / (2 * (1 + others)), ROUND_SECONDS / seconds_per_image)


def _parts_at_once(free: Mapping[int, int], others: int, seconds_per_image: float | None) -> list[int]:
    """The first parts with about as many images as `images_at_once` allows: one at least, if there is one.

    Args:
        free: Images by part.
        others: See `images_at_once`.
        seconds_per_image: See `images_at_once`.
    """
    images = np.cumsum([*free.values()])
    limit = images_at_once(sum(free.values()), others, seconds_per_image)
    return [*free][: max(1, int(np.searchsorted(images, limit, side="right")))]


def _prefix_length(first: np.ndarray, part: int | None) -> int:
    """Bits that divide digests, of which these are the first 32 bits, into parts of about `part`, if that is given.

    The bits that all of them begin with come first: they may be a part of another work already.
    """
    if part is None:
        return 0
    common = 32 - int(first.min() ^ first.max()).bit_length()
    splits = min(MAX_SPLITS, int(math.log2(max(1.0, len(first) / part))))
    return min(32, common + splits)
