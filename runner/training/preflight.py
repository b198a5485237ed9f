"""Checks of an experiment before processes are launched."""

from __future__ import annotations

from runner.config.schema import Experiment
from runner.config.validation import check_weights
from runner.data.manifest import Manifest, build_manifest
from runner.utils.console import Terminal


def check(experiment: Experiment, terminal: Terminal) -> Manifest:
    """Check weights and images, and return the images. New ones are scanned, and the scan is saved.

    Raises `UserError` for what cannot work.
    """
    check_weights(experiment.model)
    return build_manifest(experiment, terminal)
