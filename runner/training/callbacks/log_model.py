"""Logs and registers the best model of a finished run."""

from __future__ import annotations

import shutil

from runner.data.transforms import EVALUATION_VIEW
from runner.evaluation.predictions import Predictions
from runner.serving import packaging
from runner.tracking.model_registry import ModelInfo, registered_name
from runner.tracking.shared_files import frozen_folder
from runner.tracking.tracker import Tracker
from runner.training.callbacks.base import Callback
from runner.training.model_card import model_card
from runner.training.results import RunResult
from runner.training.setup import Setup


class LogModelCallback(Callback):
    """Logs and registers the best model, if `tracking.model` is on. For rank 0 only.

    Args:
        setup: The run. Its model has the weights of the best epoch at the end.
        tracker: Where to log the model.
    """

    def __init__(self, setup: Setup, tracker: Tracker) -> None:
        self.setup = setup
        self.tracker = tracker

    def on_test_end(self, result: RunResult, predictions: Predictions) -> None:
        """Log the model, unless it is logged already. The first validation image becomes its input example."""
        setup, tracker, best = self.setup, self.tracker, result.best_epoch
        experiment, manifest = setup.experiment, setup.manifest
        if not experiment.tracking.model or tracker.has_logged("model"):
            return
        inference = packaging.inference_settings(experiment)
        origin = {"run": tracker.run_id, "manifest": manifest.digest}
        description = packaging.describe(
            setup.model, inference, epoch=best.number, val=best.val.to_dict(), **origin
        )
        example = next(setup.loader.batches(manifest.select("val")[:1], EVALUATION_VIEW, [[0]]))[0]
        folder = tracker.local_folder("model")
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete one of an interrupted run
        shared = frozen_folder(experiment.tracking.root)
        name = registered_name(experiment.name) if experiment.tracking.register else ""
        card = model_card(setup, result, predictions, tracker.run_id, name)
        packaging.save_model(setup.model, description, example, folder, shared, card)
        metrics = best.val.metrics("val")
        score = f"val/{experiment.train.best}"
        tracker.log_model(folder, ModelInfo(name, metrics, score, manifest.digest, step=best.number))
