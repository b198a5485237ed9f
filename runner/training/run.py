"""A run: set an experiment up, train, and evaluate the best and the last model on the test split."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator

from runner.config.schema import Experiment
from runner.config.tree import as_tree
from runner.data.transforms import EVALUATION_VIEW, view_of_epoch
from runner.evaluation.metrics import scores_from_logits
from runner.evaluation.predictions import Predictions
from runner.models.checkpoint import frozen_digest
from runner.tracking.interrupted_runs import STATE_FOLDER, RunRecord
from runner.tracking.tracker import Tracker
from runner.training.callbacks.base import Callback
from runner.training.callbacks.checkpoint import CheckpointCallback
from runner.training.callbacks.console import ConsoleCallback
from runner.training.callbacks.gallery import GalleryCallback
from runner.training.callbacks.log_model import LogModelCallback
from runner.training.callbacks.run_record import RunRecordCallback
from runner.training.callbacks.snapshot import SnapshotCallback
from runner.training.callbacks.tracking import TrackingCallback
from runner.training.error_translation import translate_errors
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.loop import fit
from runner.training.results import EpochResult, RunResult
from runner.training.resume import ResumePoint, check_same_data, data_identity
from runner.training.setup import Setup, SharedSetup, prepare
from runner.training.summary import print_start
from runner.utils.console import Terminal


def train(
    experiment: Experiment,
    accelerator: Accelerator,
    tracker: Tracker,
    terminal: Terminal,
    start: ResumePoint | None = None,
    shared: SharedSetup | None = None,
) -> RunResult:
    """Run an experiment.

    Every process calls this function; on ranks other than 0, `tracker` and `terminal` do nothing.

    Args:
        experiment: What to run.
        accelerator: Device, precision and processes.
        tracker: Logs the run.
        terminal: Shows progress.
        start: Where an interrupted run continues; None: a new run.
        shared: What it shares with other runs; None: nothing.

    Raises `UserError` as `prepare` and `fit` do, and if a run cannot be resumed with these images or weights.
    """
    start = start or ResumePoint(as_tree(experiment))
    is_main = accelerator.is_main_process
    state_folder = tracker.local_folder(STATE_FOLDER) if is_main else None
    record = RunRecordCallback(
        state_folder, RunRecord(tracker.name, start.requested, parent_id=start.parent_id)
    )

    with translate_errors(experiment, accelerator):
        with record.during_setup(is_new=not start.run_id):
            setup = prepare(experiment, accelerator, terminal, shared)
        frozen = frozen_digest(setup.model) if is_main else ""
        identity = data_identity(setup, frozen)
        check_same_data(start, setup, identity, terminal)

        tracking = TrackingCallback(setup, tracker)
        tracking.log_start(start)
        print_start(setup, setup.reserve_space(), terminal)
        record.resolve(setup.experiment, identity["manifest"], identity["weights"])
        checkpoints = CheckpointCallback(setup, tracker, frozen)
        callbacks: list[Callback] = [checkpoints, tracking, ConsoleCallback(terminal)]
        if is_main:
            callbacks += [GalleryCallback(setup, tracker), LogModelCallback(setup, tracker)]
        snapshots = SnapshotCallback(
            state_folder,
            experiment.checkpoints,
            saved_with=list(callbacks),
            run_values=identity,
            resume_from=start.snapshot,
            is_branch=bool(start.branch_of),
        )
        callbacks += [record, snapshots]
        history = fit_setup(setup, callbacks, terminal)

        result, predictions = _test(setup, checkpoints, history)
        for callback in callbacks:
            callback.on_test_end(result, predictions)
        tracker.log_metrics(snapshots.metrics())
    return result


def fit_setup(setup: Setup, callbacks: Sequence[Callback], terminal: Terminal) -> list[EpochResult]:
    """Train on the training split and validate on the validation split. The test split is not read.

    Raises what `fit` raises.
    """
    data = fit_data(setup)
    return fit(setup.experiment, setup.model, data, setup.accelerator, callbacks, terminal)


def fit_data(setup: Setup) -> FitData:
    """The training and the validation split of a setup."""
    views, manifest = setup.experiment.augment.views, setup.manifest
    train = LabeledFeatures(
        lambda epoch: setup.features_at(epoch).get("train", view_of_epoch(epoch, views)),
        manifest.labels("train"),
    )
    val = LabeledFeatures(
        lambda epoch: setup.features_at(epoch).get("val", EVALUATION_VIEW), manifest.labels("val")
    )
    return FitData(train, val, setup.batch_size, setup.products)


def _test(
    setup: Setup, checkpoints: CheckpointCallback, history: Sequence[EpochResult]
) -> tuple[RunResult, Predictions]:
    """Test the last and the best model: the only place where the test split is read, after training.

    Returns the result of the run, and the predictions of the best model, whose weights the model has now.
    """
    features, labels = setup.features.get("test", EVALUATION_VIEW), setup.manifest.labels("test")
    last = setup.inference().logits(features, len(labels))
    checkpoints.load_best()
    best = setup.inference().logits(features, len(labels))
    predictions = Predictions.of_split(setup.manifest, "test", best)
    on_fold = predictions if setup.manifest.fold == "test" else None
    if setup.manifest.fold == "val":
        features = setup.features.get("val", EVALUATION_VIEW)
        logits = setup.inference().logits(features, len(setup.manifest.labels("val")))
        on_fold = Predictions.of_split(setup.manifest, "val", logits)
    scores = scores_from_logits(best, labels), scores_from_logits(last, labels)
    return RunResult(tuple(history), *scores, on_fold), predictions
