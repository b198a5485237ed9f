"""Logs Grad-CAM pictures of a few validation images during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.evaluation.predictions import Predictions
from runner.explain.gallery import Gallery
from runner.tracking.tracker import Tracker
from runner.training.callbacks.base import Callback
from runner.training.fit_state import FitState
from runner.training.results import EpochResult, RunResult
from runner.training.setup import Setup
from runner.training.snapshot import Snapshot


class GalleryCallback(Callback):
    """Draws the pictures when they are due, and at the best epoch. For rank 0 only.

    Args:
        setup: The run, before training: the first pictures show the untrained model.
        tracker: Where to log the pictures.
    """

    def __init__(self, setup: Setup, tracker: Tracker) -> None:
        val, settings = setup.manifest.select("val"), setup.experiment.tracking
        self.gallery = Gallery(setup.model, val, setup.loader, settings, tracker)

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        """Draw the pictures if they are due."""
        if self.gallery.due(result.number):
            self.gallery.show(result.number, result.sample_results)

    def on_test_end(self, result: RunResult, predictions: Predictions) -> None:
        """Draw the pictures of the best epoch."""
        best = result.best_epoch
        self.gallery.show(best.number, best.sample_results)

    def state_dict(self) -> dict[str, Any]:
        """Which images are shown."""
        return {"gallery": self.gallery.indices}

    def restore(self, snapshot: Snapshot, history: Sequence[EpochResult]) -> None:
        """Show the same images."""
        self.gallery.select(snapshot.values["gallery"])
