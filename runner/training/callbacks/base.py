"""Callbacks: what happens beside training, at fixed points of the training loop.

To add one, write a subclass of `Callback` in this package and put it into the list in `training/run.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.evaluation.predictions import Predictions
from runner.training.fit_state import FitState
from runner.training.results import EpochResult, RunResult
from runner.training.snapshot import Snapshot


class Callback:
    """Hooks of the training loop. Every process calls them, in the order of the list; by default they do nothing.

    There is no hook for steps: on cached features a step takes about a millisecond.
    """

    def on_fit_start(self, state: FitState) -> None:
        """Before the first epoch."""

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        """After an epoch was validated; the model has the weights of its end."""

    def on_fit_end(self, state: FitState) -> None:
        """After the last epoch."""

    def on_exception(self, state: FitState, error: BaseException) -> None:
        """Training was interrupted or failed. Callbacks are called in reverse order, so that the last saves first."""

    def teardown(self, state: FitState) -> None:
        """Training is over, normally or by an exception."""

    def on_test_end(self, result: RunResult, predictions: Predictions) -> None:
        """The run is finished; the model has the weights of the best epoch, which made the test predictions."""

    def state_dict(self) -> dict[str, Any]:
        """What a snapshot saves for this callback: tensors and JSON-like values by name."""
        return {}

    def restore(self, snapshot: Snapshot, history: Sequence[EpochResult]) -> None:
        """Continue from a snapshot, whose finished epochs are `history`. The weights are restored after this."""
