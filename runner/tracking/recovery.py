"""Recovers the records of runs whose process died: delivers them, and closes the runs. No run stays RUNNING."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import psutil
from filelock import Timeout

from runner.tracking.journal import REMOVED_SUFFIX, Journal
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.process_identity import ProcessIdentity, is_earlier_boot, this_host
from runner.tracking.uploader import EXITED_UNEXPECTEDLY, deliver, short_reason
from runner.utils.console import Terminal
from runner.utils.redaction import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def recover_runs(server: TrackingServer, client: MlflowClient, terminal: Terminal) -> None:
    """Deliver what earlier runs could not, and close runs whose process died or, on another host, fell silent.

    A run whose store does not answer keeps its journal, and a warning is shown.
    """
    for listed in Journal.find_all(server.journals):
        if listed.alive or redact(listed.owner.uri) != redact(server.uri):
            continue
        try:
            with Journal.locked(listed.folder) as journal:
                # It may have been taken over since it was listed.
                if journal is not None and not journal.alive:
                    _close(journal, client, terminal)
        except Timeout:
            continue  # another process delivers it
    for removed in server.journals.glob(f"*{REMOVED_SUFFIX}"):
        shutil.rmtree(removed, ignore_errors=True)
    _close_runs_without_journal(server, client, terminal)


def _close(journal: Journal, client: MlflowClient, terminal: Terminal) -> None:
    """Complete and deliver the journal of a dead process."""
    journal.repair()
    if not journal.ended:
        for name, folder in journal.unlogged_files():
            journal.append({"kind": "artifact", "file": name, "folder": folder})
        status = "FAILED" if _has_failed(journal, client) else "KILLED"
        if status == "KILLED":
            journal.append({"kind": "tags", "values": {"runner.reason": EXITED_UNEXPECTEDLY}})
            terminal.warn(f"closed run {journal.owner.run_id} as KILLED: {EXITED_UNEXPECTEDLY}")
        journal.append({"kind": "end", "status": status, "time": journal.now_ms()})
    try:
        deliver(journal, client)
    except Exception as error:
        terminal.warn(
            f"the records of run {journal.owner.run_id} could not be delivered yet ({short_reason(error)})"
        )
    else:
        for message in journal.messages:
            terminal.line(message)
        if not journal.resumable:
            journal.remove()


def _has_failed(journal: Journal, client: MlflowClient) -> bool:
    """Whether the run's failure reached MLflow while the disk of the journal was full."""
    if any(event["kind"] == "begin" for _, event in journal.pending()):
        return False  # MLflow knows an earlier end, from before the run was resumed
    try:
        return str(client.get_run(journal.owner.run_id).info.status) == "FAILED"
    except Exception:  # the store does not answer
        return False


def dead_runs(server: TrackingServer, client: MlflowClient) -> list[Run]:
    """Runs that are RUNNING in MLflow, have no journal here, and whose process on this host is dead."""
    name = this_host().partition("/")[0]
    return [run for run in running_runs(server, client, name) if _process_is_dead(run)]


def running_runs(server: TrackingServer, client: MlflowClient, host: str = "%") -> list[Run]:
    """Runs of this program that are RUNNING in MLflow and have no journal here.

    Args:
        server: Its root holds the journals.
        client: Of that server.
        host: Name of their host; %: any.
    """
    journals = {journal.owner.run_id for journal in Journal.find_all(server.journals)}
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    condition = f"attributes.status = 'RUNNING' and tags.`runner.host` LIKE '{host}/%'"
    running = client.search_runs(experiments, condition, max_results=1000)
    return [run for run in running if run.info.run_id not in journals]


def _process_is_dead(run: Run) -> bool:
    process = ProcessIdentity.from_tags(run.data.tags)
    if process is not None and is_earlier_boot(process.host):
        return bool(run.info.start_time < psutil.boot_time() * 1000)
    return process is not None and not process.alive


def mark_killed(client: MlflowClient, run_id: str, reason: str = EXITED_UNEXPECTEDLY) -> None:
    """Close a run whose process died and that has no journal."""
    client.set_tag(run_id, "runner.reason", reason)
    client.set_terminated(run_id, "KILLED")


def _close_runs_without_journal(server: TrackingServer, client: MlflowClient, terminal: Terminal) -> None:
    for run in dead_runs(server, client):
        mark_killed(client, run.info.run_id)
        terminal.warn(f"closed run {run.info.run_id} as KILLED: {EXITED_UNEXPECTEDLY}")
