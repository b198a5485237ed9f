"""Runs that are in MLflow: finding one by what a person calls it, and fetching what it left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.tracking.model_registry import MODEL_TAG
from runner.utils.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHORTEST = 4
"""Characters of a run's id that may stand for it, if no other run's begins so."""


@dataclass(frozen=True)
class Found:
    """A run: its id, name and state (FINISHED, FAILED, …)."""

    run_id: str
    name: str
    status: str


def find(client: MlflowClient, reference: str) -> Found:
    """The run with this id, beginning of an id, or name; `latest` is the newest one.

    Raises `UserError` where there is none, or more than one.
    """
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = [
        Found(run.info.run_id, run.info.run_name or "", run.info.status)
        for run in client.search_runs(
            experiments, max_results=50_000, order_by=["attributes.start_time DESC"]
        )
    ]
    if not runs:
        raise UserError("There are no runs yet; ./launch.sh trains one.")
    if reference == "latest":
        return runs[0]
    matching = [run for run in runs if reference in (run.run_id, run.name)]
    if not matching and len(reference) >= SHORTEST:
        matching = [run for run in runs if run.run_id.startswith(reference)]
    if not matching:
        raise UserError(
            f"There is no run {reference!r}; give a run's id, the first {SHORTEST} or more of its characters, its name,"
            f" or latest (the newest is {runs[0].run_id[:8]}, {runs[0].name!r})."
        )
    if len(matching) > 1:
        raise UserError(
            f"{len(matching)} runs match {reference!r}; give the id of one: {matching[0].run_id}, …"
        )
    return matching[0]


def newest_trained(client: MlflowClient) -> Found:
    """The newest finished run that left a model. Raises `UserError` where there is none."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = client.search_runs(
        experiments,
        f"attributes.status = 'FINISHED' and tags.`{MODEL_TAG}` LIKE 'm-%'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    if not found:
        raise UserError("There is no model yet: no finished run has left one; ./launch.sh trains the first.")
    return Found(found[0].info.run_id, found[0].info.run_name or "", found[0].info.status)


def artifact(client: MlflowClient, run: Found, path: str, folder: Path) -> Path:
    """Fetch an artifact (a file or a folder) into `folder`. Raises `UserError` where the run has none."""
    try:
        return Path(client.download_artifacts(run.run_id, path, str(folder)))
    except Exception as error:  # each kind of artifact store raises its own
        raise UserError(
            f"Run {run.run_id[:8]} ({run.name}, {run.status}) has no {path} ({' '.join(str(error).split())[:200]})."
        ) from None
