"""The MLflow run of a study: the parent of its trials' runs. All workers and commands of a study share it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.trial import TrialState

from runner.config.tree import as_tree, as_yaml, flatten
from runner.study import storage as storages
from runner.study.study import Study
from runner.study.trials import owner_of
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.process_identity import ProcessIdentity, this_host
from runner.tracking.sessions import TrackingSession
from runner.tracking.tracker import Tracker
from runner.utils.errors import UserError
from runner.utils.redaction import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient


class StudyRun(Tracker):
    """Name and id of the study's run, as the parent of the trials' runs. The id is empty on ranks other than 0."""

    def __init__(self, run_id: str, name: str) -> None:
        self.run_id = run_id
        self.name = name


def open_study_run(study: Study, tracking: TrackingSession, owns: bool = True) -> StudyRun:
    """The study's run, marked as running. The first process that works on the study creates it.

    Args:
        study: The study.
        tracking: Starts the run.
        owns: Whether this process is responsible for the run. Workers leave that to their coordinator.

    Raises `UserError` if the study's runs are in another MLflow store.
    """
    client = _client(tracking)
    with study.lock:
        known = study.optuna.user_attrs
        if "records" in known:
            _check_same_store(study, known["records"], tracking.server)
        run_id = known.get("run")
        if run_id and not owns:
            return StudyRun(run_id, study.plan.name)
        if run_id and _exists(run_id, client):
            _set_tags(client, run_id, ProcessIdentity.current().tags())
        else:
            if run_id:
                tracking.terminal.warn(
                    f"the study's run {run_id[:8]} was deleted from MLflow; creating a new one"
                )
            run_id = _create(study, tracking)
            study.optuna.set_user_attr("records", [redact(tracking.server.uri), this_host()])
            study.optuna.set_user_attr("run", run_id)
        client.update_run(run_id, status="RUNNING")
        return StudyRun(run_id, study.plan.name)


def close_study_run(study: Study, tracking: TrackingSession, study_run: StudyRun, status: str) -> None:
    """End the study's run with a status. If other workers still run trials, one of them owns it from now on."""
    client = _client(tracking)
    with study.lock:
        study.requeue_stale_trials()
        for trial in study.trials():
            owner = owner_of(trial)
            if trial.state == TrialState.RUNNING and owner is not None and owner.alive:
                _set_tags(client, study_run.run_id, owner.tags())
                return
        client.set_terminated(study_run.run_id, status)


def _create(study: Study, tracking: TrackingSession) -> str:
    plan = study.plan
    with tracking.start_run(f"study {plan.name}", system_metrics=False) as tracker:
        tracker.set_tags({"runner.study": plan.name})
        tracker.log_params(flatten(as_tree(plan.baseline)))
        tracker.log_params(
            {
                "study.space": ", ".join(plan.space.settings),
                "study.objective": plan.objective,
                "study.seeds": plan.seeds,
                "study.storage": redact(plan.storage),
            }
        )
        tracker.log_text("baseline.yaml", as_yaml(plan.baseline))
    return tracker.run_id


def _client(tracking: TrackingSession) -> MlflowClient:
    assert tracking.client is not None  # noqa: S101 (for types: rank 0 has one)
    return tracking.client


def _set_tags(client: MlflowClient, run_id: str, tags: dict[str, str]) -> None:
    for name, value in tags.items():
        client.set_tag(run_id, name, value)


def _exists(run_id: str, client: MlflowClient) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _check_same_store(study: Study, stored: list[str], server: TrackingServer) -> None:
    """Raises `UserError` if the study's runs are elsewhere. Addresses are compared and shown without passwords."""
    stored_uri, host = (
        redact(stored[0]),
        stored[1],
    )  # whoever reads the storage can write to it, so redact again
    uri = redact(server.uri)
    if server.embedded and host != this_host() and not storages.is_local(study.plan.storage):
        raise UserError(
            f"The runs of the study {study.plan.name!r} are in a database file on {host}; several hosts need an MLflow"
            " server: start one there, and set MLFLOW_TRACKING_URI for every worker."
        )
    if stored_uri != uri:
        raise UserError(
            f"The runs of the study {study.plan.name!r} are in {stored_uri}, not in {uri}; set tracking.root or"
            " MLFLOW_TRACKING_URI accordingly, or choose another --study."
        )
