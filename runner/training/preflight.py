"""Checks of an experiment before processes are launched."""

from __future__ import annotations

from runner.config.schema import Experiment
from runner.config.validation import check_weights
from runner.data.manifest import build_manifest
from runner.utils.console import Terminal


def check(experiment: Experiment, terminal: Terminal) -> None:
    """Check weights and images. New images are scanned, and the scan is saved.

    Raises `UserError` for what cannot work.
    """
    check_weights(experiment.model)
    build_manifest(experiment, terminal)
