"""TODO."""

from __future__ import annotations

from runner.config.schema import Experiment
from runner.config.validation import check_weights
from runner.data.manifest import build_manifest
from runner.utils.console import Terminal


def check(experiment: Experiment, terminal: Terminal) -> None:
    """Refuse what cannot work: weights and data. Scans new images, and remembers the scan.

    Raises `UserError`.
    """
    check_weights(experiment.model)
    build_manifest(experiment, terminal)
