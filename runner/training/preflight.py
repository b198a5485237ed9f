"""Checks of an experiment before processes are launched."""

from __future__ import annotations

from runner.config.schema import Experiment
from runner.config.validation import check_weights
from runner.data.manifest import Manifest, build_manifest
from runner.evaluation.metrics import METRICS, shown_metrics
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.text import printable


def check(experiment: Experiment, terminal: Terminal, objective: str = "") -> Manifest:
    """Check weights, images and metrics, and return the images. New ones are scanned, and the scan is saved.

    Args:
        experiment: What to check.
        terminal: Shows the progress of a scan.
        objective: Metric that a study optimizes.

    Raises `UserError` for what cannot work.
    """
    check_weights(experiment.model)
    manifest = build_manifest(experiment, terminal)
    for setting, name in (("train.best", experiment.train.best), ("--objective", objective)):
        if name:
            check_metric(setting, name, len(manifest.classes))
    return manifest


def check_workers(workers: int, runs: int, processes: int, on_cpu: bool) -> None:
    """Raise `UserError` if runs cannot be trained side by side.

    Args:
        workers: How many at a time.
        runs: How many there are.
        processes: Of the launch.
        on_cpu: Whether they compute on the CPU.
    """
    if workers > 1 and runs == 1:
        raise UserError(
            f"--workers {workers} trains several runs side by side, but there is one; add --repeat K or"
            " --split.folds K."
        )
    if workers > 1 and not on_cpu:
        raise UserError(
            f"--workers {workers} is for the CPU, but there is a GPU; leave --workers out, or set"
            " ACCELERATE_USE_CPU=true."
        )
    if workers > 1 and processes > 1:
        raise UserError(
            f"--workers {workers} trains runs side by side, -n {processes} trains one run on several processes; choose"
            " one of them."
        )


def warn_about_images(manifest: Manifest, terminal: Terminal) -> None:
    """Print which images are left out, and what makes labels or scores weak."""
    for file in manifest.rejected:
        terminal.warn(f"left out {printable(file.path)}, which {file.error}")
    for remark in manifest.remarks:
        terminal.warn(remark)


def warn_about_statistics(experiment: Experiment, terminal: Terminal) -> None:
    """Print that the folds of an experiment cannot share their features, if its normalization forbids it."""
    if experiment.model.normalize == "statistics":
        terminal.warn(
            "model.normalize=statistics: each fold has the statistics of its own training images, so that features are"
            " computed again for each fold; with what the weights expect (--model.normalize weights, or an enum as"
            " VGG16_Weights.IMAGENET1K_V1) all folds share them"
        )


def check_metric(setting: str, name: str, classes: int) -> None:
    """Check that models of so many classes can differ in the metric that a setting names. Raises `UserError`."""
    metric = METRICS[name]
    if classes < metric.min_classes:
        *others, last = (each.name for each in shown_metrics(classes))
        raise UserError(
            f"{setting} is {name}, but {metric.label} is the same for every model of {classes} classes; choose"
            f" {', '.join(others)} or {last}."
        )
