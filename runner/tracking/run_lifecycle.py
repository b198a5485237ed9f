"""Starts a run and ends it with its true status, whatever happens in between."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.tracking import links
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.mlflow_tracker import MlflowTracker
from runner.tracking.process_identity import ProcessIdentity
from runner.tracking.server_outages import wait_for_server
from runner.tracking.system_metrics import SystemMetricsSampler
from runner.utils import peers
from runner.utils.console import Terminal
from runner.utils.errors import DivergedError, NotResumableError, UserError, user_message
from runner.utils.exit_status import peer_failure
from runner.utils.signals import Interrupted, handle_signals
from runner.utils.text import valid_unicode

if TYPE_CHECKING:
    from mlflow import MlflowClient

CREATION_TAG = "runner.creation"
"""Tag of a run: a token made before the run, by which a run is found whose creation was not confirmed."""
MAX_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_ONE_CREATION = threading.Lock()


@dataclass(frozen=True)
class RunRequest:
    """The run to track.

    Args:
        experiment: Name of the MLflow experiment.
        name: Of the run.
        parent_id: Id of the run that it is a child of; empty if of none.
        system_metrics: Log the use of CPU, memory and GPU.
        run_id: Id of an existing run to log to; empty for a new run.
        resume: That run was interrupted; take over its journal.
    """

    experiment: str
    name: str
    parent_id: str = ""
    system_metrics: bool = False
    run_id: str = ""
    resume: bool = False


@contextmanager
def track_run(
    server: TrackingServer, client: MlflowClient, request: RunRequest, terminal: Terminal
) -> Iterator[MlflowTracker]:
    """A run that ends as FINISHED with the block, as FAILED with the reason after an error, as KILLED when stopped.

    Args:
        server: Its root holds the journal.
        client: Of that server.
        request: The run.
        terminal: Shows outages of the server, and how the run ended.

    Raises `UserError` if another process works on a run that is to be resumed.
    """
    tags = ProcessIdentity.current().tags()
    if request.parent_id:
        tags["mlflow.parentRunId"] = request.parent_id
    if request.run_id:
        run_id = wait_for_server(server, lambda: _existing_run(server, client, request.run_id))
    else:
        run_id = _create_run(server, client, request, tags)
    tracker = _take_over(server, client, request, terminal) if request.resume else None
    sampler: SystemMetricsSampler | None = None
    status, reason, hint = "FAILED", "", ""
    try:
        if tracker is None:
            tracker = MlflowTracker(server, client, run_id, request.name, terminal=terminal)
            if request.run_id:
                tracker.begin_again()
        else:
            tracker.set_tags(tags)
        tracker.link = _link(server, client, run_id)
        if request.system_metrics:
            sampler = SystemMetricsSampler(tracker, tracker.last_step("system/") + 1)
            sampler.start()
        yield tracker
        status = "FINISHED"
    except BaseException as error:
        status, reason = how_it_ended(error)
        if isinstance(error, Interrupted) and status == "KILLED":
            peers.announce_end(reason, error.signal)  # before this process has closed its records
        if request.resume and tracker is not None and isinstance(error, NotResumableError):
            status, reason = tracker.earlier_end
        hint = "" if request.parent_id else _resume_hint(error, run_id)
        raise
    finally:
        with handle_signals(signal.SIG_IGN):
            if sampler is not None:
                sampler.stop()
            try:
                if tracker is None:
                    raise OSError("there is no journal")
                delivered = tracker.end(status, reason, terminal, hint)
                if delivered and status != "FINISHED" and not tracker.deleted:
                    terminal.warn(f"run {run_id[:8]} is {status} in MLflow; partial results are kept there")
            except OSError:  # the disk of the journal is full; that of MLflow may not be
                with suppress(Exception):
                    client.set_terminated(run_id, status)


def _link(server: TrackingServer, client: MlflowClient, run_id: str) -> str:
    """The address of a run's page; empty if there is no server, or if it has just gone away."""
    if server.uri.startswith("http"):
        with suppress(Exception):
            experiment = client.get_run(run_id).info.experiment_id
            return links.run_page(links.pages(server), experiment, run_id)
    return ""


def _existing_run(server: TrackingServer, client: MlflowClient, run_id: str) -> str:
    """The id. Raises `UserError` if the run's artifacts cannot be stored."""
    server.check_artifacts(client, run_id)
    return run_id


def _create_run(
    server: TrackingServer, client: MlflowClient, request: RunRequest, tags: dict[str, str]
) -> str:
    """The id of a new run. Waits for the server; an answer that gets lost does not lead to a second run."""
    tags = {**tags, CREATION_TAG: uuid.uuid4().hex}
    attempts = itertools.count()

    def create() -> str:
        experiment = server.get_or_create_experiment(client, request.experiment)
        if next(attempts):
            of_earlier_attempt = f"tags.`{CREATION_TAG}` = '{tags[CREATION_TAG]}'"
            if runs := client.search_runs([experiment], of_earlier_attempt, max_results=1):
                return str(runs[0].info.run_id)
        with _asking_once():
            run = client.create_run(experiment, tags=tags, run_name=valid_unicode(request.name))
        return str(run.info.run_id)

    return wait_for_server(server, create)


@contextmanager
def _asking_once() -> Iterator[None]:
    """Within the block MLflow does not repeat a request by itself, as it does also with one that creates something."""
    with _ONE_CREATION:
        retries = os.environ.get(MAX_RETRIES)
        os.environ[MAX_RETRIES] = "0"
        try:
            yield
        finally:
            if retries is None:
                del os.environ[MAX_RETRIES]
            else:
                os.environ[MAX_RETRIES] = retries


def _take_over(
    server: TrackingServer, client: MlflowClient, request: RunRequest, terminal: Terminal
) -> MlflowTracker:
    try:
        return MlflowTracker(server, client, request.run_id, request.name, True, terminal)
    except (FileExistsError, FileNotFoundError):
        raise UserError(
            f"Run {request.run_id[:8]} is being resumed by another process already; wait for it, or start a new run"
            " without --resume."
        ) from None


def how_it_ended(error: BaseException) -> tuple[str, str]:
    """Status and reason of a run that an error ended; if another process of the launch failed first, its reason."""
    if (elsewhere := peer_failure()) is not None:
        return "FAILED", elsewhere
    if isinstance(error, Interrupted) and error.peer_exited:
        return "FAILED", str(error)
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return "KILLED", str(error) or "stopped by SIGINT"
    return "FAILED", user_message(error) or f"{type(error).__name__}: {error}"


def _resume_hint(error: BaseException, run_id: str) -> str:
    """How to resume a run that an error ended."""
    command = f"./launch.sh train --resume {run_id[:8]}"
    if isinstance(error, DivergedError):
        return f"{command} --branch continues from its last good state; change a setting, such as --optim.lr"
    return f"{command} continues this run"
