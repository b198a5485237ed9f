"""Agreement of all processes, between two steps, on whether to write a snapshot and whether to stop.

Only rank 0 knows when a snapshot is due, and a stop signal may reach a single process. But all processes must act after
the same step, or one would wait for the others for ever. Agreeing is a collective operation that takes longer than a
step on cached features, so it happens about twice a second, after a step that all processes know in advance.
"""

from __future__ import annotations

import time

from accelerate.utils import gather_object

from runner.training.callbacks.snapshot import SnapshotCallback
from runner.training.fit_state import FitState
from runner.utils.signals import DeferredSignals

INTERVAL = 0.5
"""Seconds between two agreements."""
MAX_STEPS = 1000
"""Maximum number of steps between them."""


class StepSync:
    """Agrees on snapshots and on stopping during one training.

    Args:
        state: The training.
        snapshots: Writes the snapshots; None: none are written.
    """

    def __init__(self, state: FitState, snapshots: SnapshotCallback | None) -> None:
        self.state = state
        self.snapshots = snapshots
        self._alone = state.accelerator.num_processes == 1
        self._steps_between = 1
        self._steps = 0
        """Since the last agreement."""
        self._last_time = time.monotonic()

    def after_step(self, signals: DeferredSignals) -> None:
        """Agree if it is time to. Raises what a stop signal's handler raises, and `DivergedError`."""
        self._steps += 1
        if self._steps < self._steps_between:
            # A process alone can act at once.
            due = self._alone and self.snapshots is not None and self.snapshots.is_due()
            if not (due or (self._alone and signals.received is not None)):
                return
        now = time.monotonic()
        seconds_per_step = max((now - self._last_time) / self._steps, 1e-6)
        self._steps_between = max(1, min(MAX_STEPS, int(INTERVAL / seconds_per_step)))
        self._steps, self._last_time = 0, now
        self.agree(signals)

    def agree(self, signals: DeferredSignals, epochs_done: int = 0) -> None:
        """Check that the loss is finite, write a snapshot if one is due, and stop if any process was asked to.

        Args:
            signals: Stop signals that this process has received.
            epochs_done: Number of finished epochs; 0 within an epoch. A snapshot is written after the last epoch.
        """
        state, snapshots = self.state, self.snapshots
        state.train_step.check_finite()
        due = snapshots is not None and (
            snapshots.is_due(epochs_done) or (epochs_done > 0 and state.finished)
        )
        votes = gather_object([(signals.received, due, self._steps_between)])
        _, due, self._steps_between = votes[0]  # rank 0 decides, so that all agree again after the same step
        stop_signal = next((received for received, _, _ in votes if received is not None), None)
        if snapshots is not None and (due or stop_signal is not None):
            state.train_step.sums.gather()
            snapshots.write(state)
        if stop_signal is not None:
            state.accelerator.wait_for_everyone()  # whoever ends first would have rank 0 ended while it writes
            signals.deliver(stop_signal)
