"""What a process of a study works with: the study, and its MLflow run, the parent of its trials' runs.

All workers and commands of a study share the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from optuna.trial import TrialState

from runner.config.effective import decisive_settings
from runner.config.identity import Identity
from runner.config.tree import as_yaml
from runner.study import storage as storages
from runner.study.options import Role
from runner.study.outages import DatabaseAwayError
from runner.study.plan import Plan
from runner.study.study import STOPPING_PATIENCE, Study
from runner.study.trials import owner_of
from runner.tracking.journal import Journal
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.moved_records import DATABASE
from runner.tracking.process_identity import ProcessIdentity, is_earlier_boot, this_host
from runner.tracking.server_outages import wait_for_server
from runner.tracking.sessions import TrackingSession
from runner.tracking.tracker import Tracker
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.file_systems import is_sqlite, sqlite_path
from runner.utils.redaction import error_line, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")


class StudyRun(Tracker):
    """Name and id of the study's run, as the parent of the trials' runs. The id is empty on ranks other than 0."""

    def __init__(self, run_id: str, name: str) -> None:
        self.run_id = run_id
        self.name = name


@dataclass(frozen=True)
class StudySession:
    """What a process of a study works with."""

    plan: Plan
    study: Study | None
    """None on ranks other than 0."""
    accelerator: Accelerator
    tracking: TrackingSession
    """Starts runs in MLflow."""
    study_run: StudyRun
    """Their parent."""
    terminal: Terminal

    def on_rank_0(self, function: Callable[[Study], T]) -> T:
        """What a function of the study returns on rank 0, on every rank. All processes call it."""
        result: T = broadcast_object_list([function(self.study) if self.study is not None else None])[0]
        return result


@contextmanager
def open_session(plan: Plan, accelerator: Accelerator, role: Role) -> Iterator[StudySession]:
    """Open the study and its MLflow run for a process, or launch of several.

    A process without a coordinator ends the study's run with the block: as FINISHED, FAILED after an error, or KILLED
    when it was stopped.

    Raises `UserError` if the study or its run cannot be used.
    """
    terminal = Terminal(enabled=accelerator.is_main_process)
    outages = Terminal(enabled=False) if role.is_worker else terminal  # the coordinator of workers shows them
    tracking = TrackingSession(plan.baseline, accelerator, outages)
    study, study_run = None, StudyRun("", plan.name)
    if accelerator.is_main_process:
        study = Study(plan, tracking.server.root, worked_before=role.has_coordinator)
        study_run = open_study_run(study, tracking, owns=not role.has_coordinator)
    status = "KILLED"
    try:
        yield StudySession(plan, study, accelerator, tracking, study_run, terminal)
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        if study is not None and not role.has_coordinator:
            close_study_run(study, tracking, study_run, status)


def open_study_run(study: Study, tracking: TrackingSession, owns: bool = True) -> StudyRun:
    """The study's run, marked as running. The first process that works on the study creates it.

    Args:
        study: The study.
        tracking: Starts the run.
        owns: Whether this process is responsible for the run. Workers leave that to their coordinator.

    Raises `UserError` if the study's runs are in another MLflow store.
    """
    with study.lock:
        run_id = _known_run(study, tracking)
    if owns or not run_id:
        run_id = _while_locked(study, tracking, lambda: _take_run(study, tracking, owns))
    return StudyRun(run_id, study.plan.name)


def close_study_run(study: Study, tracking: TrackingSession, study_run: StudyRun, status: str) -> None:
    """End the study's run with a status. If others still run trials or write the report, one owns it from now on.

    A process that was stopped or has failed does not wait long, and raises no error of its own.
    """
    client, is_finished = _client(tracking), status == "FINISHED"

    def close() -> None:
        study.requeue_stale_trials()
        owners = (*_running_workers(study), _reporter(tracking.server, study_run.run_id))
        if owner := next((owner for owner in owners if owner is not None and owner.alive), None):
            _set_owner(client, study_run.run_id, owner)
        else:
            client.set_terminated(study_run.run_id, status)

    with study.outage.limit(math.inf if is_finished else STOPPING_PATIENCE):
        try:
            _while_locked(study, tracking, close, None if is_finished else STOPPING_PATIENCE)
        except DatabaseAwayError:
            # It was reported before; whoever works on the study later opens the run again.
            with suppress(Exception):
                client.set_terminated(study_run.run_id, status)
        except Exception as error:
            if is_finished:
                raise
            tracking.terminal.warn(f"the study's run could not be ended in MLflow: {error_line(error)}")


def _while_locked(
    study: Study, tracking: TrackingSession, request: Callable[[], T], patience: float | None = None
) -> T:
    """Let a function that asks MLflow change the study. While the server is away, the lock is left to others.

    Raises `UserError` after `patience` seconds without an answer.
    """
    client = _client(tracking)

    def ask() -> T:
        client.search_experiments(max_results=1)
        with study.lock:
            return request()

    return wait_for_server(tracking.server, ask, patience)


def _known_run(study: Study, tracking: TrackingSession) -> str:
    """The id of the study's run; empty if it has none. Needs the lock.

    Raises `UserError` if the study's runs are in another MLflow store.
    """
    known = study.optuna.user_attrs
    run_id = str(known.get("run", ""))
    if "records" in known:
        moved = run_id and _moved_along(study, known["records"], tracking.server)
        if moved and _exists(run_id, _client(tracking)):
            study.optuna.set_user_attr("records", [redact(tracking.server.uri), this_host()])
        else:
            _check_same_store(study, known["records"], tracking.server)
    return run_id


def _take_run(study: Study, tracking: TrackingSession, owns: bool) -> str:
    """Mark the study's run as running, or create it. Returns its id. Needs the lock."""
    client = _client(tracking)
    run_id = _known_run(study, tracking)
    if run_id and not owns:  # another process has just created it
        return run_id
    if run_id and _exists(run_id, client):
        _set_owner(client, run_id, ProcessIdentity.current())
    else:
        if run_id:
            tracking.terminal.warn(f"the study's run {run_id[:8]} was deleted; creating a new one")
        run_id = _create(study, tracking)
        study.optuna.set_user_attr("records", [redact(tracking.server.uri), this_host()])
        study.optuna.set_user_attr("run", run_id)
    client.update_run(run_id, status="RUNNING")
    return run_id


def _running_workers(study: Study) -> list[ProcessIdentity | None]:
    return [owner_of(trial) for trial in study.trials() if trial.state == TrialState.RUNNING]


def _reporter(server: TrackingServer, run_id: str) -> ProcessIdentity | None:
    """Another process that logs to the study's run at present, because it writes the report."""
    journal = Journal.load(server.journals / run_id)
    if journal is None or not journal.alive or journal.owner.tags() == ProcessIdentity.current().tags():
        return None
    return journal.owner


def _create(study: Study, tracking: TrackingSession) -> str:
    plan = study.plan
    about = {
        "study.space": ", ".join(plan.space.settings),
        "study.objective": plan.objective,
        "study.seeds": plan.seeds,
        **({"study.folds": plan.folds} if plan.folds else {}),
        "study.storage": redact(plan.storage),
    }
    with tracking.start_run(f"study {plan.name}", system_metrics=False) as tracker:
        identity = Identity.on_images(plan.baseline, plan.manifest)
        tracker.set_tags({"runner.study": plan.name, **identity.tags()})
        tracker.log_params({**decisive_settings(plan.baseline), **about})
        tracker.log_text("baseline.yaml", as_yaml(plan.baseline))
    return tracker.run_id


def _client(tracking: TrackingSession) -> MlflowClient:
    assert tracking.client is not None  # noqa: S101 (for types: rank 0 has one)
    return tracking.client


def _set_owner(client: MlflowClient, run_id: str, owner: ProcessIdentity) -> None:
    for name, value in owner.tags().items():
        client.set_tag(run_id, name, value)


def _exists(run_id: str, client: MlflowClient) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _moved_along(study: Study, stored: list[str], server: TrackingServer) -> bool:
    """Whether the study lies in the folder of its run records, which was moved or copied."""
    storage, uri = study.plan.storage, stored[0]
    with_records = server.embedded and storage == storages.default_storage(server.root)
    return with_records and uri != redact(server.uri) and is_sqlite(uri) and sqlite_path(uri).name == DATABASE


def _is_this_machine(host: str) -> bool:
    """Whether a stored host is this machine, in this boot or an earlier one. Earlier versions stored no boot."""
    return host == this_host() or is_earlier_boot(host) or this_host().startswith(f"{host}/")


def _check_same_store(study: Study, stored: list[str], server: TrackingServer) -> None:
    """Raises `UserError` if the study's runs are elsewhere. Addresses are compared and shown without passwords."""
    # Whoever reads the storage can write to it, so what it holds is redacted, too.
    stored_uri, uri, host = redact(stored[0]), redact(server.uri), stored[1]
    runs = f"The runs of the study {study.plan.name!r} are in"
    if is_sqlite(server.uri) and not _is_this_machine(host) and not storages.is_local(study.plan.storage):
        raise UserError(
            f"{runs} a database file on {host}; several hosts need an MLflow server: start one there, and set"
            " MLFLOW_TRACKING_URI for every worker."
        )
    if stored_uri != uri:
        raise UserError(
            f"{runs} {stored_uri}, not in {uri}; set tracking.root or MLFLOW_TRACKING_URI accordingly, or choose"
            " another --study."
        )
