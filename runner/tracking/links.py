"""Addresses of MLflow's pages."""

from __future__ import annotations

from runner.tracking.mlflow_server import TrackingServer
from runner.utils.redaction import redact

UI_PORT = 5000
"""The port of `runner ui`, unless another is given."""
MODEL_TRAINING = "?workflowType=machine_learning"
"""Opens MLflow's pages for training; without it they may be those for language models."""


def pages(server: TrackingServer) -> str:
    """The address of the pages of a store: its own if it is a server, else that of `runner ui`."""
    return redact(server.uri) if server.uri.startswith("http") else f"http://127.0.0.1:{UI_PORT}"


def experiment_page(pages: str, experiment_id: str) -> str:
    """The address of an experiment's runs."""
    return f"{pages}/#/experiments/{experiment_id}/runs{MODEL_TRAINING}"


def run_page(pages: str, experiment_id: str, run_id: str) -> str:
    """The address of a run."""
    return f"{pages}/#/experiments/{experiment_id}/runs/{run_id}{MODEL_TRAINING}"
