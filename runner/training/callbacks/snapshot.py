"""Writes snapshots of a training, and resumes from one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from runner.config.schema import CheckpointsConfig
from runner.training.callbacks.base import Callback
from runner.training.fit_state import FitState, saved_history
from runner.training.snapshot import Snapshot, restoring

MIN_INTERVAL = 10.0
"""Seconds between two snapshots with `checkpoints.minutes=auto`, or more …"""
MAX_TIME_SHARE = 0.01
"""… so that writing them takes at most this share of the time."""


class SnapshotCallback(Callback):
    """Decides when a snapshot is due, writes it, and restores one before training.

    `sync.StepSync` calls `is_due` and `write` between two steps, when all processes have agreed. Put it last in the
    list: at the end of an epoch the other callbacks have then done their work.

    Args:
        folder: Where snapshots are written; None on ranks other than 0.
        settings: How often to write them, and how many to keep.
        saved_with: Callbacks whose state is saved and restored too.
        run_values: JSON-like values to save with each snapshot.
        resume_from: Snapshot to restore before training, on every process.
        is_branch: It is of a run with other settings.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: CheckpointsConfig,
        saved_with: Sequence[Callback] = (),
        run_values: dict[str, Any] | None = None,
        resume_from: Snapshot | None = None,
        is_branch: bool = False,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.saved_with = saved_with
        self.run_values = run_values or {}
        self.resume_from = resume_from
        self.is_branch = is_branch
        self.seconds = 0.0
        """Time spent on writing snapshots."""
        self.count = 0
        self._last_time = time.monotonic()
        self._last_position = (-1, -1)
        self._auto_interval = MIN_INTERVAL

    def on_fit_start(self, state: FitState) -> None:
        """Restore the snapshot to resume from."""
        if self.resume_from is None:
            return
        with restoring():
            history = saved_history(self.resume_from)
            for callback in self.saved_with:
                callback.restore(self.resume_from, history)
        state.restore(self.resume_from, self.is_branch)

    def is_due(self, epochs_done: int = 0) -> bool:
        """Whether it is time for a snapshot. Always False on ranks other than 0.

        Args:
            epochs_done: Number of finished epochs; 0 within an epoch.
        """
        if self.folder is None:
            return False
        every, minutes = self.settings.epochs, self.settings.minutes
        if epochs_done and every and epochs_done % every == 0:
            return True
        if minutes == "never":
            return False
        interval = self._auto_interval if minutes == "auto" else float(minutes) * 60
        return time.monotonic() - self._last_time >= interval

    def write(self, state: FitState) -> None:
        """Write a snapshot on rank 0, unless there is no consistent state to save. Raises OSError."""
        if self.folder is None or (captured := state.capture()) is None:
            return
        self._save(self.folder, captured)
        self._last_position = (captured.epoch, captured.batch)

    def on_exception(self, state: FitState, error: BaseException) -> None:
        """Save the last step if it is consistent and not saved yet."""
        with suppress(Exception):  # such as a full disk: the error that ended training is the one to report
            if (state.epoch, state.batch) != self._last_position:
                self.write(state)

    def metrics(self) -> dict[str, float]:
        """What snapshots cost, as it is logged."""
        return {"system/checkpoints/seconds": self.seconds, "system/checkpoints/count": self.count}

    def _save(self, folder: Path, captured: Snapshot) -> None:
        start = time.monotonic()
        captured.values.update(self.run_values)
        for callback in self.saved_with:
            for name, value in callback.state_dict().items():
                (captured.tensors if isinstance(value, Tensor) else captured.values)[name] = value
        captured.save(folder, self.settings.keep)
        self._last_time = time.monotonic()
        seconds = self._last_time - start
        self.seconds += seconds
        self.count += 1
        self._auto_interval = max(MIN_INTERVAL, seconds / MAX_TIME_SHARE)
