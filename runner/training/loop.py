"""The training loop: epochs of optimizer steps on features, each followed by validation.

Where features come from does not matter here: from the cache, or computed from images when everything trains.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from runner.config.schema import Experiment
from runner.evaluation.inference import Inference
from runner.evaluation.metrics import Scores, compute_scores
from runner.features.sources import SplitFeatures
from runner.models.transfer_model import TransferModel
from runner.training.batches import epoch_batches, micro_batches
from runner.training.callbacks.base import Callback
from runner.training.callbacks.snapshot import SnapshotCallback
from runner.training.divergence import check_finite
from runner.training.fit_data import FitData
from runner.training.fit_state import FitState
from runner.training.results import EpochResult, is_best, is_better
from runner.training.solvers.head import solve_head, use_refitted_head
from runner.training.sync import StepSync
from runner.utils import peers
from runner.utils.console import Terminal
from runner.utils.errors import DivergedError
from runner.utils.signals import defer_signals

AfterStep = Callable[[int], None]
"""Called after each optimizer step with its number of images."""


def fit(
    experiment: Experiment,
    model: TransferModel,
    data: FitData,
    accelerator: Accelerator,
    callbacks: Sequence[Callback] = (),
    terminal: Terminal | None = None,
) -> list[EpochResult]:
    """Train a model and validate it after each epoch. Returns the results of all epochs, resumed ones included.

    Args:
        experiment: Its settings `train`, `optim`, `schedule` and `seed` count.
        model: Not wrapped, on the accelerator's device, with its final frozen weights.
        data: Features and labels.
        accelerator: Device, precision and processes. Every process calls this function.
        callbacks: What happens beside training, in this order.
        terminal: Shows progress.

    Raises `DivergedError` if the loss is not finite, and what the callbacks raise.
    """
    state = FitState(experiment, model, data.train.labels, accelerator)
    try:
        for callback in callbacks:
            callback.on_fit_start(state)
    except BaseException:  # there is nothing to save: a snapshot may be half restored
        _close(state, callbacks)
        raise
    sync = StepSync(state, next((each for each in callbacks if isinstance(each, SnapshotCallback)), None))
    images, epochs = len(data.train.labels), experiment.train.max_epochs
    terminal = terminal or Terminal(enabled=False)
    is_solved = experiment.train.solver != "gradient"
    try:
        with (
            nullcontext(lambda count: None)
            if is_solved
            else terminal.progress("train", epochs * images, period=images)
        ) as advance:
            if state.train_step.steps_taken:
                advance(min(state.train_step.steps_taken * experiment.train.batch_size, epochs * images))
            while not state.finished:
                _run_epoch(state, data, callbacks, sync, advance, terminal)
        state.keep_average()
        for callback in callbacks:
            callback.on_fit_end(state)
    except BaseException as error:
        peers.acknowledge_failure()
        for callback in reversed(callbacks):
            callback.on_exception(state, error)
        raise
    finally:
        _close(state, callbacks)
    return state.history


def _close(state: FitState, callbacks: Sequence[Callback]) -> None:
    # A signal in the middle of an import, say of Matplotlib, would look like a failure of it.
    with defer_signals():
        state.train_step.close()
        for callback in callbacks:
            callback.teardown(state)


def _run_epoch(
    state: FitState,
    data: FitData,
    callbacks: Sequence[Callback],
    sync: StepSync,
    advance: AfterStep,
    terminal: Terminal,
) -> None:
    """Train for an epoch, or for what is left of it, and validate."""
    state.start_timer()
    epoch, images = state.epoch, len(state.labels) - state.images_done
    lr, group_lrs = state.epoch_lr, state.epoch_group_lrs
    if state.experiment.train.solver != "gradient":
        loaded, lr = time.monotonic(), 0.0
        train_loss, train_top1 = solve_head(state, data, terminal)
    else:
        features = state.load(data.train, epoch) if images else None
        loaded = time.monotonic()
        with defer_signals() as signals:

            def after_step(count: int) -> None:
                advance(count)
                sync.after_step(signals)

            train_loss, train_top1 = _train(state, features, after_step)
    trained = time.monotonic()
    check_finite("training", train_loss, epoch, state.train_step.lr_setting)
    validated = _validate_both(state, data, epoch)
    scores = validated.scores
    use_refitted_head(state)
    with defer_signals() as signals:
        lr_reduced = state.advance_epoch(scores, validated.hits)
        result = EpochResult(
            number=epoch + 1,
            train_loss=train_loss,
            train_top1=train_top1,
            val=scores,
            lr=lr,
            group_lrs=group_lrs,
            seconds=state.epoch_seconds,
            images_per_second=images / (trained - loaded),
            best=is_best(scores, state.history, state.experiment.train.best),
            lr_reduced=lr_reduced,
            feature_seconds=state.feature_seconds,
            skipped_steps=state.train_step.skipped,
            averaged=validated.averaged,
            others=validated.others,
            sample_results=validated.sample_results,
        )
        state.record(result)
        for callback in callbacks:
            callback.on_epoch_end(state, result)
        if sync.snapshots is not None:
            sync.agree(signals, epochs_done=state.epoch)


def _train(state: FitState, features: SplitFeatures | None, after_step: AfterStep) -> tuple[float, float]:
    """Take the steps that are left of the epoch.

    Returns its mean loss and accuracy over the images of all processes whose step was not skipped.
    """
    settings, step, accelerator = state.experiment.train, state.train_step, state.accelerator
    seed = state.experiment.seed.train
    batches = epoch_batches(state.labels, settings.batch_size, settings.sampling, seed, state.epoch)
    parts = [
        part
        for batch in batches[state.batch :]
        for part in micro_batches(batch, settings.accumulate, accelerator)
    ]
    state.model.train()
    if features is not None:
        inputs = features.batches(
            [part.indices_with_partner if step.mixes else part.indices for part in parts]
        )
        for micro_batch, values in zip(parts, inputs, strict=True):
            step.forward_backward(values, micro_batch)
            if micro_batch.last:
                step.update()
                after_step(len(micro_batch.batch))
    step.check_finite()
    loss, hits, images = step.sums.reduce()
    if not images:
        raise DivergedError(
            f"Every step of epoch {state.epoch + 1} was skipped (train.nonfinite=skip): training diverged; lower"
            f" {step.lr_setting} or set train.clip."
        )
    return loss / images, hits / images


@dataclass(frozen=True)
class _Validated:
    """The validation of an epoch."""

    scores: Scores
    sample_results: Tensor
    hits: int
    """Correct predictions of the weights that train."""
    averaged: bool = False
    """The scores are those of the weights' average."""
    others: Scores | None = None
    """Of the weights, if the average is better, or of the average."""


def _validate_both(state: FitState, data: FitData, epoch: int) -> _Validated:
    """Validate the weights, and their average if there is one: the scores are those of the better."""
    scores, sample_results = _validate(state, data, epoch)
    average = state.train_step.average
    if average is None:
        return _Validated(scores, sample_results, scores.hits1)
    average.after_epoch(epoch)
    if not average.exists(epoch):
        return _Validated(scores, sample_results, scores.hits1)
    with average.applied():
        of_average, average_results = _validate(state, data, epoch)
    # All processes have the same scores but for the last digits, and must save the same weights.
    if broadcast_object_list([is_better(of_average, scores, state.experiment.train.best)])[0]:
        return _Validated(of_average, average_results, scores.hits1, averaged=True, others=scores)
    return _Validated(scores, sample_results, scores.hits1, others=of_average)


def _validate(state: FitState, data: FitData, epoch: int) -> tuple[Scores, Tensor]:
    """Scores and sample results of the validation split."""
    inference = Inference(state.model, state.accelerator, data.batch_size)
    sample_results = inference.sample_results(state.load(data.val, epoch), data.val.labels)
    scores = compute_scores(sample_results, data.val.labels, len(state.model.spec.classes))
    check_finite("validation", scores["loss"], epoch, state.train_step.lr_setting)
    return scores, sample_results
