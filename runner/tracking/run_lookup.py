"""Finding runs in MLflow by id, name or "latest", and downloading their artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.tracking.model_registry import MODEL_TAG
from runner.utils.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SHORTEST_ID = 4
"""Leading characters of a run's id that may stand for it, if no other id starts with them."""


@dataclass(frozen=True)
class RunInfo:
    """A run: its id, its name and its status (FINISHED, FAILED, …)."""

    run_id: str
    name: str
    status: str

    @classmethod
    def of(cls, run: Run) -> RunInfo:
        """Of an MLflow run."""
        return cls(run.info.run_id, run.info.run_name or "", run.info.status)


def find_run(client: MlflowClient, reference: str) -> RunInfo:
    """The run with an id, the start of an id, or a name; `latest` is the newest.

    Raises `UserError` if there is none, or more than one.
    """
    runs = [RunInfo.of(run) for run in search_runs(client)]
    if not runs:
        raise UserError("There are no runs yet; ./launch.sh trains one.")
    if reference == "latest":
        return runs[0]
    matching = [run for run in runs if reference in (run.run_id, run.name)]
    if not matching and len(reference) >= SHORTEST_ID:
        matching = [run for run in runs if run.run_id.startswith(reference)]
    if not matching:
        raise UserError(
            f"There is no run {reference!r}; give a run's id, its first {SHORTEST_ID} or more characters, its name,"
            f" or latest (the newest is {runs[0].run_id[:8]}, {runs[0].name!r})."
        )
    if len(matching) > 1:
        raise UserError(
            f"{len(matching)} runs match {reference!r}; give the id of one: {matching[0].run_id}, …"
        )
    return matching[0]


def newest_run_with_model(client: MlflowClient) -> RunInfo:
    """The newest finished run that logged a model. Raises `UserError` if there is none."""
    runs = search_runs(
        client, f"attributes.status = 'FINISHED' and tags.`{MODEL_TAG}` LIKE 'm-%'", max_results=1
    )
    if not runs:
        raise UserError(
            "There is no model yet: no finished run has logged one; ./launch.sh trains the first."
        )
    return RunInfo.of(runs[0])


def download_artifact(client: MlflowClient, run: RunInfo, path: str, folder: Path) -> Path:
    """Download an artifact (a file or a folder) into `folder`. Raises `UserError` if the run has none."""
    try:
        return Path(client.download_artifacts(run.run_id, path, str(folder)))
    except Exception as error:  # each kind of artifact store raises its own
        raise UserError(
            f"Run {run.run_id[:8]} ({run.name}, {run.status}) has no {path} ({' '.join(str(error).split())[:200]})."
        ) from None


def search_runs(client: MlflowClient, condition: str = "", max_results: int = 50_000) -> list[Run]:
    """The MLflow runs of all experiments that meet an MLflow filter, the newest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    order = ["attributes.start_time DESC"]
    return list(client.search_runs(experiments, condition, max_results=max_results, order_by=order))
