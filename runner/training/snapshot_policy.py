"""When a run's snapshots are taken, and what they hold beside the fit: enough to go on with the whole run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from runner.config.schema import Checkpoints
from runner.training.snapshot import Snapshot

LEAST = 10.0
"""Seconds between two snapshots by `checkpoints.minutes=auto`, or more …"""
SHARE = 0.01
"""… so that writing them takes at most this share of the time."""

More = Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
"""Tensors and JSON-like values of the run, beside those of its fit."""


class Keeping:
    """Takes the snapshots of one run (a `fit.Keeper`).

    Args:
        folder: Where they go; None on ranks beyond the first.
        settings: How often, and how many stay.
        more: Asked at each one.
        resumed: The one that the run goes on from.
        changed: It is of another experiment.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: Checkpoints,
        more: More,
        resumed: Snapshot | None = None,
        changed: bool = False,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.more = more
        self.resumed = resumed
        self.changed = changed
        self.seconds = 0.0
        """What all of them took."""
        self.count = 0
        self._last = time.monotonic()
        self._wait = LEAST

    def due(self, ended: int) -> bool:
        """Whether it is time for one, `ended` epochs having ended (0: it is mid-epoch)."""
        if self.folder is None:
            return False
        every, minutes = self.settings.epochs, self.settings.minutes
        if ended and every and ended % every == 0:
            return True
        if minutes == "never":
            return False
        wait = self._wait if minutes == "auto" else float(minutes) * 60
        return time.monotonic() - self._last >= wait

    def keep(self, snapshot: Snapshot) -> None:
        """Write one. Raises OSError."""
        assert self.folder is not None  # noqa: S101 (for types: it is rank 0's)
        began = time.monotonic()
        tensors, about = self.more()
        whole = replace(snapshot, tensors={**snapshot.tensors, **tensors}, about={**snapshot.about, **about})
        whole.save(self.folder, self.settings.keep)
        self._last = time.monotonic()
        took = self._last - began
        self.seconds += took
        self.count += 1
        self._wait = max(LEAST, took / SHARE)

    def metrics(self) -> dict[str, float]:
        """For the run's records."""
        return {"checkpoints/seconds": self.seconds, "checkpoints/count": self.count}
