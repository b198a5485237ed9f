"""Checks of what runs have logged: database, runs and journals."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from runner.cli.doctor.findings import Examination, Finding
from runner.tracking import refused
from runner.tracking.journal import Journal
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.process_identity import is_earlier_boot, this_host
from runner.tracking.recovery import dead_runs, mark_killed, recover_runs, running_runs
from runner.utils.console import Terminal, format_duration
from runner.utils.errors import UserError
from runner.utils.file_systems import is_sqlite, sqlite_path
from runner.utils.redaction import error_line, redact

if TYPE_CHECKING:
    from mlflow.entities import Run

RECENT = 120.0
"""Seconds since its last metric in which a run is not closed, whatever a user says of its host."""
SILENT_RUN = 6 * 3600.0
"""Seconds without a metric after which a run of another host is mentioned."""


def check_database(examination: Examination) -> Iterator[Finding]:
    """The embedded database is damaged."""
    path = examination.server.root / "mlflow.db"
    if not (examination.server.embedded and path.exists()):
        return
    try:
        with closing(sqlite3.connect(path)) as connection:
            result = connection.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        result = str(error)
    if result != "ok":
        yield Finding(str(path), f"the database is damaged ({result}); restore it from a backup")


def check_runs(examination: Examination) -> Iterator[Finding]:
    """Runs are RUNNING in MLflow, but their process on this host is dead, and they have no journal."""
    if examination.client is None:
        return
    from mlflow.exceptions import MlflowException

    try:
        dead = dead_runs(examination.server, examination.client)
    except MlflowException as error:  # a damaged table, or the server has gone away since it was connected to
        yield Finding(redact(examination.server.uri), f"cannot be read: {error_line(error)}")
        return
    for run in dead:
        run_id = run.info.run_id
        close = partial(mark_killed, examination.client, run_id)
        yield examination.resolve(
            f"run {run_id[:8]}", "is RUNNING, but its process is dead", close, "closed as KILLED"
        )


def check_runs_of_other_hosts(examination: Examination) -> Iterator[Finding]:
    """Runs are RUNNING on other hosts, which have logged nothing for long, or are gone."""
    if examination.client is None:
        return
    from mlflow.exceptions import MlflowException

    try:
        running = running_runs(examination.server, examination.client)
    except MlflowException:  # reported by `check_runs`
        return
    elsewhere = [(run, run.data.tags["runner.host"]) for run in running]
    elsewhere = [(run, host) for run, host in elsewhere if host != this_host() and not is_earlier_boot(host)]
    for lost in examination.lost_hosts:
        yield from _close_runs_of_lost_host(examination, lost, elsewhere)
    for run, host in elsewhere:
        silence = _seconds_since_last_metric(run)
        if silence > SILENT_RUN and not any(_is_named(host, lost) for lost in examination.lost_hosts):
            yield Finding(
                f"run {run.info.run_id[:8]}",
                f"is RUNNING on {host}, which has logged nothing for {format_duration(silence)}; run"
                f" ./launch.sh doctor there, or, if that host is gone for good, ./launch.sh doctor --lost-host {host}",
            )


def _close_runs_of_lost_host(
    examination: Examination, lost: str, running: Sequence[tuple[Run, str]]
) -> Iterator[Finding]:
    """Close the runs of a host that is gone. Nothing is done if the name fits several, or if it has just logged."""
    of_lost = [(run, host) for run, host in running if _is_named(host, lost)]
    hosts = sorted({host for _, host in of_lost})
    if len(hosts) != 1:
        others = ", ".join(sorted({host for _, host in running})) or "there are none on other hosts"
        which = (
            f"fits several hosts: {', '.join(hosts)}"
            if hosts
            else f"has no RUNNING runs; those have: {others}"
        )
        yield Finding(f"--lost-host {lost}", f"{which}; nothing was closed for it")
        return
    for run, host in of_lost:
        run_id, silence = run.info.run_id, _seconds_since_last_metric(run)
        if silence < RECENT:
            yield Finding(
                f"run {run_id[:8]}",
                f"has logged {silence:.0f} s ago: {host} is not gone, and it stays RUNNING",
            )
            continue
        close = partial(mark_killed, examination.client, run_id, f"its host {host} is gone")
        yield examination.resolve(
            f"run {run_id[:8]}", f"is RUNNING on {host}, which is gone", close, "closed as KILLED"
        )


def _is_named(host: str, name: str) -> bool:
    """Whether a host (name/machine/…) is meant by its name or by more of it."""
    return f"{host}/".startswith(f"{name.rstrip('/')}/")


def _seconds_since_last_metric(run: Run) -> float:
    """Since a run last logged a metric, or began."""
    times = [metric.timestamp for metric in run.data._metric_objs]
    return time.time() - max([run.info.start_time, *times]) / 1000


def check_journals(examination: Examination) -> Iterator[Finding]:
    """Journals of dead processes have events to deliver, or should have been removed."""
    known = Journal.find_all(examination.server.journals)
    # Look at all of them before the first repair: delivering one journal delivers the others too.
    dead = [(journal, len(journal.pending()), journal.ended) for journal in known if not journal.alive]
    for journal, pending, ended in dead:
        if pending or not ended:
            yield _undelivered(examination, journal, pending, ended)
        elif not journal.resumable:
            remove = partial(remove_journal, journal)
            yield examination.resolve(journal.folder, "has nothing left to deliver", remove, "removed")
        elif _database_is_gone(journal, examination.server):
            uri = redact(journal.owner.uri)
            yield Finding(
                str(journal.folder), f"can be resumed, but its database is no longer at {uri}: move it back"
            )


def check_refused(examination: Examination) -> Iterator[Finding]:
    """Records were set aside because their store can never take them."""
    for folder in sorted((examination.server.root / refused.FOLDER).glob("*")):
        if entries := refused.read_refused(folder):
            what = "; ".join(f"{refused.describe(entry)} ({entry['reason']})" for entry in entries)
            yield Finding(
                str(folder),
                f"holds what MLflow does not take: {what}; remove the folder if you do not need it",
            )


def _undelivered(examination: Examination, journal: Journal, pending: int, ended: bool) -> Finding:
    folder, run_id = journal.folder, journal.owner.run_id[:8]
    what = f"{pending} records of run {run_id} wait"
    if redact(journal.owner.uri) != redact(examination.server.uri):
        store = redact(journal.owner.uri)
        return Finding(str(folder), f"{what} for {store}; ./launch.sh sync delivers them")
    if examination.client is None:
        return Finding(str(folder), f"{what} for a store that does not answer")
    deliver = partial(_deliver, examination, journal)
    if ended:
        return examination.resolve(folder, what, deliver, "delivered")
    host = journal.owner.host
    state = "is dead" if host == this_host() else f"on {host} shows no sign of life"
    done = "closed as KILLED, its records delivered"
    return examination.resolve(folder, f"run {run_id} is RUNNING, but its process {state}", deliver, done)


def _database_is_gone(journal: Journal, server: TrackingServer) -> bool:
    """Whether the sqlite database of an interrupted run is missing, as after its folder was moved."""
    uri = journal.owner.uri
    return is_sqlite(uri) and uri != server.uri and not sqlite_path(uri).exists()


def remove_journal(journal: Journal) -> None:
    """Remove a journal, unless another process has taken it over."""
    with Journal.locked(journal.folder) as current:
        if current is not None and not current.alive:
            current.remove()


def _deliver(examination: Examination, journal: Journal) -> None:
    assert examination.client is not None  # noqa: S101 (for types: checked before)
    recover_runs(examination.server, examination.client, Terminal(enabled=False))
    if journal.folder.exists() and (journal.pending() or not journal.ended):
        raise UserError("the store did not take them; try again")
