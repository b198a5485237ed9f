"""Finding runs in MLflow by id, name or "latest", and downloading their artifacts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.identity import MANIFEST_TAG
from runner.tracking import artifact_store
from runner.tracking.champion import CHAMPION
from runner.tracking.model_registry import registered_name
from runner.utils.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LATEST = "latest"
"""Stands for the run that `latest_run` returns; verbs that need a model use it if they are given none."""
PARENT_TAG = "mlflow.parentRunId"
"""Tag of a run that is part of another: the id of that one."""
ORIGINAL_TAG = "runner.original_run"
"""Tag of a run that was imported: its id where it was trained."""
IMPORTING_TAG = "runner.importing"
"""Tag of a run that is being imported: the id of the first run of its file. One that stays was interrupted."""
MOST_NAMED = 5
"""Runs that a message names."""
PAGE = 1000
"""Runs per request, if all are wanted."""
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


def find_run(client: MlflowClient, reference: str, model: bool = False) -> RunInfo:
    """The run with an id, the start of an id, or a name, or `latest`: see `latest_run`.

    Args:
        client: Of a tracking server.
        reference: The id, name or `latest`.
        model: Whether a registered model would do as well: a message may then offer NAME@champion.

    Raises `UserError` if there is none, or more than one.
    """
    if reference == LATEST:
        return latest_run(client)
    matching = _matching(client, reference)
    if not matching:
        raise UserError(_not_found(client, reference, model))
    if len(matching) > 1:
        some = ", ".join(run.run_id[:8] for run in matching[:MOST_NAMED])
        raise UserError(
            f"{len(matching)} runs match {reference!r}; give the id of one: {some}"
            + (", …" if len(matching) > MOST_NAMED else "")
            + " (./launch.sh runs lists them)."
        )
    return matching[0]


def _not_found(client: MlflowClient, reference: str, model: bool) -> str:
    """Says that there is no such run, and what to give instead; the name of an experiment leads to its runs."""
    newest = search_runs(client, max_results=1)
    if not newest:
        return "There are no runs yet; ./launch.sh trains one."
    experiment = client.get_experiment_by_name(reference)
    of_experiment = experiment and next(
        newest_first(client, page=1, experiments=[experiment.experiment_id]), None
    )
    if experiment and of_experiment:
        champion = _champion(client, reference) if model else ""
        return (
            f"{reference!r} is an experiment, not a run; give {champion + ' or ' if champion else ''}one of its runs:"
            f" the newest is {of_experiment.info.run_id[:8]} (./launch.sh runs lists them)."
        )
    info = RunInfo.of(newest[0])
    return (
        f"There is no run {reference!r}; give a run's id, its first {SHORTEST_ID} or more characters, its name,"
        f" or {LATEST} (the newest run is {info.run_id[:8]}, {info.name!r}; ./launch.sh runs lists them)."
    )


def _champion(client: MlflowClient, experiment: str) -> str:
    """NAME@champion of an experiment; empty if it has none."""
    from mlflow.exceptions import MlflowException

    name = registered_name(experiment)
    try:
        client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        return ""
    return f"{name}@{CHAMPION}"


def _matching(client: MlflowClient, reference: str) -> list[RunInfo]:
    """The runs with an id or a name, or else with this start of an id, here or where it was trained."""
    quote = '"' if "'" in reference else "'"
    if quote in reference:  # a filter of MLflow cannot hold both
        found = [run for run in search_runs(client) if reference in (run.info.run_id, run.info.run_name)]
    else:
        found = search_runs(client, f"attributes.run_name = {quote}{reference}{quote}")
    if len(reference) >= SHORTEST_ID and reference.isalnum():
        # A whole id goes before a name, and a name before the start of an id.
        by_id = search_runs(client, f"attributes.run_id LIKE '{reference}%'")
        found = [run for run in by_id if run.info.run_id == reference] or found or by_id
        found = found or search_runs(client, f"tags.`{ORIGINAL_TAG}` LIKE '{reference}%'")
    return [RunInfo.of(run) for run in found]


def latest_run(client: MlflowClient) -> RunInfo:
    """The newest finished training that is not of a study, of --repeat or of a cross-validation.

    Raises `UserError` if there is none.
    """
    condition = f"attributes.status = 'FINISHED' AND tags.`{MANIFEST_TAG}` LIKE '%'"
    for run in newest_first(client, condition):
        of_several = "runner.study" in run.data.tags or "repeat" in run.data.params
        if not of_several and PARENT_TAG not in run.data.tags:
            return RunInfo.of(run)
    raise UserError(
        "There are no runs yet that have finished, apart from those of studies, of --repeat and of cross-validations"
        " (--split.folds): name one of these (./launch.sh runs --all lists them) or a registered model (NAME@champion),"
        " or train one with ./launch.sh."
    )


def download_artifact(client: MlflowClient, run: RunInfo, path: str, folder: Path) -> Path:
    """Download an artifact (a file or a folder) into `folder`. Raises `UserError` if the run has none."""
    try:
        return Path(client.download_artifacts(run.run_id, path, str(folder)))
    except Exception as error:  # each kind of artifact store raises its own
        label = f"Run {run.run_id[:8]} ({run.name}, {run.status})"
        if problem := artifact_store.explain(error):
            raise UserError(f"{label}: {path} cannot be downloaded: {problem}.") from None
        raise UserError(f"{label} has no {path} ({' '.join(str(error).split())[:200]}).") from None


def search_runs(client: MlflowClient, condition: str = "", max_results: int = 50_000) -> list[Run]:
    """The MLflow runs of all experiments that meet an MLflow filter, the newest first."""
    return list(islice(newest_first(client, condition, min(max_results, PAGE)), max_results))


def newest_first(
    client: MlflowClient, condition: str = "", page: int = 50, experiments: Sequence[str] | None = None
) -> Iterator[Run]:
    """The runs that meet an MLflow filter; they are fetched page by page, as they are needed.

    Args:
        client: Of a tracking server.
        condition: The filter.
        page: Runs per request.
        experiments: Ids of the experiments; None for all.
    """
    if experiments is None:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    token = None
    while True:
        runs = client.search_runs(
            list(experiments),
            condition,
            max_results=page,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        yield from runs
        token = runs.token
        if not token:
            return
