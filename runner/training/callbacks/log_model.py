"""Logs and registers the best model of a finished run."""

from __future__ import annotations

from runner.evaluation.predictions import Predictions
from runner.serving.packaging import SelectedEpoch, log_model
from runner.tracking.tracker import Tracker
from runner.training.callbacks.base import Callback
from runner.training.results import RunResult
from runner.training.setup import Setup


class LogModelCallback(Callback):
    """Logs and registers the best model, if `tracking.model` is on. For rank 0 only.

    Args:
        setup: The run.
        tracker: Where to log the model.
    """

    def __init__(self, setup: Setup, tracker: Tracker) -> None:
        self.setup = setup
        self.tracker = tracker

    def on_test_end(self, result: RunResult, predictions: Predictions) -> None:
        """Log the model."""
        setup, best = self.setup, result.best_epoch
        selected = SelectedEpoch(best.number, best.val.to_dict(), best.val.metrics("val"))
        log_model(setup.experiment, setup.model, setup.manifest, setup.loader, selected, self.tracker)
